"""Softmax: exp(s - max s) / sum exp(s - max s), over the keys a query sees."""

from torch import Tensor

from kernels.attention_reference import Weighting

from ..registry import register
from . import Normalised, NormalisedConfig


@register("softmax", "softmax")
class ExactSoftmax(Normalised):
    """exp(s - max) / sum(exp(s - max))."""

    class Config(NormalisedConfig):
        pass

    def weights(self, scores_BHTS, live_TS):
        return self.normalise(scores_BHTS, live_TS)

    def weighting(self):
        return Weighting()

    def attend(self, q_BHTD, k_BKSD, v_BKSE, scoring) -> Tensor:
        return self.attend_exactly(q_BHTD, k_BKSD, v_BKSE, scoring)

    @classmethod
    def declare(cls, config, g, scores, heads):
        highest = g.reduce("max", scores, max=1)
        e = g.pointwise("exp", scores, highest, role="intermediate", add=1, exp=1)
        total = cls.declare_lobo(config, g, g.reduce("sum", e, add=1), heads)
        return g.pointwise("div", e, total, role="intermediate", div=1)
