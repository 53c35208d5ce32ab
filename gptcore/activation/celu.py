"""Continuously differentiable exponential linear unit (arXiv 1704.07483)."""

import torch.nn.functional as F

from ..config import knob
from ..registry import KindConfig, register
from . import Activation


@register("activation", "celu")
class CELU(Activation):
    """max(x, 0) + min(0, alpha (exp(x / alpha) - 1))."""

    class Config(KindConfig):
        alpha: float = knob(1.0, "minus the lowest value, and the scale of the bend", flat=("celu_alpha",), gt=0)

    def forward(self, x):
        return F.celu(x, self.config.alpha)

    @staticmethod
    def per_element(config):
        return {"exp": 1, "add": 1, "compare": 1, **({} if config.alpha == 1 else {"mul": 2})}
