"""The files that describe a sweep, and the runs that each of them stands for.

The classic exploration formats of nanoGPT forks (flat names; YAML, also of several documents, or JSON; a mapping or a
list of them):

    n_layer: [2, 4]                              every combination of such lists is a run, the last name fastest
    n_embd: {range: {start: 64, end: 128, step: 32}}      end included; step 1, or 0.1 where start is no whole number
    n_qk_norm: {conditions: [[n_layer, 4]], options: [a, b]}   only where all hold; a mapping holds as a whole, of
                                                 several mappings any one; elsewhere nothing is said
    common_group: {dataset: [x]}                 one value each, for all
    parameter_groups: [{...}, {...}]             alternatives, each may have its own
    named_static_groups: [{named_group: a, ...}] settings with a name, for `named_group_static: [a]`
    named_variation_groups: [{named_group: b, named_group_alternates: [a, c]}]   for `named_group_variations: [b]`
    named_group_alternates: [a, b]               one after another, static or variation
    named_group_settings: {...}                  the same as its settings written beside it
    named_group_libraries: [groups.yaml]         files of named groups, relative to this one
    export_wte_npy: npy/${RUN_NAME}.npy          the name that the classic runner gives the run, in any text

Our own:

    baseline: ../quickstart.yaml                 (or base:) a configuration file relative to this one, or a mapping
    overrides: [model.n_layer=2]
    grid: {model.n_embd: [64, 128], train.seed: [1, 2]}   a list of grids: one after another
    runs: [{name: wide, model.n_embd: 256}]      settings as they are; each with the whole grid

Names are flat or dotted in both. The value `default` leaves a setting out. In the classic formats numbers may be
written as text, and yes/no as words. A setting that is said twice with different values is an error, wherever.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gptcore.errors import UserError
from gptcore.yamlfile import Key, parse

from .sweep_expand import GROUP_LISTS, Draft, Part, classic, combinations, entitled, few, join
from .sweep_values import Wrong, key_of

DEFAULT = "default"
LIBRARIES = "named_group_libraries"
OURS = ("baseline", "base", "overrides", "grid", "runs")


class SweepError(UserError):
    """One or more problems in a sweep; `problems` holds one line each."""

    def __init__(self, problems: Iterable[str]):
        self.problems = list(dict.fromkeys(problems))
        count = len(self.problems)
        head = f"{count} problem{'s' if count > 1 else ''} in the sweep, nothing was started:"
        super().__init__("\n".join([head, *(f"  {p}" for p in self.problems)]))


@dataclass(frozen=True, slots=True)
class SweepFile:
    """`base` is a file, or the mapping; empty for the classic formats, whose settings are on top of the defaults."""

    path: Path
    text: str
    base: Any
    base_mark: str
    overrides: tuple[str, ...]
    drafts: tuple[Draft, ...]
    classic: bool


def read(path: Path, problems: list[str]) -> SweepFile:
    """The runs that a file stands for. Every problem of form goes to `problems`; what settings mean is checked later.

    SweepError where nothing can be read at all, UserError: no such file.
    """
    broken: list[str] = []
    text, documents = _documents(path, broken)
    if broken:
        raise SweepError(broken)
    ours = [d for d in documents if isinstance(d, dict) and set(d) & set(OURS)]
    if ours and len(documents) > 1:
        raise SweepError([f"{path}: {' or '.join(OURS)} in a file of several entries; make it a file of its own"])
    base, base_mark, overrides = None, str(path), tuple[str, ...]()
    drafts: list[Draft] = []
    if ours:
        base, base_mark, overrides, drafts = _nested(ours[0], path, problems)
    for document in [] if ours else documents:
        try:
            drafts += classic(_with_libraries(document, path), str(path), problems)
        except Wrong as wrong:
            problems += wrong.lines
    if not drafts and not problems:
        problems.append(f"{path}:1: no runs in this file")
    titled = tuple(entitled(draft, path.stem) for draft in drafts)
    return SweepFile(path, text, base, base_mark, overrides, titled, not ours)


def _documents(path: Path, problems: list[str]) -> tuple[str, list[Any]]:
    """The text, and the entries: documents of YAML, or the elements of a list."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        near = sorted(p.name for kind in ("*.y*ml", "*.json") for p in path.parent.glob(kind))
        raise UserError(f"no sweep file {path}" + (f" (there: {', '.join(near)})" if near else "")) from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {path}: {error}") from error
    lines, found, begin = text.splitlines(), [], 0
    marks = [i for i, line in enumerate(lines) if re.match(r"---(\s|$)", line)] if path.suffix != ".json" else []
    for end in [*marks, len(lines)]:
        part = [re.sub(r"^---", "   ", line) for line in lines[begin:end]]
        part = [line for line in part if line.strip() != "..."]
        if any(line.strip() and not line.lstrip().startswith(("#", "%")) for line in part):
            found.append(parse("\n" * begin + "\n".join(part) + "\n", str(path), problems))
        begin = end
    entries = found[0] if len(found) == 1 and isinstance(found[0], list) else found
    for entry in entries if not problems else []:
        if not isinstance(entry, dict):
            problems.append(f"{path}: a sweep is a mapping of names to values, or a list of them, not {entry!r}")
    return text, entries


def _with_libraries(entry: dict, path: Path) -> dict:
    """The entry with the named groups of its libraries in front of its own. Wrong where two files define one name."""
    if LIBRARIES not in entry:
        return entry
    mark, said = key_of(entry, LIBRARIES).mark, entry[LIBRARIES]
    files = said if isinstance(said, list) else [said] if said is not None else []
    if not all(isinstance(file, str) for file in files):
        raise Wrong(f"{mark}: {LIBRARIES}: expected files, not {said!r}")
    sources = [(file, _library(path.parent / file, mark)) for file in dict.fromkeys(files)]
    own = {name: entry.get(name) or [] for name in GROUP_LISTS}
    found: dict[str, list] = {name: [] for name in GROUP_LISTS}
    origin: dict[str, str] = {}
    for file, groups in [*sources, (path.name, own)]:
        for name, listed in groups.items():
            listed = listed if isinstance(listed, list) else [listed]
            found[name] += listed
            for group in (str(one["named_group"]) for one in listed if isinstance(one, dict) and "named_group" in one):
                if (first := origin.setdefault(group, file)) != file:
                    raise Wrong(f"{mark}: {LIBRARIES}: group {group!r} is defined in {first} and in {file}")
    rest = {key: value for key, value in entry.items() if key not in (LIBRARIES, *GROUP_LISTS)}
    keys = {name: next((key for key in entry if key == name), Key(name, mark)) for name in GROUP_LISTS}
    return {keys[name]: listed for name, listed in found.items() if listed} | rest


def _library(file: Path, mark: str) -> dict:
    problems: list[str] = []
    if not file.is_file():
        raise Wrong(f"{mark}: {LIBRARIES}: no file {file}; it is looked up relative to the sweep file")
    _, entries = _documents(file, problems)
    if problems:
        raise Wrong("\n".join(problems))
    if len(entries) != 1:
        raise Wrong(f"{file}: a library of groups is one mapping, not {len(entries)} entries")
    if unknown := [key for key in entries[0] if key not in GROUP_LISTS]:
        raise Wrong(f"{unknown[0].mark}: a library of groups has {' and '.join(GROUP_LISTS)}, not {unknown[0]}")
    return {name: entries[0].get(name) or [] for name in GROUP_LISTS}


def _nested(entry: dict, path: Path, problems: list[str]) -> tuple[Any, str, tuple[str, ...], list[Draft]]:
    problems += [f"{key.mark}: unknown key {key!r} (known here: {', '.join(OURS)})" for key in entry if key not in OURS]
    mark = next(iter(entry)).mark
    if "baseline" in entry and "base" in entry:
        problems.append(f"{key_of(entry, 'base').mark}: base is another word for baseline; one of them is enough")
    if "grid" not in entry and "runs" not in entry:
        problems.append(f"{mark}: nothing to sweep: expected grid or runs")
    overrides = entry.get("overrides", [])
    if not isinstance(overrides, list) or not all(isinstance(o, str) for o in overrides):
        problems.append(f"{key_of(entry, 'overrides').mark}: overrides: expected a list of name=value")
        overrides = []
    grids = _mappings(entry, "grid", problems)
    drafts = []
    for settings in _mappings(entry, "runs", problems):
        name = settings.get("name", "")
        said = {key: value for key, value in settings.items() if key != "name"}
        named = frozenset(map(str, said)) if name else frozenset[str]()
        first = Part(Draft({key: [value] for key, value in said.items()}, name=str(name), named=named))
        for grid in grids:
            try:
                both = join(first, Part(Draft(grid))).draft
                drafts += few(combinations(both, {}, set(both.settings)), path)
            except Wrong as wrong:
                problems += wrong.lines
    base = next((entry[name] for name in ("baseline", "base") if name in entry), None)
    if base is not None and not isinstance(base, (str, dict)):
        problems.append(f"{mark}: baseline: expected a file or a mapping, not {base!r}")
    where = next((key.mark for key in entry if key in ("baseline", "base")), mark)
    return base, where, tuple(overrides), drafts


def _mappings(entry: dict, name: str, problems: list[str]) -> list[dict]:
    """One empty mapping where nothing is said."""
    found = entry.get(name, {})
    listed = found if isinstance(found, list) else [found]
    if not listed or any(not isinstance(one, dict) for one in listed):
        problems.append(f"{key_of(entry, name).mark}: {name}: expected a mapping of names to values, or a list of them")
        return []
    return listed


__all__ = ["SweepError", "SweepFile", "read"]
