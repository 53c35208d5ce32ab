"""Gated linear unit (arXiv 1612.08083) as an activation: one half of its input gates the other."""

import torch.nn.functional as F

from ..registry import register
from . import Activation


@register("activation", "glu")
class GLU(Activation):
    """a / (1 + exp(-b)), a and b the first and second half of the last dimension."""

    narrowing = 2

    def forward(self, x):
        return F.glu(x, dim=-1)

    @staticmethod
    def per_element(config):
        return {"exp": 1, "add": 1, "div": 1}

    @classmethod
    def declare(cls, config, g, x, role="activation"):
        half = x.shape[-1] // 2
        return g.pointwise("activation", *g.split(x, half, half), role=role, **cls.per_element(config))
