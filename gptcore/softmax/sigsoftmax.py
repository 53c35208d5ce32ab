"""Sigsoftmax: each exponential times its sigmoid, which lifts the rank limit of a softmax output (arXiv 1805.10829)."""

import math

import torch.nn.functional as F

from ..config import knob
from ..precision import wide
from ..registry import register
from . import Normalised, NormalisedConfig


@register("softmax", "sigsoftmax")
class SigSoftmax(Normalised):
    """e^s sigmoid(s) / sum(e^s sigmoid(s)); another base b stands for s ln b."""

    class Config(NormalisedConfig):
        base: float = knob(math.e, "base of the exponentials", flat=("sigsoftmax_base",), gt=1)

    def weights(self, scores_BHTS, live_TS):
        scores = wide(scores_BHTS)
        if self.config.base != math.e:
            scores = scores * math.log(self.config.base)
        # The logarithm of the numerator; a masked score must not meet logsigmoid, whose gradient at infinity is NaN.
        scores = scores.masked_fill(~live_TS, 0.0)
        return self.normalise(scores + F.logsigmoid(scores), live_TS)

    @classmethod
    def declare(cls, config, g, scores, heads):
        if config.base != math.e:
            scores = g.pointwise("base", scores, role="intermediate", mul=1)
        # e^(s - max) / (1 + e^-s): the sigmoid's own division folds into the numerator.
        highest = g.reduce("max", scores, max=1)
        e = g.pointwise("sigexp", scores, highest, role="intermediate", add=2, exp=2, div=1)
        total = cls.declare_lobo(config, g, g.reduce("sum", e, add=1), heads)
        return g.pointwise("div", e, total, role="intermediate", div=1)
