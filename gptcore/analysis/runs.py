"""Tables of runs: what is below a folder, how far it came, and in what the runs differ."""

import contextlib
import fcntl
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..checkpoint import config_of, read_run
from ..config import flatten
from ..errors import CheckpointError, UserError

FILES_OF_A_RUN = ("run.json", "config.yaml", "last.pt")
_NUMBER, _COUNT = (int, float, type(None)), (int, type(None))
_TYPES: dict[str, Any] = {
    "status": str, "best_loss": _NUMBER, "best_step": _COUNT, "step": _COUNT, "parameters": _COUNT, "tokens": _COUNT,
    "identity": (str, type(None)), "reason": (str, type(None)),
}  # fmt: skip
IGNORED = ("train.out_dir", "train.init_from")
Stamp = tuple[tuple[str, int, int], ...]


@dataclass(frozen=True)
class RunRow:
    """One run. `settings` is its flattened configuration; `note` says why something is missing."""

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


def find_runs(root: Path, known: Mapping[Path, RunRow] | None = None) -> list[RunRow]:
    """Every run in `root` or below it. Ended runs that are `known` and whose files have not changed are not read again.

    UserError when there is no such folder.
    """
    if not root.is_dir():
        raise UserError(f"no folder {root}; runs are made by `gptcore train`")
    folders = {path.parent for name in FILES_OF_A_RUN for path in root.rglob(name)}
    return [_read(folder, (known or {}).get(folder)) for folder in sorted(folders)]


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
    try:
        settings = flatten(config_of(folder))
    except UserError as error:
        settings, note = {}, note or f"config.yaml: {error}"
    return RunRow(
        folder, status, content.get("best_loss"), content.get("best_step"), content.get("step"),
        content.get("parameters"), content.get("tokens"), content.get("identity") or "", note,
        {key: value for key, value in settings.items() if key not in IGNORED},
    )  # fmt: skip


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
