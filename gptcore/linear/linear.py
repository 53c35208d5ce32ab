"""The ordinary full-precision linear layer."""

import math

import torch
import torch.nn.functional as F
from torch import nn

from ..registry import register
from . import Linear


@register("linear", "linear")
class Dense(Linear):
    """x W^T + b."""

    def __init__(self, config, d_in, d_out, *, bias):
        super().__init__(config, d_in, d_out, bias=bias)
        self.weight = nn.Parameter(torch.empty(d_out, d_in))
        self.bias = nn.Parameter(torch.empty(d_out)) if bias else None

    def forward(self, x):
        return F.linear(x, self.weight, self.bias)

    def init_weights(self, std):
        nn.init.normal_(self.weight, std=std)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    @staticmethod
    def declare(config, g, x, d_out, *, bias):
        *lead, d_in = x.shape
        size = {"m": math.prod(lead), "k": d_in, "n": d_out}
        role = "intermediate" if bias else "activation"  # every matrix unit adds the bias before it writes
        out = g.matmul("matmul", x, g.weight("weight", d_out, d_in), (*lead, d_out), **size, role=role)
        return g.pointwise("add_bias", out, g.weight("bias", d_out), add=1) if bias else out
