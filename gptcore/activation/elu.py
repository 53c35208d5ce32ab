"""Exponential linear unit (arXiv 1511.07289)."""

import torch.nn.functional as F

from ..config import knob
from ..registry import KindConfig, register
from . import Activation


@register("activation", "elu")
class ELU(Activation):
    """x where x > 0, else alpha (exp(x) - 1)."""

    class Config(KindConfig):
        alpha: float = knob(1.0, "minus the lowest value", flat=("elu_alpha",), gt=0)

    def forward(self, x):
        return F.elu(x, self.config.alpha)

    @staticmethod
    def per_element(config):
        return {"exp": 1, "add": 1, "compare": 1, **({} if config.alpha == 1 else {"mul": 1})}
