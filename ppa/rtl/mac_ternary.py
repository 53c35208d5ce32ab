"""Multiply-accumulate with weights of -1, 0 and 1."""

from typing import ClassVar

import numpy as np

from . import Streams, register
from .integers import signed, unsigned
from .mac_int import Accumulator
from .trace import symmetric


@register
class MacTernary(Accumulator):
    """Activations of WIDTH bits, weights of two."""

    module = "mac_ternary"
    points: ClassVar = {"mac_ternary": {"WIDTH": 8, "ACC_WIDTH": 32}}

    def inputs(self):
        return {"clear": 1, "a": self.parameters["WIDTH"], "w": 2}

    def product(self, x: Streams) -> np.ndarray:
        sign = np.where(x["w"] & 1 == 0, 0, np.where(x["w"] >> 1 == 1, -1, 1))
        return sign * signed(x["a"], self.parameters["WIDTH"])

    def stimulus(self, rng: np.random.Generator, streams: int, cycle: int) -> Streams:
        """Weights -1, 0 and 1 equally often."""
        x = super().stimulus(rng, streams, cycle)
        return {**x, "w": unsigned(rng.integers(-1, 2, streams, dtype=np.int64), 2)}

    def replay(self, trace, streams):
        """Weights over their mean magnitude, rounded (arXiv 2402.17764)."""
        width = self.parameters["WIDTH"]
        ternary = np.clip(np.round(trace.right / np.abs(trace.right).mean()), -1, 1).astype(np.int64)
        left, right = unsigned(symmetric(trace.left, width), width), unsigned(ternary, 2)
        return self.replayed(trace, streams, left, right, "w")
