"""The hidden layer read twice, with its own sign and with the opposite one (CReLU, arXiv 1603.05201)."""

import torch

from ..config import knob
from ..registry import Problem, build, impl, register
from . import DenseConfig, DenseMLP


@register("mlp", "dual_path")
class DualPath(DenseMLP):
    """W2 [activation(h), activation(-h)], h = W1 x: one product up feeds both halves of a one-sided activation.

    The hidden width is 2/3 of that of a plain mlp, rounded to a multiple of 8, for equal parameters.
    """

    class Config(DenseConfig):
        expansion_factor: float = knob(4.0, "of a plain mlp of equal size", flat=("mlp_expansion_factor",), gt=0)

        def width(self, n_embd: int) -> int:
            return self.hidden_size or max(8, round(self.expansion_factor * n_embd * 2 / 3 / 8) * 8)

    @classmethod
    def check(cls, config, dims):
        if impl(config.activation).narrowing > 1:
            yield Problem("activation", f"{config.activation.kind} is a gate itself, and cannot stand in dual_path")

    def __init__(self, config, dims):
        super().__init__(config, dims)
        self.c_proj = build(config.down(), 2 * config.width(dims.n_embd), dims.n_embd, bias=config.biases(dims)[1])

    def combine(self, h):
        return super().combine(torch.cat([h, -h], dim=-1))

    @classmethod
    def declare_combine(cls, config, g, h, dims):
        *lead, width = h.shape
        both = g.view(g.pointwise("negate", h, add=1), *lead, 2 * width)
        return cls.declare_activation(config, g, both, dims)
