"""A bounded function in place of normalisation: dynamic tanh (arXiv 2503.10622), or another activation."""

import torch
from torch import nn

from ..config import knob
from ..registry import KindConfig, Problem, build, impl, register, slot
from . import Norm


@register("norm", "dact")
class DynamicActivation(Norm):
    """activation(alpha x) * weight + bias; no statistics, so every number stands alone."""

    class Config(KindConfig):
        activation: KindConfig = slot("activation", "tanh", flat=("dact_activation",))
        alpha_init: float = knob(1.0, "initial alpha", flat=("dact_alpha_init",))
        alpha: bool = knob(True, "learned alpha, or none", flat=("dact_use_alpha",))
        weight: bool = knob(True, "learned weight", flat=("dact_use_gamma",))
        bias: bool = knob(True, "learned bias", flat=("dact_use_beta",))

    @classmethod
    def check(cls, config, dims):
        if impl(config.activation).narrowing != 1:
            yield Problem("activation", f"{config.activation.kind} changes the width, a norm must not")

    def __init__(self, config, width, dims):
        super().__init__(config, width, dims)
        self.activation = build(config.activation)
        self.alpha = nn.Parameter(torch.full((1,), config.alpha_init)) if config.alpha else None
        self.weight = nn.Parameter(torch.ones(width)) if config.weight else None
        self.bias = nn.Parameter(torch.zeros(width)) if config.bias else None

    def forward(self, x):
        y = self.activation(x if self.alpha is None else x * self.alpha.to(x.dtype))
        if self.weight is not None and self.bias is not None:
            return torch.addcmul(self.bias, y, self.weight).to(x.dtype)
        y = y if self.weight is None else y * self.weight
        return (y if self.bias is None else y + self.bias).to(x.dtype)

    @staticmethod
    def declare(config, g, x, dims):
        width, kind = x.shape[-1], impl(config.activation)
        if config.alpha:
            x = g.pointwise("scale", x, g.weight("alpha", 1), role="intermediate", mul=1)
        affine = [name for name in ("weight", "bias") if getattr(config, name)]
        with g.at("activation", slot="activation", kind=config.activation.kind):
            y = kind.declare(config.activation, g, x, role="intermediate" if affine else "activation")
        if not affine:
            return y
        counts = {p: 1 for p, name in (("mul", "weight"), ("add", "bias")) if name in affine}
        return g.pointwise("out", y, *(g.weight(name, width) for name in affine), **counts)
