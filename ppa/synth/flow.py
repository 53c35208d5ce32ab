"""Synthesis of one operator on one cell library by pyosys, in a child process.

Two points of the curve: `relaxed` is what abc does by default under a load and a driving cell, `fast` spends area on
delay. No booth recoding, no placement, no wires, no clock tree: figures are pre-layout.
"""

import hashlib
import importlib.metadata
import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from typing import Any

from gptcore.errors import RunError, UserError

from ..rtl import FOLDER, Operator
from . import liberty
from .liberty import Library

POINTS = ("relaxed", "fast")
_FAST = (
    "&get -n; &st; &dch; &nf; &st; &syn2; &if -g -K 6; &synch2; &nf; &st; &syn2; &if -g -K 6; &synch2; &nf; &put; "
    "buffer -c; topo; upsize -c; dnsize -c; stime -p"
)
RECIPE = """read_verilog -sv tables.sv
read_verilog -sv -defer {sources}
hierarchy -check -top {top} {parameters}
synth -flatten
rename -top {top}
dfflibmap {dont_use} -liberty {liberty}
tee -o abc.log abc -liberty {liberty} {dont_use} -constr constraints {script}
opt_clean -purge
write_json netlist.json
"""
_TABLES = "tables.sv"  # read first and at once: what is deferred may instantiate them
CONSTRAINTS = "set_driving_cell {driving_cell}\nset_load {load_ff:g} [all_outputs]\n"


@dataclass(frozen=True)
class Settings:
    """How a library is used: cells never to use (globs), what drives inputs, what outputs drive (fF)."""

    name: str
    dont_use: tuple[str, ...]
    driving_cell: str
    load_ff: float


# By a glob over cell names. Scan and clock-gate cells, latches and odd sizes are left out; loads are a few gate inputs.
_LIBRARIES = {
    "sky130_fd_sc_hd__*": Settings(
        "sky130", ("*lpflow*", "*probe*", "*__df*bbp*", "*__sdf*", "*__edf*", "*__sedf*", "*__dlclk*"),
        "sky130_fd_sc_hd__buf_2", 33.4,
    ),
    "*_ASAP7_75t_R": Settings(
        "asap7", ("*x1p*_ASAP7*", "*xp*", "SDF*", "ICG*", "DLL*", "DHL*"), "BUFx2_ASAP7_75t_R", 3.898
    ),
    "sg13g2_*": Settings("sg13g2", ("*sdf*", "*lgcp*", "*sighold*"), "sg13g2_buf_4", 15.0),
}  # fmt: skip


def settings(library: Library) -> Settings:
    """Those of a known library; else its weakest buffer drives, and an output drives eight inputs of that buffer."""
    some = min(library.cells)
    for glob, known in _LIBRARIES.items():
        if fnmatchcase(some, glob) and known.driving_cell in library.cells:
            return known
    buffers = []
    for name, cell in library.cells.items():
        inputs = [pin for pin, p in cell.pins.items() if p.direction == "input"]
        functions = [p.function for p in cell.pins.values() if p.direction == "output"]
        if len(inputs) == 1 and len(functions) == 1 and (functions[0] or "").strip("() ") == inputs[0]:
            buffers.append((cell.area_um2, name, cell.pins[inputs[0]].capacitance_f))
    if not buffers:
        raise UserError(f"the library {library.name} has no buffer cell (one input, function equal to it)")
    _, name, capacitance = min(buffers)
    unusable = tuple(sorted(n for n, cell in library.cells.items() if not cell.usable))
    short = re.sub(r"\W+", "_", library.name)
    return Settings(short, unusable, name, round(8 * capacitance * 1e15, 3))


@dataclass(frozen=True)
class Synthesis:
    """What came out. `delay_ps` is the longest combinational path, without the clock-to-output and set-up times of
    flip-flops; `netlist` the mapped top module as yosys writes it, without attributes."""

    area_um2: float
    sequential_area_um2: float
    delay_ps: float
    cells: dict[str, int]
    netlist: dict[str, Any]


@cache
def modules() -> dict[str, Path]:
    """Module name -> file, of all SystemVerilog files beside the models."""
    found: dict[str, Path] = {}
    for path in sorted(FOLDER.glob("*.sv")):
        for name in re.findall(r"^\s*module\s+(\w+)", _without_comments(path.read_text()), re.M):
            if name in found:
                raise RunError(f"module {name} is both in {found[name].name} and in {path.name}")
            found[name] = path
    return found


def _without_comments(text: str) -> str:
    return re.sub(r"//[^\n]*|/\*.*?\*/", " ", text, flags=re.S)


def closure(operator: Operator) -> dict[str, str]:
    """File name -> text of everything that the operator needs, with its generated tables; in a fixed order."""
    if operator.module not in modules():
        raise RunError(f"no module {operator.module} in {FOLDER.name}/*.sv")
    generated = operator.generated()
    files: dict[str, str] = {}
    wanted = [operator.module] + _words(generated)
    while wanted:
        path = modules().get(wanted.pop())
        if path is not None and path.name not in files:
            files[path.name] = path.read_text()
            wanted += _words(files[path.name])
    files = dict(sorted(files.items()))
    if generated:
        files[_TABLES] = generated
    return files


def _words(text: str) -> list[str]:
    return [word for word in re.findall(r"\w+", _without_comments(text)) if word in modules()]


def rtl_hash(operator: Operator) -> str:
    """sha256 of the SystemVerilog, the tables and the parameters of an operator."""
    text = json.dumps([closure(operator), operator.module, operator.verilog_parameters()], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def recipe_hash() -> str:
    """sha256 of all that decides how a design is mapped, but the tool and the library."""
    text = json.dumps([RECIPE, CONSTRAINTS, _FAST, {k: repr(v) for k, v in _LIBRARIES.items()}], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def yosys_version() -> str:
    """Version of pyosys, which is that of the yosys inside. UserError where it is not installed."""
    if importlib.util.find_spec("pyosys") is None:
        raise UserError("synthesis needs pyosys, which is not installed: pip install 'gptcore[synth]'")
    return importlib.metadata.version("pyosys")


def synthesise(
    operator: Operator,
    library: Library,
    liberty_path: Path,
    point: str = "relaxed",
    *,
    timeout_s: float = 600,
    sources: Mapping[str, str] | None = None,
) -> Synthesis:
    """Maps an operator on a library. `sources` replaces its SystemVerilog (file name -> text)."""
    yosys_version()
    if point not in POINTS:
        raise UserError(f"no synthesis point {point!r}; there are {', '.join(POINTS)}")
    chosen = settings(library)
    texts = {_TABLES: "", **(closure(operator) if sources is None else sources)}
    with tempfile.TemporaryDirectory(prefix="gptcore-synth-") as scratch:
        folder = Path(scratch)
        for name, text in texts.items():  # relative names: yosys writes them into the names of cells, and sorts by them
            (folder / name).write_text(text)
        plain_liberty(Path(liberty_path), library, folder / "cells.lib")
        (folder / "constraints").write_text(
            CONSTRAINTS.format(driving_cell=chosen.driving_cell, load_ff=chosen.load_ff)
        )
        parameters = " ".join(f"-chparam {k} {v}" for k, v in operator.verilog_parameters().items())
        script = RECIPE.format(
            sources=" ".join(name for name in texts if name != _TABLES), top=operator.module,
            parameters=parameters, liberty="cells.lib",
            dont_use=" ".join(f"-dont_use {glob}" for glob in chosen.dont_use),
            script="-script +" + _FAST.replace(" ", ",") if point == "fast" else "",
        )  # fmt: skip
        (folder / "script").write_text(script)
        _run(folder, f"{operator.module} ({point})", timeout_s)
        return _result(folder, operator, library)


def plain_liberty(source: Path, library: Library, target: Path) -> None:
    """Puts the unpacked liberty file at `target`: a link where the source is plain text already."""
    raw = liberty.unpacked(source)
    if hashlib.sha256(raw).hexdigest() != library.sha256:
        raise RunError(f"{source} changed while it was used")
    if raw == source.read_bytes():
        target.symlink_to(source.resolve())
    else:
        target.write_bytes(raw)


_running: set[int] = set()  # process groups


def kill_running() -> None:
    """Ends every synthesis that this process has under way."""
    for group in _running:
        os.killpg(group, signal.SIGKILL)


def _run(folder: Path, what: str, timeout_s: float) -> None:
    child = Path(__file__).with_name("yosys_child.py")
    log = folder / "log"
    with open(log, "wb") as out:
        process = subprocess.Popen(
            [sys.executable, str(child), "script", str(int(timeout_s) + 1)], cwd=folder, start_new_session=True,
            stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT,
            env={**os.environ, "OMP_NUM_THREADS": "1", "TMPDIR": str(folder)},
        )  # fmt: skip
        _running.add(process.pid)
        try:
            code = process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise RunError(f"synthesis of {what} took longer than {timeout_s:g} s") from None
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)  # abc runs in the same group
                process.wait()
            _running.discard(process.pid)
    if code:
        tail = "\n".join(log.read_text(errors="replace").splitlines()[-15:])
        raise RunError(f"yosys failed on {what} (exit code {code}); the end of its log:\n{tail}")


def _result(folder: Path, operator: Operator, library: Library) -> Synthesis:
    design = json.loads((folder / "netlist.json").read_text())
    netlist = design["modules"][operator.module]
    cells: dict[str, int] = {}
    for cell in netlist["cells"].values():
        cells[cell["type"]] = cells.get(cell["type"], 0) + 1
    unmapped = sorted(set(cells) - set(library.cells))
    if unmapped:
        raise RunError(f"{operator.module}: not mapped on {library.name}: {', '.join(unmapped)}")
    areas = {kind: n * library.cells[kind].area_um2 for kind, n in cells.items()}
    delays = re.findall(r"Delay\s*=\s*([\d.]+)\s*ps", (folder / "abc.log").read_text())
    return Synthesis(
        area_um2=sum(areas.values()),
        sequential_area_um2=sum(area for kind, area in areas.items() if library.cells[kind].flipflop),
        delay_ps=float(delays[-1]) if delays else 0.0,
        cells=dict(sorted(cells.items())),
        netlist={
            "ports": netlist["ports"],
            "cells": {
                name: {"type": cell["type"], "connections": cell["connections"]}
                for name, cell in netlist["cells"].items()
            },
        },
    )
