"""Softmax in fp16, with its scores from outside or from a buffer of its own."""

import numpy as np

from . import Operator, Streams, Unit, fp, register
from .fp import FP16
from .rows import Rows, given_rows, normal_rows, random_rows
from .tables import rom
from .trace import CYCLES

LOG2_E = 1477  # 1.44238, of 2^10: 0.02 % below log2 e
BIAS = (15 << 18) + (1 << 10)  # of the exponent, and one half of the last place that is kept


@register
class Softmax(Operator):
    """weight = e^(x - max) / sum e^(x - max); see softmax.sv for formats and protocol."""

    module = "softmax"
    points = {"softmax_nobuf": {"BUFFER": 0}, "softmax_buf256": {"BUFFER": 256}}
    implements = {"softmax_nobuf": Unit("softmax", ("softmax",), 16, passes=3)}
    clocked = True
    powers = np.round(1024 * (2.0 ** (np.arange(128) / 128) - 1)).astype(np.int64)

    def __init__(self, BUFFER: int = 0):
        super().__init__(BUFFER=BUFFER)
        self.words = BUFFER
        self.cycles = max(128, 3 * BUFFER + 64)  # the stimulus: three passes of a row that fills the buffer

    def generated(self):
        return rom("softmax_power", self.powers, 10)

    def inputs(self):
        return {"valid": 1, "phase": 2, "start": 1, "score": 16}

    def outputs(self):
        return {"out_valid": 1, "weight": 16}

    def reset(self, streams):
        zeros = np.zeros(streams, dtype=np.int64)
        self.buffer, self.following = np.zeros((streams, max(self.words, 1)), dtype=np.int64), zeros
        self.x, self.highest, self.e, self.total, self.weight = zeros, zeros, zeros, zeros, zeros
        self.valid, self.phase, self.start = zeros, zeros, zeros
        self.add, self.divide, self.first, self.out_valid = zeros, zeros, zeros, zeros
        self.rows: Rows | None = None

    def step(self, x: Streams) -> Streams:
        out = {"out_valid": self.out_valid, "weight": self.weight}
        self.weight, self.out_valid = fp.fp_div(self.e, self.total, FP16), self.divide
        total = fp.fp_add(np.where(self.first == 1, 0, self.total), self.e, FP16)
        self.total = np.where(self.add == 1, total, self.total)
        self.add, self.divide = self.valid & (self.phase == 1), self.valid & (self.phase == 2)
        self.e, self.first = self.exponential(fp.fp_add(self.highest, self.x ^ 0x8000, FP16)), self.start
        higher = (self.start == 1) | (order(self.x) > order(self.highest))
        self.highest = np.where((self.valid == 1) & (self.phase == 0) & higher, self.x, self.highest)
        self.x = np.where(x["valid"] == 1, self.given(x), self.x)
        self.valid, self.phase, self.start = x["valid"], x["phase"], x["start"]
        return out

    def given(self, x: Streams) -> np.ndarray:
        """Scores of this cycle: those outside, or those in the buffer, which takes them in phase 0."""
        if not self.words:
            return x["score"]
        stream = np.arange(len(x["score"]))
        address = np.where(x["start"] == 1, 0, self.following)
        self.following = np.where(x["valid"] == 1, (address + 1) % self.words, self.following)
        taken = np.flatnonzero((x["valid"] == 1) & (x["phase"] == 0))
        self.buffer[taken, address[taken]] = x["score"][taken]
        return self.buffer[stream, address]

    def exponential(self, difference: np.ndarray) -> np.ndarray:
        """e^-d of the magnitude of fp16 patterns; one without an exponent is a zero, as everywhere."""
        scale = difference >> 10 & 31
        fixed = (1024 | (difference & 1023)) << 1 >> np.maximum(18 - scale, 0)
        exponent = BIAS - fixed * LOG2_E
        power = exponent >> 18 << 10 | self.powers[exponent >> 11 & 127]
        return np.where((scale > 18) | (exponent < 0), 0, power)

    def stimulus(self, rng, streams, cycle):
        """Rows of a normal distribution; with a buffer up to its size, a fifth of them full, and noise after the first
        pass."""
        if cycle == 0:
            longest = {"longest": self.words, "spare": self.words // 4} if self.words else {}
            scores = random_rows(lambda rng, shape: fp.from_float(normal_rows(rng, shape), FP16), **longest)
            self.rows = Rows(streams, 3, 0, scores)
        assert self.rows
        x = self.rows.next(rng)
        if self.words:
            x["score"] = np.where(x["phase"] == 0, x["score"], rng.integers(0, 1 << 16, streams))
        return x

    def replay(self, trace, streams):
        """With a buffer, the score is still after the first pass."""
        rng, longest = np.random.default_rng(0), self.words or None
        rows = Rows(streams, 3, 0, given_rows([fp.from_float(row[:longest], FP16) for row in trace.scores]))
        for _ in range(CYCLES):
            x = rows.next(rng)
            yield {**x, "score": x["score"] * (x["phase"] == 0)} if self.words else x


def order(bits: np.ndarray) -> np.ndarray:
    """Integers in the order of the numbers."""
    return np.where(bits >> 15 == 1, ~bits & 0xFFFF, bits | 0x8000)
