"""Flat names: `--softmax_variant_attn=consmax` for people who come from nanoGPT and its forks.

Each alias lives with the field, slot or kind that it names; this file only collects them and puts values in place.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from typing import Any

from .config import Config, GPTConfig
from .registry import Strict, kinds, nearest, slot_of, switches
from .yamlfile import Key, parse_value

SECTIONS = tuple(Config.model_fields)
_COMMAND = "command line: "


@dataclass(frozen=True)
class Target:
    """Where a flat name points: nested paths (one for each kind that owns the knob), and whether it is a yes/no."""

    paths: tuple[tuple[str, ...], ...]
    is_bool: bool = False


@dataclass(frozen=True)
class Switch:
    """A yes/no that stands for a value: `on` when true, `off` when false; `default` is what the field says by itself.

    A path that ends in "kind" selects the kind of a slot.
    """

    path: tuple[str, ...]
    on: Any
    off: Any
    default: Any


@cache
def all_switches() -> dict[str, Switch]:
    """Every boolean flat name that is no field itself: those of kinds, and those of fields and slots."""
    found = {}
    for name, (slot, on, off) in switches().items():
        default = slot_of(GPTConfig.model_fields[slot]).default  # type: ignore[union-attr]
        found[name] = Switch(("model", slot, "kind"), on, off, default)

    def walk(cls: type[Strict], path: tuple[str, ...]) -> None:
        for field, info in cls.model_fields.items():
            here, slot, extra = (*path, field), slot_of(info), info.json_schema_extra
            if slot:
                for name, kind in slot.switch:
                    found.setdefault(name, Switch((*here, "kind"), kind, None, slot.default))
                for cls_of_kind in kinds(slot.name).values() if len(here) < 5 else ():
                    walk(cls_of_kind.Config, here)  # type: ignore[attr-defined]
            elif isinstance(info.annotation, type) and issubclass(info.annotation, Strict):
                walk(info.annotation, here)
            elif isinstance(extra, dict):
                for name, value in extra.get("switch", {}).items():  # type: ignore[union-attr]
                    found.setdefault(name, Switch(here, value, None, info.default))

    walk(Config, ())
    return found


@cache
def flat_names() -> dict[str, Target]:
    """Every flat name with its target paths."""
    found: dict[str, Target] = {}

    def add(name: str, path: tuple[str, ...], is_bool: bool) -> None:
        old = found.get(name, Target(()))
        found[name] = Target((*old.paths, path) if path not in old.paths else old.paths, is_bool)

    def walk(cls: type[Strict], path: tuple[str, ...]) -> None:
        for field, info in cls.model_fields.items():
            here, slot = (*path, field), slot_of(info)
            if slot:
                for alias in slot.flat:
                    add(alias, (*here, "kind"), False)
                for kind in kinds(slot.name).values():
                    walk(kind.Config, here)  # type: ignore[attr-defined]
            elif isinstance(info.annotation, type) and issubclass(info.annotation, Strict):
                walk(info.annotation, here)
            elif field not in ("kind", "layers"):
                extra: Any = info.json_schema_extra or {}
                for alias in extra.get("flat", [field]):
                    add(alias, here, info.annotation is bool)

    walk(Config, ())
    return found


def parse_overrides(arguments: Iterable[str], problems: list[str]) -> list[tuple[tuple[Key, ...], Any]]:
    """(path, value) of each `key.path=value`, `--flat_name=value`, `--flat_name value`, `--flag` and `--no-flag`."""
    pairs: list[tuple[tuple[Key, ...], Any]] = []
    queue = list(arguments)
    while queue:
        token = queue.pop(0)
        mark = _COMMAND + token
        name, equals, text = token.removeprefix("--").partition("=")
        if not token.startswith("--"):
            if not equals or not name:
                problems.append(f"{mark}: expected key.path=value or --name=value (a configuration file comes first)")
                continue
        elif not equals:
            negated = next((name[3:] for p in ("no-", "no_") if name.startswith(p) and _is_bool(name[3:])), None)
            if negated:
                name, text = negated, "false"
            elif _is_bool(name):
                text = queue.pop(0) if queue and queue[0].lower() in ("true", "false") else "true"
            elif queue and not queue[0].startswith("--"):
                text = queue.pop(0)
            else:
                known = _all_names()
                problems.append(f"{mark}: needs a value{nearest(name, known) if name not in known else ''}")
                continue
        pairs.append((tuple(Key(part, mark) for part in name.split(".")), _typed(name, text)))
    return pairs


def _typed(name: str, text: str) -> Any:
    """A value as the field takes it: text stays text, True and False are what Python users write for yes and no."""
    target = flat_names().get(name)
    path = target.paths[0] if target else tuple(name.split("."))
    cls: Any = Config
    for part in path[:-1]:
        info = cls.model_fields.get(part) if isinstance(cls, type) and issubclass(cls, Strict) else None
        cls = info.annotation if info else None
    info = cls.model_fields.get(path[-1]) if isinstance(cls, type) and issubclass(cls, Strict) else None
    if info is not None and info.annotation in (str, str | None):
        return None if text == "null" and info.annotation is not str else text
    return parse_value(text.lower() if text in ("True", "False") else text)


def _is_bool(name: str) -> bool:
    return name in all_switches() or (name in flat_names() and flat_names()[name].is_bool)


def _all_names() -> list[str]:
    return [*flat_names(), *all_switches()]


def place(pairs: Iterable[tuple[tuple[Key, ...], Any]], below: dict, problems: list[str]) -> dict:
    """Puts values of one source into a nested tree. `below` is what the source will be merged onto.

    On the command line the last word counts; a file that says the same thing twice contradicts itself.
    """
    pairs = list(pairs)
    kinds_only = [
        (path, value) for path, value in pairs if len(path) > 1 or path[0] in SECTIONS or _names_a_kind(path[0])
    ]
    draft = _place(kinds_only, {}, below, []) if len(kinds_only) < len(pairs) else {}
    return _place(pairs, draft, below, problems)


def _place(pairs: list[tuple[tuple[Key, ...], Any]], draft: dict, below: dict, problems: list[str]) -> dict:
    """`draft` holds the kinds that the pairs choose: the home of a flat name depends on them, wherever they stand."""
    tree: dict = {}
    chosen: dict[str, Key] = {}
    for path, value in pairs:
        key = path[0]
        if len(path) > 1 or key in SECTIONS:
            _set(tree, path, value, problems)
        elif key in all_switches():
            _switch(tree, below, key, value, chosen, problems)
        elif key in flat_names():
            for target in _choose(flat_names()[key].paths, draft or tree, below):
                _set(tree, tuple(Key(part, key.mark) for part in target), value, problems)
        else:
            what = "option --" if key.mark.startswith(_COMMAND) else "key "
            hint = nearest(key, [*_all_names(), *SECTIONS])
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
    in_file = not getattr(last, "mark", _COMMAND).startswith(_COMMAND)
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
    cls: type[Strict] | None = Config
    found: list[str | None] = []
    for i, part in enumerate(path):
        info = cls.model_fields.get(part) if cls else None
        if info is None:
            return None
        slot, kind = slot_of(info), None
        cls = info.annotation if isinstance(info.annotation, type) and issubclass(info.annotation, Strict) else None
        if slot:
            values = (_get(source, path[: i + 1]) for source in (tree, below))
            kind = next((slot.kind_of(value) for value in values if _names_kind(value)), slot.default)
            cls = kinds(slot.name)[kind].Config if kind in kinds(slot.name) else None
        found.append(kind)
    return found


def _names_kind(value: Any) -> bool:
    return isinstance(value, str) or (isinstance(value, dict) and "kind" in value)


def _choose(paths: tuple[tuple[str, ...], ...], tree: dict, below: dict) -> list[tuple[str, ...]]:
    """Of several nested homes of a flat name all that exist in the chosen kinds, else one whose slot is not empty."""
    homes = [path for path in paths if _walk(path, tree, below) is not None]
    return homes or [next((p for p in paths if (_walk(p[:-1], tree, below) or [None])[-1]), paths[0])]


def _switch(tree: dict, below: dict, key: Key, value: Any, chosen: dict[str, Key], problems: list[str]) -> None:
    """True chooses the kind. False only leaves the kind it stands for; another kind chosen elsewhere stays."""
    switch = all_switches()[key]
    path, on, off, default = switch.path, switch.on, switch.off, switch.default
    what = ".".join(path[:-1] if path[-1] == "kind" else path)
    if path[-1] == "kind":
        current = (_walk(path[:-1], tree, below) or [None])[-1]
    else:
        values = (_get(source, path) for source in (tree, below))
        current = next((v for v in values if v is not None), default)
    if not isinstance(value, bool):
        problems.append(f"{key.mark}: {key} must be true or false, not {value!r}")
        return
    kind: Any
    if value and on:
        if what in chosen:
            problems.append(f"{key.mark}: {key} and {chosen[what]} contradict each other: {what} has one value")
        kind, chosen[what] = on, key
    elif not value and off and current == (on or default):
        kind = off
    elif not value and not off and current == on:
        kind = default
    else:
        return
    if kind is None and path[-1] == "kind":  # an optional slot is left empty
        path = path[:-1]
    _set(tree, tuple(Key(p, key.mark) for p in path), kind, problems)


__all__ = ["SECTIONS", "Target", "all_switches", "flat_names", "parse_overrides", "place"]
