"""Logistic sigmoid."""

import torch

from ..registry import register
from . import Activation


@register("activation", "sigmoid")
class Sigmoid(Activation):
    """1 / (1 + exp(-x))."""

    def forward(self, x):
        return torch.sigmoid(x)

    @staticmethod
    def per_element(config):
        return {"exp": 1, "add": 1, "recip": 1}
