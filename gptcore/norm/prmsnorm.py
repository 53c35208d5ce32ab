"""Partial root-mean-square normalisation: statistics of the first entries only (arXiv 1910.07467, section 4)."""

import math

import torch
from torch import nn

from ..config import knob
from ..precision import wide
from ..registry import KindConfig, register
from . import Norm


@register("norm", "prmsnorm")
class PartialRMSNorm(Norm):
    """x / sqrt(mean(x_i^2 for i < pct width) + eps) * weight."""

    class Config(KindConfig):
        pct: float = knob(0.0625, "share of the width that is measured", flat=("prmsnorm_pct",), gt=0, le=1)
        eps: float = knob(1e-6, "added to the mean square", flat=("prmsnorm_eps",), gt=0)

        def measured(self, width: int) -> int:
            return max(1, math.ceil(round(self.pct * width, 9)))  # 0.07 of 100 is 7, not 7.000000000000001

    def __init__(self, config, width, dims):
        super().__init__(config, width, dims)
        self.measured = config.measured(width)
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x):
        square = wide(x[..., : self.measured]).square().mean(-1, keepdim=True)
        return (x * torch.rsqrt(square + self.config.eps) * self.weight).to(x.dtype)

    @staticmethod
    def declare(config, g, x, dims):
        width = x.shape[-1]
        measured = config.measured(width)
        part, _ = g.split(x, measured, width - measured)
        square = g.reduce("mean_square", part, mul=1, add=1)
        scale = g.pointwise("rsqrt", square, role="intermediate", mul=1, add=1, rsqrt=1)
        return g.pointwise("out", x, scale, g.weight("weight", width), mul=2)
