"""Softplus, the smooth rectifier whose derivative is the sigmoid (Dugas et al. 2001)."""

import torch.nn.functional as F

from ..config import knob
from ..registry import KindConfig, register
from . import Activation


@register("activation", "softplus")
class Softplus(Activation):
    """log(1 + exp(beta x)) / beta."""

    class Config(KindConfig):
        beta: float = knob(1.0, "sharpness of the bend", flat=("softplus_beta",), gt=0)

    def forward(self, x):
        return F.softplus(x, self.config.beta)

    @staticmethod
    def per_element(config):
        # max(x, 0) + log(1 + exp(-beta |x|)) / beta, which never overflows
        return {"exp": 1, "log": 1, "add": 2, "max": 1, **({} if config.beta == 1 else {"mul": 2})}
