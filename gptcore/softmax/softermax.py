"""Softermax: softmax with base 2, whose exponential is a shift and a small table in hardware (arXiv 2103.09301)."""

import math

import torch
from torch import Tensor

from kernels.attention_reference import Weighting

from ..config import knob
from ..precision import wide
from ..registry import register
from . import Normalised, NormalisedConfig

# Without the maximum exponents saturate here, so that neither a power nor a sum of 2^27 of them leaves fp32.
HIGHEST = 100.0


@register("softmax", "softermax")
class Softermax(Normalised):
    """2^(s - max) / sum(2^(s - max)); equal to softmax of ln(2) s, so the fused path only changes the scale.

    Without the maximum a row needs one pass less; its scores saturate at +-100.
    """

    class Config(NormalisedConfig):
        use_xmax: bool = knob(True, "subtract the row maximum first", flat=("softermax_use_xmax",))

    def weights(self, scores_BHTS, live_TS):
        if self.config.use_xmax:
            return self.normalise(wide(scores_BHTS) * math.log(2), live_TS)
        e = torch.exp2(wide(scores_BHTS).masked_fill(~live_TS, 0.0).clamp(-HIGHEST, HIGHEST)).masked_fill(~live_TS, 0.0)
        total, b = e.sum(dim=-1, keepdim=True), self.log_extra(e)
        if b is not None:
            total = total + b.clamp(max=HIGHEST * math.log(2)).exp()
        return e / total.clamp_min(2**-HIGHEST)

    def weighting(self):
        if not self.config.use_xmax:
            return "no kernel bounds the scores of softermax in place of their maximum"
        return Weighting(base=2.0)

    def attend(self, q_BHTD, k_BKSD, v_BKSE, scoring) -> Tensor:
        if not self.config.use_xmax:
            return super().attend(q_BHTD, k_BKSD, v_BKSE, scoring)
        return self.attend_exactly(q_BHTD, k_BKSD, v_BKSE, scoring, temperature=math.log(2))

    @classmethod
    def declare(cls, config, g, scores, heads):
        if config.use_xmax:
            highest = g.reduce("max", scores, max=1)
            e = g.pointwise("exp2", scores, highest, role="intermediate", add=1, exp2=1)
        else:
            e = g.pointwise("exp2", scores, role="intermediate", compare=2, exp2=1)
        total = cls.declare_lobo(config, g, g.reduce("sum", e, add=1), heads)
        return g.pointwise("div", e, total, role="intermediate", div=1)
