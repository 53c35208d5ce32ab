"""ConSmax whose constants are learned as factors of their first values, with a bound on the exponent.

An optimizer such as Adam moves every parameter by about the learning rate a step: gamma = 100 x factor moves a hundred
times as fast as a gamma that is a parameter itself (ConSmax, arXiv 2402.10930, as nanoGPT's hardware forks train it).
"""

import torch
from torch import nn

from ..config import knob
from ..registry import register
from .consmax import Constants, ConstantsConfig, declare_constants


@register("softmax", "consmax_v2")
class ConSmaxV2(Constants):
    """base^min(s - beta0 b, clamp) / (gamma0 g) with learned factors b and g, per head."""

    class Config(ConstantsConfig):
        per_head: bool = knob(True, "factors per head, not per layer", flat=("consmax_per_head",))
        clamping: bool = knob(True, "bound s - beta from above", flat=("consmax_v2_clamping",))
        clamp_value: float = knob(80.0, "that bound; e^80 fits fp32 and bf16", flat=("consmax_v2_clamp_value",))

    def __init__(self, config, dims, heads):
        super().__init__(config, dims, heads)
        size = heads if config.per_head else 1
        self.clamp = config.clamp_value if config.clamping else None
        self.beta_factor = nn.Parameter(torch.ones(size))
        self.gamma_factor = nn.Parameter(torch.ones(size))

    def constants(self):
        return self.beta_factor * self.config.initial_beta, self.gamma_factor * self.config.initial_gamma

    @staticmethod
    def declare(config, g, scores, heads):
        size = heads if config.per_head else 1
        factors = g.weight("beta_factor", size), g.weight("gamma_factor", size)
        return declare_constants(g, scores, factors, config.base, config.clamp_value if config.clamping else None)
