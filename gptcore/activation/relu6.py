"""Rectifier with a ceiling that small fixed-point formats can hold (MobileNet, arXiv 1704.04861)."""

import torch.nn.functional as F

from ..registry import register
from . import Activation


@register("activation", "relu6")
class ReLU6(Activation):
    """min(max(x, 0), 6)."""

    def forward(self, x):
        return F.relu6(x)

    @staticmethod
    def per_element(config):
        return {"max": 1, "compare": 1}
