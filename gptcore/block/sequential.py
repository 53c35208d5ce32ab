"""The pre-norm block of GPT-2: attention, then the mlp, each on a normalised copy of the residual stream."""

import torch.nn.functional as F

from ..registry import build, impl, register
from . import Block


@register("block", "sequential")
class SequentialBlock(Block):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, config, layer, dims):
        super().__init__(config, layer, dims)
        self.dropout = dims.dropout
        self.ln_1 = build(layer.norm, dims.n_embd, dims)
        self.attn = build(layer.attention, dims)
        self.ln_2 = build(layer.norm, dims.n_embd, dims)
        self.mlp = build(layer.mlp, dims)

    def forward(self, x_BTC, position, start, cache=None):
        x_BTC = x_BTC + self._drop(self.attn(self.ln_1(x_BTC), position, start, cache))
        return x_BTC + self._drop(self.mlp(self.ln_2(x_BTC)))

    def _drop(self, x):
        return F.dropout(x, self.dropout) if self.training and self.dropout else x

    @staticmethod
    def declare(config, g, x, layer, dims, position):
        def norm(name, x):
            with g.at(name, slot="norm", kind=layer.norm.kind):
                return impl(layer.norm).declare(layer.norm, g, x, dims)

        def residual(name, x, y):
            if dims.dropout and g.run.stage == "train":
                y = g.pointwise(name + "_dropout", y, compare=1, mul=1)
            return g.pointwise(name, x, y, add=1)

        normed = norm("ln_1", x)
        with g.at("attn", slot="attention", kind=layer.attention.kind):
            y = impl(layer.attention).declare(layer.attention, g, normed, dims, position)
        x = residual("residual_1", x, y)
        normed = norm("ln_2", x)
        with g.at("mlp", slot="mlp", kind=layer.mlp.kind):
            y = impl(layer.mlp).declare(layer.mlp, g, normed, dims)
        return residual("residual_2", x, y)
