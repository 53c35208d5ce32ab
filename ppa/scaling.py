"""Area, energy, delay and leakage of an operator carried from one technology node to another.

Measured by us, from the committed calibrations: the factors between sky130 (130 nm, 1.8 V) and asap7 (7 nm, 0.7 V), the
geometric mean over all operators at the relaxed point, and how far single operators scatter about it; and, between
sky130 and sg13g2 (130 nm, 1.2 V), how far two libraries of one node differ. sg13g2 can be the anchor instead of sky130.

Carried over: what lies between. There the shape is that of Stillmaker and Baas, "Scaling equations for the accurate
prediction of CMOS device performance from 180 nm to 7 nm", Integration 58:74-81, 2017 (area factors; energy and delay
polynomials in the supply voltage, high-performance devices from 45 nm on, at the nominal voltages of the Predictive
Technology Model that they rest on), stretched in the logarithm so that both ends meet what we measured. Below 7 nm, and
everywhere for leakage, it is a plain power law through the anchors.

The spread is one standard deviation of the logarithm, as a factor. Added in quadrature: the scatter of operators, in
proportion to the distance covered (variance); the difference between the stretched shape and the plain power law; and
the choice of a library, a random walk pinned at both anchors, as wide in the middle as two libraries of one node
differ. Not covered: other voltages at a node, low-power devices, SRAM, wires, analogue parts; those scale otherwise.
"""

import json
import math
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

from gptcore.errors import UserError

FOLDER = Path(__file__).parent / "calibration"
NODE_M = {"sky130": 130e-9, "sg13g2": 130e-9, "asap7": 7e-9}
OLD_M, NEW_M = 130e-9, 7e-9  # nodes of the anchors
RANGE_M = (5e-9, 180e-9)
_SPAN = math.log(OLD_M / NEW_M)

Anchor = Literal["sky130", "sg13g2"]
QUANTITIES = {"area": "area_um2", "energy": "energy_pj_per_cycle", "delay": "delay_ps", "leakage": "leakage_w"}

# Stillmaker and Baas 2017, as tabulated in wromaszkan/nodeScale @ a912c60: nm -> area relative to 130 nm.
_AREA = {
    180: 2.9, 130: 1.0, 90: 0.44, 65: 0.23, 45: 0.16, 32: 0.072, 20: 0.033, 16: 0.03, 14: 0.027, 10: 0.016, 7: 0.0092,
}  # fmt: skip
# The same: nm -> (a, b, c) of the energy factor a V^2 + b V + c.
_ENERGY: dict[int, tuple[float, ...]] = {
    180: (24.64, -17.98, 0.0), 130: (7.171, -6.709, 2.904), 90: (4.762, -4.781, 2.092), 65: (3.755, -4.398, 1.975),
    45: (1.018, -0.3107, 0.1539), 32: (0.8367, -0.4341, 0.1701), 20: (0.373, -0.1582, 0.04104),
    16: (0.2958, -0.1241, 0.03024), 14: (0.2363, -0.09675, 0.02239), 10: (0.2068, -0.09311, 0.02375),
    7: (0.1776, -0.09097, 0.02447),
}  # fmt: skip
# The same: nm -> (a, b, c, d) of the delay factor a V^3 + b V^2 + c V + d. 20 nm is left out: at its nominal voltage it
# comes out 14 % slower than 32 nm, which no library that followed another was.
_DELAY: dict[int, tuple[float, ...]] = {
    180: (0.0, 97.09, -356.7, 406.5), 130: (-76.65, 334.9, -493.4, 275.8), 90: (-60.34, 262.5, -384.2, 210.9),
    65: (-53.3, 230.4, -333.9, 178.6), 45: (-501.6, 1567, -1619, 566.1), 32: (-1047, 2982, -2797, 873.5),
    16: (0.0, 24.8, -47.52, 28.87), 14: (-40.66, 109.2, -100.6, 35.92), 10: (-34.95, 93.65, -85.99, 30.4),
    7: (-28.58, 76.6, -70.26, 24.69),
}  # fmt: skip
# V, nominal in the Predictive Technology Model (ptm.asu.edu); 130 nm takes that of the anchor, and asap7 has 0.7 too.
_NOMINAL_V = {180: 1.8, 90: 1.2, 65: 1.1, 45: 1.0, 32: 0.9, 20: 0.9, 16: 0.85, 14: 0.8, 10: 0.75, 7: 0.7}


@dataclass(frozen=True, slots=True)
class Factor:
    """What to multiply by, and one standard deviation of that as a factor (>= 1): value / spread .. value * spread."""

    value: float
    spread: float

    @property
    def low(self) -> float:
        return self.value / self.spread

    @property
    def high(self) -> float:
        return self.value * self.spread


@dataclass(frozen=True, slots=True)
class Scaling:
    area: Factor
    energy: Factor
    delay: Factor
    leakage: Factor


def library_node_m(library: str) -> float:
    """Feature size of a calibrated library."""
    if library not in NODE_M:
        raise UserError(f"no library {library!r} (known: {', '.join(NODE_M)})")
    return NODE_M[library]


@lru_cache(maxsize=1024)
def carried(library: str, node_m: float) -> Scaling:
    """Factors that carry figures of a calibrated library to a node, through the measured anchors of that library."""
    return between(library_node_m(library), node_m, anchor="sg13g2" if library == "sg13g2" else "sky130")


@lru_cache(maxsize=1024)
def between(from_node_m: float, to_node_m: float, *, anchor: Anchor = "sky130") -> Scaling:
    """Factors that carry a figure of one node to another. `anchor` is the library that stands for 130 nm.

    UserError outside 5 to 180 nm.
    """
    for node in (from_node_m, to_node_m):
        if not RANGE_M[0] * (1 - 1e-9) <= node <= RANGE_M[1] * (1 + 1e-9):
            raise UserError(
                f"a technology node of {node * 1e9:g} nm: scaling covers {RANGE_M[0] * 1e9:g} to "
                f"{RANGE_M[1] * 1e9:g} nm (in metres: 65 nm is 65e-9)"
            )
    return Scaling(**{quantity: _factor(quantity, from_node_m, to_node_m, anchor) for quantity in QUANTITIES})


def _factor(quantity: str, from_node_m: float, to_node_m: float, anchor: Anchor) -> Factor:
    if from_node_m == to_node_m:
        return Factor(1.0, 1.0)
    mean, scatter = measured(quantity, anchor, "asap7")
    shape = _shape(quantity, anchor)
    total = math.log(mean)
    stretched = total * (_at(shape, to_node_m) - _at(shape, from_node_m))
    start, end = sorted((_position(from_node_m), _position(to_node_m)))
    plain = math.copysign(total * (end - start), stretched)
    within, outside = _walk(start, end)
    difference, apart = measured(quantity, "sky130", "sg13g2")
    library = math.hypot(math.log(difference) / math.sqrt(2), math.log(apart))
    variance = (
        math.log(scatter) ** 2 * (end - start) + (stretched - plain) ** 2 + library**2 * 4 * (within + outside)
    )  # 4: a walk pinned at both ends has a variance of 1/4 in the middle
    return Factor(math.exp(stretched), math.exp(math.sqrt(variance)))


@lru_cache
def measured(quantity: str, of: str, to: str) -> tuple[float, float]:
    """Geometric mean, and geometric standard deviation over all operators (relaxed), of a ratio between libraries."""
    key, old, new = QUANTITIES[quantity], rows(of), rows(to)
    logs = [math.log(new[name]["relaxed"][key] / old[name]["relaxed"][key]) for name in sorted(old.keys() & new.keys())]
    mean = math.fsum(logs) / len(logs)
    return math.exp(mean), math.exp(math.sqrt(math.fsum((v - mean) ** 2 for v in logs) / (len(logs) - 1)))


@lru_cache
def rows(library: str) -> dict[str, dict]:
    """Operators of a committed calibration."""
    return json.loads((FOLDER / f"{library}.json").read_text())["operators"]


@lru_cache
def _voltage(library: str) -> float:
    return json.loads((FOLDER / f"{library}.json").read_text())["library"]["voltage_v"]


@lru_cache
def _shape(quantity: str, anchor: Anchor) -> tuple[tuple[float, float], ...]:
    """Points (position, logarithm of the factor as a share of that between the anchors): 130 nm (0, 0), 7 nm (1, 1)."""
    if quantity == "leakage":
        return ((0.0, 0.0), (1.0, 1.0))
    if quantity == "area":
        logs = {node: math.log(value) for node, value in _AREA.items()}
    else:
        volts = {**_NOMINAL_V, 130: _voltage(anchor)}
        table = _ENERGY if quantity == "energy" else _DELAY
        logs = {node: math.log(_polynomial(terms, volts[node])) for node, terms in table.items()}
    length = logs[7] - logs[130]
    return tuple(sorted((_position(node * 1e-9), (value - logs[130]) / length) for node, value in logs.items()))


def _polynomial(terms: tuple[float, ...], x: float) -> float:
    value = 0.0
    for term in terms:
        value = value * x + term
    return value


def _position(node_m: float) -> float:
    """0 at 130 nm, 1 at 7 nm, linear in the logarithm of the feature size."""
    return math.log(OLD_M / node_m) / _SPAN


def _at(shape: tuple[tuple[float, float], ...], node_m: float) -> float:
    """Linear between points; beyond the last ones with slope 1, that is the plain power law."""
    x = _position(node_m)
    (x0, y0), (x1, y1) = shape[0], shape[-1]
    if x <= x0:
        return y0 + (x - x0)
    if x >= x1:
        return y1 + (x - x1)
    k = next(k for k in range(1, len(shape)) if x <= shape[k][0])
    (x0, y0), (x1, y1) = shape[k - 1], shape[k]
    return y0 + (y1 - y0) * (x - x0) / (x1 - x0)


def _walk(start: float, end: float) -> tuple[float, float]:
    """Variance of the step of a random walk from start to end: pinned at 0 and 1, and free outside of them."""
    inside = max(min(end, 1.0) - max(start, 0.0), 0.0)
    outside = (end - start) - inside
    return inside * (1 - inside), outside
