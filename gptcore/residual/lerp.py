"""Linear interpolation between stream and branch: the stream does not grow with depth (nGPT, arXiv 2410.01131)."""

from ..config import knob
from ..registry import register
from . import ScaleConfig, ScaledResidual


@register("residual", "lerp")
class Lerp(ScaledResidual):
    """(1 - alpha) x + alpha y, computed as x + alpha (y - x)."""

    class Config(ScaleConfig):
        scale: float = knob(0.5, "alpha, how far to go towards the branch", flat=("residual_scale",))

    def forward(self, x_BTC, y_BTC):
        return x_BTC + self.factor(x_BTC) * (y_BTC - x_BTC)

    @classmethod
    def declare(cls, config, g, name, x, y, dims):
        return g.pointwise(name, x, y, *cls.declare_factor(config, g, name, dims), add=2, mul=1)
