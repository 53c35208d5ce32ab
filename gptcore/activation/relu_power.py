"""Rectifier raised to a power; 2 is the squared ReLU of Primer (arXiv 2109.08668)."""

import torch.nn.functional as F

from ..config import knob
from ..registry import KindConfig, register
from . import Activation


@register("activation", "relu_power")
class ReLUPower(Activation):
    """max(x, 0)^power."""

    class Config(KindConfig):
        power: float = knob(2.0, "exponent; from 1 on the slope at zero is finite", flat=("relu_power",), ge=1)

    def forward(self, x):
        return F.relu(x).pow(self.config.power)

    @staticmethod
    def per_element(config):
        if not config.power.is_integer():
            return {"max": 1, "log": 1, "mul": 1, "exp": 1}
        power = int(config.power)  # squarings, and a product for each further one in the binary form
        return {"max": 1, "mul": power.bit_length() + power.bit_count() - 2}
