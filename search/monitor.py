"""Watches searches and sweeps that run, or have run: a live table that reads the ledger and changes nothing.

  gptcore monitor LEDGER_OR_FOLDER [STUDY] [--interval S]     on a terminal: full screen
  gptcore monitor LEDGER_OR_FOLDER [STUDY] --once | --json    prints and ends; --once is the default on a pipe

A folder is that of a search, or one above several (out/search): the newest comes first. It can be started and stopped
at any time, on a terminal also before there is a ledger, and needs no right to write. A filter holds words that must
all occur in a row: `done n_layer=3` or `diverged`. What differs is said against the baseline, in a sweep against its
first trial.

Keys: q quit, s sort by the next column, r reverse, / filter (Enter keeps it, Esc clears it), f failures alone,
c candidates of the round (of a sweep the latest ends), Tab next study, arrows or j k, PgUp PgDn, Home End scroll.
"""

import argparse
import json
import os
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from gptcore.errors import RunError, UserError

from .differs import differs
from .progress import progress
from .status import Picture, Status
from .trial import FAILED
from .watch import Unchanged, leader, watch

PIPE_WIDTH = 120
LONGEST_S = 86400
DEPTH = 3  # folders below the one that is named


@dataclass(frozen=True, slots=True)
class TrialRow:
    """A line of the table of trials. `order`: that in which they were added; `differs`: all that does; `progress`: of a
    trial that runs on this machine."""

    order: int
    state: str
    seed: int
    loss: float | None
    seconds: float
    key: str
    candidate: str
    differs: str
    reason: str
    progress: str = ""

    def matches(self, words: str) -> bool:
        text = f"{self.state} {self.key} {self.candidate} {self.differs} {self.reason} seed={self.seed}".lower()
        return all(word in text for word in words.lower().split())


@dataclass(frozen=True, slots=True)
class Look:
    """A study at one moment."""

    path: Path
    status: Status
    rows: tuple[TrialRow, ...]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", metavar="LEDGER_OR_FOLDER")
    parser.add_argument("study", nargs="?", metavar="STUDY", help="default: the one that runs, or ran last")
    parser.add_argument("--once", action="store_true", help="print the table and end")
    parser.add_argument("--json", action="store_true", help="print status and trials as JSON and end")
    parser.add_argument("--interval", type=float, default=1.0, metavar="S", help="between two looks; default 1 s")


def run(args: argparse.Namespace) -> int:
    if not 0 < args.interval <= LONGEST_S:
        raise UserError(f"--interval {args.interval:g}: expected more than 0 s, and at most {LONGEST_S} s")
    watching = not (args.json or args.once) and sys.stdin.isatty() and sys.stdout.isatty()
    studies = Studies(Path(args.path), args.study, wait=watching)
    if args.json:
        print(json.dumps(_document(studies), indent=1))
    elif watching:
        from .fullscreen import watch_keys

        watch_keys(studies, args.interval)
    else:
        _print(studies)
    return 0


# -- ledgers and studies -----------------------------------------------------------------------------------------------


def ledgers(path: Path) -> list[Path]:
    """The ledgers that a path means, newest first. UserError: there are none."""
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise UserError(f"no ledger {path}: name a ledger, the folder of a search, or one above several")
    for depth in range(DEPTH + 1):
        found = list(path.glob("*/" * depth + "*.sqlite"))
        if found:
            return sorted(found, key=_written, reverse=True)
    raise UserError(f"no ledger in {path}, nor in {DEPTH} levels of folders below it")


def _written(path: Path) -> float:
    return max(p.stat().st_mtime for p in (path, Path(f"{path}-wal")) if p.exists())


class Studies:
    """The studies that a path means, and the one that is looked at. UserError: no ledger, or no such study.

    With `wait`, that there is no ledger yet is an error of the looks alone: one may come.
    """

    def __init__(self, path: Path, study: str | None, *, wait: bool = False):
        self.path, self.wanted = path, study
        self.unread: list[str] = []
        self._differs: dict[tuple[Path, str, str], str] = {}
        self.all: list[tuple[Path, str]] = []
        self.at: tuple[Path, str] | None = None
        try:
            ledgers(path)
        except UserError:
            if not wait:
                raise
        else:
            self.find()

    def find(self) -> None:
        """Looks for the study that is wanted, or the likely one, as far as there are any."""
        self.scan()
        if self.wanted is None:
            self.at = self._likely() if self.all else None
            return
        self.at = next((s for s in self.all if s[1] == self.wanted), None)
        if self.at is None:
            known = ", ".join(dict.fromkeys(name for _, name in self.all)) or "none"
            raise UserError(f"no study {self.wanted!r} in {self.path} (there: {known})")

    def scan(self) -> None:
        """Looks for ledgers and studies once more; the error of one that cannot be read only if none can."""
        found: list[tuple[Path, str]] = []
        self.unread = []
        paths = ledgers(self.path)
        for path in paths:
            try:
                found += [(path, study.name) for study in watch(path, lambda ledger: ledger.studies())]
            except (UserError, RunError) as error:
                if len(paths) == 1:
                    raise
                self.unread.append(str(error))
        if len(self.unread) == len(paths):
            raise UserError("no ledger that can be read:\n" + "\n".join(f"  {error}" for error in self.unread))
        self.all = found

    def _likely(self) -> tuple[Path, str]:
        """Of the newest ledger the study that is led, or whose trials ended last; no control of another one."""
        newest = [s for s in self.all if s[0] == self.all[0][0]]
        names = {name for _, name in newest}
        own = [s for s in newest if s[1].rpartition(".random")[0] not in names]

        def last(found: tuple[Path, str]) -> tuple[bool, int]:
            trials = watch(found[0], lambda ledger: ledger.brief(found[1]))
            return leader(*found)[0] is True, max((t.ended or 0 for t in trials), default=0)

        return max(own, key=last)

    def next(self) -> None:
        """Looks at the next study, as far as there are others."""
        self.scan()
        if self.all:
            self.at = self.all[(self.all.index(self.at) + 1) % len(self.all)] if self.at in self.all else self.all[0]

    def look(self) -> Look | None:
        """None as long as there is no study."""
        if self.at is None:
            self.find()
        if self.at is None:
            return None
        path, study = self.at
        return watch(path, lambda ledger: self._look(path, ledger, study))

    def _look(self, path: Path, ledger: Unchanged, study: str) -> Look:
        picture = Picture(ledger, study)
        new = {t.config_hash: t.key for t in picture.trials if (path, study, t.config_hash) not in self._differs}
        configs = ledger.configs(study, list(new.values())) if new else {}
        for config_hash, key in new.items():
            self._differs[path, study, config_hash] = differs(configs[key], picture.base, most=99)
        folders = ledger.folders(study, "running")
        rows = []
        for order, t in enumerate(picture.trials):
            different = self._differs[path, study, t.config_hash]
            reason = "" if t.state == "done" else t.reason
            at = progress(folders[t.key]) if t.state == "running" and t.key in folders else None
            rows.append(
                TrialRow(
                    order, t.state, t.seed, t.loss, at.seconds if at else t.seconds, t.key, t.name or different,
                    different, reason, at.words(t.steps) if at else "",
                )
            )  # fmt: skip
        return Look(path, picture.status(), tuple(rows))


def failures(rows: tuple[TrialRow, ...]) -> tuple[TrialRow, ...]:
    return tuple(row for row in rows if row.state in FAILED or (row.reason and row.state in ("queued", "running")))


# -- printing ----------------------------------------------------------------------------------------------------------


def _document(studies: Studies) -> dict[str, Any]:
    look = studies.look()
    known = [{"ledger": str(path), "study": study} for path, study in studies.all]
    if look is None:
        return {"ledger": str(studies.path), "study": None, "studies": known, "unread": studies.unread}
    rows = [asdict(row) for row in look.rows]
    about = {"ledger": str(look.path), "study": look.status.study, "studies": known, "unread": studies.unread}
    return {**about, "status": asdict(look.status), "trials": rows}


def _print(studies: Studies) -> None:
    from rich.console import Console

    from .fullscreen import trials
    from .live import picture

    fixed = sys.stdout.isatty() or "COLUMNS" in os.environ
    console = Console(highlight=False, width=None if fixed else PIPE_WIDTH)
    look = studies.look()
    for error in studies.unread:
        print(f"left out: {error}", file=sys.stderr)
    if look is None:
        console.print(f"no study in {studies.path} yet")
        return
    if len(studies.all) > 1:
        others = [f"{name} ({path})" if path != look.path else name for path, name in studies.all]
        console.print(f"studies: {', '.join(others)}", markup=False)
    console.print(picture(look.status, 1000))
    console.print()
    console.print(trials(look.rows, console.width))
