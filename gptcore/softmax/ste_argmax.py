"""Hard attention: a query takes the value of its best key, gradients are those of softmax (arXiv 1308.3432)."""

import torch

from ..precision import wide
from ..registry import register
from . import MASKED, Softmax


class _StraightThroughArgmax(torch.autograd.Function):
    @staticmethod
    def forward(ctx, scores, live):
        scores = scores.masked_fill(~live, MASKED)
        ctx.save_for_backward(torch.softmax(scores, dim=-1), live)
        best = ((scores == scores.amax(dim=-1, keepdim=True)) & live).to(scores.dtype)
        return best / best.sum(dim=-1, keepdim=True).clamp_min(1.0)

    @staticmethod
    def backward(ctx, d_weights):
        soft, live = ctx.saved_tensors
        d_scores = soft * (d_weights - (soft * d_weights).sum(dim=-1, keepdim=True))
        return d_scores.masked_fill(~live, 0.0), None


@register("softmax", "ste_argmax")
class StraightThroughArgmax(Softmax):
    """1 for the highest score, 0 for the others; backward as softmax.

    Equal scores share: which key comes first is an accident of the cache, and coarse scores are often equal.
    """

    classic = ("ste_argmax_softmax",)

    def weights(self, scores_BHTS, live_TS):
        return _StraightThroughArgmax.apply(wide(scores_BHTS), live_TS)

    @staticmethod
    def declare(config, g, scores, heads):
        highest = g.reduce("max", scores, max=1)
        if g.run.stage == "train":  # the gradient needs what the forward pass does not
            e = g.pointwise("exp", scores, highest, role="intermediate", add=1, exp=1)
            g.pointwise("div", e, g.reduce("sum", e, add=1), role="intermediate", div=1)
        best = g.pointwise("best", scores, highest, role="intermediate", compare=1)
        return g.pointwise("share", best, g.reduce("count", best, add=1), role="intermediate", div=1)
