"""ReZero (arXiv 2003.04887): every branch starts switched off, by a learned factor of zero."""

from typing import Literal

from ..config import knob
from ..registry import register
from . import ScaleConfig, ScaledResidual


@register("residual", "rezero")
class ReZero(ScaledResidual):
    """x + alpha y, alpha learned from 0."""

    class Config(ScaleConfig):
        scale: float = knob(0.0, "initial factor on the branch", flat=("residual_scale",))
        learned: Literal["scalar", "channel"] = knob("scalar", "one factor a branch, or one a channel", flat=())  # type: ignore[assignment]

    def forward(self, x_BTC, y_BTC):
        return x_BTC + self.factor(x_BTC) * y_BTC

    @classmethod
    def declare(cls, config, g, name, x, y, dims):
        return g.pointwise(name, x, y, *cls.declare_factor(config, g, name, dims), add=1, mul=1)
