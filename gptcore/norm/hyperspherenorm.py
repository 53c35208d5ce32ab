"""Projection onto a sphere: root-mean-square normalisation told as a length, with the radius as its scale."""

import math

import torch
import torch.nn.functional as F
from torch import nn

from ..config import knob
from ..registry import KindConfig, register
from . import Norm


@register("norm", "hyperspherenorm")
class HyperSphereNorm(Norm):
    """x radius / sqrt(|x|^2 + width eps) * weight."""

    class Config(KindConfig):
        radius: float | None = knob(None, "(initial) radius; null: sqrt(width)", flat=("hsnorm_radius",), gt=0)
        learned: bool = knob(False, "learn the radius", flat=("hsnorm_radius_learning",))
        scale: float = knob(1.0, "factor between the learned number and the radius", flat=("hsnorm_scale",), gt=0)
        gain: bool = knob(False, "learned weight", flat=("hsnorm_gain",))
        eps: float = knob(1e-6, "added to the mean square", flat=("hsnorm_eps",), gt=0)

    def __init__(self, config, width, dims):
        super().__init__(config, width, dims)
        radius = math.sqrt(width) if config.radius is None else config.radius
        self.fixed = radius / math.sqrt(width)  # what is left to do after a mean square of one
        self.radius = nn.Parameter(torch.full((1,), radius / config.scale)) if config.learned else None
        self.weight = nn.Parameter(torch.ones(width)) if config.gain else None

    def forward(self, x):
        # Radius and gain as the one weight of the fused function: vectors of the width, not of the tokens.
        factor = self.fixed if self.radius is None else self.radius * (self.config.scale / math.sqrt(self.width))
        gain = x.new_ones(self.width) if self.weight is None else self.weight
        return F.rms_norm(x, (self.width,), gain * factor, self.config.eps)

    @staticmethod
    def declare(config, g, x, dims):
        square = g.reduce("square_sum", x, mul=1, add=1)
        radius = [g.weight("radius", 1)] if config.learned else []
        scale = g.pointwise("rsqrt", square, *radius, role="intermediate", mul=1, add=1, rsqrt=1)
        weight = [g.weight("weight", x.shape[-1])] if config.gain else []
        return g.pointwise("out", x, scale, *weight, mul=1 + len(weight))
