"""The residual sum of ResNets and transformers (arXiv 1512.03385), with an optional factor on the branch."""

from ..registry import register
from . import ScaleConfig, ScaledResidual


@register("residual", "add")
class Add(ScaledResidual):
    """x + alpha y; alpha is 1, another constant, a function of depth, or learned (LayerScale, arXiv 2103.17239)."""

    class Config(ScaleConfig):
        pass

    def __init__(self, config, dims):
        super().__init__(config, dims)
        self.is_sum = config.learned == "no" and self.initial == 1.0

    def forward(self, x_BTC, y_BTC):
        return x_BTC + y_BTC if self.is_sum else x_BTC + self.factor(x_BTC) * y_BTC

    @classmethod
    def declare(cls, config, g, name, x, y, dims):
        plain = config.learned == "no" and config.initial(dims.layer) == 1.0
        factor = cls.declare_factor(config, g, name, dims)
        return g.pointwise(name, x, y, *factor, add=1, **({} if plain else {"mul": 1}))
