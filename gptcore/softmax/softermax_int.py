"""Softermax in integers, score after score: the circuit of ppa/rtl/softermax, bit for bit (arXiv 2103.09301).

    code     c = clamp(round(s 2^F), -2^(I+F-1), 2^(I+F-1) - 1), ties to even; I = `integer`, F = `fraction`
    maximum  m = max ceil(c 2^-F) over the scores so far, in the order of the keys
    power    p = floor(R(2^(15 + f)) 2^(w - m)), c 2^-F = w + f: a table of 2^F entries and a shift
    sum      t = floor(t 2^-(rise of m)) + p, 15 bits of fraction
    weight   floor(floor(p r 2^-8) 2^-z) 2^-15 with the last m; t = 2^(14+z) (1 + u), r = R(512 / (1 + u)) by a table of
             64 entries, in the middle of each; t < 2^15 counts as z = 0

The sum rounds whenever the maximum rises, so a row depends on the order of its keys. Gradients are those of the softmax
of base 2 at the scores before rounding (straight-through, arXiv 1308.3432); a score beyond the last code passes none.
"""

import math

import torch
from torch import Tensor

from ..config import knob
from ..precision import wide
from ..quantize import straight_through
from ..registry import KindConfig, Problem, register
from . import MASKED, Softmax

POINT = 15  # fraction bits of powers, sum and weights


@register("softmax", "softermax_int")
class SoftermaxInt(Softmax):
    """2^(s - max) / sum 2^(s - max) in integers: codes of 12 bits, a maximum of whole numbers, weights of 15 bits."""

    ordered = True
    powers: Tensor
    reciprocals: Tensor

    class Config(KindConfig):
        integer: int = knob(6, "bits of a score before the point, its sign included", flat=(), ge=2, le=6)
        fraction: int = knob(6, "bits of a score behind the point", flat=(), ge=1, le=8)
        sum_bits: int = knob(
            26, "of the sum, 15 of them fraction: rows of up to 2^(this - 15) - 1 keys", flat=(), ge=16, le=30
        )

    @classmethod
    def check(cls, config, dims):
        longest = 2 ** (config.sum_bits - POINT) - 1
        if dims.block_size > longest:
            needed = POINT + dims.block_size.bit_length()
            yield Problem("sum_bits", f"rows of {dims.block_size} keys may overflow the sum; {needed} bits suffice")

    def __init__(self, config, dims, heads):
        super().__init__(config, dims, heads)
        fraction = torch.arange(2**config.fraction, dtype=torch.float64) / 2**config.fraction
        self.register_buffer("powers", torch.round(2.0 ** (POINT + fraction)).int(), persistent=False)
        middle = 1 + (torch.arange(64, dtype=torch.float64) + 0.5) / 64
        self.register_buffer("reciprocals", torch.round(512 / middle).int(), persistent=False)

    def weights(self, scores_BHTS, live_TS):
        half = 2 ** (self.config.integer - 1)
        scores = wide(scores_BHTS).masked_fill(~live_TS, 0.0).clamp(-half, half - 2.0**-self.config.fraction)
        exact = torch.softmax((scores * math.log(2)).masked_fill(~live_TS, MASKED), dim=-1).masked_fill(~live_TS, 0.0)
        with torch.no_grad():
            rounded = self._integers(scores, live_TS).to(scores.dtype) * 2.0**-POINT
        return straight_through(exact, rounded.masked_fill(~live_TS, 0.0))

    def _integers(self, scores: Tensor, live: Tensor) -> Tensor:
        """Weights of live scores within the codes, in steps of 2^-15."""
        places, half = self.config.fraction, 2 ** (self.config.integer - 1)
        code = torch.round(scores * 2**places).int().clamp(-half << places, (half << places) - 1)
        whole, rest = code >> places, code & ((1 << places) - 1)
        entry = self.powers.index_select(0, rest.flatten()).view(rest.shape)
        now = torch.where(live, whole + (rest > 0), -half).cummax(dim=-1).values
        power = (entry >> (now - whole).clamp(0, 16)).masked_fill(~live, 0)
        # Powers of one maximum add up exactly, and floors of halves compose: one halving for each whole number that the
        # maximum rises. What is left behind by as many as the sum has bits is gone.
        highest, width = now[..., -1:], self.config.sum_bits
        behind = (highest - now).clamp(max=width).long()
        levels = power.new_zeros(*power.shape[:-1], width + 1).scatter_add(-1, behind, power)
        total = levels[..., width - 1 : width]
        for level in range(width - 2, -1, -1):
            total = (total >> 1) + levels[..., level : level + 1]
        shift = sum((total >> bit > 0).int() for bit in range(POINT, width))
        inverse = self.reciprocals[total >> (shift + 8) & 63]
        return (entry >> (highest - whole).clamp(0, 16)) * inverse >> 8 + shift

    @staticmethod
    def declare(config, g, scores, heads):
        deployed = g.run.stage != "train"  # training keeps wide values
        codes = g.pointwise(
            "code", scores, role="intermediate", bits=config.integer + config.fraction if deployed else None,
            shift=1, round=1, compare=2,
        )  # fmt: skip
        total = g.reduce("sum", codes, round=1, max=1, add=3, lut=1, shift=2)
        inverse = g.pointwise("reciprocal", total, role="intermediate", lut=1, shift=1)
        return g.pointwise(
            "weight", codes, inverse, role="intermediate", bits=16 if deployed else None, add=1, lut=1, shift=2, mul=1
        )  # fmt: skip
