"""Memories of a chip, SRAM, ROM and flip-flops: area, energy an access, access time, leakage, and how far they are off.

SRAM from 22 to 90 nm is interpolated in a committed table of CACTI 7 (ppa/calibration/cacti.csv; model output, not
silicon): linear in the logarithms of capacity, width and node. Where CACTI's own points fall as the capacity grows,
they are first smoothed to the nearest that do not (isotonic regression of the logarithms). Besides:

    above 1 MiB      banks of 1 MiB; the wires between banks cost nothing here, only the spread of the energy grows
    below 512 bytes  as 512 bytes; the spread grows
    other widths     below 16 bits as 16, above 128 bits memories of 128 side by side
    above 90 nm      area and energies through the macros of three open families at 130 nm (MACROS); time as logic
    below 22 nm      as logic scales (ppa/scaling.py), though SRAM has scaled worse than logic since 10 nm
    leakage          of those macros, 25 C, a bit; to other nodes as logic. CACTI's (hot, high-performance cells) is
                     some thousand times more and is not used

Not covered: a second port (about twice the area), error correction, power gating. Access times are those of CACTI's
fast cells: SRAM22 macros (sky130) cycle in 3.1 to 4.0 ns where 0.7 to 0.8 ns come out here.
"""

import csv
import json
import math
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from gptcore.errors import UserError

from . import scaling
from .figure import Grade

FOLDER = Path(__file__).parent / "calibration"
TABLE = FOLDER / "cacti.csv"
SMALLEST_BYTES, LARGEST_BYTES = 512, 1 << 20
NARROWEST_BITS, WIDEST_BITS = 16, 128
FINEST_M, COARSEST_M, MACRO_M = 22e-9, 90e-9, 130e-9
QUANTITIES = ("area_mm2", "read_pJ", "write_pJ", "access_ns")

ENERGY_SPREAD = 2.0  # of CACTI: Horowitz's three SRAM reads are 1.2, 1.3 and 1.7 times CACTI's
# of CACTI a bit at 1 MiB: Intel's bare cells are 0.59 and 0.62 of it (90, 65 nm), whole test chips 1.18 and 1.63
AREA_SPREAD = 1.7
SMALL_EXPONENT = 0.35  # of capacity: between gf180's macros of 64 and 512 bytes the area grows by 2.08
BANKS_EXPONENT = 0.37  # of capacity: CACTI's own read energy from 256 KiB to 1 MiB (64 bits, 45 nm)
LEAKAGE_W_PER_BIT = 2.1e-10  # geometric mean of SRAM22 (0.038 nW), OpenRAM (1.23), gf180 (0.20); 130 to 180 nm, 25 C
LEAKAGE_SPREAD = 6.0  # to either end of those three

# A ROM cell is one transistor on one bit line, an SRAM cell six on two; decoders, sense amplifiers and drivers, about
# 40 % of a macro, stay: 0.4 + 0.6 / 6. Half the bit lines swing. Cells have no leaking pair of inverters.
# Small tables are smaller as logic: exp_lut256 (512 bytes) takes 2,600 um2 in sky130, a ninth of this.
ROM_AREA, ROM_ENERGY, ROM_LEAKAGE, ROM_SPREAD = 0.5, 0.7, 0.4, 1.6  # estimate


@dataclass(frozen=True, slots=True)
class Memory:
    """Figures of one memory. A spread is the factor by which the truth may be smaller or larger."""

    area_m2: float
    read_j: float
    write_j: float
    access_s: float
    leakage_w: float
    area_spread: float
    energy_spread: float
    leakage_spread: float
    grade: Grade


@dataclass(frozen=True, slots=True)
class FlipFlops:
    """Figures of registers in the node of their library; energy a clock cycle, clocked without gating."""

    area_m2: float
    energy_j_per_cycle: float
    leakage_w: float
    area_spread: float
    energy_spread: float
    grade: Grade


@dataclass(frozen=True, slots=True)
class Macro:
    """A published SRAM macro at 130 nm; energies where its maker simulated them, drawn from the supply, an access."""

    name: str
    family: str
    capacity_bytes: int
    access_bits: int
    area_m2: float
    read_j: float | None = None
    write_j: float | None = None


# Liberty files, typical corner, 25 C. IHP-GmbH/IHP-Open-PDK (sg13g2_sram, 1.2 V, one port); siliconcompiler/lambdapdk
# (OpenRAM, sky130, 1.8 V, two ports); rahulk29/sram22_sky130_macros (1.8 V, one port; rise and fall of the supply pin).
# OpenRAM's energy is its generator's estimate, one for reads and writes (rise and fall of the clock pin added).
MACROS = (
    Macro("1P_256x64", "sg13g2", 2048, 64, 93_180.5e-12, 49.634e-12, 63.437e-12),
    Macro("1P_2048x64", "sg13g2", 16384, 64, 491_633.6e-12, 122.394e-12, 155.368e-12),
    Macro("1P_4096x16", "sg13g2", 8192, 16, 257_608.5e-12, 58.644e-12, 72.490e-12),
    Macro("sram22_512x32", "sky130 SRAM22", 2048, 32, 198_909e-12, None, 7.663e-12),
    Macro("sram22_2048x32", "sky130 SRAM22", 8192, 32, 527_389e-12, 15.041e-12, 10.049e-12),
    Macro("sram22_1024x64", "sky130 SRAM22", 8192, 64, 555_929e-12, None, 16.606e-12),
    Macro("1rw1r_64x256", "sky130 OpenRAM", 2048, 64, 419_462.7e-12, 91.237e-12, 91.237e-12),
)

Line = list[tuple[float, float]]  # (logarithm of the capacity, of the quantity)
Grid = dict[float, dict[int, dict[str, Line]]]  # node, width, quantity


def read_table() -> list[dict[str, float]]:
    with open(TABLE) as file:
        return [
            {key: float(value) for key, value in row.items()}
            for row in csv.DictReader(line for line in file if not line.startswith("#"))
        ]


def make_grid(rows: Iterable[dict[str, float]]) -> Grid:
    """Smoothed lines of a table."""
    grid: Grid = defaultdict(dict)
    lines: dict[tuple[float, int], list[dict[str, float]]] = defaultdict(list)
    for row in rows:
        lines[row["node_nm"] * 1e-9, int(row["access_bits"])].append(row)
    for (node_m, bits), points in sorted(lines.items()):
        points.sort(key=lambda row: row["bytes"])
        capacities = [math.log(row["bytes"]) for row in points]
        grid[node_m][bits] = {
            quantity: list(zip(capacities, isotonic([math.log(row[quantity]) for row in points]), strict=True))
            for quantity in QUANTITIES
        }
    return dict(grid)


def isotonic(values: Sequence[float]) -> list[float]:
    """The nearest sequence in least squares that never falls: neighbours that fall are pooled to their mean."""
    pools: list[list[float]] = []  # sum, number
    for value in values:
        pools.append([value, 1])
        while len(pools) > 1 and pools[-2][0] / pools[-2][1] > pools[-1][0] / pools[-1][1]:
            total, number = pools.pop()
            pools[-1] = [pools[-1][0] + total, pools[-1][1] + number]
    return [total / number for total, number in pools for _ in range(int(number))]


def interpolate(grid: Grid, capacity_bytes: float, access_bits: float, node_m: float) -> dict[str, float]:
    """Quantities inside the table, at its edge outside."""
    capacity, bits, node = math.log(capacity_bytes), math.log(access_bits), math.log(node_m)
    found = {}
    for quantity in QUANTITIES:
        nodes = []
        for at_m, widths in grid.items():
            across = [(math.log(width), _linear(lines[quantity], capacity)) for width, lines in widths.items()]
            nodes.append((math.log(at_m), _linear(across, bits)))
        found[quantity] = math.exp(_linear(nodes, node))
    return found


def _linear(points: Sequence[tuple[float, float]], x: float) -> float:
    k = bisect_left(points, (x,))
    if k == 0:
        return points[0][1]
    if k == len(points):
        return points[-1][1]
    (x0, y0), (x1, y1) = points[k - 1], points[k]
    return y0 + (y1 - y0) * (x - x0) / (x1 - x0)


@lru_cache(maxsize=1)
def _grid() -> Grid:
    return make_grid(read_table())


@dataclass(frozen=True, slots=True)
class MacroFit:
    """How the 130 nm macros compare with CACTI at 90 nm: factors, and spreads that reach the farthest macro."""

    area: float
    read: float
    write: float
    area_spread: float
    energy_spread: float


@lru_cache(maxsize=1)
def macro_fit() -> MacroFit:
    """Geometric means over families of the geometric means in each."""
    ratios: dict[str, dict[str, list[float]]] = {"area_mm2": {}, "read_pJ": {}, "write_pJ": {}}
    for macro in MACROS:
        ours = interpolate(_grid(), macro.capacity_bytes, macro.access_bits, COARSEST_M)
        for quantity, theirs in (
            ("area_mm2", macro.area_m2 * 1e6),
            ("read_pJ", macro.read_j and macro.read_j * 1e12),
            ("write_pJ", macro.write_j and macro.write_j * 1e12),
        ):
            if theirs is not None:
                ratios[quantity].setdefault(macro.family, []).append(math.log(theirs / ours[quantity]))
    mean, farthest = {}, {}
    for quantity, families in ratios.items():
        mean[quantity] = math.fsum(math.fsum(logs) / len(logs) for logs in families.values()) / len(families)
        farthest[quantity] = max(abs(log - mean[quantity]) for logs in families.values() for log in logs)
    area, read, write = (math.exp(mean[quantity]) for quantity in ratios)
    energy_spread = math.exp(max(farthest["read_pJ"], farthest["write_pJ"]))
    return MacroFit(area, read, write, math.exp(farthest["area_mm2"]), energy_spread)


@lru_cache(maxsize=4096)
def sram(capacity_bytes: int, access_bits: int, node_m: float) -> Memory:
    """A single-port SRAM. UserError outside 5 to 180 nm, or where nothing is stored or read."""
    if capacity_bytes < 1 or access_bits < 1:
        raise UserError(f"an SRAM of {capacity_bytes} bytes that is read {access_bits} bits at a time")
    side = max(1.0, access_bits / WIDEST_BITS)
    share = capacity_bytes / side
    banks = max(1.0, share / LARGEST_BYTES)
    bank_bytes = min(max(share, SMALLEST_BYTES), LARGEST_BYTES)
    edge_m = min(max(node_m, FINEST_M), COARSEST_M)
    base = interpolate(_grid(), bank_bytes, max(NARROWEST_BITS, min(access_bits, WIDEST_BITS)), edge_m)
    delay = scaling.between(edge_m, node_m).delay.value
    leakage = scaling.between(MACRO_M, node_m).leakage

    if node_m <= COARSEST_M:
        logic = scaling.between(edge_m, node_m)
        area, read, write = logic.area.value, logic.energy.value, logic.energy.value
        area_spread, energy_spread = math.log(AREA_SPREAD), math.log(ENERGY_SPREAD)
    else:
        logic, fit = scaling.between(MACRO_M, max(node_m, MACRO_M)), macro_fit()
        way = min(1.0, math.log(node_m / COARSEST_M) / math.log(MACRO_M / COARSEST_M))
        area = fit.area**way * logic.area.value
        read, write = (factor**way * logic.energy.value for factor in (fit.read, fit.write))
        area_spread = math.log(AREA_SPREAD) * (1 - way) + math.log(fit.area_spread) * way
        energy_spread = math.log(ENERGY_SPREAD) * (1 - way) + math.log(fit.energy_spread) * way
    area_spread = math.hypot(area_spread, math.log(logic.area.spread))
    energy_spread = math.hypot(energy_spread, math.log(logic.energy.spread))
    small = SMALL_EXPONENT * math.log(SMALLEST_BYTES / share) if share < SMALLEST_BYTES else 0.0
    many = BANKS_EXPONENT * math.log(banks)

    inside = edge_m == node_m and small == many == 0.0
    return Memory(
        area_m2=base["area_mm2"] * 1e-6 * area * banks * side,
        read_j=base["read_pJ"] * 1e-12 * read * side,
        write_j=base["write_pJ"] * 1e-12 * write * side,
        access_s=base["access_ns"] * 1e-9 * delay,
        leakage_w=8 * capacity_bytes * LEAKAGE_W_PER_BIT * leakage.value,
        area_spread=math.exp(area_spread + small),
        energy_spread=math.exp(energy_spread + small + many),
        leakage_spread=math.exp(math.hypot(math.log(LEAKAGE_SPREAD), math.log(leakage.spread))),
        grade="published" if inside else "estimate",
    )


@lru_cache(maxsize=4096)
def rom(capacity_bytes: int, access_bits: int, node_m: float) -> Memory:
    """A mask ROM, as shares of the SRAM of that size; it is never written."""
    ram = sram(capacity_bytes, access_bits, node_m)
    return Memory(
        area_m2=ROM_AREA * ram.area_m2,
        read_j=ROM_ENERGY * ram.read_j,
        write_j=0.0,
        access_s=ram.access_s,
        leakage_w=ROM_LEAKAGE * ram.leakage_w,
        area_spread=ROM_SPREAD * ram.area_spread,
        energy_spread=ROM_SPREAD * ram.energy_spread,
        leakage_spread=ROM_SPREAD * ram.leakage_spread,
        grade="estimate",
    )


BUFFER_BITS = 256 * 16  # of the score buffer by which the two softmax units differ
PLACED = 1.6  # estimate: wires and clock tree, neither in the calibration, add up to 60 % to the energy
MAPPED = 1.1  # estimate: area between recipes (2 to 6 % apart in the calibrations) and what placement adds


@lru_cache(maxsize=256)
def flip_flops(bits: int, library: str) -> FlipFlops:
    """Registers with enable and read multiplexer: what the score buffer adds to the softmax unit, a bit (relaxed)."""
    scaling.library_node_m(library)  # UserError for a library that is not there
    operators = json.loads((FOLDER / f"{library}.json").read_text())["operators"]
    whole, without = operators["softmax_buf256"]["relaxed"], operators["softmax_nobuf"]["relaxed"]
    area, energy, leakage = (
        bits * (whole[key] - without[key]) / BUFFER_BITS for key in ("area_um2", "energy_pj_per_cycle", "leakage_w")
    )
    return FlipFlops(area * 1e-12, energy * 1e-12, leakage, MAPPED, PLACED, "synthesised")
