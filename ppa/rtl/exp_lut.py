"""Exponential of a signed score code, as a whole table.

step = 2^(log2_reach + 1 - bits): the codes of N bits reach over +-2^log2_reach, as those of the kind `consmax_quan`.
"""

import math
from collections.abc import Sequence
from functools import cached_property

import numpy as np

from . import Operator, Streams, fp, register
from .tables import rom
from .trace import Trace, fixed, passing


def exponentials(codes: Sequence[int], step: float, base: str, fmt: fp.Format) -> np.ndarray:
    """Patterns of base^(c step)."""
    power = math.exp if base == "e" else (2.0).__pow__
    return fp.from_float(np.array([power(c * step) for c in codes]), fmt)


def signed_codes(bits: int) -> list[int]:
    """What the patterns of two's complement of `bits` bits mean, in the order of the patterns."""
    return [*range(1 << (bits - 1)), *range(-(1 << (bits - 1)), 0)]


class Exponential(Operator):
    """Base of the operators that begin with a score code."""

    def __init__(self, bits: int = 8, log2_reach: int = 3, base: str = "e", format: str = "bf16"):
        super().__init__(bits=bits, log2_reach=log2_reach, base=base, format=format)
        self.bits, self.base, self.fmt = bits, base, fp.FORMATS[format]
        self.step_size = 2.0 ** (log2_reach + 1 - bits)
        self.low_bits = bits // 2

    @cached_property
    def whole(self) -> np.ndarray:
        """Table of all codes, by their patterns."""
        return exponentials(signed_codes(self.bits), self.step_size, self.base, self.fmt)

    @cached_property
    def halves(self) -> tuple[np.ndarray, np.ndarray]:
        """H[h] of the high bits, which are signed, and L[l] of the low bits."""
        high = signed_codes(self.bits - self.low_bits)
        large = self.step_size * (1 << self.low_bits)
        low = range(1 << self.low_bits)
        return exponentials(high, large, self.base, self.fmt), exponentials(low, self.step_size, self.base, self.fmt)

    def codes(self, trace: Trace) -> np.ndarray:
        """Scores of a trained model, one row after another."""
        return fixed(np.concatenate(trace.scores) / self.step_size, 0, self.bits)

    def replay(self, trace, streams):
        return ({"code": code} for code in passing(self.codes(trace), streams))


@register
class ExpLut(Exponential):
    """R(base^(code step)), 2^bits entries."""

    module = "exp_lut"
    points = {"exp_lut256": {"bits": 8}}

    def verilog_parameters(self):
        return {"BITS": self.bits, "WIDTH": self.fmt.width}

    def generated(self):
        return rom("exp_lut_table", self.whole, self.fmt.width)

    def inputs(self):
        return {"code": self.bits}

    def outputs(self):
        return {"y": self.fmt.width}

    def step(self, x: Streams) -> Streams:
        return {"y": self.whole[x["code"]]}
