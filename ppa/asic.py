"""An ASIC made of calibrated operators: what a kernel costs on it, and what silicon a model asks for.

Time of a kernel is that of the busiest of array, vector units and DRAM, which double buffering lets work side by side,
and the arrival of the first tile. The interval runs from perfect prefetching across kernels to none at all.

Scores and row-reducing weights. A unit of one pass (ConSmax and its like) takes a score as it leaves the array and
hands it to the product with V at once: product, weight and product are one pipeline, and all lanes share a row. A unit
that reduces (softmax) needs the row complete before the first weight: each lane has a row of its own, held in a score
buffer. Its first pass runs along with the product before it, its last with the product behind; the passes between are
a stall: of one row where the array goes on with other rows meanwhile (score_rows 2), of every row where it stands still
(score_rows 1) (ConSmax, ICCAD 2024, Fig. 5).

Not covered: more than one chip, bank conflicts, DRAM pages and refresh, control flow; `control_share` stands for logic
that is in no operator.
"""

from collections.abc import Iterable
from typing import NamedTuple

from . import memory
from .cells import Cell, Cells, VectorUnit
from .cost import Cost, Rows, Silicon
from .figure import Grade, Quantity, of_figure, total
from .machine import Asic
from .systolic import cycles, traffic
from .tiling import SUM_BITS, Tiling, choose
from .work import Kernel, Product, Stream

BANK_BYTES = 1 << 16  # of memories that hold all weights or the whole KV cache
SCORE_BITS = 16
MEMORIES = frozenset({"sram", "dram", "weight memory", "kv memory"})


class Ratio(NamedTuple):
    """How far a component's energy may be off, as factors, and how good the figure is."""

    low: float
    high: float
    grade: Grade


class AsicChip:
    """An ASIC with everything looked up that does not depend on the model."""

    def __init__(self, asic: Asic):
        self.asic = asic
        self.cells = Cells(asic.technology)
        self.period_s = self.cells.period_s
        self._macs: dict[str, Cell] = {}
        self.components = Rows()
        array, sram, dram = asic.array, asic.sram, asic.dram
        self.rows, self.columns, self.arrays, self.dataflow = array.rows, array.columns, array.count, array.dataflow
        self.lanes = asic.vector.lanes
        self.bandwidth = dram.bandwidth_bytes_per_s.value
        self.dram_j = dram.energy_j_per_byte.value
        node = self.cells.node_m
        self.sram = memory.sram(sram.capacity_bytes // sram.banks, sram.access_bits, node)
        self.bank = memory.sram(BANK_BYTES, sram.access_bits, node)
        self.sram_bit_j = (self.sram.read_j + self.sram.write_j) / 2 / sram.access_bits
        self.bank_bit_j = self.bank.read_j / sram.access_bits
        self.weights_off, self.kv_off = asic.weights == "off_chip", asic.kv == "off_chip"
        spread = self.sram.energy_spread
        self.ratios: dict[str, Ratio] = {
            "sram": Ratio(1 / spread, spread, self.sram.grade),
            "weight memory": Ratio(1 / spread, spread, self.bank.grade),
            "kv memory": Ratio(1 / spread, spread, self.bank.grade),
            "dram": Ratio(
                1 / dram.energy_j_per_byte.spread, dram.energy_j_per_byte.spread, dram.energy_j_per_byte.grade
            ),
        }
        flip_flop = self.cells.flip_flop()
        if asic.vector.score_buffer == "flip_flop":
            self.buffer_bit_j = flip_flop.energy_j
            self.ratios["score buffer"] = Ratio(flip_flop.low, flip_flop.high, self.cells.grade)
        else:
            self.buffer_bit_j = memory.sram(512, SCORE_BITS, node).read_j / SCORE_BITS
            self.ratios["score buffer"] = self.ratios["sram"]

    def mac(self, p: Product, training: bool) -> tuple[str, Cell]:
        """The multiply-accumulate operator for the widths of a product; while training, that of the arithmetic."""
        bits = min(p.a.bits, p.b.bits) if training else max(p.a.bits, p.b.bits)
        array = self.asic.array
        if bits <= 4:
            name = "mac_int4"
        elif bits <= 8 and p.b.role == "weight" and p.b.bits <= 2:
            name = "mac_ternary"
        elif bits <= 8:
            name = f"mac_{array.format_8}"
        elif bits <= 16:
            name = f"mac_{array.format_16}"
        else:
            name = "mac_fp32"
        cell = self._macs.get(name)
        if cell is None:
            cell = self._macs[name] = (
                self.cells.fused("fp32_mul", "fp32_add") if name == "mac_fp32" else self.cells.pipelined(name)
            )
        return name, cell

    def price(self, kernel: Kernel, silicon: Silicon, training: bool = False) -> Cost:
        """What a kernel costs; what it needs is added to `silicon`."""
        cost = Cost(macs=kernel.macs)
        energy = cost.energy_j
        array = first = dram = sram_bits = 0.0
        for p in kernel.products:
            name, cell = self.mac(p, training)
            silicon.macs[name] = cell
            key = "array " + name
            if key not in self.ratios:
                self.ratios[key] = Ratio(cell.low, cell.high, self.cells.grade)
            energy[key] = energy.get(key, 0.0) + p.macs * cell.energy_j
            array += self._array_cycles(p)
            tiling = self._tiling(p)
            dram += p.batch * (tiling.dram_read_bytes + tiling.dram_written_bytes)
            first += tiling.first_tile_bytes
            sram_bits += self._sram_bits(p, energy)
            if p.out.bits <= 8 and not training and name.startswith(("mac_int", "mac_ternary")):
                self._requantise(p, silicon, energy)
        vector = waited = stall = 0.0
        for s in kernel.streams:
            if not s.primitives:
                continue
            unit = self.cells.unit(s.slot, s.kind, s.bits, s.reductions, s.primitives)
            silicon.need_unit(s.slot, s.kind, unit)
            key = f"{s.slot} {unit.name}"
            if key not in self.ratios:
                self.ratios[key] = Ratio(unit.low, unit.high, unit.grade)
            energy[key] = energy.get(key, 0.0) + self._unit_energy(unit, s)
            busy = s.elements * unit.passes * unit.interval
            if unit.passes > 1:
                busy /= min(self.lanes, max(1, s.elements // s.length))
                if kernel.products:
                    silicon.score_words = max(silicon.score_words, s.length)
                    energy["score buffer"] = (
                        energy.get("score buffer", 0.0) + s.elements * unit.passes * SCORE_BITS * self.buffer_bit_j
                    )
                    if self.asic.vector.score_rows == 1:
                        waited = max(waited, busy * 2 / unit.passes)
                        stall = max(stall, busy * (unit.passes - 2) / unit.passes)
                    else:
                        stall = max(stall, s.length * (unit.passes - 2) * unit.interval)
                else:  # the row is read again from where it is
                    sram_bits += s.elements * (unit.passes - 1) * s.bits
            else:
                busy /= self.lanes
            vector = max(vector, busy)
        busiest = max(max(array, waited) + stall, vector)
        stored = kernel.activation_bytes
        sram_bits += 8 * stored
        dram += kernel.state_bytes + (stored if stored > self.asic.sram.capacity_bytes else 0)
        dram += self._stored(kernel.weight_bytes, self.weights_off, "weight memory", energy)
        dram += self._stored(kernel.kv_read_bytes + kernel.kv_written_bytes, self.kv_off, "kv memory", energy)
        if sram_bits:
            energy["sram"] = sram_bits * self.sram_bit_j
        if dram:
            energy["dram"] = dram * self.dram_j
        compute = busiest * self.period_s
        cost.array_s, cost.vector_s = array * self.period_s, vector * self.period_s
        cost.stall_s = stall * self.period_s
        cost.dram_bytes, cost.dram_s = dram, dram / self.bandwidth
        cost.low_s = max(compute, cost.dram_s)
        cost.seconds = cost.low_s + first / self.bandwidth
        cost.high_s = compute + cost.dram_s
        if cost.high_s < cost.seconds:
            cost.high_s = cost.seconds
        return cost

    def _array_cycles(self, p: Product) -> float:
        if p.batch >= self.arrays:
            times, n = -(-p.batch // self.arrays), p.n
        else:
            times, n = 1, -(-p.n // (self.arrays // p.batch))
        return times * cycles(self.dataflow, p.m, p.k, n, self.rows, self.columns) * p.live

    def _tiling(self, p: Product) -> Tiling:
        """Tiles that fit half the SRAM; the other half holds activations."""
        off = self._off
        return choose(
            p.m, p.k, p.n, p.a.bits, p.b.bits, p.out.bits, self.asic.sram.capacity_bytes // 2, self.rows, self.columns,
            off(p.a.role, p.batch * p.m * p.k * p.a.bits), off(p.b.role, p.batch * p.k * p.n * p.b.bits),
            off(p.out.role, p.batch * p.m * p.n * p.out.bits),
        )  # fmt: skip

    def _off(self, role: str, bits: int) -> bool:
        if role == "weight":
            return self.weights_off
        if role == "kv":
            return self.kv_off
        half = 4 * self.asic.sram.capacity_bytes  # in bits; the other half is at work
        return role != "intermediate" and bits > half

    def _sram_bits(self, p: Product, energy: dict[str, float]) -> float:
        """Bits between SRAM and array; operands that live in memories of their own are charged there.

        Where the operands of one fold do not fit half the SRAM at full k, sums leave an output-stationary array and
        come back, as often as it takes. (The tiles of least DRAM traffic may be cut finer; the order of folds within
        them is free.)
        """
        t = traffic(self.dataflow, p.m, p.k, p.n, self.rows, self.columns)
        repeats, results = p.batch * p.live, p.m * p.n
        sums = t.out_written - results + t.partial_read
        if self.dataflow == "output_stationary":
            fold = 2 * (self.rows * p.a.bits + self.columns * p.b.bits) * p.k
            sums = 2 * results * ((fold - 1) // (4 * self.asic.sram.capacity_bytes))
        bits = repeats * (t.a * p.a.bits + results * p.out.bits + sums * SUM_BITS)
        b = repeats * t.b * p.b.bits
        own = "weight memory" if p.b.role == "weight" and not self.weights_off else (
            "kv memory" if p.b.role == "kv" and not self.kv_off else ""
        )  # fmt: skip
        if own:
            energy[own] = energy.get(own, 0.0) + b * self.bank_bit_j
            return bits
        return bits + b

    def _requantise(self, p: Product, silicon: Silicon, energy: dict[str, float]) -> None:
        name = "requant_int32_int8"
        cell = self.cells.operator(name)
        key = "quantiser " + name
        if key not in self.ratios:
            self.ratios[key] = Ratio(cell.low, cell.high, self.cells.grade)
        silicon.need_unit("quantiser", name, self.cells.as_unit(name))
        energy[key] = energy.get(key, 0.0) + p.batch * p.m * p.n * p.live * cell.energy_j

    def _unit_energy(self, unit: VectorUnit, s: Stream) -> float:
        if unit.composed:
            return unit.passes * max(self.cells.primitives_j(s.bits, s.counts), s.elements * unit.floor_j)
        return s.elements * unit.passes * unit.energy_j

    def _stored(self, nbytes: float, off_chip: bool, component: str, energy: dict[str, float]) -> float:
        """Bytes that come from DRAM; the energy of an on-chip memory where they do not."""
        if off_chip or not nbytes:
            return nbytes
        energy[component] = energy.get(component, 0.0) + 8 * nbytes * self.bank_bit_j
        return 0.0

    def area(self, silicon: Silicon, weight_bytes: float, kv_bytes: float) -> dict[str, Quantity]:
        """Area by component, in m2."""
        asic, parts = self.asic, {}
        cells = self.rows * self.columns * self.arrays
        for name, cell in silicon.macs.items():
            parts[f"array {name}"] = _spread(cell.area_m2 * cells, cell.area_spread, self.cells.grade)
        for (slot, _), unit in silicon.units.items():
            lanes = self.columns * self.arrays if slot == "quantiser" else self.lanes
            part = _spread(unit.area_m2 * lanes, unit.area_spread, unit.grade)
            name = f"{slot} {unit.name}"
            parts[name] = total([parts[name], part]) if name in parts else part
        if silicon.score_words:
            parts["score buffer"] = self._score_buffer(silicon.score_words)
        parts["control"] = self._control(parts.values())
        spread, grade = self.sram.area_spread, self.sram.grade
        parts["sram"] = _spread(self.sram.area_m2 * asic.sram.banks, spread, grade)
        stores = (("weight memory", self.weights_off, weight_bytes), ("kv memory", self.kv_off, kv_bytes))
        for name, off, held in stores:
            if not off and held:
                parts[name] = _spread(self.bank.area_m2 * max(1.0, held / BANK_BYTES), spread, grade)
        parts["dram interface"] = of_figure(asic.dram.interface_area_m2)
        return parts

    def whole_area(self, parts: dict[str, Quantity]) -> Quantity:
        return total(parts.values())

    def _score_buffer(self, words: int) -> Quantity:
        bits = words * SCORE_BITS * self.asic.vector.score_rows * self.lanes
        if self.asic.vector.score_buffer == "flip_flop":
            flip_flop = self.cells.flip_flop()
            return _spread(flip_flop.area_m2 * bits, flip_flop.area_spread, self.cells.grade)
        held = memory.sram(words * SCORE_BITS // 8, SCORE_BITS, self.cells.node_m)
        value = held.area_m2 * self.asic.vector.score_rows * self.lanes
        return _spread(value, held.area_spread, held.grade)

    def leakage_w(self, silicon: Silicon, weight_bytes: float, kv_bytes: float) -> float:
        """Of everything that is on."""
        cells = self.rows * self.columns * self.arrays
        logic = sum(cell.leakage_w for cell in silicon.macs.values()) * cells
        for (slot, _), unit in silicon.units.items():
            logic += unit.leakage_w * (self.columns * self.arrays if slot == "quantiser" else self.lanes)
        held = weight_bytes * (not self.weights_off) + kv_bytes * (not self.kv_off)
        return logic + self.sram.leakage_w * self.asic.sram.banks + self.bank.leakage_w * held / BANK_BYTES

    def energies(self, cost: Cost, silicon: Silicon, weight_bytes: float, kv_bytes: float) -> dict[str, Quantity]:
        """By component in J, leakage and control included."""
        parts = {}
        for component, joules in cost.energy_j.items():
            ratio = self.ratios[component]
            parts[component] = Quantity(joules, joules * ratio.low, joules * ratio.high, ratio.grade)
        parts["control"] = self._control(q for name, q in parts.items() if name not in MEMORIES)
        watts = self.leakage_w(silicon, weight_bytes, kv_bytes)
        joules, spread = watts * cost.seconds, self.sram.leakage_spread
        low, high = watts * cost.low_s / spread, watts * cost.high_s * spread
        parts["leakage"] = Quantity(joules, low, high, self.sram.grade)
        return parts

    def _control(self, logic: Iterable[Quantity]) -> Quantity:
        whole, share = total(logic), self.asic.control_share
        value, spread = share.value, share.spread
        return Quantity(whole.value * value, whole.low * value / spread, whole.high * value * spread, share.grade)

    def busy_s(self, cost: Cost) -> dict[str, float]:
        """How long each resource works."""
        return {"array": cost.array_s, "vector units": cost.vector_s, "dram": cost.dram_s}

    def notes(self, weight_bytes: float, kv_bytes: float) -> tuple[str, ...]:
        return (
            "area is that of the units that prefill and decode ask for; a training step is priced with the multipliers "
            "of its own arithmetic in the same array, whose area is not counted",
        )

    def latency(self, cost: Cost) -> Quantity:
        """Graded by the resource that is busy longest: our cycles at a stated clock, or the bandwidth of the memory."""
        by_memory = cost.dram_s > max(cost.array_s, cost.vector_s)
        grade = self.asic.dram.bandwidth_bytes_per_s.grade if by_memory else self.cells.grade
        return Quantity(cost.seconds, cost.low_s, cost.high_s, grade)


def _spread(value: float, spread: float, grade: Grade) -> Quantity:
    return Quantity(value, value / spread, value * spread, grade)
