"""SRAM: CACTI's table and our interpolation of it against published energies, macros, and its own left-out points."""

import csv
import json
from collections.abc import Iterator
from pathlib import Path

from .. import memory
from . import Row, Score, Section

ORDER = 70
TITLE = "SRAM: CACTI, Horowitz and open macros"
FILES = ("cacti_sram.csv", "published_operator_tables.json")
SOURCE = (
    "CACTI 7 (165 points); Horowitz, ISSCC 2014 (45 nm); liberty files of SRAM macros: IHP-Open-PDK (sg13g2, 130 nm), "
    "sram22_sky130_macros, OpenRAM for sky130 (130 nm), gf180mcu (180 nm); Intel's announcements of SRAM test chips "
    "(90 nm 2002, 65 nm 2004)"
)
TEXT = (
    "SRAM between 22 and 90 nm is interpolated in CACTI's table. The scores leave one capacity, one node or the middle "
    "width out and predict it from the rest; no bar is set on them. Published numbers must lie inside our interval, "
    "but most of these intervals were drawn with the numbers in sight: the spread of energy (2) with Horowitz's reads, "
    "that of area (1.7) with Intel's cells and chips; and at 130 nm values are means over three open macro families "
    "and spreads reach the farthest macro. Such rows are marked fitted and prove little; gf180's 512 x 8 macro is held "
    "out. Measured by CACTI's figure for their size, the open macros of one node differ six-fold in area and "
    "sixteen-fold in energy, and no estimate that knows only the node can do better. OpenRAM's has two ports, and its "
    "energy is an estimate of its generator. gf180's liberty energies would be 40 times ours; 5 V instead of 1.8 V "
    "explains a factor of 8, so they probably have another unit and are only shown."
)
WITHOUT = {"one capacity": "bytes", "one node": "node_nm", "the 64-bit width": "access_bits"}
MACROS_180 = (("64x8", 64, 100_571.56e-12, 770.85e-12), ("512x8", 512, 209_400.28e-12, 908.1e-12))
# um2 a bit: node, a bare cell (a bank is larger), a whole test chip with its pads (a bank is smaller).
INTEL = ((90e-9, 1.0, 109e6 / (52 << 20)), (65e-9, 0.57, 110e6 / (70 << 20)))


def validate(folder: Path) -> Section:
    with open(folder / "cacti_sram.csv") as file:
        given = [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]
    table = memory.read_table()
    horowitz = json.loads((folder / "published_operator_tables.json").read_text())["horowitz_45nm_0v9"]
    differing = sum(row not in table for row in given) + sum(row not in given for row in table)
    scores = [Score("points of the committed table that differ", differing, 0, len(table), unit="count")]
    for what, key in WITHOUT.items():
        for quantity in ("area_mm2", "read_pJ"):
            errors = list(left_out(table, key, quantity))
            mean, worst = sum(errors) / len(errors), max(errors)
            name = f"{quantity.split('_')[0]} without {what}"
            scores.append(Score(f"{name}, mean error", mean, None, len(errors), note=f"largest {worst:.0%}"))
    rows = [*_horowitz(horowitz), *_intel(), *_macros(), *_gf180()]
    return Section(TITLE, SOURCE, TEXT, tuple(scores), tuple(rows))


def left_out(table: list[dict[str, float]], key: str, quantity: str) -> Iterator[float]:
    """Relative errors of a quantity, each point predicted from a table without its node or width, or without itself.

    Points at the edge of the table, which would be extrapolated, are not predicted.
    """
    values = sorted({row[key] for row in table})
    inner = [row for row in table if values[0] < row[key] < values[-1]]
    grids: dict[float, memory.Grid] = {}
    for row in inner:
        if key == "bytes":
            grid = memory.make_grid(other for other in table if other is not row)
        else:
            if row[key] not in grids:
                grids[row[key]] = memory.make_grid(other for other in table if other[key] != row[key])
            grid = grids[row[key]]
        ours = memory.interpolate(grid, row["bytes"], row["access_bits"], row["node_nm"] * 1e-9)[quantity]
        yield abs(ours / row[quantity] - 1)


def _row(name: str, unit: str, published: float, ours: float, spread: float, note: str) -> Row:
    return Row(name, unit, published, ours, ours_low=ours / spread, ours_high=ours * spread, note=note)


def _horowitz(table: dict) -> Iterator[Row]:
    for size, published in table["sram_64bit_read_pJ"].items():
        capacity = int(size[:-2]) << (10 if size.endswith("KB") else 20)
        ours = memory.sram(capacity, 64, 45e-9)
        yield _row(
            f"read {size}, 64 bits, 45 nm", "J", published * 1e-12, ours.read_j, ours.energy_spread, "fitted spread"
        )


def _intel() -> Iterator[Row]:
    for node_m, cell, chip in INTEL:
        ours = memory.sram(1 << 20, 64, node_m)
        bit = ours.area_m2 / (8 << 20)
        at = f"Intel, {node_m * 1e9:.0f} nm"
        yield Row(f"a bare cell, {at}", "m2", cell * 1e-12, bit, note="shown: a bank must be larger")
        yield _row(f"a bit of a whole test chip, {at}", "m2", chip * 1e-12, bit, ours.area_spread, "fitted spread")


def _macros() -> Iterator[Row]:
    for macro in memory.MACROS:
        ours = memory.sram(macro.capacity_bytes, macro.access_bits, memory.MACRO_M)
        name = f"{macro.family} {macro.name}"
        yield _row(f"area {name}", "m2", macro.area_m2, ours.area_m2, ours.area_spread, "fitted")
        for what, published, value in (("read", macro.read_j, ours.read_j), ("write", macro.write_j, ours.write_j)):
            if published is not None:
                yield _row(f"{what} {name}", "J", published, value, ours.energy_spread, "fitted")


def _gf180() -> Iterator[Row]:
    for name, capacity, area_m2, read_j in MACROS_180:
        ours = memory.sram(capacity, 8, 180e-9)
        note = "held out" if capacity >= memory.SMALLEST_BYTES else "fitted spread"
        yield _row(f"area gf180 {name}", "m2", area_m2, ours.area_m2, ours.area_spread, note)
        yield Row(f"read gf180 {name}", "J", read_j, ours.read_j, note="shown only: the unit is in doubt")
