"""Another activation by 16 straight lines in int16: the circuit of ppa/rtl/pwl_activation, bit for bit.

The kind `piecewise` at its defaults is the same function without rounding.
"""

from typing import Literal

import torch

from ..config import knob
from ..registry import KindConfig, register
from .fixed_point import FixedPoint, steps_of

FRACTION, SEGMENT = 12, 11  # of codes and results; log2 of a segment in steps of 2^-12
EDGE = 8 << SEGMENT  # 4.0
RISES = {"gelu", "silu"}  # functions that end as x does; the others end flat


@register("activation", "piecewise_int")
class PiecewiseInt(FixedPoint):
    """v[i] + rise[i] place 2^-11 in segment i of 16 from -4 to 4, int16 of fraction 12; tails of slope 0 or 1."""

    bits = 16
    start: torch.Tensor
    rise: torch.Tensor

    class Config(KindConfig):
        function: Literal["gelu", "silu", "tanh"] = knob("gelu", "what is approximated", flat=())

    def __init__(self, config):
        super().__init__(config, function=config.function, fraction_in=FRACTION, fraction_out=FRACTION)
        knots = steps_of(self.function, torch.arange(-8, 9) / 2, FRACTION).long()
        self.register_buffer("start", knots[:-1].clone(), persistent=False)
        self.register_buffer("rise", knots.diff(), persistent=False)

    def steps(self, code):
        inside = code.clamp(-EDGE, EDGE - 1) + EDGE
        segment, place = (inside >> SEGMENT).flatten(), inside & ((1 << SEGMENT) - 1)
        start, rise = (table.index_select(0, segment).view(code.shape) for table in (self.start, self.rise))
        line = start + (rise * place + (1 << (SEGMENT - 1)) >> SEGMENT)  # to the nearest, ties up
        return line + (code - (EDGE - 1)).clamp_min(0) if self.config.function in RISES else line

    def by_kernel(self, x):
        from kernels.fixed_point import pwl_activation

        return pwl_activation(x, self.start, self.rise, self.config.function)

    @staticmethod
    def per_element(config):
        # code; its segment and place, a row of the table, the line, the tail
        tail = {"add": 3, "max": 1} if config.function in RISES else {"add": 2}
        return {"shift": 2, "round": 2, "compare": 4, "lut": 1, "mul": 1, **tail}
