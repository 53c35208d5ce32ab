"""Another activation by a table of 256 entries, int8 in and out: the circuit of ppa/rtl/lut_activation, bit for bit."""

from typing import Literal

import torch

from ..config import knob
from ..registry import KindConfig, register
from .fixed_point import FixedPoint, steps_of


@register("activation", "lut_int")
class LutInt(FixedPoint):
    """R(f(R(x 2^fraction_in) 2^-fraction_in) 2^fraction_out) 2^-fraction_out, R to the nearest int8: one look-up."""

    bits = 8
    table: torch.Tensor

    class Config(KindConfig):
        function: Literal["gelu", "silu", "tanh", "sigmoid"] = knob("gelu", "what the table holds", flat=())
        fraction_in: int = knob(5, "x in steps of 2^-this: 5 reaches to 4", flat=(), ge=0, le=8)
        fraction_out: int = knob(5, "result in steps of 2^-this", flat=(), ge=0, le=8)

    def __init__(self, config):
        super().__init__(
            config, function=config.function, fraction_in=config.fraction_in, fraction_out=config.fraction_out
        )
        steps = steps_of(self.function, torch.arange(-128, 128) / 2**config.fraction_in, config.fraction_out)
        self.register_buffer("table", steps.clamp(-128, 127), persistent=False)

    def steps(self, code):
        return self.table.index_select(0, (code + 128).flatten()).view(code.shape)

    def by_kernel(self, x):
        from kernels.fixed_point import lut_activation

        fractions = {"fraction_in": self.fraction_in, "fraction_out": self.fraction_out}
        return lut_activation(x, self.table, self.config.function, **fractions)

    @staticmethod
    def per_element(config):
        return {"shift": 1, "round": 1, "compare": 2, "lut": 1}
