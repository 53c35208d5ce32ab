"""Rectified linear unit."""

import torch.nn.functional as F

from ..registry import register
from . import Activation


@register("activation", "relu")
class ReLU(Activation):
    """max(x, 0)."""

    def forward(self, x):
        return F.relu(x)

    def kernel_name(self):
        return "relu"

    @staticmethod
    def per_element(config):
        return {"max": 1}
