"""Requantiser behind a matrix product: accumulator times a scale of an integer and a shift, rounded and saturated."""

import numpy as np

from . import Operator, Streams, register
from .integers import signed, unsigned
from .rounding import saturate, shift_even
from .trace import passing, symmetric


@register
class Quantiser(Operator):
    """y = saturate(round(acc factor / 2^shift)) a cycle later, ties to even (arXiv 1712.05877)."""

    module = "quantiser"
    clocked = True
    points = {"requant_int32_int8": {"ACC": 32, "MUL": 16, "OUT": 8}}

    def inputs(self):
        return {"acc": self.parameters["ACC"], "factor": self.parameters["MUL"], "shift": 6}

    def outputs(self):
        return {"y": self.parameters["OUT"]}

    def reset(self, streams):
        self.product, self.places = np.zeros((2, streams), dtype=np.int64)

    def step(self, x: Streams) -> Streams:
        # Beyond 62 places nothing but the rounding of a number below one half is left, as at 62.
        rounded = shift_even(self.product, np.minimum(self.places, 62))
        self.product, self.places = signed(x["acc"], self.parameters["ACC"]) * x["factor"], x["shift"]
        return {"y": unsigned(saturate(rounded, self.parameters["OUT"]), self.parameters["OUT"])}

    def stimulus(self, rng, streams, cycle):
        """Scales that use the range of y: acc of 10 to 32 bits, a normalised factor, a shift to match; and ties."""
        bits = rng.integers(10, self.parameters["ACC"] + 1, streams)
        acc = signed(rng.integers(0, 1 << 62, streams) & ((np.int64(1) << bits) - 1), self.parameters["ACC"])
        acc = np.where(bits < self.parameters["ACC"], acc - ((np.int64(1) << bits) >> 1), acc)
        half = 1 << (self.parameters["MUL"] - 1)
        to_output = bits + self.parameters["MUL"] - self.parameters["OUT"]
        power_of_two = rng.random(streams) < 0.25
        return {
            "acc": unsigned(acc, self.parameters["ACC"]),
            "factor": np.where(power_of_two, half, half + rng.integers(0, half, streams)),
            "shift": np.clip(to_output + rng.integers(-3, 3, streams), 0, 63),
        }

    def replay(self, trace, streams):
        """Sums of a linear layer in int8, at one scale that brings the largest to the largest result."""
        sums = (symmetric(trace.left, 8) @ symmetric(trace.right, 8).T).ravel()
        fraction, exponent = np.frexp(((1 << self.parameters["OUT"] - 1) - 1) / np.abs(sums).max())
        factor, shift = round(fraction * (1 << self.parameters["MUL"])), self.parameters["MUL"] - int(exponent)
        scale = {"factor": np.full(streams, factor), "shift": np.full(streams, shift)}
        return ({"acc": acc, **scale} for acc in passing(unsigned(sums, self.parameters["ACC"]), streams))
