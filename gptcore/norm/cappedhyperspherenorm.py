"""A ball instead of a sphere: vectors that are too long are shortened, the others stay as they are."""

import math

import torch

from ..config import knob
from ..precision import wide_type
from ..registry import KindConfig, register
from . import Norm


@register("norm", "cappedhyperspherenorm")
class CappedHyperSphereNorm(Norm):
    """x min(1, radius / |x|)."""

    class Config(KindConfig):
        radius: float | None = knob(None, "largest length; null: sqrt(width)", flat=("cappedhsnorm_radius",), gt=0)

    def __init__(self, config, width, dims):
        super().__init__(config, width, dims)
        self.radius = config.radius or math.sqrt(width)

    def forward(self, x):
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=wide_type(x.dtype))
        return (x * (self.radius / length.clamp_min(self.radius))).to(x.dtype)

    @staticmethod
    def declare(config, g, x, dims):
        square = g.reduce("square_sum", x, mul=1, add=1)
        scale = g.pointwise("scale", square, role="intermediate", max=1, rsqrt=1, mul=1)
        return g.pointwise("out", x, scale, mul=1)
