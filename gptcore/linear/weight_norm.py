"""Weight normalisation (Salimans, Kingma, arXiv 1602.07868): a matrix whose vectors have one length, or a learned one.

With a fixed length of one, and after every step written back, these are the matrices of nGPT (arXiv 2410.01131). What
is trained is wide and of any length: only its direction counts, so that weight decay acts on the learning rate alone.
"""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import nn

from ..config import knob
from ..precision import wide
from ..registry import KindConfig, register
from .linear import Dense


@register("linear", "weight_norm")
class WeightNorm(Dense):
    """x W'^T + b, W' = g W / |W|, by the vector of each output or of each input; g is 1 or learned."""

    class Config(KindConfig):
        over: Literal["input", "output"] = knob(
            "input", "a vector is what an output sums over, or an input feeds", flat=()
        )
        length: Literal["one", "learned"] = knob(
            "one", "of a vector; learned: begins as that of a plain layer", flat=()
        )

    def __init__(self, config, d_in, d_out, *, bias):
        super().__init__(config, d_in, d_out, bias=bias)
        self.dim = 1 if config.over == "input" else 0
        vectors = d_out if config.over == "input" else d_in
        self.length = nn.Parameter(torch.empty(vectors)) if config.length == "learned" else None

    def unit_weight(self):
        return F.normalize(wide(self.weight), dim=self.dim).to(self.weight.dtype)

    def forward(self, x):
        weight = self.unit_weight()
        if self.length is not None:
            weight = weight * self.length.unsqueeze(self.dim)
        return F.linear(x, weight, self.bias)

    def init_weights(self, std):
        super().init_weights(std)
        if self.length is not None:
            nn.init.constant_(self.length, std * math.sqrt(self.weight.shape[self.dim]))

    @staticmethod
    def declare(config, g, x, d_out, *, bias):
        *lead, d_in = x.shape
        weight = g.weight("weight", d_out, d_in)
        of_outputs = config.over == "input"
        length = [g.weight("length", d_out if of_outputs else d_in)] if config.length == "learned" else []
        if g.run.stage == "train":  # afterwards the matrix is stored as it is used
            vectors = weight if of_outputs else g.view(weight, d_in, d_out)
            square = g.reduce("square_sum", vectors, mul=1, add=1)
            scale = g.pointwise("rsqrt", square, role="intermediate", max=1, rsqrt=1)
            weight = g.pointwise("unit", weight, scale, role="weight", mul=1)
        if length and not of_outputs:
            x = g.pointwise("length", x, *length, mul=1)
        after = bias + (len(length) if of_outputs else 0)  # every matrix unit does these before it writes
        size = {"m": math.prod(lead), "k": d_in, "n": d_out}
        role = "intermediate" if after else "activation"
        out = g.matmul("matmul", x, weight, (*lead, d_out), **size, role=role)
        if length and of_outputs:
            out = g.pointwise("length", out, *length, role="intermediate" if bias else "activation", mul=1)
        return g.pointwise("add_bias", out, g.weight("bias", d_out), add=1) if bias else out
