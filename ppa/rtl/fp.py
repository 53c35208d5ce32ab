"""Exact models of the floats of the operators: bit patterns sign | exponent | mantissa, in int64 arrays.

The exponent has a bias of 2^(exp - 1) - 1. Results are rounded to the nearest, ties to even; what is then below the
smallest normal number becomes +0, what is above `highest` becomes `highest`. A zero is always +0. An operand with
exponent 0 is a zero whatever its other bits are; there are no infinities and no NaN: every other exponent, the largest
included, is read as a number. e4m3 is that of the OCP 8-bit specification, whose largest number is 448.
"""

from typing import NamedTuple

import numpy as np

from . import Operator


class Format(NamedTuple):
    """A float format: bits of exponent and mantissa, and the magnitude pattern of the largest number."""

    exp: int
    man: int
    highest: int

    @property
    def width(self) -> int:
        return 1 + self.exp + self.man

    @property
    def bias(self) -> int:
        return (1 << (self.exp - 1)) - 1

    @property
    def one(self) -> int:
        """Pattern of 1.0."""
        return self.bias << self.man


BF16 = Format(8, 7, 0x7F7F)
FP16 = Format(5, 10, 0x7BFF)
FP32 = Format(8, 23, 0x7F7F_FFFF)
E4M3 = Format(4, 3, 0x7E)
FORMATS = {"bf16": BF16, "fp16": FP16, "fp32": FP32, "e4m3": E4M3}


def bit_length(x: np.ndarray) -> np.ndarray:
    """int.bit_length of non-negative int64."""
    x, length = np.array(x, dtype=np.int64), np.zeros(np.shape(x), dtype=np.int64)
    for step in (32, 16, 8, 4, 2, 1):
        high = x >> step
        length += np.where(high > 0, step, 0)
        x = np.where(high > 0, high, x)
    return length + x


def split(bits: np.ndarray, fmt: Format) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Sign, significand with its leading one (0 of a zero) and exponent of its last bit: (-1)^s m 2^e."""
    bits = np.asarray(bits, dtype=np.int64)
    exponent = bits >> fmt.man & ((1 << fmt.exp) - 1)
    significand = np.where(exponent > 0, (1 << fmt.man) | (bits & ((1 << fmt.man) - 1)), 0)
    return bits >> (fmt.width - 1) & 1, significand, exponent - fmt.bias - fmt.man


def pack(sign: np.ndarray, significand: np.ndarray, exponent: np.ndarray, fmt: Format) -> np.ndarray:
    """(-1)^sign significand 2^exponent, rounded once; 0 <= significand < 2^62."""
    significand = np.asarray(significand, dtype=np.int64)
    shift = bit_length(significand) - (fmt.man + 1)
    right = np.maximum(shift, 0)
    kept = significand >> right
    rest, half = significand - (kept << right), (1 << right) >> 1
    kept = kept + ((right > 0) & ((rest > half) | ((rest == half) & (kept & 1 == 1)))) << np.maximum(-shift, 0)
    # A significand that was rounded up to the next power of two carries into the exponent.
    magnitude = (np.asarray(exponent) + shift + fmt.man + fmt.bias << fmt.man) + kept - (1 << fmt.man)
    zero = (significand == 0) | (magnitude < 1 << fmt.man)
    return np.where(zero, 0, np.asarray(sign) << (fmt.width - 1) | np.minimum(magnitude, fmt.highest))


def fp_mul(a: np.ndarray, b: np.ndarray, fmt: Format, out: Format | None = None) -> np.ndarray:
    """a b, rounded to the format `out`, which is that of the operands unless it is given."""
    (sa, ma, ea), (sb, mb, eb) = split(a, fmt), split(b, fmt)
    return pack(sa ^ sb, ma * mb, ea + eb, out or fmt)


def fp_add(a: np.ndarray, b: np.ndarray, fmt: Format) -> np.ndarray:
    """a + b."""
    mask, guard = (1 << (fmt.width - 1)) - 1, fmt.man + 3
    swap = (np.asarray(a) & mask) < (np.asarray(b) & mask)
    (sign, large, exponent), (s2, small, e2) = split(np.where(swap, b, a), fmt), split(np.where(swap, a, b), fmt)
    right = np.minimum(exponent - e2, 2 * guard)
    small = small << guard
    # What is shifted out leaves a one in the last place: it is never a tie.
    aligned = small >> right | (small & ((np.int64(1) << right) - 1) != 0)
    return pack(sign, (large << guard) + np.where(sign == s2, aligned, -aligned), exponent - guard, fmt)


def fp_div(a: np.ndarray, b: np.ndarray, fmt: Format) -> np.ndarray:
    """a / b; the largest number for b = 0, but 0 / b is 0 always."""
    (sa, ma, ea), (sb, mb, eb) = split(a, fmt), split(b, fmt)
    whole, rest = np.divmod(ma << (fmt.man + 2), np.maximum(mb, 1))
    # A remainder leaves a one in the last place: it is never a tie.
    quotient = pack(sa ^ sb, whole << 1 | (rest > 0), ea - eb - (fmt.man + 3), fmt)
    return np.where((mb == 0) & (ma > 0), (sa ^ sb) << (fmt.width - 1) | fmt.highest, quotient)


def from_float(x: np.ndarray | float, fmt: Format) -> np.ndarray:
    """Pattern of float64 numbers, rounded once. ValueError for NaN."""
    x = np.asarray(x, dtype=np.float64)
    if np.isnan(x).any():
        raise ValueError("there is no pattern for NaN: remove it before the conversion")
    fraction, exponent = np.frexp(np.minimum(np.abs(x), to_float(np.array(fmt.highest), fmt)))
    return pack((x < 0).astype(np.int64), np.ldexp(fraction, 53).astype(np.int64), exponent.astype(np.int64) - 53, fmt)


def to_float(bits: np.ndarray, fmt: Format) -> np.ndarray:
    """float64 value of patterns, exact."""
    sign, significand, exponent = split(bits, fmt)
    return np.ldexp(np.where(sign == 1, -significand, significand).astype(np.float64), exponent)


class Pair(Operator):
    """Base of the operators with two operands and a result of one `format`."""

    def __init__(self, format: str):
        super().__init__(format=format)
        self.fmt = FORMATS[format]

    def verilog_parameters(self):
        return {"EXP": self.fmt.exp, "MAN": self.fmt.man, "HIGHEST": self.fmt.highest}

    def inputs(self):
        return {"a": self.fmt.width, "b": self.fmt.width}

    def outputs(self):
        return {"y": self.fmt.width}
