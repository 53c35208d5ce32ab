"""GELU times its own magnitude: squared ReLU with a smooth foot, the sign kept."""

import torch.nn.functional as F

from ..registry import register
from . import Activation


@register("activation", "squared_gelu")
class SquaredGELU(Activation):
    """sign(x) gelu(x)^2."""

    def forward(self, x):
        y = F.gelu(x)  # of the sign of x
        return y * y.abs()

    @staticmethod
    def per_element(config):
        return {"erf": 1, "mul": 4, "add": 1}
