"""The `moves:` of a search file: how they are written, and whether each of them exists.

read_moves(raw, problems)       in the order of the file; a problem a line where one is written wrongly
unsigned(text, source)          numbers without the sign of a step
wrong(move, baseline, moves)    what is wrong with a move wherever one starts
"""

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from typing import Any, Literal

import yaml

from gptcore.flat import flat_names
from gptcore.registry import nearest
from gptcore.yamlfile import Key

from .moves import Move, Path, Rejected, apply, label_of, placed
from .point import Point

ROOTS = ("model", "train", "data", "hardware")


def unsigned(text: str, source: str) -> Iterator[str]:
    """Numbers that stand where steps are expected and have no sign: +16 reads as 16 once it is a number."""
    root = yaml.compose(text.replace("\t", " "), Loader=yaml.SafeLoader)
    pairs = [value for key, value in root.value if key.value == "moves"] if isinstance(root, yaml.MappingNode) else []
    while pairs:
        node = pairs.pop()
        for key, value in node.value if isinstance(node, yaml.MappingNode) else ():
            if key.value in ("layers", "change"):
                pairs.append(value)
            elif key.value in ("duplicate", "remove"):
                continue
            for one in value.value if isinstance(value, yaml.SequenceNode) else [value]:
                n = one.value if isinstance(one, yaml.ScalarNode) and not one.style else ""
                if re.fullmatch(r"[0-9.]+(e[-+]?\d+)?", n):
                    yield (
                        f"{source}:{one.start_mark.line + 1}: {key.value}: {n} has no sign: +{n} and -{n} are steps, "
                        f"x{n} is a factor, and {{choices: [{n}]}} sets the value"
                    )


def read_moves(raw: Any, problems: list[str]) -> list[Move]:
    """The moves of a file, in its order, with labels that tell them apart."""
    found: list[Move] = []
    for key, value in keyed(raw) if isinstance(raw, dict) else ():
        if key == "layers":
            found += _layer_moves(key, value, problems)
        elif paths := _paths(key, problems):
            found += _of_paths(paths, key, value, False, problems)
    labels: dict[tuple[str, bool], set] = {}
    for move in found:
        labels.setdefault((move.label, move.per_layer), set()).add(move.paths)
    return [m if len(labels[m.label, m.per_layer]) == 1 else replace(m, label=_long_label(m)) for m in found]


def _long_label(move: Move) -> str:
    return ", ".join(" ".join(path if move.per_layer else path[1:]) for path in move.paths)


def _paths(key: Key, problems: list[str]) -> tuple[Path, ...]:
    paths = tuple(tuple(part.strip().split(".")) for part in key.split(","))
    for path in paths:
        if path == ("train", "seed"):
            problems.append(f"{key.mark}: train.seed is no move: `seeds:` says which seeds every candidate gets")
        elif path[0] not in ROOTS or len(path) < 2:
            target = flat_names().get(path[0]) if len(path) == 1 else None
            hint = f"; it is a flat name, of {'.'.join(target.paths[0])}" if target else nearest(path[0], list(ROOTS))
            problems.append(
                f"{key.mark}: no setting {'.'.join(path)!r}: settings are below {', '.join(ROOTS)}, or `layers`{hint}"
            )
        else:
            continue
        return ()
    return paths


def _layer_moves(key: Key, raw: Any, problems: list[str]) -> Iterator[Move]:
    if not isinstance(raw, dict):
        problems.append(f"{key.mark}: layers: expected {{duplicate: true, remove: true, change: {{...}}}}, not {raw!r}")
        return
    for name, value in keyed(raw):
        if name in ("duplicate", "remove"):
            if value is True:
                yield Move((), str(name), per_layer=True, mark=name.mark)  # type: ignore[arg-type]
            elif value is not False:
                problems.append(f"{name.mark}: layers.{name} must be true or false, not {value!r}")
        elif name == "change" and isinstance(value, dict):
            for path, steps in keyed(value):
                paths = tuple(tuple(part.strip().split(".")) for part in path.split(","))
                yield from _of_paths(paths, path, steps, True, problems)
        else:
            hint = nearest(name, ["duplicate", "remove", "change"]) if name != "change" else ": expected a mapping"
            problems.append(f"{name.mark}: layers.{name}{hint or ' (known: duplicate, remove, change)'}")


def _of_paths(paths: tuple[Path, ...], key: Key, raw: Any, per_layer: bool, problems: list[str]) -> Iterator[Move]:
    label = ", ".join(dict.fromkeys(label_of(path, per_layer) for path in paths))
    if isinstance(raw, dict):
        wrong = [name for name in raw if name != "choices"]
        choices = raw.get("choices")
        if wrong or not isinstance(choices, list) or not choices:
            what = f"unknown key {wrong[0]!r}{nearest(wrong[0], ['choices'])}" if wrong else "choices is a list"
            problems.append(f"{key.mark}: {key}: {what}; expected {{choices: [..]}}, or a list of steps")
            return
        for choice in choices:
            yield Move(paths, "set", choice, f"= {_flow(choice)}", label, per_layer, mark=key.mark)
        return
    for step in raw if isinstance(raw, list) else [raw]:
        found = _step(step)
        if found is None:
            problems.append(
                f"{key.mark}: {key}: {_flow(step)} is no step: +1 and -1 are steps, x2 and x0.5 are factors, and "
                f"{{choices: [{_flow(step)}]}} sets the value"
            )
        else:
            op, value, text = found
            yield Move(paths, op, value, text, label, per_layer, mark=key.mark)


def _flow(value: Any) -> str:
    return json.dumps(value).replace('"', "") if not isinstance(value, str) else value


def _step(raw: Any) -> tuple[Literal["add", "multiply"], Fraction, str] | None:
    """(operation, amount, as written); None if it is no step or changes nothing."""
    if type(raw) in (int, float):
        raw = f"{raw:+}"
    number = re.fullmatch(r"([-+x])(\d+\.?\d*(?:e[-+]?\d+)?|\.\d+)", raw) if isinstance(raw, str) else None
    if number is None:
        return None
    sign, amount = number[1], Fraction(number[2])
    if amount == 0 or (sign == "x" and amount == 1):
        return None
    return ("multiply", amount, raw) if sign == "x" else ("add", -amount if sign == "-" else amount, raw)


def wrong(move: Move, baseline: Point, moves: list[Move]) -> str:
    """What is wrong with a move wherever one starts: no such setting, or a value that cannot stand there; else ''.

    A step that runs out of its range here may be possible elsewhere. A setting that the baseline lacks may be one of a
    kind that another move chooses.
    """
    first = ""
    for point in _reachable(baseline, moves):
        for one in placed([move], point):
            try:
                new, _ = apply(one, point)
            except Rejected as no:
                if no.reason == "does not apply":
                    first = first or no.words
                    continue
                out_of_range = no.reason == "invalid value" and move.op != "set"
                return "" if out_of_range or no.reason == "impossible combination" else no.words
            if all(path[0] in ("train", "data") for path in move.paths) and not move.per_layer:
                if new.config != point.config and new.identity == point.identity:
                    return f"{', '.join(map('.'.join, move.paths))} changes nothing about the result"
            return ""
    return first


def _reachable(baseline: Point, moves: list[Move]) -> Iterator[Point]:
    """The baseline, and the points with another kind next to it."""
    yield baseline
    for move in moves:
        if move.op == "set" and isinstance(move.value, (str, dict)):
            for one in placed([move], baseline):
                try:
                    yield apply(one, baseline)[0]
                except Rejected:
                    continue


def notes(moves: list[Move]) -> Iterator[str]:
    """What a reader of the results has to know."""
    if any(move.paths and all(path[:2] == ("model", "bits") for path in move.paths) for move in moves):
        yield (
            "model.bits are the widths of the deployed model: they change what it costs, and training does not round "
            "to them. A loss at fewer bits is that of the unrounded model, unless the move also changes the bits "
            "of the layers (model.attention.linear.bits, model.mlp.linear.bits of a quantized kind)."
        )


def keyed(mapping: dict) -> Iterator[tuple[Key, Any]]:
    """Its items, keys from Python marked as given."""
    for key, value in mapping.items():
        yield key if isinstance(key, Key) else Key(key, "given"), value


__all__ = ["keyed", "notes", "read_moves", "unsigned", "wrong"]
