"""Softermax: softmax with base 2, whose exponential is a shift and a small table in hardware (arXiv 2103.09301)."""

import math

from torch import Tensor

from ..registry import register
from . import fused_attention
from .softmax import ExactSoftmax


@register("softmax", "softermax")
class Softermax(ExactSoftmax):
    """2^(s - max) / sum(2^(s - max)); equal to softmax of ln(2) s, so the fused path only changes the scale."""

    exponential = "exp2"

    def weights(self, scores_BHTS, live_TS):
        return super().weights(scores_BHTS * math.log(2), live_TS)

    def attend(self, q_BHTD, k_BKSD, v_BKSE, mask, *, scale, dropout) -> Tensor:
        return fused_attention(q_BHTD, k_BKSD, v_BKSE, mask, scale=scale * math.log(2), dropout=dropout)
