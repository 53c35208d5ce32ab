"""Softermax in integers: an online softmax of base 2 with a maximum of whole numbers."""

import numpy as np

from . import Operator, Streams, Unit, register
from .fp import bit_length
from .rows import Rows, given_rows, normal_rows, random_rows
from .tables import rom
from .trace import CYCLES, fixed

POINT = 15  # fraction bits of powers, sum and weights


@register
class Softermax(Operator):
    """weight = 2^(x - max) / sum 2^(x - max), 15 bits of fraction; see softermax.sv for formats and protocol."""

    module = "softermax"
    points = {
        "softermax": {"INT": 6, "FRAC": 6, "SUM": 26, "BUFFER": 0},
        "softermax_buf256": {"INT": 6, "FRAC": 6, "SUM": 26, "BUFFER": 256},
    }
    implements = {"softermax": Unit("softmax", ("softermax", "softermax_int"), 16, passes=2)}
    clocked = True

    def __init__(self, INT: int = 6, FRAC: int = 6, SUM: int = 26, BUFFER: int = 0):
        super().__init__(INT=INT, FRAC=FRAC, SUM=SUM, BUFFER=BUFFER)
        self.words = BUFFER
        self.cycles = max(128, 2 * BUFFER + 64)  # of the stimulus: both passes of a row that fills the buffer
        self.integer, self.fraction, self.sum_mask = INT, FRAC, (1 << SUM) - 1
        self.powers = np.round(2.0 ** (POINT + np.arange(1 << FRAC) / (1 << FRAC))).astype(np.int64)
        # In the middle of what shares the first 6 bits after the leading one.
        self.reciprocals = np.round(512 / (1 + (np.arange(64) + 0.5) / 64)).astype(np.int64)

    def generated(self):
        return rom("softermax_power", self.powers, 16) + rom("softermax_reciprocal", self.reciprocals, 9)

    def inputs(self):
        return {"valid": 1, "phase": 1, "start": 1, "score": self.integer + self.fraction}

    def outputs(self):
        return {"out_valid": 1, "weight": 16}

    def reset(self, streams):
        zeros = np.zeros(streams, dtype=np.int64)
        self.x = {name: zeros for name in self.inputs()}
        self.highest, self.power, self.rise, self.total = zeros, zeros, zeros, zeros
        self.add, self.replayed, self.first = zeros, zeros, zeros
        self.inverse, self.places, self.weight, self.out_valid = zeros, zeros, zeros, zeros
        self.buffer, self.following = np.zeros((streams, max(self.words, 1)), dtype=np.int64), zeros
        self.weighting = zeros
        self.rows: Rows | None = None

    def step(self, x: Streams) -> Streams:
        out = {"out_valid": self.out_valid, "weight": self.weight}
        self.weight, self.out_valid = self.power * self.inverse >> (8 + self.places), self.replayed
        self.places = np.maximum(bit_length(self.total) - POINT, 0)
        self.inverse = self.reciprocals[self.total >> (self.places + 8) & 63]
        shifted = np.where(self.first == 1, 0, self.total >> self.rise) + self.power
        self.total = np.where(self.add == 1, shifted & self.sum_mask, self.total)

        width = self.integer + self.fraction
        score = self.x["score"] - (self.x["score"] >> (width - 1) << width)
        whole, rest = score >> self.fraction, score & ((1 << self.fraction) - 1)
        ceiling = whole + (rest > 0)
        now = np.where(self.x["start"] == 1, ceiling, np.maximum(ceiling, self.highest))
        self.power, self.rise = self.powers[rest] >> (now - whole), now - self.highest & ((2 << self.integer) - 1)
        self.first, self.replayed = self.x["start"], self.x["valid"] & self.x["phase"]
        self.add = self.x["valid"] & ~self.x["phase"]
        self.highest = np.where(self.x["valid"] == 1, now, self.highest)
        self.x = {**x, "score": self.given(x)}
        return out

    def given(self, x: Streams) -> np.ndarray:
        """The score that is taken in this cycle: that outside, or one of the buffer, which takes them in phase 0."""
        if not self.words:
            return x["score"]
        valid, first = x["valid"] == 1, (x["start"] == 1) | ((x["phase"] == 1) & (self.weighting == 0))
        address = np.where(first, 0, self.following)
        self.following = np.where(valid, (address + 1) % self.words, self.following)
        self.weighting = np.where(valid, x["phase"], self.weighting)
        held = self.buffer[np.arange(len(address)), address]
        taken = np.flatnonzero(valid & (x["phase"] == 0))
        self.buffer[taken, address[taken]] = x["score"][taken]
        return np.where(valid, np.where(x["phase"] == 1, held, x["score"]), self.x["score"])

    def stimulus(self, rng, streams, cycle):
        """Rows of a normal distribution, the scores between -32 and 32; with a buffer up to its size, a fifth of them
        full, and noise in phase 1."""
        if cycle == 0:
            longest = {"longest": self.words, "spare": self.words // 4} if self.words else {}
            self.rows = Rows(streams, 2, 1, random_rows(self.scores, **longest))
        assert self.rows
        noise = rng.integers(0, 1 << self.inputs()["score"], streams) if self.words else 0
        return self.protocol(self.rows.next(rng), noise)

    def protocol(self, x: Streams, unread: np.ndarray | int) -> Streams:
        """Only phase 0 has a start; where a buffer has the scores, something `unread` comes in phase 1."""
        score = np.where(x["phase"] == 1, unread, x["score"]) if self.words else x["score"]
        return {**x, "start": x["start"] * (x["phase"] == 0), "score": score}

    def replay(self, trace, streams):
        """Scores times log2 e, whose powers of two are those of e of the trained model."""
        width, longest, rng = self.integer + self.fraction, self.words or None, np.random.default_rng(0)
        scores = [fixed(row[:longest] * np.log2(np.e), self.fraction, width) for row in trace.scores]
        rows = Rows(streams, 2, 1, given_rows(scores))
        return (self.protocol(rows.next(rng), 0) for _ in range(CYCLES))

    def scores(self, rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
        """Patterns of such rows."""
        half = 1 << (self.integer + self.fraction - 1)
        codes = np.round(normal_rows(rng, shape) * (1 << self.fraction)).astype(np.int64)
        return np.clip(codes, -half, half - 1) & (2 * half - 1)
