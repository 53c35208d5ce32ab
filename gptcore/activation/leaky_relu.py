"""Leaky rectifier (Maas et al. 2013)."""

import torch.nn.functional as F

from ..config import knob
from ..registry import KindConfig, register
from . import Activation


@register("activation", "leaky_relu")
class LeakyReLU(Activation):
    """max(x, slope x)."""

    class Config(KindConfig):
        slope: float = knob(0.01, "slope below zero", flat=("leaky_relu_slope",), ge=0, le=1)

    def forward(self, x):
        return F.leaky_relu(x, self.config.slope)

    @staticmethod
    def per_element(config):
        return {"mul": 1, "max": 1}
