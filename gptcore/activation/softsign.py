"""Softsign (Glorot & Bengio 2010): bounded like tanh, without an exponential."""

import torch.nn.functional as F

from ..registry import register
from . import Activation


@register("activation", "softsign")
class Softsign(Activation):
    """x / (1 + |x|)."""

    def forward(self, x):
        return F.softsign(x)

    @staticmethod
    def per_element(config):
        return {"add": 1, "div": 1}
