"""What linear layers with rounded weights have in common: wide weights are trained, rounded ones are multiplied."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ..kernel_choice import Kernelled, Part
from ..ops import Graph
from ..ops import Tensor as OpTensor
from ..precision import wide
from ..quantize import fake_quantize, straight_through
from .linear import Dense


class RoundedLinear(Dense):
    """x W'^T + b, W' = `round_weight(W)`, with the gradient of x W^T + b; a schedule may fade W' in by `strength`."""

    strength: Tensor

    def __init__(self, config, d_in, d_out, *, bias):
        super().__init__(config, d_in, d_out, bias=bias)
        self.register_buffer("strength", torch.ones(()), persistent=False)

    def round_weight(self, weight: Tensor) -> Tensor:
        """What is multiplied in place of `weight`, which has at least the precision of fp32."""
        raise NotImplementedError

    def weight_in_use(self) -> Tensor:
        with torch.no_grad():
            rounded = self.round_weight(wide(self.weight)).to(self.weight.dtype)
        return straight_through(self.weight, rounded, self.strength.to(self.weight.dtype))

    def forward(self, x):
        return F.linear(x, self.weight_in_use(), self.bias)


class BitLinear(Kernelled, RoundedLinear):
    """As RoundedLinear, and every token of x is rounded by its largest magnitude; `weight_bits` are stored."""

    part: Part = "rounding"
    weight_bits: int

    def kernel_obstacle(self, dropout=0.0):
        return None

    def forward(self, x):
        bits = self.config.activation_bits
        if bits is not None and self.runs_kernel(x):
            from kernels.fake_quantise import fake_quantise

            x = fake_quantise(x, bits, "symmetric", -1, self.strength)
        elif bits is not None:
            x = fake_quantize(x, bits, dim=-1, strength=self.strength.to(x.dtype))
        return super().forward(x)

    @classmethod
    def declare(cls, config, g, x, d_out, *, bias):
        if config.activation_bits is None:
            return declare_rounded(g, x, d_out, cls.weight_bits, bias=bias)
        largest = g.reduce("range", x, max=1)
        x = g.pointwise("round", x, largest, bits=config.activation_bits, mul=1, round=1)
        return declare_rounded(g, x, d_out, cls.weight_bits, largest, bias=bias, mul=2)


def declare_rounded(
    g: Graph, x: OpTensor, d_out: int, bits: int, *scales: OpTensor, bias: bool, **rescale: int
) -> OpTensor:
    """The product with integer weights of `bits`, and the way back to real numbers (`rescale`: one mul unless given).

    `scales` are what it reads beside the product: ranges of tokens, sums for a zero point.
    """
    *lead, d_in = x.shape
    size = {"m": math.prod(lead), "k": d_in, "n": d_out}
    weight = g.weight("weight", d_out, d_in, bits=bits)
    out = g.matmul("matmul", x, weight, (*lead, d_out), **size, role="intermediate")
    out = g.pointwise("rescale", out, *scales, role="intermediate" if bias else "activation", **(rescale or {"mul": 1}))
    return g.pointwise("add_bias", out, g.weight("bias", d_out), add=1) if bias else out
