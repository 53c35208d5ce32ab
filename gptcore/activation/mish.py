"""Mish (arXiv 1908.08681)."""

import torch.nn.functional as F

from ..registry import register
from . import Activation


@register("activation", "mish")
class Mish(Activation):
    """x tanh(log(1 + exp(x)))."""

    def forward(self, x):
        return F.mish(x)

    @staticmethod
    def per_element(config):
        # x n / (n + 2) with n = e^x (e^x + 2): no logarithm, no tanh; where e^x is large the result is x.
        return {"exp": 1, "mul": 2, "add": 2, "div": 1, "compare": 1}
