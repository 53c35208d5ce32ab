"""Root-mean-square normalisation of streamed rows; with fewer measured entries, krmsnorm.

y = x weight 2^(8 - SHIFT) / sqrt(EPS + sum of squares): the square root of the number of entries belongs to the scale
of the weight. The inverse root is wrong by less than 2^-10.5 of itself (tests/ppa/test_rtl_units.py).
"""

from collections.abc import Iterator

import numpy as np

from . import Operator, Streams, Unit, register
from .integers import signed, unsigned
from .rounding import saturate, shift_up
from .tables import rom
from .trace import Trace, fixed, symmetric

IDLE, MEASURE, NORMALISE, ROOT, RESIDUAL, REFINE, APPLY = range(7)
# 1 / sqrt(m) of the middle of each interval of m, [i / 32, (i + 1) / 32), fraction 9 without the leading one; at most
# 2 / m at the end of the interval, so that m times it stays below 2.
SEEDS = [min(round(2**9 / ((i + 0.5) / 32) ** 0.5), 511, 2**15 // (i + 1)) - 256 if i >= 32 else 0 for i in range(128)]


def newton(phase: np.ndarray, m: np.ndarray, r: np.ndarray, t: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(r, t) after a cycle of ROOT, RESIDUAL or REFINE: t = m r, t = (3 - t r) / 2, r = t r; m has fraction 10."""
    root, residual = np.minimum(m * r + 2544 >> 11, 0xFFF), ((3 << 23) + (1 << 12) - t * r >> 13) & 0xFFF
    refined = np.minimum(t * r + 1024 >> 11, 0xFFF)
    t = np.where(phase == ROOT, root, np.where(phase == RESIDUAL, residual, t))
    return np.where(phase == REFINE, refined, r), t


def row_inputs(rng, streams: int, now: int, row: int, period: int) -> Streams:
    """Inputs of cycle `now` of a row of `row` random entries of some magnitude, which is measured and then scaled."""
    measure, apply = 1 <= now <= row, now >= period - row
    bound = 2 << np.arange(streams) % 7
    return {
        "start": np.full(streams, int(now == 0)),
        "valid": np.full(streams, int(measure or apply)),
        "last": np.full(streams, int(now == row)),
        "x": unsigned(rng.integers(-bound, bound), 8),
        "weight": rng.integers(0, 256, streams),
    }


def traced_rows(trace: Trace, streams: int, measured: int, waiting: int, weight: np.ndarray) -> Iterator[Streams]:
    """Cycles of one row a stream: so many of its entries are measured, then a pause, then all of them with weights."""
    rows = unsigned(symmetric(trace.norm_inputs, 8), 8)
    x, length = rows[np.arange(streams) % len(rows)], rows.shape[1]
    for now in range(1 + measured + waiting + length):
        apply = now - 1 - measured - waiting
        entry = apply if apply >= 0 else min(max(now - 1, 0), measured - 1)
        flags = {"start": now == 0, "valid": 1 <= now <= measured or apply >= 0, "last": now == measured}
        yield {name: np.full(streams, int(flag)) for name, flag in flags.items()} | {
            "x": x[:, entry], "weight": np.full(streams, weight[entry])
        }  # fmt: skip


@register
class RmsNorm(Operator):
    """Row statistic of SUM bits, inverse square root, and a second pass that scales; the protocol stands in the .sv."""

    module = "rmsnorm"
    clocked = True
    points = {
        "rmsnorm_int8": {"SUM": 24, "EPS": 1, "SHIFT": 4},  # up to 1024 entries
        "krmsnorm_int8": {"SUM": 18, "EPS": 1, "SHIFT": 4},  # up to 16 measured entries
    }
    implements = {
        "rmsnorm_int8": Unit("norm", ("rmsnorm", "rmsnorm_int"), 8, passes=2),
        "krmsnorm_int8": Unit("norm", ("krmsnorm",), 8, passes=2),
    }
    ROW = 16  # entries of the rows of the stimulus

    def generated(self):
        return rom("rsqrt_rom", SEEDS, 8)

    def inputs(self):
        return {"start": 1, "valid": 1, "last": 1, "x": 8, "weight": 8}

    def outputs(self):
        return {"ready": 1, "y": 8, "y_valid": 1}

    def reset(self, streams):
        self.phase, self.sum, self.exponent, self.r, self.t = np.zeros((5, streams), dtype=np.int64)
        self.weight, self.scaled, self.valid_1, self.y, self.y_valid = np.zeros((5, streams), dtype=np.int64)

    def step(self, x: Streams) -> Streams:
        width, phase, total = self.parameters["SUM"], self.phase, self.sum
        start, valid, value = x["start"] == 1, x["valid"] == 1, signed(x["x"], 8)
        out = {"ready": (phase == APPLY).astype(np.int64), "y": self.y, "y_valid": self.y_valid}

        result = shift_up(self.scaled * self.weight, self.exponent + self.parameters["SHIFT"])
        self.y = np.where(self.valid_1, unsigned(saturate(result, 8), 8), self.y)
        self.y_valid = self.valid_1
        apply = (phase == APPLY) & valid
        self.valid_1 = (apply & ~start).astype(np.int64)
        self.scaled = np.where(apply, shift_up(value * self.r, 4), self.scaled)
        self.weight = np.where(apply, signed(x["weight"], 8), self.weight)

        measure, normalise = (phase == MEASURE) & valid & ~start, (phase == NORMALISE) & ~start
        small = normalise & (total >> width - 2 == 0)
        done = (measure & (x["last"] == 1)) | (normalise & ~small) | ((phase >= ROOT) & (phase < APPLY))
        r, t = newton(phase, total >> width - 12, self.r, self.t)
        seed = (256 + np.array(SEEDS)[total >> width - 7]) << 3
        self.r = np.where(start, self.r, np.where(normalise & ~small, seed, r))
        self.t = np.where(start, self.t, t)
        measured = np.minimum(total + value**2, (1 << width) - 1)
        total = np.where(measure, measured, np.where(small, total << 2, total))
        self.sum = np.where(start, self.parameters["EPS"], total)
        self.exponent = np.where(start, width // 2 - 1, self.exponent - small)
        self.phase = np.where(start, MEASURE, phase + done)
        return out

    def period(self) -> int:
        """Cycles of one row of the stimulus, the slowest normalisation included."""
        return 1 + 2 * self.ROW + self.parameters["SUM"] // 2 + 4

    def stimulus(self, rng, streams, cycle):
        return row_inputs(rng, streams, cycle % self.period(), self.ROW, self.period())

    def replay(self, trace, streams):
        """Rows of a trained model; y in steps of 2^-5. As many entries are measured as the sum can hold, or all."""
        length = trace.norm_inputs.shape[1]
        measured = min(length, 1 << self.parameters["SUM"] - 14)
        weight = fixed(trace.norm_weight * np.sqrt(measured), 5 + self.parameters["SHIFT"] - 8, 8)
        return traced_rows(trace, streams, measured, self.parameters["SUM"] // 2 + 4, weight)
