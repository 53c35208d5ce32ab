"""Puts what one source says - a file, or the command line - into a nested tree: flat names find their homes here.

A knob's home depends on the kinds that are chosen, by the same source in any order, or by what it builds on.
"""

from collections.abc import Iterable
from typing import Any

from .config import Config
from .flat import COMMAND, SECTIONS, Switch, aliases, all_names, all_switches, flat_names
from .registry import Strict, kinds, nearest, slot_of
from .translating import translate
from .yamlfile import Key


def place(pairs: Iterable[tuple[tuple[Key, ...], Any]], below: dict, problems: list[str]) -> dict:
    """Puts values of one source into a nested tree. `below` is what the source will be merged onto.

    On the command line the last word counts; a file that says the same thing twice contradicts itself.
    """
    pairs = translate(pairs, below, problems, place)
    kinds_only = [
        (path, value) for path, value in pairs if len(path) > 1 or path[0] in SECTIONS or _names_a_kind(path[0])
    ]
    return _place(pairs, _place(kinds_only, {}, below, []), below, problems)


def _place(pairs: list[tuple[tuple[Key, ...], Any]], draft: dict, below: dict, problems: list[str]) -> dict:
    """`draft` holds the kinds that the pairs choose: the home of a flat name depends on them, wherever they stand."""
    tree: dict = {}
    said = {path[0]: value for path, value in pairs if path[0] in all_switches()}  # the last word on each
    for path, value in pairs:
        key = path[0]
        if len(path) > 1 or key in SECTIONS:
            _set(tree, path, value, problems)
        elif key in all_switches():
            _switch(tree, draft or tree, below, key, said, problems)
        elif key in flat_names():
            for target in _choose(key, draft or tree, below, problems):
                empty = value is None and target[-1] == "kind"  # an optional slot without a kind
                _set(tree, tuple(Key(part, key.mark) for part in target[: -1 if empty else None]), value, problems)
        else:
            what = "option --" if key.mark.startswith(COMMAND) else "key "
            hint = nearest(key, [*all_names(), *SECTIONS])
            problems.append(f"{key.mark}: unknown {what}{key}{hint}")
    return tree


def _names_a_kind(name: str) -> bool:
    target = flat_names().get(name)
    return name in all_switches() or (target is not None and target.paths[0][-1] == "kind")


def _set(tree: dict, path: tuple[Key, ...], value: Any, problems: list[str]) -> None:
    """Sets a leaf, or every leaf of a mapping."""
    for part in path[:-1]:
        node = tree.get(part)
        if isinstance(node, str):  # a kind written as its bare name
            node = {Key("kind", part.mark): node}
        if not isinstance(node, dict):
            node = {}
        tree.pop(part, None)
        tree[part] = node
        tree = node
    last = path[-1]
    if isinstance(value, dict) and isinstance(tree.get(last), (dict, str)):
        for key, child in value.items():
            _set(tree, (last, key), child, problems)
        return
    earlier = next((key for key in tree if key == last), None)
    in_file = not getattr(last, "mark", COMMAND).startswith(COMMAND)
    if earlier is not None and in_file and not isinstance(tree[last], dict):
        problems.append(f"{last.mark}: {last} is given twice, first at {earlier.mark}")
    tree.pop(last, None)
    tree[last] = _copy(value)  # the tree is written to, what was read is not


def _copy(value: Any) -> Any:
    """Own mappings all the way down, with the same keys and their marks."""
    return {key: _copy(child) for key, child in value.items()} if isinstance(value, dict) else value


def _get(tree: Any, path: tuple[str, ...]) -> Any:
    for part in path:
        tree = tree.get(part) if isinstance(tree, dict) else None
    return tree


def _walk(path: tuple[str, ...], tree: dict, below: dict) -> list[str | None] | None:
    """The kind chosen at each step (None where there is no slot), by this source, by what is below it, or by default.

    None as a whole when the chosen kinds have no such path.
    """
    steps = _steps(path, tree, below)
    return None if steps is None else [kind for kind, _ in steps]


def _steps(path: tuple[str, ...], tree: dict, below: dict) -> list[tuple[str | None, type[Strict]]] | None:
    """As `_walk`, and with each kind the class that has this part of the path as a field."""
    cls: type[Strict] | None = Config
    found: list[tuple[str | None, type[Strict]]] = []
    for i, part in enumerate(path):
        info = cls.model_fields.get(part) if cls else None
        if cls is None or info is None:
            return None
        slot, kind, holder = slot_of(info), None, cls
        cls = info.annotation if isinstance(info.annotation, type) and issubclass(info.annotation, Strict) else None
        if slot:
            values = (_get(source, path[: i + 1]) for source in (tree, below))
            kind = next((slot.kind_of(value) for value in values if _names_kind(value)), slot.default)
            cls = slot.choices()[kind].Config if kind in slot.choices() else None
        found.append((kind, holder))
    return found


def _names_kind(value: Any) -> bool:
    return isinstance(value, str) or (isinstance(value, dict) and "kind" in value)


def _choose(name: Key, tree: dict, below: dict, problems: list[str]) -> list[tuple[str, ...]]:
    """Of several nested homes of a flat name all that exist in the chosen kinds, else one whose slot is not empty."""
    paths = flat_names()[name].paths
    homes = {path: steps[-1][1] for path in paths if (steps := _steps(path, tree, below)) is not None}
    own = [path for path, holder in homes.items() if path[-1] == "kind" or name in aliases(holder, path[-1])]
    if homes and not own:  # the nested name exists, but is that of another kind's knob
        path, holder = next(iter(homes.items()))
        kind = holder.model_fields["kind"].default
        hint = ", ".join(aliases(holder, path[-1])) or ".".join(path)
        problems.append(f"{name.mark}: {name} is no knob of {'.'.join(path[:-1])}: {kind}; of that it is {hint}")
    return own if homes else [next((p for p in paths if (_walk(p[:-1], tree, below) or [None])[-1]), paths[0])]


def _switch(tree: dict, draft: dict, below: dict, key: Key, said: dict[Key, Any], problems: list[str]) -> None:
    """True chooses the kind, several at once the kind that joins them. False only leaves the kind it stands for."""
    switch, value = all_switches()[key], said[key]
    if not isinstance(value, bool):
        problems.append(f"{key.mark}: {key} must be true or false, not {value!r}")
        return
    # The slot itself tells which home exists: an empty one has no `kind` yet.
    homes = [path for path in switch.paths if _walk(path[:-1] if switch.slot else path, draft, below) is not None]
    path = (homes or switch.paths)[0]
    rivals = [name for name, yes in said.items() if yes is True and _stands_for(name, path)]
    if key in rivals:
        choice = switch.on if len(rivals) == 1 else _joined(switch.slot, [all_switches()[n].on for n in rivals])
        if choice is None:
            others = " and ".join(name for name in rivals if name != key)
            what = ".".join(path[:-1] if switch.slot else path)
            problems.append(f"{key.mark}: {key} and {others} contradict each other: {what} has one value")
        elif key == rivals[0]:
            _put(tree, path, choice, key.mark, problems)
    elif not value and not rivals:
        said_kind = _get(draft, path[:-1]) if switch.slot else None
        chosen = said_kind.get("kind") if isinstance(said_kind, dict) else said_kind
        if chosen in (None, switch.off or switch.default) or hasattr(kinds(str(switch.slot))[chosen], "joined"):
            _leave(tree, below, path, switch, key.mark, problems)  # else the source itself says what to have instead


def _stands_for(name: str, path: tuple[str, ...]) -> bool:
    switch = all_switches()[name]
    return switch.on is not None and path in switch.paths


def _joined(slot: str | None, names: list[str]) -> dict[str, Any] | None:
    """The configuration that holds several kinds of one slot, by the first kind that can join them."""
    for kind, cls in kinds(slot).items() if slot else ():
        fields = cls.joined(names) if hasattr(cls, "joined") else None
        if fields is not None:
            return {"kind": kind} | {field: {"kind": name} for field, name in fields.items()}
    return None


def _leave(tree: dict, below: dict, path: tuple[str, ...], switch: Switch, mark: str, problems: list[str]) -> None:
    """Takes back what a switch stands for, where it is in force; another value chosen elsewhere stays."""
    if switch.slot:
        current = (_walk(path[:-1], tree, below) or [None])[-1]
    else:
        values = (_get(source, path) for source in (tree, below))
        current = next((v for v in values if v is not None), switch.default)
    joining: Any = kinds(switch.slot).get(current) if switch.slot and current else None
    if current == (switch.on or switch.default):
        instead = switch.off or switch.default
        if instead == current:
            where = ".".join(path[:-1] if switch.slot else path)
            problems.append(f"{mark}: false alone leaves nothing in the place of {current!r}: choose another {where}")
        _put(tree, path, instead, mark, problems)
    elif switch.on and hasattr(joining, "joined") and (fields := joining.joined([switch.on])):
        place = next(field for field, kind in fields.items() if kind == switch.on)
        inner = (*path[:-1], place)
        if (_walk(inner, tree, below) or [None])[-1] == switch.on:
            _put(tree, (*inner, "kind"), joining.joined([])[place], mark, problems)


def _put(tree: dict, path: tuple[str, ...], value: Any, mark: str, problems: list[str]) -> None:
    """Sets a value at a path, or the whole of a slot; null empties an optional slot."""
    if path[-1] == "kind" and (value is None or isinstance(value, dict)):
        path = path[:-1]
    _set(tree, tuple(Key(part, mark) for part in path), _marked(value, mark), problems)


def _marked(value: Any, mark: str) -> Any:
    return {Key(k, mark): _marked(v, mark) for k, v in value.items()} if isinstance(value, dict) else value


__all__ = ["place"]
