"""Operators of a calibrated library at a clock: what the chip builds its units from.

    Technology -> Cells.operator(name) -> Cell(area, energy, leakage, interval)
                  Cells.unit(slot, kind, bits, primitives) -> Unit of one lane

A kind of a slot is a unit of its own where ppa/rtl has one (`synthesised`), at the narrowest width that holds its
operands. Any other kind is composed of an operator for each primitive operation that it declares (`estimate`); what
that costs against a designed unit is measured where both exist, see `COMPOSED_AREA`. Functions of one operand are
tables.

The multipliers of an array are pipelined to take a product a cycle, with registers between the stages. Any other
operator that does not meet the clock takes several cycles an element (`interval`). Its relaxed netlist is taken
where that needs no more cycles than the fast one. Energies are those of the gate-level simulation with glitches,
under the activations of a trained model where the calibration has them, else under random operands; the interval holds
both, and runs from no glitches and no wires to `WIRES` above: wires and clock tree come with the layout.
"""

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from gptcore.errors import RunError

from . import memory, rtl, scaling
from .figure import Grade
from .machine import Technology

FOLDER = Path(__file__).parent / "calibration"
WIRES = 1.6  # wires and clock tree over a netlist before layout: +20 to +60 % is a guess, not measured; the upper end
SETUP = 1.07  # clock-to-output and setup on top of the path between: 7.35 for 6.88 ns of mac_int8 on sky130 by OpenSTA
# Composed over designed units, where both exist: geometric mean, and geometric s.d. (tests/ppa/test_cells.py measures).
COMPOSED_AREA = (1.63, 1.77)
COMPOSED_ENERGY = (1.77, 2.54)
PIPELINE_BITS = 64  # of a register between stages of a MAC: two operands of 16 bits and a sum of 32
REGISTER_BITS = 16  # of the register behind each primitive operator of a composed unit

# Operators that compute a primitive, for operands of up to 8, 16 and 32 bits. Exponentials and their like are tables;
# in 32 bits one more product, as by a split table; quotients there are two steps of Newton's method on top.
_TABLE = (("exp_lut256",), ("exp_split",), ("exp_split", "fp32_mul"))
_INVERSE = (("reciprocal_uint16",), ("reciprocal_uint16",), ("reciprocal_uint16", "fp32_mul", "fp32_mul"))
PRIMITIVE_OPERATORS: dict[str, tuple[tuple[str, ...], ...]] = {
    "add": (("int16_add",), ("bf16_add",), ("fp32_add",)),
    "mul": (("int8_mul",), ("bf16_mul",), ("fp32_mul",)),
    "max": (("int8_add",), ("int16_add",), ("int32_add",)),
    "compare": (("int8_add",), ("int16_add",), ("int32_add",)),
    "exp": _TABLE, "exp2": _TABLE, "log": _TABLE, "erf": _TABLE, "tanh": _TABLE, "lut": _TABLE,
    "div": (("bf16_div",), ("bf16_div",), ("bf16_div", "fp32_mul", "fp32_mul")),
    "recip": _INVERSE, "sqrt": _INVERSE, "rsqrt": _INVERSE,
    "shift": (("int8_add",), ("int16_add",), ("int32_add",)),
    "round": (("int8_add",), ("int16_add",), ("int32_add",)),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Cell:
    """One operator, placed. Energy is that of one element; `low` and `high` are factors on it. SI units."""

    area_m2: float
    area_spread: float
    energy_j: float
    low: float
    high: float
    leakage_w: float
    interval: int


@dataclass(frozen=True, slots=True)
class VectorUnit:
    """One lane. `made_of` counts operators; an element takes `passes` times the slowest operator's interval."""

    name: str
    grade: Grade
    made_of: tuple[tuple[str, int], ...]
    passes: float
    area_m2: float
    area_spread: float
    energy_j: float  # of one pass of one element through everything
    low: float
    high: float
    leakage_w: float
    interval: int
    floor_j: float = 0.0  # of a composed unit: what a pass costs in the designed unit of fewer bits

    @property
    def composed(self) -> bool:
        return self.made_of != ((self.name, 1),)


@lru_cache
def library(name: str) -> dict[str, Any]:
    """The committed calibration of a cell library."""
    return json.loads((FOLDER / f"{name}.json").read_text())["operators"]


@lru_cache
def _designed() -> dict[tuple[str, str], list[tuple[int, str, float]]]:
    """(slot, kind) -> [(bits, operator, passes)], narrowest first."""
    found: dict[tuple[str, str], list[tuple[int, str, float]]] = {}
    for operator, unit in rtl.units():
        for kind in unit.kinds:
            found.setdefault((unit.slot, kind), []).append((unit.bits, operator, unit.passes))
    return {key: sorted(units) for key, units in found.items()}


def _size(bits: int) -> int:
    return 0 if bits <= 8 else 1 if bits <= 16 else 2


class Cells:
    """A technology with every operator that was asked for looked up once."""

    def __init__(self, technology: Technology):
        self.technology = technology
        self.operators = library(technology.library)
        self.period_s = 1 / technology.clock_hz.value
        home = scaling.library_node_m(technology.library)
        self.node_m = technology.node_m.value if technology.node_m is not None else home
        self.scale = scaling.carried(technology.library, self.node_m)
        self.grade: Grade = "synthesised" if self.node_m == home else "estimate"
        self._cells: dict[str, Cell] = {}
        self._units: dict[Any, VectorUnit] = {}
        self._primitive_j: dict[tuple[str, int], float] = {}

    def operator(self, name: str) -> Cell:
        cell = self._cells.get(name)
        if cell is None:
            cell = self._cells[name] = self._cell(self._points(name))
        return cell

    def _points(self, name: str) -> dict[str, Any]:
        """The row of the calibration."""
        if name not in self.operators:
            raise RunError(
                f"operator {name} is not in ppa/calibration/{self.technology.library}.json: run gptcore ppa calibrate "
                f"--liberty FILE --ops {name}"
            )
        return self.operators[name]

    def _cell(self, points: dict[str, Any]) -> Cell:
        relaxed, fast, scale, density = points["relaxed"], points["fast"], self.scale, self.technology.density

        def interval(point: dict[str, Any]) -> int:
            return max(1, math.ceil(SETUP * point["delay_ps"] * 1e-12 * scale.delay.value / self.period_s - 1e-9))

        point = relaxed if interval(relaxed) <= interval(fast) else fast
        glitch, random = point["glitch_factor"], point["energy_pj_per_cycle"]
        traced = point.get("energy_pj_per_cycle_trace", random)
        return Cell(
            area_m2=point["area_um2"] * 1e-12 * scale.area.value / density.value,
            area_spread=density.spread * scale.area.spread,
            energy_j=traced * 1e-12 * scale.energy.value * glitch,
            low=min(1.0, random / traced) / (glitch * scale.energy.spread),
            high=max(1.0, random / traced) * WIRES * scale.energy.spread,
            leakage_w=point["leakage_w"] * scale.leakage.value, interval=interval(point),
        )  # fmt: skip

    def unit(
        self, slot: str, kind: str, bits: int, reductions: int, primitives: tuple[tuple[str, int], ...]
    ) -> VectorUnit:
        """The unit of a kind for operands of so many bits. `reductions` and `primitives` are those of its stream."""
        key = slot, kind, bits, reductions, primitives
        unit = self._units.get(key)
        if unit is None:
            unit = self._designed_unit(slot, kind, bits)
            if unit is None:
                composed = self._composed(slot, kind, bits, reductions, primitives)
                table = self._table_unit(slot, kind, bits)
                unit = (
                    table
                    if table is not None and table.area_m2 < composed.area_m2
                    else self._floored(composed, slot, kind)
                )
            self._units[key] = unit
        return unit

    def _designed_unit(self, slot: str, kind: str, bits: int) -> VectorUnit | None:
        for width, operator, passes in _designed().get((slot, kind), ()):
            if bits <= width:
                cell = self.operator(operator)
                return VectorUnit(
                    operator, self.grade, ((operator, 1),), passes, cell.area_m2, cell.area_spread, cell.energy_j,
                    cell.low, cell.high, cell.leakage_w, cell.interval,
                )  # fmt: skip
        return None

    def _composed(self, slot: str, kind: str, bits: int, reductions: int, primitives: Iterable) -> VectorUnit:
        size = _size(bits)
        made_of: dict[str, int] = {}
        for primitive, count in primitives:
            for operator in PRIMITIVE_OPERATORS[primitive][size]:
                made_of[operator] = made_of.get(operator, 0) + count
        if reductions == 0 and sum(made_of.values()) == 1:
            return self.as_unit(*made_of)
        cells = [(self.operator(name), count) for name, count in made_of.items()]
        bits_held = sum(made_of.values()) * REGISTER_BITS * (size or 1)
        register = self.register()
        passes = 1 + reductions
        return VectorUnit(
            f"{kind}, composed", "estimate", tuple(sorted(made_of.items())), passes,
            (sum(c.area_m2 * n for c, n in cells) + register.area_m2 * bits_held) / COMPOSED_AREA[0],
            COMPOSED_AREA[1] * register.area_spread,
            (sum(c.energy_j * n for c, n in cells) + register.energy_j * bits_held) / COMPOSED_ENERGY[0],
            1 / (COMPOSED_ENERGY[1] * self.scale.energy.spread), COMPOSED_ENERGY[1] * WIRES * self.scale.energy.spread,
            sum(c.leakage_w * n for c, n in cells) + register.leakage_w * bits_held,
            max((c.interval for c, _ in cells), default=1),
        )  # fmt: skip

    def _floored(self, composed: VectorUnit, slot: str, kind: str) -> VectorUnit:
        """No smaller, faster or thriftier than the designed unit of the same kind for fewer bits."""
        narrower = _designed().get((slot, kind))
        if not narrower:
            return composed
        _, operator, passes = narrower[-1]
        cell = self.operator(operator)
        return replace(
            composed, passes=max(composed.passes, passes), area_m2=max(composed.area_m2, cell.area_m2),
            leakage_w=max(composed.leakage_w, cell.leakage_w), interval=max(composed.interval, cell.interval),
            floor_j=cell.energy_j,
        )  # fmt: skip

    def _table_unit(self, slot: str, kind: str, bits: int) -> VectorUnit | None:
        """A function of one operand as a table or as straight lines, whatever the function: the unit of another."""
        if slot != "activation" or bits > 16:
            return None
        known = self.as_unit("sigmoid_lut256" if bits <= 8 else "gelu_pwl16")  # the largest of each sort
        return replace(known, name=f"{kind}, by {'table' if bits <= 8 else 'lines'}", grade="estimate")

    def pipelined(self, name: str) -> Cell:
        """A multiply-accumulate operator that takes a product a cycle.

        Its registers hold operands and sum at each cut. A loop through an adder that spans cuts needs several sums in
        turn (output stationary); where sums move on there is none.
        """
        cell, register = self.operator(name), self.register()
        bits = (cell.interval - 1) * PIPELINE_BITS
        return replace(
            cell, area_m2=cell.area_m2 + bits * register.area_m2, energy_j=cell.energy_j + bits * register.energy_j,
            leakage_w=cell.leakage_w + bits * register.leakage_w, interval=1,
        )  # fmt: skip

    def as_unit(self, operator: str) -> VectorUnit:
        """An operator as a unit of its own."""
        cell = self.operator(operator)
        return VectorUnit(
            operator, self.grade, ((operator, 1),), 1, cell.area_m2, cell.area_spread, cell.energy_j, cell.low,
            cell.high, cell.leakage_w, cell.interval,
        )  # fmt: skip

    def fused(self, *operators: str) -> Cell:
        """Operators in a row, a register behind each, as one cell: for MACs that are not calibrated."""
        name = "+".join(operators)
        cell = self._cells.get(name)
        if cell is None:
            parts, bit = [self.operator(o) for o in operators], self.register()
            held = 32 * len(parts)
            cell = self._cells[name] = Cell(
                sum(c.area_m2 for c in parts) + held * bit.area_m2, parts[0].area_spread,
                sum(c.energy_j for c in parts) + held * bit.energy_j, min(c.low for c in parts),
                max(c.high for c in parts), sum(c.leakage_w for c in parts) + held * bit.leakage_w,
                max(c.interval for c in parts),
            )  # fmt: skip
        return cell

    def primitives_j(self, bits: int, counts: Iterable[tuple[str, int]]) -> float:
        """Energy of so many executed primitives in composed units, the register behind each included."""
        size = _size(bits)
        joules = 0.0
        for primitive, count in counts:
            each = self._primitive_j.get((primitive, size))
            if each is None:
                operators = PRIMITIVE_OPERATORS[primitive][size]
                register = self.register().energy_j * REGISTER_BITS * (size or 1)
                each = sum(self.operator(o).energy_j + register for o in operators) / COMPOSED_ENERGY[0]
                self._primitive_j[primitive, size] = each
            joules += each * count
        return joules

    def register(self) -> Cell:
        """One bit of a pipeline register: the area of those in the 8-bit MAC, the energy of a bit that is clocked."""
        cell = self._cells.get("register")
        if cell is None:
            mac = self._points("mac_int8")["relaxed"]
            bit = mac["sequential_area_um2"] / (2 * 8 + 32) * 1e-12 * self.scale.area.value
            cell = replace(self.flip_flop(), area_m2=bit / self.technology.density.value)
            self._cells["register"] = cell
        return cell

    def flip_flop(self) -> Cell:
        """One bit that is kept, with the multiplexers that write and read it: what the buffer of softmax adds."""
        cell = self._cells.get("")
        if cell is None:
            self._points("softmax_buf256")  # what it is derived from
            bit = memory.flip_flops(1, self.technology.library)
            point = {
                "area_um2": bit.area_m2 * 1e12, "energy_pj_per_cycle": bit.energy_j_per_cycle * 1e12,
                "leakage_w": bit.leakage_w, "delay_ps": 0.0, "glitch_factor": 1.0,
            }  # fmt: skip
            cell = self._cells[""] = self._cell({"relaxed": point, "fast": point})
        return cell
