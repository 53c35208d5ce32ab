"""Hyperbolic tangent."""

import torch

from ..registry import register
from . import Activation


@register("activation", "tanh")
class Tanh(Activation):
    """(exp(x) - exp(-x)) / (exp(x) + exp(-x))."""

    def forward(self, x):
        return torch.tanh(x)

    @staticmethod
    def per_element(config):
        return {"tanh": 1}
