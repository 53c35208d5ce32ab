"""ConSmax (arXiv 2402.10930) with an exponent that saturates before the exponential overflows a narrow type."""

import torch
from torch import nn

from ..config import knob
from ..registry import register
from . import live_count
from .consmax import Constants, ConstantsConfig, declare_constants


@register("softmax", "saturatingconsmax")
class SaturatingConSmax(Constants):
    """base^min(s - beta, saturation) / gamma; e^11 is the last whole power of e that fits fp16.

    Above the saturation a weight is flat and passes no gradient to its score.
    """

    class Config(ConstantsConfig):
        saturation: float = knob(11.0, "largest exponent s - beta", flat=("consmax_saturation",))
        learnable_beta: bool = knob(True, "learn beta, or keep its first value", flat=("consmax_learnable_beta",))
        learnable_gamma: bool = knob(True, "learn gamma, or keep its first value", flat=("consmax_learnable_gamma",))
        div_by_seq_len: bool = knob(False, "also divide by the number of keys that the query sees")

    def __init__(self, config, dims, heads):
        super().__init__(config, dims, heads)
        self.clamp = config.saturation
        self._constant("beta", config.initial_beta, config.learnable_beta)
        self._constant("gamma", config.initial_gamma, config.learnable_gamma)

    def _constant(self, name: str, value: float, learnable: bool) -> None:
        if learnable:
            setattr(self, name, nn.Parameter(torch.full((self.heads,), value)))
        else:
            self.register_buffer(name, torch.full((self.heads,), value), persistent=False)

    def constants(self):
        return self.beta, self.gamma

    def weighting(self):
        if self.config.div_by_seq_len:
            return "no kernel divides exponentials by the number of keys"
        return super().weighting()

    def weights(self, scores_BHTS, live_TS):
        weights = super().weights(scores_BHTS, live_TS)
        return weights / live_count(live_TS, weights) if self.config.div_by_seq_len else weights

    @staticmethod
    def declare(config, g, scores, heads):
        learned = {"beta": config.learnable_beta, "gamma": config.learnable_gamma}
        constants = [g.weight(name, heads) for name, is_learned in learned.items() if is_learned]
        per_row = {"mul": 1} if config.div_by_seq_len else {}
        return declare_constants(g, scores, constants, config.base, config.saturation, **per_row)
