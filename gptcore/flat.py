"""Flat names: `--softmax_variant_attn=consmax` for people who come from nanoGPT and its forks.

Each alias lives with the field, slot or kind that it names; this file only collects them.
"""

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, Literal, get_args, get_origin

from .classic import classic_flag
from .config import Config, GPTConfig
from .registry import Slot, Strict, nearest, slot_of, switches
from .yamlfile import Key, parse_value

SECTIONS = tuple(Config.model_fields)
COMMAND = "command line: "


@dataclass(frozen=True)
class Target:
    """Where a flat name points: nested paths (one for each kind that owns the knob), and what may stand there.

    `values` are words of the forks for values that have other names here.
    """

    paths: tuple[tuple[str, ...], ...]
    is_bool: bool = False
    is_text: bool = False
    default: Any = None
    values: dict[str, str] = dataclasses.field(default_factory=dict)


@dataclass(frozen=True)
class Switch:
    """A yes/no that stands for a value: `on` when true, `off` when false; `default` is what the field says by itself.

    `paths` as those of a `Target`; they end in "kind" where the kind of `slot` is selected.
    """

    paths: tuple[tuple[str, ...], ...]
    on: Any
    off: Any
    default: Any
    slot: str | None = None


def configs_at(slot: Slot) -> list[type[Strict]]:
    """What may stand in a slot. A kind that holds others of its slot comes last: knobs are at home in the plain one."""

    def holds_others(config: type[Strict]) -> bool:
        return any(inner.name == slot.name for inner in map(slot_of, config.model_fields.values()) if inner)

    return sorted((cls.Config for cls in slot.choices().values()), key=holds_others)


def aliases(cls: type[Strict], field: str) -> list[str]:
    """The flat names of a knob: its own name, unless it says others or none."""
    extra: Any = cls.model_fields[field].json_schema_extra or {}
    return extra.get("flat", [field])


@cache
def all_switches() -> dict[str, Switch]:
    """Every boolean flat name that is no field itself: those of kinds, and those of fields and slots."""
    found: dict[str, Switch] = {}
    for name, (slot_name, on, off) in switches().items():
        default = slot_of(GPTConfig.model_fields[slot_name]).default  # type: ignore[union-attr]
        found[name] = Switch((("model", slot_name, "kind"),), on, off, default, slot_name)

    def add(name: str, path: tuple[str, ...], on: Any, default: Any, slot_name: str | None = None) -> None:
        switch = found.setdefault(name, Switch((), on, None, default, slot_name))
        if path not in switch.paths:
            found[name] = replace(switch, paths=(*switch.paths, path))

    def walk(cls: type[Strict], path: tuple[str, ...]) -> None:
        for field, info in cls.model_fields.items():
            here, slot, extra = (*path, field), slot_of(info), info.json_schema_extra
            if slot:
                for name, kind in slot.switch:
                    add(name, (*here, "kind"), kind, slot.default, slot.name)
                for config in configs_at(slot) if len(here) < 5 else ():
                    walk(config, here)
            elif isinstance(info.annotation, type) and issubclass(info.annotation, Strict):
                walk(info.annotation, here)
            elif isinstance(extra, dict):
                for name, value in extra.get("switch", {}).items():  # type: ignore[union-attr]
                    add(name, here, value, info.default)

    walk(Config, ())
    return found


@cache
def flat_names() -> dict[str, Target]:
    """Every flat name with its target paths."""
    found: dict[str, Target] = {}

    def add(name: str, path: tuple[str, ...], annotation: Any, default: Any, values: dict[str, str]) -> None:
        new = Target((), annotation is bool, _is_text(annotation), default)
        old = found.get(name, new)
        paths = old.paths if path in old.paths else (*old.paths, path)
        found[name] = replace(old, paths=paths, values=old.values | values)

    def walk(cls: type[Strict], path: tuple[str, ...]) -> None:
        for field, info in cls.model_fields.items():
            here, slot = (*path, field), slot_of(info)
            if slot:
                words = {word: kind for kind, cls in slot.choices().items() for word in getattr(cls, "classic", ())}
                for alias in slot.flat:
                    add(alias, (*here, "kind"), None, slot.default, words)
                for config in configs_at(slot):
                    walk(config, here)
            elif isinstance(info.annotation, type) and issubclass(info.annotation, Strict):
                walk(info.annotation, here)
            elif field not in ("kind", "layers"):
                extra: Any = info.json_schema_extra or {}
                for alias in aliases(cls, field):
                    add(alias, here, info.annotation, info.default, extra.get("values", {}))

    walk(Config, ())
    return found


def parse_overrides(arguments: Iterable[str], problems: list[str]) -> list[tuple[tuple[Key, ...], Any]]:
    """(path, value) of each `key.path=value`, `--flat_name=value`, `--flat_name value`, `--flag` and `--no-flag`."""
    pairs: list[tuple[tuple[Key, ...], Any]] = []
    queue = list(arguments)
    while queue:
        token = queue.pop(0)
        mark = COMMAND + token
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
            elif name not in flat_names() and (found := classic_flag(name, queue)) is not None:
                pairs.append(((Key(found[0], mark),), found[1]))
                continue
            elif queue and not queue[0].startswith("--"):
                text = queue.pop(0)
            else:
                known = all_names()
                problems.append(f"{mark}: needs a value{nearest(name, known) if name not in known else ''}")
                continue
        pairs.append((tuple(Key(part, mark) for part in name.split(".")), _typed(name, text)))
    return pairs


def _typed(name: str, text: str) -> Any:
    """A value as the field takes it: text stays text, True and False are what Python users write for yes and no."""
    target = flat_names().get(name)
    if target is not None and target.is_text:
        return text
    path = target.paths[0] if target else tuple(name.split("."))
    cls: Any = Config
    for part in path[:-1]:
        info = cls.model_fields.get(part) if isinstance(cls, type) and issubclass(cls, Strict) else None
        cls = info.annotation if info else None
    info = cls.model_fields.get(path[-1]) if isinstance(cls, type) and issubclass(cls, Strict) else None
    if info is not None and info.annotation in (str, str | None):
        return None if text == "null" and info.annotation is not str else text
    return parse_value(text.lower() if text in ("True", "False") else text)


def _is_text(annotation: Any) -> bool:
    """Whether only words can stand there, so that a number on the command line is one, too."""
    words = get_origin(annotation) is Literal and all(isinstance(word, str) for word in get_args(annotation))
    return annotation is str or words


def _is_bool(name: str) -> bool:
    return name in all_switches() or (name in flat_names() and flat_names()[name].is_bool)


def all_names() -> list[str]:
    """Fields by their flat names, and switches."""
    return [*flat_names(), *all_switches()]


__all__ = [
    "COMMAND", "SECTIONS", "Switch", "Target", "aliases", "all_names", "all_switches", "flat_names", "parse_overrides",
]  # fmt: skip
