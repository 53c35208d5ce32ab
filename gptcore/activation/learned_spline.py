"""A cubic spline with learned values as activation.

Of the kind of Catmull & Rom (1974): each cubic depends on the four values around it, so no equations are to be solved.
"""

import torch
import torch.nn.functional as F
from torch import nn

from ..config import knob
from ..precision import wide
from ..registry import KindConfig, register
from . import Activation
from .tables import catmull_rom_table, check_bounds, piecewise_polynomial, uniform_segments


@register("activation", "learned_spline")
class LearnedSpline(Activation):
    """Catmull-Rom cubics through learned values at equal distances, straight outside; they start on gelu."""

    class Config(KindConfig):
        knots: int = knob(30, "learned values, bounds included", flat=("lsa_num_knots",), ge=2)
        left: float = knob(-5.0, "leftmost knot", flat=("lsa_left_bound",))
        right: float = knob(5.0, "rightmost knot", flat=("lsa_right_bound",))

    @classmethod
    def check(cls, config, dims):
        yield from check_bounds(config)

    def __init__(self, config):
        super().__init__(config)
        self.values = nn.Parameter(F.gelu(torch.linspace(config.left, config.right, config.knots)))

    def forward(self, x):
        x32 = wide(x)
        offset, segment = uniform_segments(x32, self.config.left, self.config.right, self.config.knots - 1)
        table_PS = catmull_rom_table(self.values.to(x32.dtype))
        return piecewise_polynomial(offset, segment, table_PS).to(x.dtype)

    @staticmethod
    def per_element(config):
        # place in units of segments, its integer part within the table; a row of it; three steps of Horner
        return {"mul": 4, "add": 4, "round": 1, "max": 1, "compare": 1, "lut": 1}

    @staticmethod
    def parameters_of(config):
        return {"values": (config.knots,)}
