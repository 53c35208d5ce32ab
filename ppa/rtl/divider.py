"""Restoring divider of unsigned numbers, some quotient bits a cycle."""

import numpy as np

from . import Operator, Streams, register


@register
class Divider(Operator):
    """q = floor(n 2^WIDTH / d) for n < d, else all ones, WIDTH / STEPS + 1 cycles after start."""

    module = "divider"
    clocked = True
    points = {"divider_uint16": {"WIDTH": 16, "STEPS": 1}, "divider_uint16_x4": {"WIDTH": 16, "STEPS": 4}}

    def inputs(self):
        return {"start": 1, "n": self.parameters["WIDTH"], "d": self.parameters["WIDTH"]}

    def outputs(self):
        return {"q": self.parameters["WIDTH"], "valid": 1}

    def reset(self, streams):
        self.divisor, self.rest, self.bits, self.left, self.over, self.valid = np.zeros((6, streams), dtype=np.int64)

    def step(self, x: Streams) -> Streams:
        width, steps = self.parameters["WIDTH"], self.parameters["STEPS"]
        mask = (1 << width) - 1
        y = {"q": np.where(self.over, mask, self.bits), "valid": self.valid}
        start, run = x["start"] == 1, (x["start"] == 0) & (self.left > 0)
        rest, bits = self.rest, self.bits
        for _ in range(steps):
            # With n >= d the rest outgrows its register; what it holds then is never read.
            fits = (2 * rest - self.divisor & (2 * mask + 1)) <= mask
            rest = np.where(fits, 2 * rest - self.divisor, 2 * rest) & mask
            bits = 2 * bits + fits & mask
        self.valid = (run & (self.left == 1)).astype(np.int64)
        self.over = np.where(start, x["n"] >= x["d"], self.over)
        self.divisor = np.where(start, x["d"], self.divisor)
        self.rest = np.where(start, x["n"], np.where(run, rest, self.rest))
        self.bits = np.where(start, 0, np.where(run, bits, self.bits))
        self.left = np.where(start, width // steps, np.where(run, self.left - 1, self.left))
        return y

    def stimulus(self, rng, streams, cycle):
        """A division after the other, mostly with n < d."""
        width = self.parameters["WIDTH"]
        n, d = rng.integers(0, 1 << width, (2, streams))
        smaller = rng.random(streams) < 0.9
        start = cycle % (width // self.parameters["STEPS"] + 1) == 0
        return {
            "start": np.full(streams, start, dtype=np.int64),
            "n": np.where(smaller, np.minimum(n, d), n),
            "d": np.where(smaller, np.maximum(n, d), d),
        }
