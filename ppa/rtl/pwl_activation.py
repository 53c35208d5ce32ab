"""Activation by 16 straight lines, int16 of fraction 12: the function of gptcore's `piecewise` at its defaults.

The lines join the function at -4, -3.5, .. 4; left of them y is constant, right of them it rises as x does (gelu, silu)
or is constant (tanh). Maximal error over all inputs, of it 2^-12 at most from rounding (tests/ppa/test_rtl_units.py):
gelu 0.0233, silu 0.0694 (at -8, where the tail is flat), tanh 0.0235.
"""

from typing import ClassVar

import numpy as np

from . import Operator, Streams, Unit, register
from .integers import signed, unsigned
from .lut_activation import FUNCTIONS
from .rounding import shift_up
from .tables import rom
from .trace import fixed, passing

FRACTION, SEGMENT, EDGE = 12, 11, 4 << 12  # fraction, log2 of a segment and bound, in steps of 2^-12


@register
class PwlActivation(Operator):
    """y = value[i] + rise[i] place / 2^11 in segment i, rounded to the nearest, ties up."""

    module = "pwl_activation"
    points = {
        "gelu_pwl16": {"function": "gelu", "RIGHT_SLOPE": 1},
        "silu_pwl16": {"function": "silu", "RIGHT_SLOPE": 1},
        "tanh_pwl16": {"function": "tanh", "RIGHT_SLOPE": 0},
    }
    implements: ClassVar = {f"{f}_pwl16": Unit("activation", (f,), 16) for f in ("silu", "tanh")} | {
        "gelu_pwl16": Unit("activation", ("gelu", "piecewise_int"), 16)  # piecewise_int at its default function
    }

    def __init__(self, function: str, RIGHT_SLOPE: int):
        super().__init__(function=function, RIGHT_SLOPE=RIGHT_SLOPE)
        knots = [round(FUNCTIONS[function](k / 2 - 4) * 2**FRACTION) for k in range(17)]
        self.start, self.rise = np.array(knots[:-1]), np.diff(knots)

    def generated(self):
        entries = unsigned(self.start, 16) << 13 | unsigned(self.rise, 13)
        return rom("pwl_activation_rom", entries.tolist(), 29)

    def inputs(self):
        return {"x": 16}

    def outputs(self):
        return {"y": 16}

    def step(self, x: Streams) -> Streams:
        value = signed(x["x"], 16)
        inside = np.clip(value, -EDGE, EDGE - 1)
        segment, place = (inside + EDGE) >> SEGMENT, (inside + EDGE) & ((1 << SEGMENT) - 1)
        y = self.start[segment] + shift_up(self.rise[segment] * place, SEGMENT)
        if self.parameters["RIGHT_SLOPE"]:
            y = y + np.maximum(value - (EDGE - 1), 0)
        return {"y": unsigned(y, 16)}

    def replay(self, trace, streams):
        return ({"x": x} for x in passing(fixed(trace.activations, FRACTION, 16), streams))
