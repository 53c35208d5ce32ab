"""Root-mean-square normalisation (arXiv 1910.07467)."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import nn

from ..config import knob
from ..registry import KindConfig, register
from . import Norm


@register("norm", "rmsnorm")
class RMSNorm(Norm):
    """x / sqrt(mean(x^2) + eps) * weight."""

    class Config(KindConfig):
        eps: float = knob(1e-6, "added to the mean square", flat=("rmsnorm_eps",), gt=0)
        scale: Literal["learned", "none"] = knob("learned", "a weight, or none", flat=("rmsnorm_scale",))

    def __init__(self, config, width, dims):
        super().__init__(config, width, dims)
        self.weight = nn.Parameter(torch.ones(width)) if config.scale == "learned" else None

    def forward(self, x):
        if self.runs_kernel(x):
            from kernels.norms import rms_norm

            return rms_norm(x, self.weight, self.config.eps, self._written(x))
        return F.rms_norm(x, (self.width,), self.weight, self.config.eps)

    def of_sum(self, x, y):
        from kernels.norms import add_rms_norm

        return add_rms_norm(x, y, self.weight, self.config.eps, self._written(x))

    def kernel_obstacle(self, dropout=0.0):
        return None

    @staticmethod
    def declare(config, g, x, dims):
        square = g.reduce("mean_square", x, mul=1, add=1)
        scale = g.pointwise("rsqrt", square, role="intermediate", mul=1, add=1, rsqrt=1)
        weight = [g.weight("weight", x.shape[-1])] if config.scale == "learned" else []
        return g.pointwise("out", x, scale, *weight, mul=1 + len(weight))
