"""Layer normalisation in int8: the circuit of ppa/rtl/layernorm, bit for bit (arXiv 1607.06450).

    entry     x in steps of its row's largest magnitude / 127, ties to even: the result does not depend on that step
    weight    in steps of 2^-(`fraction` + 1), bias in steps of 2^-`fraction`, both int8, saturated
    variance  n^2 times it: n (1 + S2) - S1^2, exact; S1 the sum and S2 the sum of squares of the n entries of a row
    root      its inverse square root r 2^-e, of 12 bits, as in the kind `rmsnorm_int`
    centred   n x - S1 in steps of 2^(L - 4), L = ceil(log2 n), ties up
    result    floor(floor(centred r 2^-8 + 1/2) weight 2^-(e + 9 - L) + 1/2) + bias in steps of 2^-`fraction`, int8

Gradients are those of the norm itself (straight-through, arXiv 1308.3432), none where the result saturates.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..config import knob
from ..precision import wide
from ..quantize import quantize, straight_through
from ..registry import KindConfig, Problem, register
from . import Norm
from .rmsnorm_int import inverse_root, seeds

SHORTEST, LONGEST = 32, 1024  # entries of a row of the circuit


def nearest(value: Tensor, places: int | Tensor) -> Tensor:
    """value / 2^places, ties up."""
    return (value << 1 >> places) + 1 >> 1


def codes_of(parameter: Tensor, fraction: int) -> Tensor:
    return torch.round(parameter * 2.0**fraction).clamp(-128, 127).long()


@register("norm", "layernorm_int")
class LayerNormInt(Norm):
    """(x - mean) / sqrt(variance) weight + bias, in int8 but for two exact sums and an inverse root of 12 bits."""

    seeds: Tensor

    class Config(KindConfig):
        fraction: int = knob(5, "result in steps of 2^-this: 5 reaches to 4, and weights to 2", flat=(), ge=0, le=6)

    @classmethod
    def check(cls, config, dims):
        if not SHORTEST <= dims.n_embd <= LONGEST:
            yield Problem("kind", f"the circuit takes rows of {SHORTEST} to {LONGEST} entries, not {dims.n_embd}")

    def __init__(self, config, width, dims):
        super().__init__(config, width, dims)
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width)) if dims.bias else None
        self.log = (max(width, SHORTEST) - 1).bit_length()
        self.register_buffer("seeds", torch.tensor(seeds()), persistent=False)

    def forward(self, x):
        x32, fraction, unit = wide(x), self.config.fraction, 2.0**-self.config.fraction
        weight, bias = (None if p is None else wide(p).to(x32.dtype) for p in (self.weight, self.bias))
        with torch.no_grad():
            codes, _, _ = quantize(x32, 8, dim=-1)
            steps = self._integers(codes.long(), codes_of(wide(self.weight), fraction + 1))
            if self.bias is not None:
                steps = steps + codes_of(wide(self.bias), fraction)
            result = steps.clamp(-128, 127).to(x32.dtype) * unit
        exact = F.layer_norm(x32, (self.width,), weight, bias).clamp(-128 * unit, 127 * unit)
        return straight_through(exact, result).to(x.dtype)

    def _integers(self, codes: Tensor, weight: Tensor) -> Tensor:
        """Result without its bias, in steps of 2^-fraction, of entries and weights in int64."""
        total, squares = codes.sum(-1, keepdim=True), codes.square().sum(-1, keepdim=True)
        variance = self.width * (1 + squares) - total.square()
        r, exponent = inverse_root(variance, self.seeds, 2 * self.log + 14)
        centred = nearest(self.width * codes - total, self.log - 4)
        return nearest(nearest(centred * r, 8) * weight, exponent + 9 - self.log)

    @staticmethod
    def declare(config, g, x, dims):
        width, bits = x.shape[-1], 8 if g.run.stage != "train" else None  # training keeps wide values
        step = g.pointwise("step", g.reduce("largest", x, max=1), role="intermediate", mul=1, recip=1)
        codes = g.pointwise("codes", x, step, role="intermediate", bits=bits, mul=1, round=1)
        sums = g.reduce("sums", codes, mul=1, add=2)
        root = g.pointwise("rsqrt", sums, role="intermediate", lut=1, shift=2, mul=6, add=6)
        affine = [g.weight("weight", width)] + ([g.weight("bias", width)] if dims.bias else [])
        return g.pointwise(
            "out", codes, root, *affine, bits=bits, mul=3, add=len(affine), shift=3, compare=2
        )  # fmt: skip
