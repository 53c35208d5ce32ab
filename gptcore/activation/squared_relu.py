"""Squared ReLU (Primer, arXiv 2109.08668)."""

import torch.nn.functional as F

from ..registry import register
from . import Activation


@register("activation", "squared_relu")
class SquaredReLU(Activation):
    """max(x, 0)^2."""

    def forward(self, x):
        return F.relu(x).square()

    @staticmethod
    def per_element(config):
        return {"max": 1, "mul": 1}
