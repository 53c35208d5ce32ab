"""Attention weight of kind polymax at power 2: a square right of 0, a line left of it, times 1 / (divisor keys)."""

import numpy as np

from . import Operator, Streams, Unit, register
from .integers import signed
from .rounding import shift_up


@register
class Polymax(Operator):
    """weight = curve(score) factor; scores of fraction 4, the curve of fraction 8, factor and weight of fraction 16.

    Y is the value at 0 (fraction 8), SLOPE that of the line, y_intercept / -x_intercept (fraction 12).
    """

    module = "polymax"
    points = {"polymax_int8": {"Y": 1 << 8, "SLOPE": round(2**12 / 100)}}  # the defaults of gptcore
    implements = {"polymax_int8": Unit("softmax", ("polymax",), 8)}

    def inputs(self):
        return {"score": 8, "factor": 16}

    def outputs(self):
        return {"weight": 16}

    def step(self, x: Streams) -> Streams:
        score, y = signed(x["score"], 8), self.parameters["Y"]
        line = np.maximum(y + shift_up(score * self.parameters["SLOPE"], 8), 0)
        curve = np.where(score >= 0, score**2 + y, line)
        return {"weight": np.minimum(shift_up(curve * x["factor"], 8), 65535)}
