"""Softermax in integers: an online softmax of base 2 with a maximum of whole numbers."""

import numpy as np

from . import Operator, Streams, register
from .fp import bit_length
from .rows import Rows, normal_rows
from .tables import rom

POINT = 15  # fraction bits of powers, sum and weights


@register
class Softermax(Operator):
    """weight = 2^(x - max) / sum 2^(x - max), 15 bits of fraction; see softermax.sv for formats and protocol."""

    module = "softermax"
    points = {"softermax": {"INT": 6, "FRAC": 6}}
    clocked = True

    def __init__(self, INT: int = 6, FRAC: int = 6):
        super().__init__(INT=INT, FRAC=FRAC)
        self.integer, self.fraction = INT, FRAC
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
        self.rows: Rows | None = None

    def step(self, x: Streams) -> Streams:
        out = {"out_valid": self.out_valid, "weight": self.weight}
        self.weight, self.out_valid = self.power * self.inverse >> (8 + self.places), self.replayed
        self.places = np.maximum(bit_length(self.total) - POINT, 0)
        self.inverse = self.reciprocals[self.total >> (self.places + 8) & 63]
        shifted = np.where(self.first == 1, 0, self.total >> self.rise) + self.power
        self.total = np.where(self.add == 1, shifted & 0xFFFFFF, self.total)

        width = self.integer + self.fraction
        score = self.x["score"] - (self.x["score"] >> (width - 1) << width)
        whole, rest = score >> self.fraction, score & ((1 << self.fraction) - 1)
        ceiling = whole + (rest > 0)
        now = np.where(self.x["start"] == 1, ceiling, np.maximum(ceiling, self.highest))
        self.power, self.rise = self.powers[rest] >> (now - whole), now - self.highest & ((2 << self.integer) - 1)
        self.first, self.replayed = self.x["start"], self.x["valid"] & self.x["phase"]
        self.add = self.x["valid"] & ~self.x["phase"]
        self.highest = np.where(self.x["valid"] == 1, now, self.highest)
        self.x = x
        return out

    def stimulus(self, rng, streams, cycle):
        """Rows of a normal distribution, the scores between -32 and 32."""
        if cycle == 0:
            self.rows = Rows(streams, 2, 1, self.scores)
        assert self.rows
        x = self.rows.next(rng)
        return {**x, "start": x["start"] * (x["phase"] == 0)}

    def scores(self, rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
        """Patterns of such rows."""
        half = 1 << (self.integer + self.fraction - 1)
        codes = np.round(normal_rows(rng, shape) * (1 << self.fraction)).astype(np.int64)
        return np.clip(codes, -half, half - 1) & (2 * half - 1)
