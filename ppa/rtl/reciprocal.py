"""Reciprocal of 16 bits: a table of 128 entries and one Newton step.

Over all x from 1 to 65535 the mantissa is wrong by less than 1.64 of its last places, a relative error below 2^-15.2
(tests/ppa/test_rtl_units.py).
"""

import numpy as np

from . import Operator, Streams, register
from .fp import bit_length
from .tables import rom


@register
class Reciprocal(Operator):
    """1 / x = y 2^-(16 + e), y within [2^15, 2^16); x = 0 is taken for 1."""

    module = "reciprocal"
    points = {"reciprocal_uint16": {}}

    def __init__(self):
        super().__init__()
        # Reciprocal of the middle of each interval of m, fraction 10; the leading one is not stored.
        self.entries = np.array([round(2**10 / (1 + (i + 0.5) / 128)) - 512 for i in range(128)])

    def generated(self):
        return rom("reciprocal_rom", self.entries.tolist(), 9)

    def inputs(self):
        return {"x": 16}

    def outputs(self):
        return {"y": 16, "e": 4}

    def step(self, x: Streams) -> Streams:
        value = np.maximum(x["x"], 1)
        e = bit_length(value) - 1
        m = value << 15 - e
        seed = 512 + self.entries[m >> 8 & 127]
        residual = (1 << 25) - m * seed >> 7
        return {"y": np.minimum((seed << 18) + seed * residual + 2048 >> 12, 65535), "e": e}
