"""Squared rectifier: max(x, 0)^2, exact (Primer, arXiv 2109.08668)."""

import numpy as np

from . import Operator, Streams, Unit, register
from .integers import signed


@register
class SquaredRelu(Operator):
    """y = max(x, 0)^2 in 2 WIDTH - 2 unsigned bits."""

    module = "squared_relu"
    points = {"squared_relu_int8": {"WIDTH": 8}}
    implements = {"squared_relu_int8": Unit("activation", ("squared_relu",), 8)}

    def inputs(self):
        return {"x": self.parameters["WIDTH"]}

    def outputs(self):
        return {"y": 2 * self.parameters["WIDTH"] - 2}

    def step(self, x: Streams) -> Streams:
        return {"y": np.maximum(signed(x["x"], self.parameters["WIDTH"]), 0) ** 2}
