"""Energies and areas of arithmetic, Horowitz at 45 nm and Aladdin at 40 nm, against our operators carried there.

Both of our ends are carried: sky130 down from 130 nm and asap7 up from 7 nm.
"""

import json
import math
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from .. import scaling
from . import Row, Score, Section

ORDER = 65
FILES = ("published_operator_tables.json",)
TITLE = "Arithmetic: Horowitz and Aladdin"
SOURCE = (
    "Horowitz, ISSCC 2014 (45 nm, 0.9 V; areas as recalled from Dally's NIPS 2015 tutorial, not checked against the "
    "slides); Shao et al., Aladdin, ISCA 2014 (40 nm), as tabulated in hwcomponents-library"
)
POINTS = ("relaxed", "fast")
WIRES = 1.6  # estimate: wires and clock tree add 20 to 60 % to the energy of cells; the upper end here
LIBRARIES = ("sky130", "asap7")
TABLES = {"horowitz_45nm_0v9": ("Horowitz", 45e-9), "aladdin_40nm": ("Aladdin", 40e-9)}

Parts = Mapping[str, float]  # operators and how often each is counted
_BITS = 256 * 16  # of the score buffer
_SAME = ("int8_add", "int16_add", "int32_add", "int8_mul", "int32_mul", "fp16_add", "fp32_add", "fp16_mul", "fp32_mul")
OPERATORS: dict[str, Parts] = {  # Aladdin's comparator and counter are no operators of ours
    **{name: {name: 1.0} for name in _SAME},
    "register_bit": {"softmax_buf256": 1 / _BITS, "softmax_nobuf": -1 / _BITS},
}


@dataclass(frozen=True)
class Interval:
    low: float
    high: float

    @property
    def middle(self) -> float:
        return math.sqrt(self.low * self.high)


def total(parts: Parts, library: str, point: str, key: str) -> float:
    """Of a row of the calibration, over parts; `with hazards` is the energy times the glitch factor."""
    value = 0.0
    for name, weight in parts.items():
        row = scaling.rows(library)[name][point]
        if key == "with hazards":
            value += weight * row["energy_pj_per_cycle"] * row["glitch_factor"]
        else:
            value += weight * row[key]
    return value


def area_um2(parts: Parts, library: str, node_m: float, key: str = "area_um2") -> Interval:
    """From the smaller to the larger of the relaxed and the fast point, and one standard deviation of the scaling."""
    ends = [total(parts, library, point, key) for point in POINTS]
    factor = scaling.carried(library, node_m).area
    return Interval(min(ends) * factor.low, max(ends) * factor.high)


def energy_pj(parts: Parts, library: str, node_m: float) -> Interval:
    """Of a cycle of random operands: from the cheaper point at zero delay to the dearer one with hazards and `WIRES`,
    and one standard deviation of the scaling."""
    factor = scaling.carried(library, node_m).energy
    low = min(total(parts, library, point, "energy_pj_per_cycle") for point in POINTS)
    high = max(total(parts, library, point, "with hazards") for point in POINTS)
    return Interval(low * factor.low, high * WIRES * factor.high)


def geometric(ratios: list[float]) -> tuple[float, float]:
    """Mean and standard deviation (of the sample), as factors."""
    logs = [math.log(value) for value in ratios]
    mean = math.fsum(logs) / len(logs)
    return math.exp(mean), math.exp(math.sqrt(math.fsum((v - mean) ** 2 for v in logs) / (len(logs) - 1)))


def paragraphs(*texts: str) -> str:
    """Wrapped lines; a text that begins with a dash is an item of a list."""
    wrapped = [textwrap.fill(text, 118, subsequent_indent="  " * text.startswith("-")) for text in texts]
    return "\n\n".join(wrapped).replace("\n\n- ", "\n- ")


def validate(folder: Path) -> Section:
    tables = json.loads((folder / FILES[0]).read_text())
    rows = {(key, library): list(_rows(tables[key]["rows"], key, library)) for key in TABLES for library in LIBRARIES}
    scores = []
    for (key, library), found in rows.items():
        for unit, quantity in (("um2", "area"), ("pJ", "energy")):
            of = [row for row in found if row.unit == unit]
            mean, spread = geometric([row.ours / row.published for row in of])
            outside = sum(row.verdict == "fail" for row in of)
            scores.append(
                Score(
                    f"{TABLES[key][0]}, {quantity}, from {library}: geometric mean of ours over theirs",
                    mean,
                    None,
                    len(of),
                    unit="factor",
                    note=f"geometric spread x{spread:.2f}; {outside} of {len(of)} outside our interval",
                )
            )
    found_rows = tuple(row for found in rows.values() for row in found)
    return Section(TITLE, SOURCE, _text(tables, found_rows), tuple(scores), found_rows)


def _rows(published: list[list], key: str, library: str) -> Iterator[Row]:
    table, node_m = TABLES[key]
    for name, theirs_pj, theirs_um2, *_ in published:
        if name not in OPERATORS:
            continue
        bit = name == "register_bit"
        area = area_um2(OPERATORS[name], library, node_m, "sequential_area_um2" if bit else "area_um2")
        energy = energy_pj(OPERATORS[name], library, node_m)
        for unit, theirs, ours in (("um2", theirs_um2, area), ("pJ", theirs_pj, energy)):
            yield Row(
                f"{table}, {name}, from {library}", unit, theirs, ours.middle, ours_low=ours.low, ours_high=ours.high,
                note="a flip-flop of the score buffer, clocked in every cycle" if bit else "",
            )  # fmt: skip


def _text(tables: dict, rows: tuple[Row, ...]) -> str:
    theirs = {key: {name: (pj, um2) for name, pj, um2, *_ in tables[key]["rows"]} for key in TABLES}
    horowitz, aladdin = TABLES
    old, new = LIBRARIES

    def ratio(key: str, library: str, quantity: str, kinds: str = "") -> str:
        """Geometric mean of ours at the relaxed point (energy: cells alone, zero delay) over theirs."""
        return f"{_relaxed(theirs[key], TABLES[key][1], library, quantity, kinds)[0]:.2f}"

    carried = scaling.carried(old, TABLES[horowitz][1]).energy
    polynomials = tables["stillmaker_baas_2017"]["energy_factor_abc_of_aV2_bV_c"]
    before, after = (a * v * v + b * v + c for (a, b, c), v in ((polynomials["130"], 1.8), (polynomials["45"], 1.0)))
    other = _relaxed(theirs[horowitz], TABLES[horowitz][1], old, "energy")[0] * after / before / carried.value
    multiplier = [theirs[aladdin]["int32_mul"][i] / theirs[horowitz]["int32_mul"][i] for i in (0, 1)]
    energies = [row for row in rows if row.name.startswith("Aladdin") and row.unit == "pJ"]
    return paragraphs(
        "Each operator of sky130 and of asap7 is carried to the node of the table. Ours is an interval: area from the "
        f"relaxed to the fast point, energy from zero delay to hazards times {WIRES:g} for wires (estimate), both "
        "times one standard deviation of the scaling; its geometric middle is the value shown. Nothing was fitted "
        "here. That both ends agree in the mean is by construction: the scaling is the mean over our operators.",
        f"- Horowitz, area: at the relaxed point {ratio(horowitz, old, 'area')} times theirs from {old} and "
        f"{ratio(horowitz, new, 'area')} from {new} on the average, but our integer operators are "
        f"{ratio(horowitz, old, 'area', 'int')} times as large and our floating-point ones "
        f"{ratio(horowitz, old, 'area', 'fp')}. Ours flush denormals and raise no exceptions; what theirs do, and at "
        "which speed, is not stated. That column of the table is recalled, not checked.",
        f"- Horowitz, energy: ours are {ratio(horowitz, old, 'energy')} times as large already for cells alone at zero "
        f"delay, integers {ratio(horowitz, old, 'energy', 'int')}, floats {ratio(horowitz, old, 'energy', 'fp')}. "
        "Random operands in every cycle are an active stimulus, and 0.9 V there against 1.0 V in the scaling is worth "
        f"a factor of {1 / 0.9**2:.1f}. The rest may be the scaling: from 130 to 45 nm it leaves {carried.value:.3f} "
        f"of the energy; Stillmaker and Baas without our stretching leave {after / before:.3f}, and ours would be "
        f"{other:.2f} times theirs.",
        f"- Aladdin, energy: {ratio(aladdin, old, 'energy')} times from {old} and {ratio(aladdin, new, 'energy')} from "
        f"{new} for cells alone, and {sum(row.verdict == 'pass' for row in energies)} of {len(energies)} inside our "
        "interval. Here the same change of the scaling would be a miss to the other side: at these nodes energy is "
        f"known to a factor of about two, and the scaling says so (x{carried.spread:.1f}).",
        "- The tables differ from each other as much as from us: Aladdin's 32-bit multiplier takes "
        f"{multiplier[0]:.1f} times the energy and {multiplier[1]:.1f} times the area of Horowitz', on a smaller node. "
        "Published tables bracket an operator, they do not pin it.",
    )


def _relaxed(
    theirs: Mapping[str, tuple[float, float]], node_m: float, library: str, quantity: str, kinds: str = ""
) -> tuple[float, float]:
    factors = scaling.carried(library, node_m)
    column, key, factor = {
        "energy": (0, "energy_pj_per_cycle", factors.energy.value),
        "area": (1, "area_um2", factors.area.value),
    }[quantity]
    names = [name for name in theirs if name in OPERATORS and name.startswith(kinds)]
    return geometric([total(OPERATORS[n], library, "relaxed", key) * factor / theirs[n][column] for n in names])
