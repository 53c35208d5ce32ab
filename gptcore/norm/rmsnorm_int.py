"""Root-mean-square normalisation in int8: the circuit of ppa/rtl/rmsnorm, bit for bit (arXiv 1910.07467).

    entry    x in steps of its row's largest magnitude / 127, ties to even: the result does not depend on that step
    weight   in steps of 2^(4 - `fraction`) / sqrt(width), int8, saturated
    sum      s = 1 + sum of squares, at most 2^24 - 1; brought to m 4^e, m within [1, 4)
    root     r = 1 / sqrt(m): a table of 96 entries and one Newton step r (3 - m r r) / 2, 12 bits, ties up
    result   floor(floor(x r 2^-4 + 1/2) weight 2^-(e + 4) + 1/2) in steps of 2^-`fraction`, int8, saturated

Gradients are those of the norm itself (straight-through, arXiv 1308.3432), none where the result saturates.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..config import knob
from ..precision import wide
from ..quantize import quantize, straight_through
from ..registry import KindConfig, Problem, register
from . import Norm

SUM, LONGEST = 24, 1024  # bits of the sum of squares; entries that it holds


def seeds() -> list[int]:
    """1 / sqrt(m) in the middle of [i / 32, (i + 1) / 32), of fraction 9; at most 2 / m at its end."""
    return [min(round(2**9 / math.sqrt((i + 0.5) / 32)), 511, 2**15 // (i + 1)) if i >= 32 else 0 for i in range(128)]


def inverse_root(total: Tensor, table: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """(r, e): 1 / sqrt(total) = r 2^-12 2^-e, of positive int64 of an even number of bits."""
    pairs = torch.zeros_like(total)  # of leading zeros
    for bit in range(2, bits, 2):
        pairs = pairs + (total >> bit == 0)
    total, exponent = total << 2 * pairs, bits // 2 - 1 - pairs
    m, r = total >> bits - 12, table[total >> bits - 7] << 3
    t = (m * r + 2544 >> 11).clamp(max=4095)  # half a step of r for what was cut off, half a step for rounding
    t = (3 << 23) + (1 << 12) - t * r >> 13 & 4095
    return (t * r + 1024 >> 11).clamp(max=4095), exponent


@register("norm", "rmsnorm_int")
class RMSNormInt(Norm):
    """x / sqrt(mean(x^2)) weight, everything in int8 but a sum of 24 bits and an inverse root of 12."""

    seeds: Tensor

    class Config(KindConfig):
        fraction: int = knob(5, "result in steps of 2^-this: 5 reaches to 4", flat=(), ge=0, le=7)

    @classmethod
    def check(cls, config, dims):
        if dims.n_embd > LONGEST:
            yield Problem("kind", f"the sum of squares holds {LONGEST} entries, not {dims.n_embd}")

    def __init__(self, config, width, dims):
        super().__init__(config, width, dims)
        self.weight = nn.Parameter(torch.ones(width))
        self.register_buffer("seeds", torch.tensor(seeds()), persistent=False)

    def forward(self, x):
        x32, weight, unit = wide(x), wide(self.weight), 2.0**-self.config.fraction
        with torch.no_grad():
            codes, _, _ = quantize(x32, 8, dim=-1)
            scaled = torch.round(weight * (math.sqrt(self.width) * 2.0 ** (self.config.fraction - 4)))
            steps = self._integers(codes.long(), scaled.clamp(-128, 127).long()).to(x32.dtype)
        exact = F.rms_norm(x32, (self.width,), weight.to(x32.dtype), 1e-6).clamp(-128 * unit, 127 * unit)
        return straight_through(exact, steps * unit).to(x.dtype)

    def _integers(self, codes: Tensor, weight: Tensor) -> Tensor:
        """Result in steps of 2^-fraction, of entries and weights in int64."""
        total = (1 + codes.square().sum(-1, keepdim=True)).clamp(max=2**SUM - 1)
        r, exponent = inverse_root(total, self.seeds, SUM)
        scaled, places = codes * r + 8 >> 4, exponent + 4
        return (scaled * weight + (1 << places - 1) >> places).clamp(-128, 127)

    @staticmethod
    def declare(config, g, x, dims):
        bits = 8 if g.run.stage != "train" else None  # training keeps wide values
        step = g.pointwise("step", g.reduce("largest", x, max=1), role="intermediate", mul=1, recip=1)
        codes = g.pointwise("codes", x, step, role="intermediate", bits=bits, mul=1, round=1)
        square = g.reduce("square", codes, mul=1, add=1)
        root = g.pointwise("rsqrt", square, role="intermediate", lut=1, shift=2, mul=3, add=3)
        return g.pointwise("out", codes, root, g.weight("weight", x.shape[-1]), bits=bits, mul=2, shift=2, compare=2)
