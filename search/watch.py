"""Reads a ledger and leaves no trace: its folder stays as it is, to the byte, and may be read-only.

    watch(path, read)     read(ledger) at one moment, whoever writes meanwhile
    leader(path, study)   which process leads a study

SQLite writes to read: it creates a write-ahead log and an index where there are none, and marks in the index who reads
what. Two modes of it do not: `immutable` where there is no log, and so nobody writes; `readonly_shm` where there is.
"""

import json
import re
import socket
import sqlite3
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

from gptcore.errors import RunError

from .ledger import Ledger
from .trial import State

LOOKS = 5
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Brief:
    """A trial without its configuration and its log, which make up nearly all of a ledger; see `records.Trial`."""

    key: str
    config_hash: str
    seed: int
    steps: int
    state: State
    attempts: int
    reason: str
    loss: float | None
    seconds: float
    tokens: int
    params: int
    source: int | None
    ended: int | None
    extra_json: str

    @property
    def name(self) -> str:
        return json.loads(self.extra_json).get("name", "")


class Unchanged(Ledger):
    """An open ledger for one look. UserError: no ledger, or one of another version."""

    def __init__(self, path: str | Path):
        super().__init__(path, read_only=True)

    def _connect(self, mode: str) -> sqlite3.Connection:
        logged = _logged(self.path)
        if logged and not Path(f"{self.path}-shm").exists():
            raise RunError(
                f"{self.path} has a log (-wal) but not its index (-shm), as a copy of a ledger in use has; copy all of "
                "its files, or run its search once more"
            )
        how = "readonly_shm=1" if logged else "immutable=1"
        uri = f"file:{quote(str(self.path.absolute()))}?mode=ro&{how}"
        return sqlite3.connect(uri, uri=True, timeout=5, isolation_level=None)

    def brief(self, study: str) -> list[Brief]:
        """All trials, in the order in which they were added; a fifth of the time that `trials` takes."""
        sql = (
            "SELECT key, config_hash, seed, steps, state, attempts, reason, loss, seconds, tokens, params, source, "
            "ended, extra FROM trials WHERE study = ? ORDER BY id"
        )
        return [Brief(*row) for row in self._rows(sql, (self._id(study),))]

    def folders(self, study: str, state: State) -> dict[str, str]:
        """The folders of trials by key."""
        sql = "SELECT key, folder FROM trials WHERE study = ? AND state = ?"
        return dict(self._rows(sql, (self._id(study), state)))

    def configs(self, study: str, keys: Collection[str]) -> dict[str, dict[str, Any]]:
        """The configurations of trials by key."""
        marks = ", ".join("?" * len(keys))
        sql = f"SELECT key, config FROM trials WHERE study = ? AND key IN ({marks})"
        return {key: json.loads(text) for key, text in self._rows(sql, (self._id(study), *keys))}


def watch(path: str | Path, read: Callable[[Unchanged], T]) -> T:
    """What `read` makes of the ledger; read again where a coordinator came or went meanwhile."""
    for attempt in range(LOOKS):
        logged = _logged(path)
        try:
            with Unchanged(path) as ledger:
                found = read(ledger)
        except RunError:
            if _logged(path) == logged or attempt == LOOKS - 1:
                raise
            continue
        if logged or not _logged(path):
            return found
    raise RunError(f"{path} is opened and closed all the time; try again")


def leader(path: str | Path, study: str) -> tuple[bool | None, str]:
    """(whether a process leads the study, which one did last). None where that cannot be told, as from another machine.

    Read from the kernel's list of locks: to try the lock could refuse it to a coordinator that starts right then.
    """
    lock = Path(f"{path}.{study}.lock")
    try:
        holder = lock.read_text().strip()
        inode = lock.stat().st_ino
    except OSError:
        return False, ""
    found = re.fullmatch(r"process (\d+) on (.*)", holder)
    if found is None or found[2] != socket.gethostname():
        return None, holder
    try:
        locks = Path("/proc/locks").read_text()
    except OSError:
        return None, holder
    return re.search(rf"FLOCK +ADVISORY +WRITE +{found[1]} +\S+:{inode} ", locks) is not None, holder


def _logged(path: str | Path) -> bool:
    return Path(f"{path}-wal").exists()
