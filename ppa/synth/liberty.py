"""What pricing needs of a cell library in liberty format: areas, functions, capacitances, energies, delays.

Everything is in SI units but areas (um2, as the files have them). Tables over input slew and load become curves over
load at the middle slew of the table. Energies: the mean of rise and fall, and of all input conditions (`when`); of
libraries that list both rails, the power rail. What was read is cached as JSON by the file's sha256.
"""

import hashlib
import json
import lzma
import os
import re
from bisect import bisect_right
from collections import defaultdict
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path
from statistics import fmean
from typing import Any

from gptcore.errors import UserError
from gptcore.files import write_atomically

_VERSION = 1  # of the cached form
_TOKEN = re.compile(r'\}|([A-Za-z_]\w*)\s*(?:\(([^()]*)\)\s*(\{)?|:\s*("[^"]*"|[^;{}\n]*))')
_COMMENT = re.compile(r"/\*.*?\*/|\\\n", re.S)
_PREFIX = {"": 1.0, "m": 1e-3, "u": 1e-6, "n": 1e-9, "p": 1e-12, "f": 1e-15, "a": 1e-18}


@dataclass(frozen=True)
class Curve:
    """Piecewise linear over load (F), continued beyond its ends."""

    loads: list[float]
    values: list[float]

    def at(self, load: float) -> float:
        if len(self.values) == 1:
            return self.values[0]
        i = min(max(bisect_right(self.loads, load) - 1, 0), len(self.loads) - 2)
        slope = (self.values[i + 1] - self.values[i]) / (self.loads[i + 1] - self.loads[i])
        return self.values[i] + slope * (load - self.loads[i])


@dataclass(frozen=True)
class Pin:
    direction: str
    capacitance_f: float = 0.0
    function: str | None = None
    energy_j: dict[str, Curve] = field(default_factory=dict)  # of one transition; by related pin, "" for none
    rise_s: dict[str, Curve] = field(default_factory=dict)  # delay of a rising output, by related pin
    fall_s: dict[str, Curve] = field(default_factory=dict)


@dataclass(frozen=True)
class FlipFlop:
    """State variable and its inverse as the output functions name them; the rest are boolean functions of pins."""

    state: str
    inverse: str
    clocked_on: str
    next_state: str
    clear: str | None = None
    preset: str | None = None


@dataclass(frozen=True)
class Cell:
    area_um2: float
    leakage_w: float
    pins: dict[str, Pin]
    flipflop: FlipFlop | None = None
    usable: bool = True  # neither latch nor anything else that cannot be simulated

    def outputs(self) -> list[str]:
        return [name for name, pin in self.pins.items() if pin.direction == "output"]


@dataclass(frozen=True)
class Library:
    name: str
    sha256: str  # of the unpacked text
    voltage_v: float
    cells: dict[str, Cell]


@dataclass
class _Group:
    kind: str
    arguments: list[str]
    values: dict[str, str] = field(default_factory=dict)
    groups: list["_Group"] = field(default_factory=list)

    def of(self, *kinds: str) -> list["_Group"]:
        return [g for g in self.groups if g.kind in kinds]

    def number(self, name: str, default: float = 0.0) -> float:
        return float(self.values.get(name, default))


def unpacked(path: Path) -> bytes:
    """The bytes of a liberty file, which may be compressed by xz."""
    if not path.is_file():
        raise UserError(
            f"no liberty file {path}. Free ones: apt-get install qflow-tech-osu018 puts osu018_stdcells.lib below "
            "/usr/share/qflow; sky130, asap7 and sg13g2 come with the OpenROAD project"
        )
    raw = path.read_bytes()
    try:
        return lzma.decompress(raw) if raw[:6] == b"\xfd7zXZ\0" else raw
    except (lzma.LZMAError, EOFError) as error:
        raise UserError(f"{path} is damaged: {error}") from error


def read(path: Path) -> Library:
    """The library in a liberty file. UserError where it is none."""
    raw = unpacked(Path(path))
    sha256 = hashlib.sha256(raw).hexdigest()
    cached = cache_folder() / f"{sha256}.{_VERSION}.json"
    if cached.exists():
        return _from_json(json.loads(cached.read_text()))
    library = parse(raw.decode("utf-8", "replace"), sha256, str(path))
    cached.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(cached, json.dumps(asdict(library)).encode())
    return library


def cache_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gptcore" / "liberty"


def parse(text: str, sha256: str = "", path: str = "text") -> Library:
    """The library in the text of a liberty file; `sha256` and `path` say where it comes from."""
    top = _tree(text)
    libraries = top.of("library")
    if not libraries or not libraries[0].of("cell"):
        raise UserError(f"{path} is no liberty file: it has no library (...) {{ cell (...) {{ ... }} }}")
    group = libraries[0]
    voltage = group.number("nom_voltage") or max(
        (g.number("voltage") for g in group.of("operating_conditions")), default=0
    )
    if not voltage:
        raise UserError(f"{path}: the library has no nom_voltage")
    units = _Units(group, voltage)
    templates = {g.arguments[0]: g for g in group.of("lu_table_template", "power_lut_template")}
    cells = {g.arguments[0]: _cell(g, units, templates) for g in group.of("cell")}
    return Library(group.arguments[0], sha256, voltage, cells)


def _tree(text: str) -> _Group:
    """Groups and attributes; several attributes of one name keep the last."""
    stack = [_Group("", [])]
    for match in _TOKEN.finditer(_COMMENT.sub(" ", text)):
        name, arguments, opens, value = match.groups()
        if name is None:
            if len(stack) > 1:
                stack.pop()
        elif opens:
            group = _Group(name, _words(arguments))
            stack[-1].groups.append(group)
            stack.append(group)
        else:
            stack[-1].values[name] = (arguments if value is None else value).strip().strip('"').strip()
    return stack[0]


def _words(arguments: str) -> list[str]:
    return [word.strip().strip('"') for word in arguments.split(",")]


class _Units:
    """SI factors of time, capacitance and leakage power; energies are in units of capacitance (times 1 V2)."""

    def __init__(self, library: _Group, voltage: float):
        number, unit = _words(library.values.get("capacitive_load_unit", "1, pf"))[:2]
        self.capacitance = float(number) * _PREFIX[unit.lower()[:-1]]
        self.time = self._unit(library.values.get("time_unit", "1ns"))
        self.power = self._unit(library.values.get("leakage_power_unit", "1nW"))
        self.voltage = voltage

    @staticmethod
    def _unit(text: str) -> float:
        match = re.match(r"([\d.eE+-]*?)\s*([munpfa]?)[sWw]$", text)
        if not match:
            raise UserError(f"unit {text!r} in a liberty file; expected something like 1ns or 1nW")
        return float(match[1] or 1) * _PREFIX[match[2]]


def _cell(group: _Group, units: _Units, templates: dict[str, _Group]) -> Cell:
    rails = {g.arguments[0] for g in group.of("pg_pin") if "ground" in g.values.get("pg_type", "")}
    pins = {}
    for pin in group.of("pin"):
        for name in pin.arguments:
            pins[name] = _pin(pin, units, templates, rails)
    flipflops, others = group.of("ff"), group.of("latch", "statetable", "ff_bank", "latch_bank", "bus", "bundle")
    return Cell(
        group.number("area"), _leakage(group, rails) * units.power, pins,
        _flipflop(flipflops[0]) if flipflops else None, not others,
    )  # fmt: skip


def _leakage(group: _Group, ground: set[str]) -> float:
    if "cell_leakage_power" in group.values:
        return group.number("cell_leakage_power")
    states = [g for g in group.of("leakage_power") if g.values.get("related_pg_pin") not in ground]
    overall = [g for g in states if "when" not in g.values]
    values = [g.number("value") for g in overall or states]
    return fmean(values) if values else 0.0


def _flipflop(group: _Group) -> FlipFlop:
    state, inverse = (group.arguments + [""])[:2]
    values = group.values
    return FlipFlop(
        state, inverse, values["clocked_on"], values["next_state"], values.get("clear"), values.get("preset")
    )


def _pin(group: _Group, units: _Units, templates: dict[str, _Group], ground: set[str]) -> Pin:
    energies: dict[str, list[Curve]] = defaultdict(list)
    for power in group.of("internal_power"):
        if power.values.get("related_pg_pin") in ground:
            continue
        tables = power.of("rise_power", "fall_power") or power.of("power")
        for related in power.values.get("related_pin", "").split() or [""]:
            energies[related] += [_curve(t, templates, units, units.capacitance) for t in tables]
    delays: dict[str, dict[str, list[Curve]]] = {"cell_rise": defaultdict(list), "cell_fall": defaultdict(list)}
    for timing in group.of("timing"):
        for table in timing.of("cell_rise", "cell_fall"):
            for related in timing.values.get("related_pin", "").split():
                delays[table.kind][related].append(_curve(table, templates, units, units.time))
    capacitance = group.number("capacitance") or (
        (group.number("rise_capacitance") + group.number("fall_capacitance")) / 2
    )
    return Pin(
        direction=group.values.get("direction", "input"), capacitance_f=capacitance * units.capacitance,
        function=group.values.get("function"),
        energy_j={related: _without_load(_mean(curves), units) for related, curves in energies.items()},
        rise_s={related: _mean(curves) for related, curves in delays["cell_rise"].items()},
        fall_s={related: _mean(curves) for related, curves in delays["cell_fall"].items()},
    )  # fmt: skip


def _numbers(text: str) -> list[float]:
    return [float(word) for word in re.split(r'[\s",\\]+', text) if word]


def _curve(table: _Group, templates: dict[str, _Group], units: _Units, scale: float) -> Curve:
    """A table over load, at the middle of the slews."""
    template = templates.get(table.arguments[0], _Group("", []))
    values = _numbers(table.values.get("values", "0"))
    axes = []
    for i in ("1", "2"):
        index = table.values.get(f"index_{i}") or template.values.get(f"index_{i}")
        if index and len(values) > 1:
            axes.append((template.values.get(f"variable_{i}", ""), _numbers(index)))
    loads = [n for name, numbers in axes if "capacitance" in name for n in numbers]
    slews = [n for name, numbers in axes if "capacitance" not in name for n in numbers]
    middle = len(slews) // 2
    if not loads or len(values) < 2:
        return Curve([0.0], [scale * values[middle if len(values) > middle else 0]])
    if slews and "capacitance" in axes[0][0]:
        chosen = values[middle :: len(slews)]
    else:
        chosen = values[middle * len(loads) : (middle + 1) * len(loads)]
    return Curve([n * units.capacitance for n in loads], [scale * v for v in chosen])


def _mean(curves: list[Curve]) -> Curve:
    """On the loads of the longest; conditions of an arc share their loads in practice."""
    loads = max((c.loads for c in curves), key=len)
    return Curve(loads, [fmean(c.at(load) for c in curves) for load in loads])


def _without_load(curve: Curve, units: _Units) -> Curve:
    """Some files count the charging of a load (1/2 V2 per F) into the cell's own energy; it is added elsewhere."""
    if len(curve.loads) < 2:
        return curve
    slope = (curve.values[-1] - curve.values[0]) / (curve.loads[-1] - curve.loads[0])
    return curve if slope < units.voltage**2 / 4 else Curve([0.0], [curve.at(0.0)])


def _from_json(data: dict[str, Any]) -> Library:
    def curves(pin: dict[str, Any], key: str) -> dict[str, Curve]:
        return {related: Curve(**curve) for related, curve in pin[key].items()}

    cells = {}
    for name, cell in data["cells"].items():
        pins = {
            pin: Pin(**{**values, **{key: curves(values, key) for key in ("energy_j", "rise_s", "fall_s")}})
            for pin, values in cell["pins"].items()
        }
        flipflop = FlipFlop(**cell["flipflop"]) if cell["flipflop"] else None
        cells[name] = Cell(**{**cell, "pins": pins, "flipflop": flipflop})
    return Library(**{**data, "cells": cells})


@lru_cache(maxsize=4)
def load(path: Path) -> Library:
    """As `read`, once a process."""
    return read(path)
