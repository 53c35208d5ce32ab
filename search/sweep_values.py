"""What a setting of a sweep file stands for: one value or several, a range, or conditions with options.

`search.sweepfile` describes the formats.
"""

import math
import re
from collections.abc import Mapping
from typing import Any

from gptcore.flat import all_switches, flat_names
from gptcore.yamlfile import Key

MOST = 100_000  # runs of a file; more are a mistake in it
YES, NO = ("true", "True", "yes", "on"), ("false", "False", "no", "off")
LARGEST = 1e300
NUMBER = re.compile(r"[-+]?(\d+(\.\d*)?|\.\d+)([eE][-+]?\d+)?")


class Wrong(Exception):
    """What is wrong with an entry, with its place, a line each; the next entry may be read nevertheless."""

    @property
    def lines(self) -> list[str]:
        return str(self).splitlines()


def values_of(key: Key, value: Any) -> list[Any]:
    """The values that a setting takes."""
    if isinstance(value, dict) and "range" in value:
        return _range(key, value["range"])
    if not isinstance(value, list):
        return [value]
    if not value:
        raise Wrong(f"{key.mark}: {key}: an empty list stands for no run at all")
    return [v for one in value for v in (values_of(key, one) if isinstance(one, dict) else [one])]


def _range(key: Key, said: Any) -> list[int | float]:
    known = ("start", "end", "step")
    if not isinstance(said, dict) or not {"start", "end"} <= set(said) <= set(known):
        raise Wrong(f"{key.mark}: {key}: range: expected start, end and perhaps step")
    numbers = {name: _number(value) for name, value in said.items()}
    if wrong := [name for name, number in numbers.items() if number is None]:
        raise Wrong(f"{key.mark}: {key}: range: {wrong[0]} is no number: {said[wrong[0]]!r}")
    start, end = numbers["start"], numbers["end"]
    step = numbers.get("step", 1 if isinstance(start, int) else 0.1)
    assert start is not None and end is not None and step is not None
    if step == 0 or (end - start) / step < 0:
        raise Wrong(f"{key.mark}: {key}: range: no number from {start} to {end} by {step}")
    if (end - start) / step > MOST:
        raise Wrong(f"{key.mark}: {key}: range: more than {MOST:,} values")
    count = math.floor((end - start) / step + 1e-9) + 1
    if all(isinstance(number, int) for number in (start, end, step)):
        return [start + i * step for i in range(count)]
    return [float(f"{start + i * step:.12g}") for i in range(count)]  # 0.1 + 2 * 0.1 is meant to be 0.3


def clauses_of(key: Key, spec: dict, known: set[str]) -> list[dict[Key, Any]]:
    """Of which any one must hold as a whole."""
    said = spec["conditions"]
    if "options" not in spec or set(spec) - {"conditions", "options"}:
        raise Wrong(f"{key.mark}: {key}: expected conditions and options, nothing else")
    if isinstance(said, dict):
        clauses = [said]
    elif isinstance(said, list) and said and all(isinstance(one, dict) for one in said):
        clauses = said
    elif isinstance(said, list) and all(isinstance(p, list) and len(p) == 2 and isinstance(p[0], str) for p in said):
        clauses = [{Key(name, key.mark): value for name, value in said}]
    else:
        raise Wrong(f"{key.mark}: {key}: conditions: expected [[name, value], ...] or mappings, not {said!r}")
    for name in (name for clause in clauses for name in clause):
        if name not in known:
            raise Wrong(f"{key.mark}: {key}: a condition on {name}, which this entry does not set")
    return [{name: typed(name, value) for name, value in clause.items()} for clause in clauses]


def holds(clause: Mapping[Key, Any], said: Mapping[Key, Any]) -> bool:
    return all(name in said and said[name] == value for name, value in clause.items())


def _number(value: Any) -> int | float | None:
    """None for what is no number, or too large to count with."""
    if isinstance(value, str) and NUMBER.fullmatch(value):
        large = abs(float(value)) >= LARGEST
        value = None if large else int(value) if re.fullmatch(r"[-+]?\d+", value) else float(value)
    number = isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < LARGEST
    return value if number else None


def typed(name: str, value: Any) -> Any:
    """A value of the classic formats as its setting takes it: numbers and yes/no that are written as text."""
    if isinstance(value, list):
        return [typed(name, one) for one in value]
    target = flat_names().get(name)
    if not isinstance(value, str) or (target is not None and target.is_text) or "." in name:
        return value
    if name in all_switches() or (target is not None and target.is_bool):
        return True if value in YES else False if value in NO else value
    number = _number(value)
    return value if number is None else number


def key_of(entry: dict, name: str) -> Key:
    """The key as it was written, with its place."""
    return next((key for key in entry if key == name), next(iter(entry)))
