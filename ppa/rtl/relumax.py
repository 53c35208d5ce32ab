"""Attention weight of kind relumax: max(score + shift, 0) / (divisor keys), element by element."""

import numpy as np

from . import Operator, Streams, Unit, register
from .integers import signed
from .rounding import shift_up


@register
class ReluMax(Operator):
    """weight = max(score + SHIFT, 0) factor; scores of fraction 4, factor and weight of fraction 16."""

    module = "relumax"
    points = {"relumax_int8": {"SHIFT": 16}}
    implements = {"relumax_int8": Unit("softmax", ("relumax",), 8)}

    def inputs(self):
        return {"score": 8, "factor": 16}

    def outputs(self):
        return {"weight": 16}

    def step(self, x: Streams) -> Streams:
        value = np.maximum(signed(x["score"], 8) + self.parameters["SHIFT"], 0)
        return {"weight": np.minimum(shift_up(value * x["factor"], 4), 65535)}
