"""Tables of runs: what is below a folder, how far it came, and in what the runs differ.

Settings are those of config.yaml as the trainer wrote it, which is whole. Only where some of the runs lack knobs that
others of the same kind have (versions that wrote them differ), or where somebody else wrote the file, it is read as a
configuration: then torch is imported, which takes a second.
"""

import contextlib
import fcntl
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..errors import CheckpointError, UserError
from ..runjson import read_run
from ..yamlfile import parse

FILES_OF_A_RUN = ("run.json", "config.yaml", "last.pt")
_NUMBER, _COUNT = (int, float, type(None)), (int, type(None))
_TYPES: dict[str, Any] = {
    "status": str, "best_loss": _NUMBER, "best_step": _COUNT, "step": _COUNT, "parameters": _COUNT, "tokens": _COUNT,
    "identity": (str, type(None)), "reason": (str, type(None)),
}  # fmt: skip
IGNORED = ("train.out_dir", "train.init_from")
WRITTEN = "# identity "  # how a config.yaml begins that a trainer wrote
Stamp = tuple[tuple[str, int, int], ...]
Shape = dict[tuple[str, str], frozenset[str]]


@dataclass(frozen=True)
class RunRow:
    """One run. `settings` is its flattened configuration; `note` says why something is missing.

    `shape`: the names that each mapping of its configuration has, by path and kind.
    """

    folder: Path
    status: str
    best_loss: float | None = None
    best_step: int | None = None
    step: int | None = None
    parameters: int | None = None
    tokens: int | None = None
    identity: str = ""
    note: str = ""
    settings: dict[str, Any] = field(default_factory=dict)
    stamp: Stamp = ()
    shape: Shape = field(default_factory=dict, repr=False)


def find_runs(root: Path, known: Mapping[Path, RunRow] | None = None) -> list[RunRow]:
    """Every run in `root` or below it. Ended runs that are `known` and whose files have not changed are not read again.

    UserError when there is no such folder.
    """
    if not root.is_dir():
        raise UserError(f"no folder {root}; runs are made by `gptcore train`")
    folders = {path.parent for name in FILES_OF_A_RUN for path in root.rglob(name)}
    rows = [_read(folder, (known or {}).get(folder)) for folder in sorted(folders)]
    return rows if _agree(rows) else [_resolved(row) for row in rows]


def _stamp(folder: Path) -> Stamp:
    """Changes with the files that a row is read from."""
    found = []
    for name in ("run.json", "config.yaml"):
        with contextlib.suppress(OSError):
            state = (folder / name).stat()
            found.append((name, state.st_mtime_ns, state.st_size))
    return tuple(found)


def _read(folder: Path, known: RunRow | None) -> RunRow:
    stamp = _stamp(folder)
    if known is not None and known.stamp == stamp and known.status not in ("running", "killed"):  # a lock tells these
        return known
    return replace(_read_anew(folder), stamp=stamp)


def _read_anew(folder: Path) -> RunRow:
    try:
        content = read_run(folder)
    except CheckpointError as error:
        return RunRow(folder, "unreadable", note=str(error))
    for name, kinds in _TYPES.items():
        if not isinstance(content.get(name), kinds):
            return RunRow(folder, "unreadable", note=f"{folder / 'run.json'}: {name} is {content.get(name)!r}")
    status, note = content["status"], content.get("reason") or ""
    if status == "running" and not _is_locked(folder):
        status, note = "killed", "the same command resumes it"
    row = RunRow(
        folder, status, content.get("best_loss"), content.get("best_step"), content.get("step"),
        content.get("parameters"), content.get("tokens"), content.get("identity") or "", note,
    )  # fmt: skip
    if not (folder / "config.yaml").exists():
        return replace(row, note=note or "it has no config.yaml")
    tree = _written(folder)
    return _resolved(row) if tree is None else replace(row, settings=_leaves(tree), shape=_shape(tree))


def _written(folder: Path) -> dict | None:
    """The configuration as a trainer wrote it; None where it has to be resolved."""
    path, problems = folder / "config.yaml", list[str]()
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return None
    tree = parse(text, str(path), problems) if text.startswith(WRITTEN) else None
    return tree if isinstance(tree, dict) and not problems else None


def _resolved(row: RunRow) -> RunRow:
    """With the settings that config.yaml stands for in this version."""
    from ..checkpoint import config_of

    if row.status == "unreadable":
        return row
    try:
        tree = config_of(row.folder).model_dump(mode="json")
        return replace(row, settings=_leaves(tree), shape=_shape(tree))
    except UserError as error:
        return replace(row, settings={}, note=row.note or f"config.yaml: {error}")


def _leaves(tree: Any, path: str = "") -> dict[str, Any]:
    """Dotted path -> value; lists by index."""
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else None
    if items is None:
        return {} if path in IGNORED else {path: tree}
    return {k: v for key, child in items for k, v in _leaves(child, f"{path}.{key}" if path else str(key)).items()}


def _shape(tree: Any, path: str = "") -> Shape:
    if isinstance(tree, list):
        return {k: v for i, child in enumerate(tree) for k, v in _shape(child, f"{path}.{i}").items()}
    if not isinstance(tree, dict):
        return {}
    inner = {k: v for key, child in tree.items() for k, v in _shape(child, f"{path}.{key}").items()}
    return {(path, str(tree.get("kind"))): frozenset(map(str, tree)), **inner}


def _agree(rows: Iterable[RunRow]) -> bool:
    """Whether no run lacks a name that another one has in the same place."""
    seen: Shape = {}
    return all(seen.setdefault(place, names) == names for row in rows for place, names in row.shape.items())


def _is_locked(folder: Path) -> bool:
    """Whether a trainer holds the run folder; a dead one holds nothing."""
    try:
        with open(folder / ".lock") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        pass
    return False


def differing_settings(runs: Iterable[RunRow]) -> list[str]:
    """Dotted settings whose values are not the same in all readable runs, kinds first."""
    readable = [run.settings for run in runs if run.settings]
    names = {name for settings in readable for name in settings}
    differing = [n for n in names if len({str(settings.get(n)) for settings in readable}) > 1]
    return sorted(differing, key=lambda name: (not name.endswith(".kind"), name))


SORT_KEYS = {
    "loss": lambda run: (run.best_loss is None, run.best_loss or 0.0),
    "parameters": lambda run: (run.parameters is None, run.parameters or 0),
    "step": lambda run: (run.step is None, -(run.step or 0)),
    "name": lambda run: str(run.folder),
    "status": lambda run: run.status,
}
