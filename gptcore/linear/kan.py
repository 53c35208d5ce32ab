"""A Kolmogorov-Arnold layer: every input-output pair has its own learned function (Liu et al., arXiv 2404.19756).

The functions are Chebyshev polynomials of a squashed input (SS et al., arXiv 2405.07200) beside the base path through
silu, all values side by side, so that one product does the whole layer. It has (1 + order) times the parameters and
multiplications of an ordinary layer: compare at a width smaller by sqrt(1 + order).
"""

import math

import torch
import torch.nn.functional as F
from torch import nn

from ..config import knob
from ..registry import KindConfig, register
from . import Linear


@register("linear", "kan")
class KAN(Linear):
    """[silu(x), T_1(t), ..., T_order(t)] W^T + b, t = tanh(x), T_k Chebyshev polynomials."""

    class Config(KindConfig):
        order: int = knob(3, "polynomials an input, beside the base path", flat=("kan_poly_order",), ge=1, le=16)

    def __init__(self, config, d_in, d_out, *, bias):
        super().__init__(config, d_in, d_out, bias=bias)
        self.weight = nn.Parameter(torch.empty(d_out, (1 + config.order) * d_in))
        self.bias = nn.Parameter(torch.empty(d_out)) if bias else None

    def features(self, x):
        t = torch.tanh(x)
        parts, doubled = [F.silu(x), t], 2 * t
        for k in range(2, self.config.order + 1):  # T_k = 2 t T_(k-1) - T_(k-2), T_0 = 1
            parts.append(doubled * parts[-1] - (parts[-2] if k > 2 else 1))
        return torch.cat(parts, -1)

    def forward(self, x):
        return F.linear(self.features(x), self.weight, self.bias)

    def init_weights(self, std):
        # The polynomials are of the order of one whatever the input, as are normalised inputs: one share for each path.
        nn.init.normal_(self.weight, std=std / math.sqrt(1 + self.config.order))
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    @staticmethod
    def declare(config, g, x, d_out, *, bias):
        *lead, d_in = x.shape
        g.pointwise("silu", x, exp=1, add=1, div=1)
        t = g.pointwise("tanh", x, tanh=1)
        for k in range(2, config.order + 1):
            g.pointwise(f"t{k}", t, mul=2, add=1)
        width = (1 + config.order) * d_in
        features = g.tensor("features", *lead, width)  # the values above, side by side
        size = {"m": math.prod(lead), "k": width, "n": d_out}
        role = "intermediate" if bias else "activation"  # every matrix unit adds the bias before it writes
        out = g.matmul("matmul", features, g.weight("weight", d_out, width), (*lead, d_out), **size, role=role)
        return g.pointwise("add_bias", out, g.weight("bias", d_out), add=1) if bias else out
