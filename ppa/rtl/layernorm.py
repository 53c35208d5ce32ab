"""Layer normalisation of streamed rows, with an exact variance and the inverse square root of rmsnorm.

y = bias + weight (LENGTH x - S1) 2^-SHIFT / sqrt(LENGTH (EPS + S2) - S1^2), S1 and S2 the sums of x and of x^2.
"""

import numpy as np

from . import Operator, Streams, Unit, register, rmsnorm
from .integers import signed, unsigned
from .rounding import saturate, shift_up
from .tables import rom
from .trace import fixed

IDLE, MEASURE, SCALE, HIGH, CROSS, LOW, NORMALISE, ROOT, RESIDUAL, REFINE, APPLY = range(11)
LATER = ROOT - rmsnorm.ROOT  # phases that rmsnorm does not have


@register
class LayerNorm(Operator):
    """Two row sums, inverse square root, and a second pass that scales; the protocol stands in the .sv."""

    module = "layernorm"
    clocked = True
    points = {"layernorm_int8": {"LENGTH": 1024, "EPS": 1, "SHIFT": 1}}
    implements = {"layernorm_int8": Unit("norm", ("layernorm", "layernorm_int"), 8, passes=2)}
    ROW = 16  # entries of the rows of the stimulus; the others count as zeros

    def __init__(self, **parameters: int):
        super().__init__(**parameters)
        self.log = (parameters["LENGTH"] - 1).bit_length()
        self.width = 2 * self.log + 14

    def generated(self):
        return rom("rsqrt_rom", rmsnorm.SEEDS, 8)

    def inputs(self):
        return {"start": 1, "valid": 1, "last": 1, "x": 8, "weight": 8, "bias": 8}

    def outputs(self):
        return {"ready": 1, "y": 8, "y_valid": 1}

    def reset(self, streams):
        self.phase, self.acc, self.sum, self.exponent, self.r, self.t = np.zeros((6, streams), dtype=np.int64)
        self.weight, self.bias, self.scaled, self.valid_1, self.y, self.y_valid = np.zeros((6, streams), dtype=np.int64)

    def step(self, x: Streams) -> Streams:
        length, shift, phase, acc = self.parameters["LENGTH"], self.parameters["SHIFT"], self.phase, self.acc
        start, valid, value = x["start"] == 1, x["valid"] == 1, signed(x["x"], 8)
        out = {"ready": (phase == APPLY).astype(np.int64), "y": self.y, "y_valid": self.y_valid}

        # With exponent + 8 + SHIFT < LOG nothing valid is under way; the circuit shifts modulo 32 all the same.
        halves = self.scaled * self.weight >> (self.exponent + 7 + shift - self.log & 31)
        result = (halves + 1 >> 1) + self.bias
        self.y = np.where(self.valid_1, unsigned(saturate(result, 8), 8), self.y)
        self.y_valid = self.valid_1
        apply = (phase == APPLY) & valid
        self.valid_1 = (apply & ~start).astype(np.int64)
        centred = signed(shift_up(length * value - self.sum, self.log - 4), 13)
        self.scaled = np.where(apply, shift_up(centred * self.r, 8), self.scaled)
        self.weight = np.where(apply, signed(x["weight"], 8), self.weight)
        self.bias = np.where(apply, signed(x["bias"], 8), self.bias)

        measure, normalise = (phase == MEASURE) & valid, phase == NORMALISE
        small = normalise & (acc >> self.width - 2 == 0)
        done = (measure & (x["last"] == 1)) | (normalise & ~small)
        done |= ((phase >= SCALE) & (phase < NORMALISE)) | ((phase >= ROOT) & (phase < APPLY))
        r, t = rmsnorm.newton(phase - LATER, acc >> self.width - 12, self.r, self.t)
        seed = (256 + np.array(rmsnorm.SEEDS)[acc >> self.width - 7]) << 3
        self.r = np.where(start, self.r, np.where(normalise & ~small, seed, r))
        self.t = np.where(start, self.t, t)
        high, low = self.sum >> 9, self.sum & 511
        conditions = [start, measure, phase == SCALE, phase == HIGH, phase == CROSS, phase == LOW, small]
        next_acc = [
            np.full_like(acc, self.parameters["EPS"]), acc + value**2, acc * length, acc - (high**2 << 18),
            acc - (high * low << 10), acc - low**2, acc << 2,
        ]  # fmt: skip
        self.acc = unsigned(np.select(conditions, next_acc, acc), self.width)
        self.sum = np.where(start, 0, signed(self.sum + np.where(measure, value, 0), self.log + 8))
        self.exponent = np.where(start, self.log + 6, self.exponent - small & 31)
        self.phase = np.where(start, MEASURE, phase + done)
        return out

    def period(self) -> int:
        """Cycles of one row of the stimulus, the slowest normalisation included."""
        return 1 + 2 * self.ROW + self.log + 15

    def stimulus(self, rng, streams, cycle):
        x = rmsnorm.row_inputs(rng, streams, cycle % self.period(), self.ROW, self.period())
        return x | {"bias": rng.integers(0, 256, streams)}

    def replay(self, trace, streams):
        """Rows of a trained model, shorter than LENGTH, whose other entries count as zeros: x / sqrt(sum of squares /
        LENGTH), in steps of 2^-5 of x / sqrt(mean of squares). No bias."""
        share = trace.norm_inputs.shape[1] / self.parameters["LENGTH"]
        weight = fixed(trace.norm_weight * np.sqrt(share), 5 + self.parameters["SHIFT"], 8)
        for x in rmsnorm.traced_rows(trace, streams, trace.norm_inputs.shape[1], self.log + 15, weight):
            yield x | {"bias": np.zeros(streams, np.int64)}
