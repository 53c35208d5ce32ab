"""Attention with linear biases (ALiBi: Press, Smith, Lewis, arXiv 2108.12409)."""

import torch

from ..precision import wide_type
from ..registry import register
from . import Position, causal_pairs


def slopes(heads: int) -> list[float]:
    """m of every head. Where their number is no power of two: those of the next lower power of two, then every other
    one of twice that (the authors' published code)."""
    whole = 1 << (heads.bit_length() - 1)
    between = [2.0 ** (-4 * i / whole) for i in range(1, 2 * whole, 2)]
    return [2.0 ** (-8 * i / whole) for i in range(1, whole + 1)] + between[: heads - whole]


@register("position", "alibi")
class ALiBi(Position):
    """score_ij - m_h (i - j), m_h = 2^(-8h/H)."""

    def __init__(self, config, dims, heads):
        super().__init__(config, dims, heads)
        for count in {h.count for h in heads if h}:
            self.register_buffer(f"slopes_{count}", torch.tensor(slopes(count)), persistent=False)

    def slopes(self, heads):
        return getattr(self, f"slopes_{heads}")

    def bias(self, heads, T, S, start, like):
        wide = wide_type(like.dtype)  # half precision cannot count the positions of a long context
        slopes_H11 = getattr(self, f"slopes_{heads}").to(wide).view(-1, 1, 1)
        key = torch.arange(S, device=like.device, dtype=wide)
        return (slopes_H11 * (key - key[S - T :, None])).to(like.dtype)

    @staticmethod
    def declare_bias(config, g, heads, T, S):
        pairs = g.tensor("distance", heads, T, S, role="intermediate", live=heads * causal_pairs(T, S))
        return g.pointwise("slope", pairs, role="intermediate", add=1)  # from key to key the bias grows by m
