"""Configurations, explained.

gptcore config show CONFIG [key=value ...]   the resolved configuration and its identity
gptcore config diff A B                      every setting that differs
gptcore config schema                        JSON schema of the file format (for editors)
gptcore config flat                          flat names and what they stand for
gptcore config flags [NAME ...]              flags of the classic fork: what each means here, or why it is refused
"""

import json
import sys
from pathlib import Path

from ..errors import UserError

TAKES_CONFIG = True


def add_arguments(parser) -> None:
    parser.add_argument("--json", action="store_true", help="show: print JSON instead of YAML")
    parser.add_argument("--markdown", metavar="FILE", help="flags: write the whole list into FILE instead")


def run(args) -> int:
    actions = {"show": _show, "diff": _diff, "schema": _schema, "flat": _flat, "flags": _flags}
    if args.config not in actions:
        raise UserError(f"expected one of {', '.join(actions)}, not {args.config!r}\n{__doc__}")
    return actions[args.config](args)


def _show(args) -> int:
    from ..config import identity
    from ..loader import load
    from ..yamlfile import dump

    path, overrides = _split(args.overrides)
    config = load(path, overrides).config
    content = config.model_dump(mode="json")
    if args.json:
        print(json.dumps({"identity": identity(config), "config": content}, indent=1))
    else:
        print(f"# identity {identity(config)}\n{dump(content)}", end="")
    return 0


def _split(rest: list[str]) -> tuple[str | None, list[str]]:
    if rest and not rest[0].startswith("-") and "=" not in rest[0]:
        return rest[0], rest[1:]
    return None, rest


def _diff(args) -> int:
    from ..config import difference
    from ..loader import load

    if len(args.overrides) != 2:
        raise UserError("gptcore config diff needs two configuration files")
    left, right = (load(path).config for path in args.overrides)
    for key, (a, b) in difference(left, right).items():
        print(f"{key:45} {a!s:>20}  {b!s:>20}")
    return 0


def _schema(args) -> int:
    json.dump(file_schema(), sys.stdout, indent=1)
    print()
    return 0


def file_schema() -> dict:
    """JSON schema of a configuration file: the sections, `base`, flat names, and kinds by their bare names."""
    from ..analysis.classic_table import rows
    from ..config import Config
    from ..flat import all_switches, flat_names

    schema = Config.model_json_schema()
    schema["properties"]["base"] = {"type": "string", "description": "file that this one builds on, relative to it"}
    for name, target in flat_names().items():
        schema["properties"].setdefault(name, {"description": " or ".join(".".join(path) for path in target.paths)})
    for name, switch in all_switches().items():
        paths = " or ".join(".".join(path) for path in switch.paths)
        meaning = f"{paths}: {switch.on or 'default'} or {switch.off or 'not'}"
        schema["properties"][name] = {"type": "boolean", "description": meaning}
    schema["properties"] |= {row.flag: {"description": row.meaning} for row in rows() if row.kind == "other"}
    return schema


def _flat(args) -> int:
    from ..flat import all_switches, flat_names

    for name, target in sorted(flat_names().items()):
        print(f"--{name:35} {', '.join('.'.join(path) for path in target.paths)}")
    for name, switch in sorted(all_switches().items()):
        states = (("true", switch.on), ("false", switch.off))
        meaning = " / ".join(f"{state}: {value}" for state, value in states if value)
        print(f"--{name:35} {', '.join('.'.join(path) for path in switch.paths)} ({meaning})")
    return 0


def _flags(args) -> int:
    from ..analysis.classic_table import markdown, rows
    from ..files import write_atomically
    from ..registry import nearest

    if args.markdown:
        write_atomically(Path(args.markdown), markdown().encode())
        print(f"written: {args.markdown}")
        return 0
    names = [name.lstrip("-") for name in args.overrides]
    found = rows()
    for name in names:
        if not any(name in row.flag for row in found):
            raise UserError(f"no flag of the classic fork has {name!r} in it{nearest(name, [r.flag for r in found])}")
    for row in found:
        if not names or any(name in row.flag for name in names):
            print(row)
    return 0
