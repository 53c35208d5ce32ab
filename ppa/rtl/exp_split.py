"""Exponential of a signed score code by two tables of its halves, multiplied."""

from . import Streams, fp, register
from .exp_lut import Exponential
from .tables import rom


def rom_halves(operator: Exponential) -> str:
    """Modules of both tables."""
    high, low = operator.halves
    return rom("exp_split_high", high, operator.fmt.width) + rom("exp_split_low", low, operator.fmt.width)


@register
class ExpSplit(Exponential):
    """R(H[high] L[low])."""

    module = "exp_split"
    points = {"exp_split": {"bits": 8}}

    def verilog_parameters(self):
        return {"BITS": self.bits, "LOW": self.low_bits, "EXP": self.fmt.exp, "MAN": self.fmt.man}

    def generated(self):
        return rom_halves(self)

    def inputs(self):
        return {"code": self.bits}

    def outputs(self):
        return {"y": self.fmt.width}

    def step(self, x: Streams) -> Streams:
        high, low = self.halves
        y = fp.fp_mul(high[x["code"] >> self.low_bits], low[x["code"] & ((1 << self.low_bits) - 1)], self.fmt)
        return {"y": y}
