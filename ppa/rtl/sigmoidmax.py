"""Attention weight of kind sigmoidmax: sigmoid(score + bias), times 1 / (divisor keys) where asked for."""

import numpy as np

from . import Operator, Streams, Unit, register
from .integers import signed
from .lut_activation import FUNCTIONS
from .rounding import saturate, shift_up
from .tables import rom

ENTRIES = [round(FUNCTIONS["sigmoid"](int(x) / 16) * 65536) for x in signed(np.arange(256), 8)]


@register
class SigmoidMax(Operator):
    """weight = sigmoid(saturate(score + bias)) [factor]; score and bias of fraction 4, factor and weight of 16."""

    module = "sigmoidmax"
    points = {"sigmoidmax_int8": {"SCALED": 0}, "sigmoidmax_int8_scaled": {"SCALED": 1}}
    implements = {"sigmoidmax_int8": Unit("softmax", ("sigmoidmax",), 8)}

    def generated(self):
        return rom("sigmoidmax_rom", ENTRIES, 16)

    def inputs(self):
        return {"score": 8, "bias": 8, "factor": 16}

    def outputs(self):
        return {"weight": 16}

    def step(self, x: Streams) -> Streams:
        argument = saturate(signed(x["score"], 8) + signed(x["bias"], 8), 8)
        value = np.array(ENTRIES)[argument & 255]
        return {"weight": shift_up(value * x["factor"], 16) if self.parameters["SCALED"] else value}
