"""From the flags of the classic fork to the names of this program, or to a problem that says why there is none.

Forms of an entry under `translated` in classic_flags.yaml:

    values: {theirs: {name: ours}}   what a value stands for; a name with a ? gives way to what is said by itself
    parts: [name, ...]               a list, one name for each of its elements
    path: nested.path                the same value elsewhere
    layers: name                     one value of `name` a layer, cycled
"""

import json
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from .classic import Places, flags
from .config import LAYER_FIELDS, GPTConfig
from .flat import SECTIONS, all_switches, flat_names
from .registry import kinds, slot_of
from .yamlfile import Key, parse_value

Pair = tuple[tuple[Key, ...], Any]
Place = Callable[[Iterable[Pair], dict, list[str]], dict]
BITS = 8  # of a place that is rounded and says no more: the default there


def translate(pairs: Iterable[Pair], below: dict, problems: list[str], place: Place) -> list[Pair]:
    """The pairs in names of this program. What has no counterpart becomes a problem and is left out.

    `below` and `place` as in `placing.place`.
    """
    pairs = [_in_our_words(path, value) for path, value in pairs]
    # Of several switches one may change the meaning of another; without that the list is not read.
    switches = {str(path[0]) for path, _ in pairs if len(path) == 1 and path[0] in all_switches()}
    if len(switches) < 2 and all(_is_ours(path) for path, _ in pairs):
        return pairs
    known = flags()
    pairs = _together(pairs)
    result: list[Pair] = []
    weak: list[Pair] = []
    layers: dict[str, tuple[Key, Any]] = {}
    for path, value in pairs:
        key = path[0]
        if _is_ours(path) or not known.knows(key) or key in known.places:
            result.append((path, value))
        elif key in known.refused:
            problems.append(
                f"{key.mark}: {key} is a flag of the classic fork without counterpart here: {known.refused[key]}"
            )
        elif "layers" in known.translated[key]:
            layers[known.translated[key]["layers"]] = (key, value)
        else:
            for name, ours in _meaning(key, value, problems):
                said = result if not name.endswith("?") else weak
                said.append((_path(name, key.mark), ours))
    for group in known.groups:
        result = _rounded(group, result, problems)
    said_names = {path for path, _ in result}
    result += [_in_our_words(path, value) for path, value in weak if path not in said_names]
    return result + _scheduled(layers, result, below, problems, place) if layers else result


def _is_ours(path: tuple[Key, ...]) -> bool:
    return len(path) > 1 or path[0] in SECTIONS or path[0] in flat_names() or path[0] in all_switches()


def _in_our_words(path: tuple[Key, ...], value: Any) -> Pair:
    """A value by its name here, e.g. that of a kind."""
    target = flat_names().get(path[0]) if len(path) == 1 else None
    plain = isinstance(value, (str, int, float)) and not isinstance(value, bool)
    return path, target.values.get(str(value), value) if target and plain else value


def _together(pairs: list[Pair]) -> list[Pair]:
    """Flags that mean something else together, by that."""
    for rule in flags().together:
        given = {path[0]: value for path, value in pairs if len(path) == 1 and path[0] in rule["given"]}
        if given == rule["given"]:
            mark = list(given)[-1].mark
            pairs = [(path, value) for path, value in pairs if len(path) > 1 or path[0] not in given]
            pairs += [(_path(name, mark), value) for name, value in rule["means"].items()]
    return pairs


def _path(name: str, mark: str) -> tuple[Key, ...]:
    return tuple(Key(part, mark) for part in name.removesuffix("?").split("."))


def _text(value: Any) -> str:
    return json.dumps(value) if value is None or isinstance(value, bool) else str(value)


def _meaning(key: Key, value: Any, problems: list[str]) -> Iterator[tuple[str, Any]]:
    """(name or nested path, value) of everything that a flag stands for; a name that ends in ? is only a proposal."""
    entry = flags().translated[key]
    if "path" in entry:
        path = tuple(entry["path"].split("."))
        words = next((target.values for target in flat_names().values() if path in target.paths), {})
        yield entry["path"], words.get(value, value) if isinstance(value, str) else value
    elif "parts" in entry:
        values = value.split() if isinstance(value, str) else value
        if not isinstance(values, list) or len(values) != len(entry["parts"]):
            problems.append(f"{key.mark}: {key} takes {len(entry['parts'])} values, not {value!r}")
            return
        yield from zip(entry["parts"], values, strict=True)
    elif _text(value) in entry["values"]:
        yield from entry["values"][_text(value)].items()
    else:
        why = entry.get("why") or f"it is {' or '.join(entry['values'])}"
        problems.append(f"{key.mark}: {key}, a flag of the classic fork, cannot be {_text(value)!r} here: {why}")


def _rounded(group: Places, pairs: list[Pair], problems: list[str]) -> list[Pair]:
    """There a yes/no tells where to round and a number to how many bits; here the number of a place tells both."""
    said = {str(path[0]): (path[0], value) for path, value in pairs if len(path) == 1}
    yes = {name: said[name] for name in (group.everywhere, *group.each) if name in said}
    if not yes:
        return pairs
    for key, value in yes.values():
        if not isinstance(value, bool):
            problems.append(f"{key.mark}: {key} must be true or false, not {value!r}")
    everywhere = group.everywhere in yes and yes[group.everywhere][1] is True
    gone = {*yes, *(() if everywhere else (group.bits,))}
    bits = said[group.bits][1] if group.bits in said else BITS
    result: list[Pair] = []
    if everywhere and group.bits not in said:
        result.append(((Key(group.bits, yes[group.everywhere][0].mark),), BITS))
    for name in group.each:
        own, on = group.own_bits(name), name in yes and yes[name][1] is True
        if on and own not in said and not everywhere:
            result.append(((Key(own, yes[name][0].mark),), bits))
        elif own in said and not on and not everywhere:
            gone.add(own)
            if name not in yes:
                key = said[own][0]
                problems.append(f"{key.mark}: {key} has no effect without {name}, since other places are chosen")
    return [(path, value) for path, value in pairs if len(path) > 1 or path[0] not in gone] + result


def _scheduled(
    lists: dict[str, tuple[Key, Any]], pairs: list[Pair], below: dict, problems: list[str], place: Place
) -> list[Pair]:
    """model.layers of flags that list one value a layer."""
    tree = place(pairs, below, [])
    mark = next(iter(lists.values()))[0].mark
    models = [source["model"] for source in (tree, below) if isinstance(source.get("model"), dict)]
    if any(model.get("layers") for model in models):
        problems.append(f"{mark}: {next(iter(lists.values()))[0]} and model.layers contradict each other")
        return []
    count = next((m["n_layer"] for m in models if "n_layer" in m), GPTConfig.model_fields["n_layer"].default)
    if not isinstance(count, int):
        return []
    others = [(path, value) for path, value in pairs if len(path) > 1 or path[0] not in lists]
    layers = []
    for i in range(count):
        chosen: list[Pair] = []
        for name, (key, values) in lists.items():
            values = values if isinstance(values, list) else str(values).split()
            value = values[i % len(values)] if values else None
            chosen.append(((Key(name, key.mark),), parse_value(value) if isinstance(value, str) else value))
        changed = {flat_names()[name].paths[0][1] for name in lists}
        here = place(others + chosen, below, []).get("model", {})
        layers.append({Key(field, mark): _fitting(field, here[field]) for field in LAYER_FIELDS if field in changed})
    return [((Key("model", mark), Key("layers", mark)), layers)]


def _fitting(field: str, value: Any) -> Any:
    """Without the knobs that the kind of this layer lacks, which are for other layers."""
    slot = slot_of(GPTConfig.model_fields[field])
    kind = slot.kind_of(value) if slot else None
    if slot is None or not isinstance(value, dict) or kind not in kinds(slot.name):
        return value
    return {key: child for key, child in value.items() if key in kinds(slot.name)[kind].Config.model_fields}


__all__ = ["translate"]
