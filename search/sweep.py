"""Runs a list or a grid of configurations, each in a process of its own, and compares them.

  gptcore sweep FILE [key=value ...] [--dry-run] [--jobs N] [--executor NAME] [--retry failed] [-o DIR]

FILE is a classic exploration (YAML or JSON with lists of values, groups, conditions, ranges) or a file with `baseline`
and `grid` (docs/sweeps.md). Every run is checked before the first one starts; key=value and --flat_name=value are on
top of all of them. A run is what its configuration is: the same command goes on after any interruption, a file that has
grown starts its new runs alone, and a run that failed stays failed, with its reason, until --retry.

DIR (default out/sweeps/<name>) holds ledger.sqlite, runs/ with a run folder each (for `gptcore sample`, `eval` and
`inspect`), runs.csv, runs.yaml (the classic log), sweep.html and figures/. `gptcore monitor DIR` looks on. The exit
code is 1 if any run of the file failed.
"""

import argparse
import contextlib
import errno
import hashlib
import os
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from gptcore.errors import UserError

from . import executor_choice

if TYPE_CHECKING:
    from .executors import Executor
    from .ledger import Ledger
    from .live import Screen
    from .sweep_results import Results
    from .sweep_runs import Plan
    from .trial import Limits, State, TrialResult

TAKES_CONFIG = True
SAME = 3  # names of runs that are another one


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.usage = "gptcore sweep FILE [key=value ...] [options]"
    parser.add_argument("-o", "--output", metavar="DIR", help="default out/sweeps/<name>")
    parser.add_argument("--dry-run", "--dry_run", action="store_true", help="check and list the runs, start nothing")
    parser.add_argument("--ignore", metavar="NAMES", help="settings of the file that are left out, with commas between")
    parser.add_argument("--results_file", metavar="FILE", help="one more table: .csv, .yaml or .parquet")
    executor_choice.add_arguments(parser)


def run(args: argparse.Namespace) -> int:
    if args.config is None:
        raise UserError(f"expected a file that describes a sweep\n{__doc__}")
    retried = executor_choice.retried(args)
    results_file = _results_file(args.results_file)
    from .human import count
    from .sweep_runs import load

    ignore = [name.strip() for name in args.ignore.split(",")] if args.ignore else []
    plan = load(args.config, args.overrides, ignore)
    for note in plan.notes:
        print(note)
    if args.dry_run:
        print("\n".join(f"{i:>4}  {one.name}" for i, one in enumerate(plan.runs, 1)))
        which = "which is" if len(plan.runs) == 1 else "all of them"
        print(f"{count(len(plan.runs), 'run')}, {which} valid; nothing was started")
        return 0
    if results_file is not None:
        _check_place(results_file)
    return _run(args, plan, retried, results_file)


def _run(args: argparse.Namespace, plan: "Plan", retried: "tuple[State, ...]", results_file: Path | None) -> int:
    from gptcore.prepare import ensure_prepared

    from .human import count
    from .ledger import Ledger
    from .live import Screen
    from .sweep_results import failures, results, table

    limits = executor_choice.limits(args)
    folder = Path(args.output or f"out/sweeps/{plan.name}")
    for dataset in plan.datasets:
        ensure_prepared(dataset)
    executor = executor_choice.make_executor(args, folder)
    try:
        with Ledger(folder / "ledger.sqlite") as ledger:
            space = hashlib.sha256(plan.file.text.encode()).hexdigest()
            ledger.lead(plan.name, space, plan.file.text, extend=True)
            try:
                with Screen(folder / "ledger.sqlite", plan.name) as screen:
                    sweep(plan, ledger, executor, folder.resolve(), limits, screen, retried)
            except KeyboardInterrupt:
                write_tables(results(plan, ledger), plan, ledger, folder)
                print(f"all up to here is kept, see {folder}/sweep.html; the same command goes on", file=sys.stderr)
                raise
            found = results(plan, ledger)
            written = write(found, plan, ledger, folder, results_file)
    finally:
        executor.close()
    print(f"\n{table(found)}")
    if found.bad:
        print(f"\n{len(found.bad)} of {count(len(found.rows), 'run')} failed:\n{failures(found.bad)}")
        if states := {row.trial.state for row in found.bad} - {"diverged"}:
            print(f"--retry {','.join(sorted(states))} starts them again, under the limits that are given then")
    if found.others:
        print(f"\n{count(found.others, 'run')} of earlier versions of the file: in the ledger and in runs.csv")
    print(f"\nwritten: {folder}/  ({', '.join(written)})")
    return 1 if found.bad else 0


def sweep(
    plan: "Plan", ledger: "Ledger", executor: "Executor", folder: Path, limits: "Limits", screen: "Screen",
    retried: "tuple[State, ...]" = (),
) -> None:  # fmt: skip
    """Until every run of the plan has ended; the ledger has its study, led by this process."""
    from .human import count
    from .records import NewTrial
    from .running import run_trials
    from .trial import ENDED

    runs = {one.identity.key: one for one in plan.unique()}
    if same := [one.name for one in plan.runs if runs[one.identity.key] is not one]:
        names = "; ".join(same[:SAME]) + ("; ..." if len(same) > SAME else "")
        screen.line(f"{count(len(same), 'run')} of the file, already there under another name: {names}")
    added = ledger.add(
        plan.name,
        [
            NewTrial(
                one.identity, one.config.model_dump(mode="json"), str(folder / "runs" / one.folder), limits,
                name=one.name,
            )
            for one in runs.values()
        ],
    )  # fmt: skip
    again = ledger.retry(plan.name, retried, list(runs)) if retried else 0
    ledger.limit(plan.name, limits)
    ended = {trial.key for trial in ledger.trials(plan.name, ENDED)} & set(runs)
    told = [count(len(runs), "run"), f"{len(added.queued)} new"]
    told += [f"{again} tried again"] if again else []
    screen.line(", ".join([*told, f"{len(ended)} known already"]))
    left = set(runs) - ended

    def hear(result: "TrialResult", state: "State") -> None:
        left.difference_update([result.key] if state != "queued" else [])
        screen.line(f"  {len(runs) - len(left):>3}/{len(runs)}  {runs[result.key].name}: {_words(result, state)}")

    run_trials(ledger, executor, plan.name, left, hear)
    ledger.conclude(plan.name, {"reason": "every run has ended", "rounds": 0, "path": [], "gain": None})


def _words(result: "TrialResult", state: "State") -> str:
    loss = f"loss {result.loss:.4f}, " if result.loss is not None else ""
    reason = f", {result.reason}" if result.reason and state != "done" else ""
    again = ", tried again" if state == "queued" else ""
    return f"{result.state}, {loss}{result.seconds:.1f} s{reason}{again}"


def write_tables(found: "Results", plan: "Plan", ledger: "Ledger", folder: Path) -> list[str]:
    """Tables and page, also of a sweep that is under way; the names of what was written."""
    from gptcore.files import write_atomically

    from .export import export
    from .sweep_page import build_page
    from .sweep_results import classic_log

    export(ledger, plan.name, folder / "runs.csv")
    write_atomically(folder / "runs.yaml", classic_log(found, plan.name).encode())
    write_atomically(folder / "sweep.html", build_page(found, plan.file.text, folder.resolve()).encode())
    return ["sweep.html", "runs.csv", "runs.yaml", "runs/"]


def write(found: "Results", plan: "Plan", ledger: "Ledger", folder: Path, results_file: Path | None) -> list[str]:
    """Tables, page and figures (these need matplotlib, and are left out without it); the names of what was written."""
    from .export import export

    names = write_tables(found, plan, ledger, folder)
    with contextlib.suppress(ImportError):
        from .sweep_figures import write_figures

        names += ["figures/"] if write_figures(found, folder / "figures") else []
    if results_file is not None:  # last: what is wrong with its place costs nothing else
        export(ledger, plan.name, results_file)
    return names


def _results_file(name: str | None) -> Path | None:
    """UserError for a suffix that is no table, before the first run and not after the last."""
    if name is not None and not name.endswith((".csv", ".yaml", ".yml", ".parquet")):
        raise UserError(f"--results_file {name}: a table is written as .csv, .yaml or .parquet")
    return None if name is None else Path(name)


def _check_place(path: Path) -> None:
    """UserError for a table that could not be written, with its folder made where that is missing."""
    from .export import check_packages

    check_packages(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            pass
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    except OSError as error:
        raise UserError(f"--results_file {path}: cannot be written: {error.strerror}; name another file") from error
