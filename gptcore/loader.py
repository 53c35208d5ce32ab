"""From files and command lines to a validated `Config`, or to every problem at once, each with its place.

    file (base: parent, nested or flat names)  +  key.path=value, --flat_name=value   ->  raw tree  ->  Config

Raw trees are plain mappings whose keys carry `file:line`, so a mark survives merging and reaches the message.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from .config import LAYER_FIELDS, Config, GPTConfig, LayerConfig
from .errors import UserError
from .flat import SECTIONS, flat_names, parse_overrides
from .placing import place
from .registry import Slot, Strict, kinds, nearest, slot_of, slot_with
from .yamlfile import Key, read_mapping


class ConfigError(UserError):
    """One or more problems in a configuration; `problems` holds one line each."""

    def __init__(self, problems: list[str]):
        self.problems = sorted(dict.fromkeys(problems), key=_place_of)
        count = len(self.problems)
        head = f"{count} problem{'s' if count > 1 else ''} in the configuration:"
        super().__init__("\n".join([head, *(f"  {p}" for p in self.problems)]))


def _place_of(problem: str) -> tuple[str, int]:
    source, _, rest = problem.partition(":")
    line = rest.partition(":")[0]
    return source, int(line) if line.isdigit() else 0


@dataclass(frozen=True)
class Loaded:
    """A validated configuration and the name its run folder takes."""

    config: Config
    name: str


def load(path: str | Path | None, overrides: Iterable[str] = ()) -> Loaded:
    """Reads a configuration file (or none: the defaults), then overrides. ConfigError with all problems.

    A run folder stands for its config.yaml.
    """
    problems: list[str] = []
    if path is not None and (Path(path) / "config.yaml").is_file():
        path = Path(path) / "config.yaml"
    raw = _read(Path(path), str(path), problems, ()) if path is not None else {}
    raw = merge(raw, place(parse_overrides(overrides, problems), raw, problems), Config)
    config = _validate(raw, problems)
    return Loaded(config, _name_of(Path(path)) if path is not None else "default")


def _name_of(path: Path) -> str:
    """The file's name without suffix; that of the run for the config.yaml of a run folder."""
    try:
        name = json.loads((path.parent / "run.json").read_text())["name"]
    except (OSError, ValueError, KeyError, TypeError):
        name = None
    return name if isinstance(name, str) and path.name == "config.yaml" else path.stem


def _read(path: Path, shown: str, problems: list[str], children: tuple[Path, ...]) -> dict:
    if path.resolve() in children:
        problems.append(f"{shown}:1: `base:` leads back to this file")
        return {}
    content = read_mapping(path, shown, problems)
    mark = next((key.mark for key in content if key == "base"), shown)
    base = content.pop("base", None)
    parent: dict = {}
    if isinstance(base, str):
        shown_base = str(Path(shown).parent / base)
        if (path.parent / base).is_file():
            parent = _read(path.parent / base, shown_base, problems, (*children, path.resolve()))
        else:
            problems.append(f"{mark}: base: no file {shown_base}; it is looked up relative to this file")
    elif base is not None:
        problems.append(f"{mark}: `base:` must be one file name, relative to this file")
    pairs = [((key,), value) for key, value in content.items()]
    return merge(parent, place(pairs, parent, problems), Config)


def _as_map(value: Any) -> Any:
    """A kind may be written as its bare name."""
    return {Key("kind", ""): value} if isinstance(value, str) else value


def _child_class(cls: type[Strict] | None, key: str, value: Any) -> tuple[type[Strict] | None, Slot | None]:
    """(configuration class of `value` under `key` of `cls`, the slot if it is one)."""
    info = cls.model_fields.get(key) if cls else None
    if info is None:
        return None, None
    slot = slot_of(info)
    if slot:
        known = kinds(slot.name)
        kind = slot.kind_of(_as_map(value))
        return (known[kind].Config if isinstance(kind, str) and kind in known else None), slot  # type: ignore
    annotation = info.annotation
    return (annotation if isinstance(annotation, type) and issubclass(annotation, Strict) else None), None


def merge(parent: dict, child: dict, cls: type[Strict] | None) -> dict:
    """Maps merge, lists replace, and a new kind drops the knobs of the old one."""
    result = dict(parent)
    for key, value in child.items():
        old = parent.get(key)
        child_cls, slot = _child_class(cls, key, value)
        if slot:
            value, old = _as_map(value), _as_map(old)
            if isinstance(value, dict) and isinstance(old, dict):
                old_kind = slot.kind_of(old)
                if value.get("kind", old_kind) != old_kind:
                    old = None
                else:
                    child_cls = _child_class(cls, key, old)[0]
        if isinstance(value, dict) and isinstance(old, dict):
            value = merge(old, value, child_cls)
        result.pop(key, None)  # dict keeps the first key object; the mark must be that of the last writer
        result[key] = value
    return result


def _expand_layers(raw: dict) -> dict:
    """Each entry of `layers` becomes a whole layer: the model's own settings with its differences on top."""
    model = raw.get("model")
    if not isinstance(model, dict) or not isinstance(model.get("layers"), list):
        return raw
    shared = {key: model[key] for key in model if key in LAYER_FIELDS}
    layers = [merge(shared, e, LayerConfig) if isinstance(e, dict) else e for e in model["layers"]]
    return raw | {"model": {key: layers if key == "layers" else value for key, value in model.items()}}


def _validate(raw: dict, problems: list[str]) -> Config:
    raw = _expand_layers(raw)
    removed: list[tuple] = []
    for _ in range(2):
        try:
            config = Config.model_validate(raw)
            break
        except ValidationError as error:
            for item in error.errors(include_url=False):
                path, mark, cls = _locate(raw, item["loc"])
                problems.append(f"{mark}: {_explain(item, path, cls)}")
                removed.append(path)
        # What is left without the faulty values may still hold impossible combinations: report these too.
        for path in removed:
            _remove(raw, path)
    else:
        raise ConfigError(problems)
    for path, message in config.problems():
        touches_removed = any(path[: len(gone)] == gone or f"{gone[-1]} " in message for gone in removed)
        if not touches_removed:
            _, mark, _ = _locate(raw, path)
            problems.append(f"{mark}: {_dotted(path)}: {message}")
    if problems:
        raise ConfigError(problems)
    return config


def _dotted(path: tuple) -> str:
    """Without layer numbers: layers usually share the line at fault, which the mark names."""
    shared = [part for part, after in zip(path, (*path[1:], None), strict=True) if not isinstance(after, int)]
    return ".".join(str(part) for part in shared if not isinstance(part, int))


def _locate(raw: Any, loc: tuple) -> tuple[tuple, str, type[Strict] | None]:
    """Follows a validation location, leaving out the kind names that tagged unions insert.

    Returns (path in the raw tree, mark of the nearest key on the way, class that holds the last element).
    """
    path: list = []
    mark, node = "default value", raw
    cls: type[Strict] | None = Config
    holder: type[Strict] | None = Config
    slot: Slot | None = None
    for step in loc:
        if slot is not None and isinstance(step, str):
            slot = None
            if cls is not None and step == cls.model_fields["kind"].default:
                continue
        holder = cls
        if isinstance(node, dict):
            written = next((key for key in node if key == step), None)
            mark = getattr(written, "mark", "") or mark
            node = node.get(step)
            cls, slot = _child_class(cls, step, node if node is not None else {})
        elif isinstance(node, list) and isinstance(step, int) and step < len(node):
            node, cls, slot = node[step], LayerConfig, None
            if isinstance(node, dict):
                mark = next((k.mark for k in node if getattr(k, "mark", "")), mark)
        path.append(step)
    return tuple(path), mark, holder


def _explain(item: Any, path: tuple, cls: type[Strict] | None) -> str:
    name = _dotted(path)
    given = item.get("input")
    if item["type"] == "extra_forbidden":
        key = str(path[-1])
        return f"unknown key {name!r}{_owners(key, cls)}"
    if item["type"] == "unknown_kind":
        return f"{name}: {item['msg']}"
    shown = (
        repr(given)
        if not isinstance(given, (dict, list))
        else "a " + ("mapping" if isinstance(given, dict) else "list")
    )
    return f"{name}: {item['msg']}, not {shown}"


def _owners(key: str, cls: type[Strict] | None) -> str:
    """Help for an unknown key: the nearest name here, or the kinds it belongs to, or the nearest name anywhere."""
    here = list(cls.model_fields) if cls is not None else []
    slot = slot_with(cls)
    owners = [k for k, c in kinds(slot).items() if key in c.Config.model_fields] if slot else []  # type: ignore
    if owners:
        return f": a knob of {slot} {', '.join(owners)}, not of {cls.model_fields['kind'].default}"  # type: ignore
    if key in flat_names() and key not in SECTIONS and key not in here:
        return f": a flat name, which stands at the top level (it means {'.'.join(flat_names()[key].paths[0])})"
    hint = nearest(key, here)
    if not hint:
        hint = nearest(key, [*flat_names(), *SECTIONS])
    return hint + (f" (known here: {', '.join(here)})" if here and not hint else "")


def _remove(raw: Any, path: tuple) -> None:
    node = raw
    for step in path[:-1]:
        node = node.get(step) if isinstance(node, dict) else node[step] if isinstance(node, list) else None
    if isinstance(node, dict):
        node.pop(path[-1], None)
    elif isinstance(node, list) and isinstance(path[-1], int) and path[-1] < len(node):
        node[path[-1]] = {}


def from_dict(values: dict) -> Config:
    """A `Config` from a nested or flat mapping, with the same checks as a file."""
    problems: list[str] = []
    pairs = [((Key(key, "given"),), value) for key, value in values.items()]
    return _validate(merge({}, place(pairs, {}, problems), Config), problems)


__all__ = ["Config", "ConfigError", "GPTConfig", "Loaded", "from_dict", "load", "merge"]
