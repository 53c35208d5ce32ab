"""Squared ReLU (Primer, arXiv 2109.08668)."""

import torch.nn.functional as F

from ..registry import register
from . import Activation


@register("activation", "squared_relu")
class SquaredReLU(Activation):
    """max(x, 0)^2."""

    def forward(self, x):
        return F.relu(x).square()

    def kernel_name(self):
        return "relu2"

    @staticmethod
    def per_element(config):
        return {"max": 1, "mul": 1}
