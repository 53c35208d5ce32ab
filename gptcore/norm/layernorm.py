"""Layer normalisation (arXiv 1607.06450)."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import nn

from ..config import knob
from ..registry import KindConfig, register
from . import Norm


@register("norm", "layernorm")
class LayerNorm(Norm):
    """(x - mean) / sqrt(variance + eps) * weight + bias."""

    class Config(KindConfig):
        eps: float = knob(1e-5, "added to the variance", flat=("layernorm_eps",), gt=0)
        scale: Literal["learned", "none"] = knob("learned", "weight and bias, or neither", flat=("layernorm_scale",))

    def __init__(self, config, width, dims):
        super().__init__(config, width, dims)
        learned = config.scale == "learned"
        self.weight = nn.Parameter(torch.ones(width)) if learned else None
        self.bias = nn.Parameter(torch.zeros(width)) if learned and dims.bias else None

    def forward(self, x):
        if self.runs_kernel(x):
            from kernels.norms import layer_norm

            return layer_norm(x, self.weight, self.bias, self.config.eps, self._written(x))
        return F.layer_norm(x, (self.width,), self.weight, self.bias, self.config.eps)

    def of_sum(self, x, y):
        from kernels.norms import add_layer_norm

        return add_layer_norm(x, y, self.weight, self.bias, self.config.eps, self._written(x))

    def kernel_obstacle(self, dropout=0.0):
        return None

    @staticmethod
    def declare(config, g, x, dims):
        width = x.shape[-1]
        mean = g.pointwise("mean", g.reduce("sum", x, add=1), role="intermediate", mul=1)
        centred = g.pointwise("centre", x, mean, role="intermediate", add=1)
        variance = g.reduce("variance", centred, mul=1, add=1)
        scale = g.pointwise("rsqrt", variance, role="intermediate", mul=1, add=1, rsqrt=1)
        if config.scale == "none":
            return g.pointwise("out", centred, scale, mul=1)
        affine = [g.weight("weight", width)] + ([g.weight("bias", width)] if dims.bias else [])
        return g.pointwise("out", centred, scale, *affine, mul=2, **({"add": 1} if dims.bias else {}))
