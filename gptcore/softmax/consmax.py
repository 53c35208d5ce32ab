"""ConSmax: softmax with its maximum and its sum replaced by two learned constants (arXiv 2402.10930)."""

import math
from typing import Literal

import torch
from torch import Tensor, nn

from kernels.consmax import consmax_attention

from ..config import knob
from ..registry import KindConfig, register
from . import Softmax


@register("softmax", "consmax")
class ConSmax(Softmax):
    """base^(s - beta) / gamma with learned beta and gamma: no row maximum, no row sum, so every weight stands alone.

    In inference base^-beta / gamma is one constant a head, so a weight costs one exponential and two products
    (the scale 1/sqrt(D) included; it folds into the constant of the exponent).
    """

    class Config(KindConfig):
        initial_beta: float = knob(2.5, "initial value of beta", flat=("consmax_initial_beta",))
        initial_gamma: float = knob(100.0, "initial value of gamma", flat=("consmax_initial_gamma",), gt=0)
        per: Literal["head", "layer"] = knob("head", "one beta and gamma per head or per layer", flat=("consmax_per",))
        base: Literal["e", "2"] = knob("e", "base of the exponential", flat=("consmax_base",))
        clamp: float | None = knob(None, "upper bound of s - beta", flat=("consmax_clamp",))

    def __init__(self, config, dims, heads):
        super().__init__(config, dims, heads)
        size = heads if config.per == "head" else 1
        self.heads = heads
        self.base = math.e if config.base == "e" else 2.0
        self.beta = nn.Parameter(torch.full((size,), config.initial_beta))
        self.gamma = nn.Parameter(torch.full((size,), config.initial_gamma))

    def weights(self, scores_BHTS, live_TS):
        exponent = scores_BHTS - self.beta.view(-1, 1, 1)
        if self.config.clamp is not None:
            exponent = exponent.clamp(max=self.config.clamp)
        return torch.where(live_TS, torch.pow(self.base, exponent) / self.gamma.view(-1, 1, 1), 0.0)

    def attend(self, q_BHTD, k_BKSD, v_BKSE, mask, *, scale, dropout) -> Tensor:
        if dropout > 0:  # the closed-form gradients assume that the weights are not dropped
            return super().attend(q_BHTD, k_BKSD, v_BKSE, mask, scale=scale, dropout=dropout)
        live = None if mask.is_triangle else mask.live_TS(q_BHTD.device)
        beta, gamma = self.beta.expand(self.heads), self.gamma.expand(self.heads)
        return consmax_attention(q_BHTD, k_BKSD, v_BKSE, beta, gamma, live, scale, self.base, self.config.clamp)

    @staticmethod
    def declare(config, g, scores, heads):
        size = heads if config.per == "head" else 1
        beta, gamma = g.weight("beta", size), g.weight("gamma", size)
        exponential = {"exp" if config.base == "e" else "exp2": 1}
        if config.clamp is not None:
            exponential["compare"] = 1
        if g.run.stage == "train" or config.clamp is not None:
            exponential["add"] = 1
        return g.pointwise("consmax", scores, beta, gamma, role="intermediate", mul=2, **exponential)
