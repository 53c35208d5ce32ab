"""Prices of all operators on one cell library, as a file that the estimators read.

Each operator is synthesised at every point, held against its model, and its energy simulated under its own stimulus;
where a trace of a trained model has something to say about it, under that too.
Results are cached by the hash of everything they depend on, so a run that was stopped goes on where it was, and the
same input gives the same bytes.
"""

import ast
import gzip
import hashlib
import json
import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from gptcore.errors import RunError, UserError
from gptcore.files import write_atomically
from gptcore.registry import nearest

from .. import rtl
from ..rtl import trace
from . import energy, flow, liberty, netlist

FORMAT = 1
FOLDER = Path(__file__).parent.parent / "calibration"
_METHOD = ("boolean.py", "liberty.py", "netlist.py", "energy.py", "calibrate.py")


@dataclass(frozen=True)
class Outcome:
    """The row of one operator, or why there is none."""

    name: str
    row: dict[str, Any] | None
    error: str = ""
    from_cache: bool = False


def calibrate(
    liberty_path: Path,
    *,
    operators: Sequence[str] | None = None,
    jobs: int = 1,
    out: Path | None = None,
    timeout_s: float = 600,
    traces: Path | None = None,
) -> Path:
    """Prices operators (default all) and writes them, one after another as they come, into `out`.

    `traces` is a trace file, or the folder of a run, of which one is taken (ppa/synth/traces.py); by default the
    committed one.
    What is in the file already stays until it is replaced, if library, tool and recipe are the same. RunError at the
    end, after all others were written, for operators that failed or differ from their model; these are left out.
    """
    known = rtl.names()
    wanted = sorted(set(operators)) if operators else known
    for name in wanted:
        if name not in known:
            raise UserError(f"no operator {name!r}{nearest(name, known)} (known: {', '.join(known)})")
    flow.yosys_version()
    library = liberty.load(liberty_path)
    path = out or FOLDER / f"{flow.settings(library).name}.json"
    traces = _trace_file(traces or trace.FILE)
    head = provenance(library) | _of_trace(traces)
    rows = _kept(path, head, known)
    failures = []
    with _progress(len(wanted)) as report:
        for outcome in _outcomes(wanted, liberty_path, jobs, timeout_s, traces):
            if outcome.row is None:
                failures.append(f"{outcome.name}: {outcome.error}")
                rows.pop(outcome.name, None)
            else:
                rows[outcome.name] = outcome.row
            _write(path, head, rows)
            report(outcome)
    if failures:
        raise RunError(f"{len(failures)} of {len(wanted)} operators are not in {path}:\n  " + "\n  ".join(failures))
    return path


def provenance(library: liberty.Library) -> dict[str, Any]:
    """Of all rows of a calibration: what they were made from, and with."""
    return {
        "format": FORMAT,
        "library": {
            "name": flow.settings(library).name, "liberty": library.name, "liberty_sha256": library.sha256,
            "voltage_v": library.voltage_v,
        },
        "tools": {"pyosys": flow.yosys_version()},
        "recipe_sha256": flow.recipe_hash(),
    }  # fmt: skip


def _of_trace(path: Path) -> dict[str, Any]:
    found = trace.load(path)
    return {"trace": {"sha256": found.sha256, **found.source}}


def _trace_file(path: Path) -> Path:
    """That file, or one made of that run."""
    if not path.is_dir():
        return path
    from .traces import capture

    raw = capture(path)
    file = cache_folder() / f"{hashlib.sha256(raw).hexdigest()}.trace.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(file, raw)
    return file


def price(
    name: str, liberty_path: Path, timeout_s: float = 600, *, reuse: bool = False, traces: Path = trace.FILE
) -> dict[str, Any]:
    """The row of one operator: its RTL hash, and for each point area, delay, energy, leakage and the comparison.

    `reuse` takes mapped netlists from the cache. RunError if the netlist differs from the model.
    """
    library = liberty.load(liberty_path)
    row: dict[str, Any] = {"rtl_sha256": flow.rtl_hash(rtl.make(name))}
    for point in flow.POINTS:
        row[point] = _price(name, library, liberty_path, point, timeout_s, reuse, traces)
    return row


def _price(
    name: str, library: liberty.Library, path: Path, point: str, timeout_s: float, reuse: bool, traces: Path
) -> dict[str, Any]:
    operator = rtl.make(name)
    synthesise = _mapped if reuse else flow.synthesise
    mapped = synthesise(operator, library, path, point, timeout_s=timeout_s)
    compiled = netlist.compile_netlist(mapped.netlist, library)
    simulation = _equal(netlist.run(compiled, operator), point)
    costs = energy.prices(compiled, library, flow.settings(library).load_ff * 1e-15)
    replay, traced = operator.replay(trace.load(traces), netlist.STREAMS), {}
    if replay is not None:
        replayed = _equal(netlist.run(compiled, operator, replay=replay), point)
        used = energy.energy_j(costs, replayed.toggles, replayed.transitions)
        traced = {"energy_pj_per_cycle_trace": _short(1e12 * used)}
    return {
        "area_um2": _short(mapped.area_um2),
        "sequential_area_um2": _short(mapped.sequential_area_um2),
        "cells": sum(mapped.cells.values()),
        "delay_ps": _short(mapped.delay_ps),
        "energy_pj_per_cycle": _short(1e12 * energy.energy_j(costs, simulation.toggles, simulation.transitions)),
        **traced,
        "leakage_w": _short(energy.leakage_w(compiled, library)),
        "glitch_factor": _short(energy.glitch_factor(compiled, library, costs, simulation)),
        "equivalence": {
            "vectors": simulation.vectors,
            "mismatches": simulation.mismatches,
            "exhaustive": simulation.exhaustive,
        },
    }


def _equal(simulation: netlist.Simulation, point: str) -> netlist.Simulation:
    if simulation.mismatches:
        raise RunError(
            f"the {point} netlist differs from the model in {simulation.mismatches} of {simulation.vectors} vectors, "
            f"first in {simulation.first}"
        )
    return simulation


def _mapped(
    operator: rtl.Operator, library: liberty.Library, path: Path, point: str, *, timeout_s: float
) -> flow.Synthesis:
    """Synthesis takes most of the time; its result is kept for when only the model or the simulation changes."""
    parts = [flow.rtl_hash(operator), provenance(library), point]
    key = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
    cached = cache_folder() / f"{key}.netlist.gz"
    if cached.exists():
        return flow.Synthesis(**json.loads(gzip.decompress(cached.read_bytes())))
    mapped = flow.synthesise(operator, library, path, point, timeout_s=timeout_s)
    cached.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(cached, gzip.compress(json.dumps(asdict(mapped)).encode(), 3))
    return mapped


def _short(value: float) -> float:
    return float(f"{value:.6g}")


def _outcome(name: str, path: Path, timeout_s: float, traces: Path) -> Outcome:
    """One operator, from the cache if nothing that it depends on has changed. Runs in a process of its own."""
    try:
        cached = cache_folder() / f"{content_hash(name, liberty.load(path), traces)}.json"
        if cached.exists():
            return Outcome(name, json.loads(cached.read_text()), from_cache=True)
        row = price(name, path, timeout_s, reuse=True, traces=traces)
        cached.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(cached, json.dumps(row, sort_keys=True).encode())
        return Outcome(name, row)
    except (RunError, UserError) as error:
        return Outcome(name, None, str(error))


def cache_folder() -> Path:
    return liberty.cache_folder().with_name("operators")


def content_hash(name: str, library: liberty.Library, traces: Path) -> str:
    """sha256 of what a row depends on: RTL, model, tables, recipe, library, tool, trace, and this code."""
    operator = rtl.make(name)
    code = [Path(__file__).with_name(file).read_text() for file in _METHOD]
    parts = [name, flow.rtl_hash(operator), provenance(library), code, _model_texts(type(operator).__module__)]
    parts.append(trace.load(traces).sha256)
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


@cache
def _model_texts(module: str) -> list[str]:
    """Text of the file of a model and, through its imports, of the files beside it that it uses."""
    found: dict[str, str] = {}
    wanted = ["__init__", module.rpartition(".")[2]]
    while wanted:
        stem = wanted.pop()
        path = rtl.FOLDER / f"{stem}.py"
        if stem in found or not path.is_file():
            continue
        found[stem] = path.read_text()
        for node in ast.walk(ast.parse(found[stem])):
            if isinstance(node, ast.ImportFrom) and node.level == 1:
                wanted += [node.module] if node.module else [alias.name for alias in node.names]
    return [found[stem] for stem in sorted(found)]


def _outcomes(names: Sequence[str], path: Path, jobs: int, timeout_s: float, traces: Path) -> Iterator[Outcome]:
    if jobs <= 1 or len(names) <= 1:
        for name in names:
            yield _outcome(name, path, timeout_s, traces)
        return
    pool = ProcessPoolExecutor(min(jobs, len(names)), mp_context=get_context("spawn"), initializer=_end_at_interrupt)
    try:
        for future in as_completed([pool.submit(_outcome, name, path, timeout_s, traces) for name in names]):
            yield future.result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _end_at_interrupt() -> None:
    """A worker that is interrupted ends at once with what it started, and says nothing: the parent does."""

    def end(*_: object) -> None:
        flow.kill_running()
        os._exit(1)

    signal.signal(signal.SIGINT, end)


def _kept(path: Path, head: dict[str, Any], known: Sequence[str]) -> dict[str, Any]:
    """Rows of an existing file, of operators that still exist."""
    if not path.exists():
        return {}
    try:
        old = json.loads(path.read_text())
        rows, _ = old.pop("operators"), old.pop("units", None)
    except (ValueError, KeyError, AttributeError) as error:
        raise UserError(f"{path} exists and is no calibration; give another --out, or remove it") from error
    if old != head:
        print(f"{path}: made from another library, tool or recipe; begun anew", file=sys.stderr)
        return {}
    return {name: row for name, row in rows.items() if name in known}


def _write(path: Path, head: dict[str, Any], rows: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    units = {name: [f"{u.slot}/{kind}" for kind in u.kinds] for name, u in rtl.units() if name in rows}
    text = json.dumps({**head, "operators": rows, "units": units}, indent=1, sort_keys=True) + "\n"
    write_atomically(path, text.encode())


@contextmanager
def _progress(total: int):
    """Yields what reports an outcome: a bar on a terminal, a line each elsewhere."""
    start = time.monotonic()
    if not sys.stderr.isatty():
        done = 0

        def line(outcome: Outcome) -> None:
            nonlocal done
            done += 1
            print(f"[{done}/{total}] {time.monotonic() - start:5.0f} s  {_describe(outcome)}", file=sys.stderr)

        yield line
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    with Progress(
        TextColumn("operators"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
        TextColumn("{task.description}"), console=Console(stderr=True),
    ) as bar:  # fmt: skip
        task = bar.add_task("", total=total)

        def advance(outcome: Outcome) -> None:
            bar.update(task, advance=1, description=outcome.name)
            if outcome.row is None:
                bar.console.print(_describe(outcome), markup=False)

        yield advance


def _describe(outcome: Outcome) -> str:
    if outcome.row is None:
        return f"{outcome.name}: {outcome.error}"
    relaxed, fast = (outcome.row[point] for point in flow.POINTS)
    return (
        f"{outcome.name}: {relaxed['area_um2']:g}..{fast['area_um2']:g} um2, {relaxed['delay_ps']:g}.."
        f"{fast['delay_ps']:g} ps, {relaxed['energy_pj_per_cycle']:.3g} pJ"
        f"{' (cached)' if outcome.from_cache else ''}"
    )
