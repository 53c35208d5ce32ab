"""Soft shrinkage: the proximal operator of an L1 penalty, which makes small values exactly zero."""

import torch.nn.functional as F

from ..config import knob
from ..registry import KindConfig, register
from . import Activation


@register("activation", "softshrink")
class Softshrink(Activation):
    """x - min(max(x, -threshold), threshold)."""

    class Config(KindConfig):
        threshold: float = knob(0.5, "largest magnitude that becomes zero", flat=("softshrink_lambda",), ge=0)

    def forward(self, x):
        return F.softshrink(x, self.config.threshold)

    @staticmethod
    def per_element(config):
        return {"max": 1, "compare": 1, "add": 1}
