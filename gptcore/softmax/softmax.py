"""Softmax: exp(s - max s) / sum exp(s - max s), over the keys a query sees."""

import torch
from torch import Tensor

from ..registry import register
from . import Softmax, fused_attention, masked_exponential


@register("softmax", "softmax")
class ExactSoftmax(Softmax):
    """exp(s - max) / sum(exp(s - max))."""

    exponential = "exp"  # the primitive that the operation list names

    def weights(self, scores_BHTS, live_TS):
        e = masked_exponential(scores_BHTS, live_TS)
        return e / e.sum(dim=-1, keepdim=True).clamp_min(torch.finfo(e.dtype).tiny)

    def attend(self, q_BHTD, k_BKSD, v_BKSE, mask, *, scale, dropout) -> Tensor:
        return fused_attention(q_BHTD, k_BKSD, v_BKSE, mask, scale=scale, dropout=dropout)

    @classmethod
    def declare(cls, config, g, scores, heads):
        scaled = g.pointwise("scale", scores, role="intermediate", mul=1)
        highest = g.reduce("max", scaled, max=1)
        e = g.pointwise(cls.exponential, scaled, highest, role="intermediate", add=1, **{cls.exponential: 1})
        total = g.reduce("sum", e, add=1)
        return g.pointwise("div", e, total, role="intermediate", div=1)
