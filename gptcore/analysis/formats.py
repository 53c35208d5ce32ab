"""Number formats with a fixed range, by name: what is outside of it, and what a value becomes.

    qM.N       two's complement with M integer and N fraction bits beside the sign: 1 + M + N bits, -2^M to 2^M - 2^-N
    uqM.N      the same without a sign: M + N bits, 0 to 2^M - 2^-N
    fp8_e4m3   OCP 8-bit float (arXiv 2209.05433): largest 448, smallest 2^-9
    fp8_e5m2   OCP 8-bit float: largest 57344, smallest 2^-16
    fp16 bf16  IEEE half precision (largest 65504), bfloat16

The sign is not among the M bits (Texas Instruments' convention; Arm counts it). Rounding is to nearest, ties to even;
what is out of range becomes the nearest end of it. Formats whose range follows the data are not here.
"""

import re
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import UserError

FLOATS = {
    "fp8_e4m3": torch.float8_e4m3fn, "fp8_e5m2": torch.float8_e5m2, "fp16": torch.float16, "bf16": torch.bfloat16,
}  # fmt: skip
MOST_BITS = 24  # that fp32, in which values are rounded, holds exactly


@dataclass(frozen=True)
class NumberFormat:
    """`low` to `high` in steps of `step`, or, without a step, the numbers of a floating-point `dtype`."""

    name: str
    low: float
    high: float
    step: float | None = None
    dtype: torch.dtype | None = None

    def represent(self, x: Tensor) -> Tensor:
        """`x` (at least fp32) as the format holds it."""
        inside = x.clamp(self.low, self.high)
        if self.step is not None:
            return torch.round(inside / self.step) * self.step
        assert self.dtype is not None
        return inside.to(self.dtype).to(x.dtype)


def parse_format(text: str) -> NumberFormat:
    """UserError for a name that is none of the above."""
    if text in FLOATS:
        dtype = FLOATS[text]
        return NumberFormat(text, -torch.finfo(dtype).max, torch.finfo(dtype).max, dtype=dtype)
    fixed = re.fullmatch(r"(u?)q(\d{1,2})\.(\d{1,2})", text)
    if fixed is None:
        raise UserError(
            f"--format: {text!r} is no format with a range of its own: qM.N or uqM.N (fixed point), {', '.join(FLOATS)}"
        )
    integer, fraction = int(fixed[2]), int(fixed[3])
    if not 1 <= integer + fraction <= MOST_BITS:
        raise UserError(f"--format: {text} has {integer + fraction} bits beside the sign, and 1 to {MOST_BITS} can be")
    top, step = 2.0**integer, 2.0**-fraction
    return NumberFormat(text, 0.0 if fixed[1] else -top, top - step, step)
