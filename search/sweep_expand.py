"""What an entry of a sweep file stands for: named groups, alternatives, ranges and conditions become drafts of runs.

The order is that of the file, the last name fastest; of groups, what refers to them comes first. `search.sweepfile`
describes the formats.
"""

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import islice, product
from pathlib import Path
from typing import Any

from gptcore.flat import all_switches, flat_names
from gptcore.yamlfile import Key

GROUP_LISTS = ("named_static_groups", "named_variation_groups")
REFERENCES = ("named_group_static", "named_group_variations", "named_group_alternates")
BESIDE = ("named_group_settings", "parameter_groups")
MOST = 100_000  # runs of a file; more are a mistake in it
RUN_NAME = "${RUN_NAME}"
YES, NO = ("true", "True", "yes", "on"), ("false", "False", "no", "off")
NUMBER = re.compile(r"[-+]?(\d+(\.\d*)?|\.\d+)([eE][-+]?\d+)?")


@dataclass(frozen=True, slots=True)
class Draft:
    """A run as a file says it: settings by name, not yet checked. `groups` are named groups that it is made of.

    `title` is what the classic runner calls it; `titled` are the settings that hold it.
    """

    settings: Mapping[Key, Any]
    groups: tuple[str, ...] = ()
    grouped: frozenset[str] = frozenset()  # settings that a static group says
    common: frozenset[str] = frozenset()
    name: str = ""
    title: str = ""
    titled: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Part:
    """A draft whose settings may still hold several values each, and alternatives still to come, level by level."""

    draft: Draft
    levels: tuple[list[dict], ...] = ()


class Wrong(Exception):
    """What is wrong with an entry, with its place; the next entry may be read nevertheless."""


def classic(entry: dict, source: str, problems: list[str]) -> list[Draft]:
    groups = _Groups(entry)
    node = {key: value for key, value in entry.items() if key not in (*GROUP_LISTS, "common_group")}
    common = _common(entry, problems)
    known = set(_names(entry))
    lasts = (last.draft for part in groups.parts(node) for last in groups.unfold(part))
    return few((draft for last in lasts for draft in combinations(last, common, known)), source)


def entitled(draft: Draft, stem: str) -> Draft:
    """The draft with its title, also in place of `${RUN_NAME}`: its groups, then its values, with dashes.

    What groups and the common group say is not part of it, nor are values that hold the title themselves.
    """
    titled = frozenset(str(k) for k, v in draft.settings.items() if isinstance(v, str) and RUN_NAME in v)
    hidden = draft.common | draft.grouped | titled
    parts = [*dict.fromkeys(draft.groups), *(str(v) for k, v in draft.settings.items() if k not in hidden)]
    title = "-".join([stem, *parts])
    settings = {key: _filled(value, title) for key, value in draft.settings.items()}
    return replace(draft, settings=settings, title=title, titled=titled)


def _filled(value: Any, title: str) -> Any:
    if isinstance(value, str):
        return value.replace(RUN_NAME, title)
    if isinstance(value, dict):
        return {key: _filled(child, title) for key, child in value.items()}
    return [_filled(child, title) for child in value] if isinstance(value, list) else value


def few(drafts: Iterable[Draft], source: str | Path) -> list[Draft]:
    found = list(islice(drafts, MOST + 1))
    if len(found) > MOST:
        raise Wrong(f"{source}:1: more than {MOST:,} runs")
    return found


def _names(value: Any) -> Iterator[str]:
    """Everything that is a key somewhere."""
    if isinstance(value, dict):
        yield from map(str, value)
    for child in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _names(child)


def _common(entry: dict, problems: list[str]) -> dict[Key, Any]:
    found = entry.get("common_group") or {}
    if not isinstance(found, dict):
        problems.append(f"{key_of(entry, 'common_group').mark}: common_group: expected a mapping of names to values")
        return {}
    common = {}
    for key, value in found.items():
        options = _options(key, value)
        if len(options) != 1:
            problems.append(f"{key.mark}: common_group: {key} has {len(options)} values; what all runs share has one")
        common[key] = typed(key, options[0])
    return common


class _Groups:
    """The named groups of an entry, and what refers to them."""

    def __init__(self, entry: dict):
        self.static, self.variation = (self._listed(entry, name) for name in GROUP_LISTS)

    @staticmethod
    def _listed(entry: dict, name: str) -> dict[str, dict]:
        found: dict[str, dict] = {}
        listed = entry.get(name) or []
        for group in listed if isinstance(listed, list) else [listed]:
            if not isinstance(group, dict) or not isinstance(group.get("named_group"), str):
                mark = next(iter(group)).mark if isinstance(group, dict) and group else key_of(entry, name).mark
                raise Wrong(f"{mark}: {name}: each entry is a mapping with the name of the group, named_group: NAME")
            if group["named_group"] in found:
                raise Wrong(f"{key_of(group, 'named_group').mark}: a second group {group['named_group']!r} in {name}")
            found[group["named_group"]] = {key: value for key, value in group.items() if key != "named_group"}
        return found

    def parts(self, node: dict, inside: tuple[str, ...] = ()) -> list[Part]:
        """What a mapping says: its own settings joined with those of the groups it names."""
        settings = {key: value for key, value in node.items() if key not in (*REFERENCES, *BESIDE)}
        part = Part(Draft(settings), self._levels(node))
        if (more := node.get("named_group_settings")) is not None:
            if not isinstance(more, dict):
                raise Wrong(f"{key_of(node, 'named_group_settings').mark}: named_group_settings: expected a mapping")
            part = join(part, Part(Draft(more)))
        found = [part]
        names = {name: self._names(node, name) for name in REFERENCES}
        if names["named_group_alternates"]:
            others = [p for name in names["named_group_alternates"] for p in self._resolve(name, inside)]
            found = [join(part, other) for other in others]
        for name in names["named_group_static"]:
            (group,) = self._resolve(name, inside, "static")
            found = [join(one, group) for one in found]
        for name in names["named_group_variations"]:
            several = self._resolve(name, inside, "variation")
            found = [join(one, other) for one in found for other in several]
        return found

    def unfold(self, part: Part) -> Iterator[Part]:
        """The part with every choice of its alternatives."""
        if not part.levels:
            yield part
            return
        first, *rest = part.levels
        for node in first:
            for sub in self.parts(node):
                joined = join(Part(part.draft), sub)
                yield from self.unfold(replace(joined, levels=(*joined.levels, *rest)))

    @staticmethod
    def _names(node: dict, reference: str) -> list[Key]:
        said = node.get(reference)
        listed = [] if said is None else said if isinstance(said, list) else [said]
        if any(not isinstance(name, str) for name in listed):
            raise Wrong(f"{key_of(node, reference).mark}: {reference}: expected names of groups, not {said!r}")
        return [Key(name, key_of(node, reference).mark) for name in listed]

    @staticmethod
    def _levels(node: dict) -> tuple[list[dict], ...]:
        said = node.get("parameter_groups")
        listed = [] if said is None else said if isinstance(said, list) else [said]
        if any(not isinstance(group, dict) for group in listed):
            raise Wrong(f"{key_of(node, 'parameter_groups').mark}: parameter_groups: expected mappings, not {said!r}")
        return (listed,) if listed else ()

    def _resolve(self, name: Key, inside: tuple[str, ...], kind: str = "") -> list[Part]:
        where = {"static": self.static, "variation": self.variation, "": self.static | self.variation}[kind]
        if name not in where:
            known = ", ".join(where) or "none"
            raise Wrong(f"{name.mark}: no {kind + ' ' if kind else ''}group {str(name)!r} (known: {known})")
        if name in inside:
            raise Wrong(f"{name.mark}: group {str(name)!r} refers to itself: {' > '.join((*inside, name))}")
        found = self.parts(where[name], (*inside, str(name)))
        if name not in self.static or kind == "variation":
            return found
        if len(found) != 1:
            raise Wrong(f"{name.mark}: group {str(name)!r} is static and stands for {len(found)} alternatives")
        draft = found[0].draft
        named = replace(draft, groups=(*draft.groups, str(name)), grouped=draft.grouped | set(map(str, draft.settings)))
        return [replace(found[0], draft=named)]


def join(a: Part, b: Part) -> Part:
    """Both together. Wrong where they contradict each other."""
    x, y = a.draft, b.draft
    for key, value in y.settings.items():
        if key in x.settings and x.settings[key] != value:
            first = next(k for k in x.settings if k == key)
            raise Wrong(f"{key.mark}: {key} is {value!r} here and {x.settings[key]!r} at {first.mark}")
    draft = Draft(
        {**x.settings, **y.settings}, (*x.groups, *y.groups), x.grouped | y.grouped, x.common | y.common,
        x.name or y.name,
    )  # fmt: skip
    return Part(draft, (*a.levels, *b.levels))


def combinations(draft: Draft, shared: Mapping[Key, Any], known: set[str]) -> Iterator[Draft]:
    """Every combination of the values of a draft, then of the conditional ones, in the order in which they stand.

    `shared` is the common group; conditions may be on the names in `known`.
    """
    conditional = {k: v for k, v in draft.settings.items() if isinstance(v, dict) and "conditions" in v}
    plain = {k: _options(k, v) for k, v in draft.settings.items() if k not in conditional}
    rules = [(key, _clauses(key, spec, known), _options(key, spec.get("options"))) for key, spec in conditional.items()]
    for key in shared:
        if key in plain and [typed(key, v) for v in plain[key]] != [shared[key]]:
            own = next(k for k in plain if k == key)
            raise Wrong(f"{own.mark}: {key} is part of common_group ({key.mark}) and must not be said again")
    for values in product(*plain.values()):
        found = [{**shared, **{key: typed(key, value) for key, value in zip(plain, values, strict=True)}}]
        for key, clauses, options in rules:
            held = [(said, any(_holds(clause, said) for clause in clauses)) for said in found]
            found = [
                one
                for said, holds in held
                for one in ([{**said, key: typed(key, option)} for option in options] if holds else [said])
            ]
        for settings in found:
            yield replace(draft, settings=settings, common=frozenset(map(str, shared)))


def _options(key: Key, value: Any) -> list[Any]:
    """The values that a setting takes."""
    if isinstance(value, dict) and "range" in value:
        return _range(key, value["range"])
    if not isinstance(value, list):
        return [value]
    if not value:
        raise Wrong(f"{key.mark}: {key}: an empty list stands for no run at all")
    return [v for one in value for v in (_options(key, one) if isinstance(one, dict) else [one])]


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
    count = math.floor((end - start) / step + 1e-9) + 1
    if count > MOST:
        raise Wrong(f"{key.mark}: {key}: range: {count:,} values; at most {MOST:,}")
    if all(isinstance(number, int) for number in (start, end, step)):
        return [start + i * step for i in range(count)]
    return [float(f"{start + i * step:.12g}") for i in range(count)]  # 0.1 + 2 * 0.1 is meant to be 0.3


def _clauses(key: Key, spec: dict, known: set[str]) -> list[dict[Key, Any]]:
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


def _holds(clause: Mapping[Key, Any], said: Mapping[Key, Any]) -> bool:
    return all(name in said and said[name] == value for name, value in clause.items())


def _number(value: Any) -> int | float | None:
    if isinstance(value, str) and NUMBER.fullmatch(value):
        return int(value) if re.fullmatch(r"[-+]?\d+", value) else float(value)
    return value if isinstance(value, (int, float)) and not isinstance(value, bool) else None


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
