"""Spherical interpolation: the stream turns towards the branch by a fraction of the angle between them."""

import torch

from ..config import knob
from ..precision import wide
from ..registry import register
from . import ScaleConfig, ScaledResidual

PARALLEL = 1e-3  # below this angle (in radians) the sphere is flat, and sines of angles are quotients of zeros


@register("residual", "slerp")
class Slerp(ScaledResidual):
    """(sin((1-alpha) w) u_x + sin(alpha w) u_y) / sin(w) times the interpolated length; w the angle (Shoemake 1985)."""

    class Config(ScaleConfig):
        scale: float = knob(0.5, "alpha, the fraction of the angle", flat=("residual_scale",))

    def forward(self, x_BTC, y_BTC):
        x, y = wide(x_BTC), wide(y_BTC)
        alpha = self.factor(x)
        tiny = torch.finfo(x.dtype).eps
        long_x, long_y = (t.square().sum(-1, keepdim=True).add(tiny**2).sqrt() for t in (x, y))
        u, v = x / long_x, y / long_y
        cosine = (u * v).sum(-1, keepdim=True).clamp(-1 + PARALLEL**2 / 2, 1 - PARALLEL**2 / 2)
        angle = torch.acos(cosine)
        near, far = torch.sin((1 - alpha) * angle), torch.sin(alpha * angle)
        length = torch.lerp(long_x, long_y, torch.as_tensor(alpha, dtype=x.dtype, device=x.device))
        return ((near * u + far * v) * (length / torch.sin(angle))).to(x_BTC.dtype)

    @classmethod
    def declare(cls, config, g, name, x, y, dims):
        factor = cls.declare_factor(config, g, name, dims)
        lengths = [g.reduce(name + "_length", t, mul=1, add=1) for t in (x, y)]
        dot = g.reduce(name + "_dot", x, mul=1, add=1)
        # Per token: two square roots, an arc cosine and three sines (tables), and the two factors that result.
        weights = g.pointwise(
            name + "_angle", dot, *lengths, *factor, role="intermediate", sqrt=2, div=3, lut=4, mul=6, add=2
        )
        return g.pointwise(name, x, y, weights, mul=2, add=1)
