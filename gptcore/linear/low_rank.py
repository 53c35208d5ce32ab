"""A matrix as the product of two narrow ones (Sainath et al. 2013; Ashish Khodak et al., arXiv 2105.01029).

A rank r has r (d_in + d_out) parameters: as many as the full matrix at r = d_in d_out / (d_in + d_out), which is half
the width of a square matrix and 0.8 of the smaller side of one four times as wide as high.
"""

import math

import torch
import torch.nn.functional as F
from torch import nn

from ..config import knob
from ..registry import KindConfig, register
from . import Linear


@register("linear", "low_rank")
class LowRank(Linear):
    """x A^T B^T + b, A of rank x d_in, B of d_out x rank."""

    class Config(KindConfig):
        rank: int | None = knob(None, "rank, at most the smaller side; null: by fraction", flat=(), ge=1)
        fraction: float = knob(0.5, "rank as a part of the smaller side", flat=(), gt=0, le=1)

    def __init__(self, config, d_in, d_out, *, bias):
        super().__init__(config, d_in, d_out, bias=bias)
        rank = rank_of(config, d_in, d_out)
        self.a = nn.Parameter(torch.empty(rank, d_in))
        self.b = nn.Parameter(torch.empty(d_out, rank))
        self.bias = nn.Parameter(torch.empty(d_out)) if bias else None

    def forward(self, x):
        return F.linear(F.linear(x, self.a), self.b, self.bias)

    def init_weights(self, std):
        # An entry of B A is a sum of `rank` products, which then has the standard deviation `std`.
        each = math.sqrt(std) / self.a.shape[0] ** 0.25
        nn.init.normal_(self.a, std=each)
        nn.init.normal_(self.b, std=each)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    @staticmethod
    def declare(config, g, x, d_out, *, bias):
        *lead, d_in = x.shape
        rank, m = rank_of(config, d_in, d_out), math.prod(lead)
        h = g.matmul("narrow", x, g.weight("a", rank, d_in), (*lead, rank), m=m, k=d_in, n=rank)
        role = "intermediate" if bias else "activation"  # every matrix unit adds the bias before it writes
        out = g.matmul("widen", h, g.weight("b", d_out, rank), (*lead, d_out), m=m, k=rank, n=d_out, role=role)
        return g.pointwise("add_bias", out, g.weight("bias", d_out), add=1) if bias else out


def rank_of(config, d_in: int, d_out: int) -> int:
    smaller = min(d_in, d_out)
    return min(config.rank, smaller) if config.rank else max(1, round(config.fraction * smaller))
