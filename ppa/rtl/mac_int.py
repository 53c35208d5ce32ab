"""Multiply-accumulate of signed integers into a wide accumulator."""

from typing import ClassVar

import numpy as np

from . import Operator, Streams, register, trace
from .integers import signed, unsigned
from .trace import symmetric


class Accumulator(Operator):
    """acc <= (clear ? 0 : acc) + product of registered operands; a subclass says what the product is."""

    clocked = True
    CLEARED_EVERY = 64  # cycles of the stimulus: sums of the length of a head

    def outputs(self):
        return {"acc": self.parameters["ACC_WIDTH"]}

    def reset(self, streams: int) -> None:
        self.acc = np.zeros(streams, np.int64)
        self.held = {name: np.zeros(streams, np.int64) for name in self.inputs()}

    def product(self, x: Streams) -> np.ndarray:
        raise NotImplementedError

    def step(self, x: Streams) -> Streams:
        out = {"acc": self.acc}
        total = np.where(self.held["clear"] == 1, 0, self.acc) + self.product(self.held)
        self.acc = unsigned(total, self.parameters["ACC_WIDTH"])
        self.held = x
        return out

    def stimulus(self, rng: np.random.Generator, streams: int, cycle: int) -> Streams:
        x = super().stimulus(rng, streams, cycle)
        phase = np.arange(streams) % self.CLEARED_EVERY
        return {**x, "clear": ((cycle + phase) % self.CLEARED_EVERY == 0).astype(np.int64)}

    def replayed(self, trained: trace.Trace, streams: int, left: np.ndarray, right: np.ndarray, port: str = "b"):
        """Sums of a linear layer, of patterns (tokens, inner) and (outputs, inner); `port` is that of the weights."""
        for token, output, inner, clear in trace.products(trained, streams):
            yield {"clear": clear, "a": left[token, inner], port: right[output, inner]}


@register
class MacInt(Accumulator):
    """Both operands of WIDTH bits."""

    module = "mac_int"
    points: ClassVar = {
        "mac_int4": {"WIDTH": 4, "ACC_WIDTH": 32},
        "mac_int8": {"WIDTH": 8, "ACC_WIDTH": 32},
        "mac_int16": {"WIDTH": 16, "ACC_WIDTH": 48},
    }

    def inputs(self):
        return {"clear": 1, "a": self.parameters["WIDTH"], "b": self.parameters["WIDTH"]}

    def product(self, x: Streams) -> np.ndarray:
        width = self.parameters["WIDTH"]
        return signed(x["a"], width) * signed(x["b"], width)

    def replay(self, trace, streams):
        width = self.parameters["WIDTH"]
        left, right = (unsigned(symmetric(operand, width), width) for operand in (trace.left, trace.right))
        return self.replayed(trace, streams, left, right)
