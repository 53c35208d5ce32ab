"""Constants of the latency model of a GPU (ppa/gpu.py) from measured kernels: the same method for every device.

A file of measurements is a CSV with the header

    operator,m,k,n,rows,length,bits,seconds

where `operator` is gemm (m, k, n: the product (m, k) x (k, n)) or pointwise, norm, softmax (rows, length: each element
is read once and written once; a pointwise kernel has one row). `bits` is the width of an element, 16 where the column
is missing. Columns that no row needs may be missing, cells that a row does not need may be empty.

Least mean absolute relative error by coordinate search from the `PRIORS`, deterministic. A weak penalty holds a
constant near its prior where the measurements say nothing about it: ten rows do not pin eight constants, nor does any
number of long products pin what a short one costs. The priors are round numbers of the right order, no results of
a fit.
"""

import csv
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gptcore.errors import UserError

from .gpu import EDGES, SPLITS, Gpu, gemm_seconds, streaming_seconds
from .machine import load_machine

OPERATORS = ("gemm", "pointwise", "norm", "softmax")
PENALTY = 0.001  # of a squared distance to a prior; not less for many rows, those of a sweep repeat each other
STEPS = 90  # of the search, a constant


@dataclass(frozen=True)
class Prior:
    """Where the search for a constant starts, how far it usually strays (a factor e ** width), and its upper limit."""

    value: float
    width: float
    highest: float = 1e9


PRIORS: dict[str, dict[str, Prior]] = {
    "gemm": {
        "launch_s": Prior(5e-6, 1.5),
        "memory_efficiency": Prior(0.85, 0.2, 1.0),
        "tile_overhead": Prior(5.0, 0.7),
        "wave_start_s": Prior(1e-6, 0.7),
        "wave_overlap": Prior(0.5, 0.4, 1.0),
        "split_s": Prior(5e-6, 1.0),
        "slowdown": Prior(0.1, 1.0),
        "slowdown_after_s": Prior(1e-3, 1.0),
    },
    "pointwise": {"launch_s": Prior(5e-6, 2.0), "memory_efficiency": Prior(0.8, 0.5, 1.0)},
    "norm": {
        "launch_s": Prior(5e-6, 2.0),
        "memory_efficiency": Prior(0.8, 0.5, 1.0),
        "row_s_per_element": Prior(2e-10, 1.0),
        "held_elements": Prior(4096.0, 1.0),
        "reread": Prior(1.0, 0.7),
    },
}
PRIORS["softmax"] = PRIORS["norm"]
Constants = dict[str, dict[str, float]]


@dataclass(frozen=True)
class Measurement:
    """A kernel and its seconds. Rows of `length` elements, or a product (m, k) x (k, n)."""

    operator: str
    seconds: float
    m: int = 1
    k: int = 1
    n: int = 1
    rows: int = 1
    length: int = 1
    bits: int = 16

    @property
    def moved_bytes(self) -> float:
        if self.operator == "gemm":
            return (self.m * self.k + self.k * self.n + self.m * self.n) * self.bits / 8
        return 2 * self.rows * self.length * self.bits / 8

    @property
    def flops(self) -> float:
        return 2.0 * self.m * self.k * self.n if self.operator == "gemm" else 0.0


def modelled(gpu: Gpu, row: Measurement) -> float:
    """Seconds of a measured kernel by the latency model."""
    if row.operator == "gemm":
        return gemm_seconds(gpu, row.m, row.k, row.n, bits=row.bits)
    half = row.moved_bytes / 2
    length = 1 if row.operator == "pointwise" else row.length
    return streaming_seconds(gpu, row.operator, length, half, half)  # type: ignore[arg-type]


def roofline(gpu: Gpu, row: Measurement) -> float:
    """The physical bound: operations at the peak rate or bytes at the peak bandwidth, whichever takes longer."""
    return max(row.flops / gpu.rates.flop_per_s[row.bits], row.moved_bytes / gpu.rates.bandwidth)


def mean_error(gpu: Gpu, rows: Sequence[Measurement], model: Callable[[Gpu, Measurement], float] = modelled) -> float:
    """Mean absolute relative error."""
    return sum(abs(model(gpu, row) / row.seconds - 1) for row in rows) / len(rows)


def spread(gpu: Gpu, rows: Sequence[Measurement]) -> float:
    """The factor within which nine of ten rows lie."""
    factors = sorted(max(modelled(gpu, row) / row.seconds, row.seconds / modelled(gpu, row)) for row in rows)
    return factors[min(int(0.9 * len(factors)), len(factors) - 1)]


def fit(rows: Sequence[Measurement], gpu: Gpu) -> Constants:
    """Constants of every operator that `rows` has, for the peaks and units of `gpu`."""
    found: Constants = {}
    for operator in OPERATORS:
        mine = [row for row in rows if row.operator == operator]
        if mine:
            priors = PRIORS[operator]
            model = (_gemm_model if operator == "gemm" else _streaming_model)(mine, gpu)
            best = _search(model, np.array([row.seconds for row in mine]), list(priors.values()))
            found[operator] = dict(zip(priors, best.tolist(), strict=True))
    return found


def with_constants(gpu: Gpu, constants: Constants, source: str = "fitted") -> Gpu:
    """The GPU with fitted constants in place of its own."""
    sections: dict[str, Any] = {name: getattr(gpu, name) for name in Gpu.model_fields}
    for operator, values in constants.items():
        old = sections[operator]
        figures = {name: getattr(old, name).model_copy(update={"value": value}) for name, value in values.items()}
        sections[operator] = old.model_copy(update={"source": source, "grade": "measured", **figures})
    return Gpu(**sections)


def _gemm_model(rows: Sequence[Measurement], gpu: Gpu) -> Callable[[np.ndarray], np.ndarray]:
    """What gemm_seconds computes, for all rows at once; a test holds the two together."""
    r = gpu.rates
    m, k, n, peak = np.array([(row.m, row.k, row.n, r.flop_per_s[row.bits]) for row in rows], float).T
    memory = np.array([row.moved_bytes for row in rows]) / r.bandwidth
    edge, split = np.array([(edge, split) for edge in EDGES for split in SPLITS], float).T[:, :, None]
    count = np.ceil(m / edge) * np.ceil(n / edge) * split
    whole, fluid = np.ceil(count / r.units), np.maximum(1, count / r.units)
    ideal = 2 * edge * edge * k / split * r.units / peak

    def seconds(c: np.ndarray) -> np.ndarray:
        launch, efficiency, overhead, start, overlap, split_s, slowdown, after = c
        waves = whole + overlap * (fluid - whole)
        compute = (waves * (ideal * (1 + 2 * overhead / edge) + start) + split_s * (split > 1)).min(axis=0)
        compute = compute * (1 + slowdown * compute / (compute + after))
        return launch + np.sqrt(compute**2 + (memory / efficiency) ** 2)

    return seconds


def _streaming_model(rows: Sequence[Measurement], gpu: Gpu) -> Callable[[np.ndarray], np.ndarray]:
    """What streaming_seconds computes, for all rows at once."""
    memory = np.array([row.moved_bytes for row in rows]) / gpu.rates.bandwidth
    length = np.array([float(row.length) for row in rows])

    def seconds(c: np.ndarray) -> np.ndarray:
        if len(c) == 2:
            return c[0] + memory / c[1]
        launch, efficiency, per_element, held, reread = c
        again = 1 + reread * np.maximum(0, 1 - held / length)
        return launch + length * per_element + memory * again / efficiency

    return seconds


def _search(model: Callable[[np.ndarray], np.ndarray], measured: np.ndarray, priors: list[Prior]) -> np.ndarray:
    """One constant after the other, up or down by a factor that grows on success and shrinks on failure."""
    centre = np.array([p.value for p in priors])
    width, highest = np.array([p.width for p in priors]), np.array([p.highest for p in priors])

    def loss(c: np.ndarray) -> float:
        distance = np.log(c / centre) / width
        return float(np.mean(np.abs(model(c) / measured - 1)) + PENALTY * np.sum(distance**2))

    best, lowest, step = centre.copy(), loss(centre), np.full(len(priors), 0.5)
    for turn in range(STEPS * len(priors)):
        j = turn % len(priors)
        for sign in (1, -1):
            tried = best.copy()
            tried[j] = min(tried[j] * np.exp(sign * step[j]), highest[j])
            value = loss(tried)
            if value < lowest:
                best, lowest = tried, value
                step[j] = min(step[j] * 1.4, 1.0)
                break
        else:
            step[j] = max(step[j] * 0.6, 1e-4)
    return best


def read_measurements(path: Path) -> list[Measurement]:
    """The rows of a CSV (see the head of this file). UserError with the line that is wrong."""
    if not path.is_file():
        raise UserError(f"no file {path} with measurements (columns: operator,m,k,n,rows,length,bits,seconds)")
    with open(path, newline="") as file:
        reader = csv.DictReader(file)
        header = reader.fieldnames or []
        for name in ("operator", "seconds"):
            if name not in header:
                raise UserError(f"{path}: no column {name!r} in the header {','.join(header)}")
        rows = [_measurement(row, f"{path}:{reader.line_num}") for row in reader]
    if not rows:
        raise UserError(f"{path}: no measurement below the header")
    return rows


def _measurement(row: dict[str, Any], where: str) -> Measurement:
    operator = row["operator"]
    if operator not in OPERATORS:
        raise UserError(f"{where}: unknown operator {operator!r} (known: {', '.join(OPERATORS)})")
    names = ("m", "k", "n") if operator == "gemm" else ("rows", "length")
    sizes = {name: _positive(row.get(name), int, where, name) for name in names}
    bits = _positive(row.get("bits") or "16", int, where, "bits")
    if bits > 32:
        raise UserError(f"{where}: bits must be 1 to 32, not {bits}")
    return Measurement(operator, _positive(row.get("seconds"), float, where, "seconds"), bits=bits, **sizes)


def _positive(text: str | None, kind: type, where: str, name: str) -> Any:
    try:
        value = kind(text)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        value = 0
    if not 0 < value < 1e18:
        raise UserError(f"{where}: {name} must be a positive {'integer' if kind is int else 'number'}, not {text!r}")
    return value


def constants_yaml(constants: Constants, source: str, spreads: dict[str, float]) -> str:
    """Sections to put into the description of a GPU."""
    lines = []
    for operator, values in constants.items():
        lines += [f"{operator}:", f"  source: {json.dumps(source)}", "  grade: measured"]
        lines += [f"  {name}: {value:.3g}" for name, value in {**values, "time_spread": spreads[operator]}.items()]
    return "\n".join(lines) + "\n"


def fit_command(hardware: str, measured: Path) -> str:
    """Report of a fit to a file of measurements, with the sections for the description of `hardware`.

    Each operator is fitted on every second row and scored on the others, both ways round; the constants are of all
    rows.
    """
    gpu = load_machine(hardware)
    if not isinstance(gpu, Gpu):
        raise UserError(f"{hardware} is not a GPU: its latency has no constants to fit")
    rows = read_measurements(measured)
    lines, spreads = [f"{gpu.title}: {len(rows)} measured kernels"], {}
    too_fast = sum(row.seconds < roofline(gpu, row) for row in rows)
    if too_fast:
        lines.append(f"  {too_fast} of them beat the peaks of the description: data from a cache, or another device?")
    for operator in OPERATORS:
        mine = [row for row in rows if row.operator == operator]
        if len(mine) == 1:
            raise UserError(f"{measured}: one row of {operator} is too few to fit and score")
        if mine:
            halves = mine[::2], mine[1::2]
            fits = [with_constants(gpu, fit(half, gpu)) for half in halves]
            held_out = [mean_error(fits[1 - i], halves[i]) for i in (0, 1)]
            spreads[operator] = max(spread(fits[1 - i], halves[i]) for i in (0, 1))
            lines.append(
                f"  {operator}: {len(mine)} rows, mean error on held-out rows {held_out[0]:.1%} and {held_out[1]:.1%}, "
                f"of the plain roofline {mean_error(gpu, mine, roofline):.1%}"
            )
    constants = fit(rows, gpu)
    source = f"fitted by gptcore ppa fit on the {len(rows)} kernels of {measured.name}"
    return "\n".join([*lines, "", constants_yaml(constants, source, spreads)])
