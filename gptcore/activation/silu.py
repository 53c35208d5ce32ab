"""Sigmoid linear unit, also called swish (arXiv 1710.05941)."""

import torch.nn.functional as F

from ..registry import register
from . import Activation


@register("activation", "silu")
class SiLU(Activation):
    """x / (1 + exp(-x))."""

    def forward(self, x):
        return F.silu(x)

    def kernel_name(self):
        return "silu"

    @staticmethod
    def per_element(config):
        return {"exp": 1, "add": 1, "div": 1}
