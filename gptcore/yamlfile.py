"""YAML and JSON without surprises: YAML 1.2 scalars, no duplicate keys, and every key remembers its file and line."""

import re
from pathlib import Path
from typing import Any

import yaml

from .errors import UserError


class Key(str):
    """A mapping key that knows where it was written ('file:line' or 'command line: ...')."""

    mark: str

    def __new__(cls, text: str, mark: str) -> "Key":
        key = super().__new__(cls, text)
        key.mark = mark
        return key


class _Scalars:
    """Implicit types of YAML 1.2 (core schema, decimal): 3e-4 is a number, `no` and `on` are words."""

    yaml_implicit_resolvers: dict = {}


_TYPES = (
    ("tag:yaml.org,2002:bool", r"true|false", "tf"),
    ("tag:yaml.org,2002:null", r"null|~|", ["n", "~", ""]),
    ("tag:yaml.org,2002:int", r"[-+]?[0-9]+", "-+0123456789"),
    ("tag:yaml.org,2002:float", r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?", "-+.0123456789"),
    ("tag:yaml.org,2002:float", r"[-+]?\.inf|\.nan", "-+."),
)


class _Loader(_Scalars, yaml.SafeLoader):
    pass


class _Dumper(_Scalars, yaml.SafeDumper):
    def increase_indent(self, flow=False, indentless=False):
        return super().increase_indent(flow, False)


for _tag, _pattern, _first in _TYPES:
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(_tag, re.compile(f"^(?:{_pattern})$"), list(_first))


def _construct(loader: _Loader, node: yaml.Node, source: str, problems: list[str]) -> Any:
    where = f"{source}:{node.start_mark.line + 1}"
    if isinstance(node, yaml.SequenceNode):
        return [_construct(loader, child, source, problems) for child in node.value]
    if not isinstance(node, yaml.MappingNode):
        return loader.construct_object(node)
    result: dict[Key, Any] = {}
    lines: dict[str, int] = {}
    for key_node, value_node in node.value:
        line = key_node.start_mark.line + 1
        if not isinstance(key_node, yaml.ScalarNode):
            problems.append(f"{source}:{line}: a key must be a plain name")
            continue
        name = str(key_node.value)
        if name in lines:
            problems.append(f"{source}:{line}: {name!r} is given twice, first on line {lines[name]}")
        lines[name] = line
        result[Key(name, f"{source}:{line}")] = _construct(loader, value_node, source, problems)
    if node.flow_style is None and not result:
        problems.append(f"{where}: empty mapping")
    return result


def parse(text: str, source: str, problems: list[str]) -> Any:
    """The content of a YAML or JSON text; `source` names it in marks. Appends to `problems`, each with file:line."""
    # JSON allows tabs as white space, YAML does not; inside JSON strings a raw tab is forbidden, so this loses nothing.
    loader = _Loader(text.replace("\t", " ") if source.endswith(".json") else text)
    try:
        node = loader.get_single_node()
        return None if node is None else _construct(loader, node, source, problems)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        problems.append(f"{source}:{line}: {error.problem} ({error.context or 'not valid YAML'})")
    except (yaml.YAMLError, ValueError) as error:
        problems.append(f"{source}: {error}")
    except RecursionError:
        problems.append(f"{source}: nested too deeply, or an alias that contains itself")
    finally:
        loader.dispose()
    return None


def parse_value(text: str) -> Any:
    """A single value from the command line, typed as in a file: 3e-4, true, [1, 2], {kind: relu}, plain words."""
    problems: list[str] = []
    value = parse(text, "value", problems)
    return text if problems else value


def read_mapping(path: Path, source: str, problems: list[str]) -> dict:
    """A file whose content is a mapping. Missing or unreadable: UserError; wrong content: appended to `problems`."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        siblings = sorted(p.name for p in path.parent.glob("*.y*ml")) if path.parent.is_dir() else []
        raise UserError(f"no configuration file {source}" + (f" (there: {', '.join(siblings)})" if siblings else ""))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {source}: {error}") from error
    value = parse(text, source, problems)
    if not isinstance(value, dict):
        if not problems:
            problems.append(f"{source}:1: expected `key: value` lines, found {type(value).__name__}")
        return {}
    return value


def dump(value: Any) -> str:
    """YAML text that `parse` reads back to an equal value."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, width=120, allow_unicode=True)
