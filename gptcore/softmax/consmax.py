"""ConSmax: softmax with its maximum and its sum replaced by two learned constants (arXiv 2402.10930)."""

import math
from typing import Literal

import torch
from torch import Tensor, nn

from kernels.attention_reference import Weighting

from ..config import knob
from ..precision import wide
from ..registry import KindConfig, register
from . import Standalone


class ConstantsConfig(KindConfig):
    """Knobs of every kind with beta and gamma.

    At first a row of n keys sums to n e^-2.5 / 100, 0.84 for the 1024 keys that the paper trains with.
    """

    initial_beta: float = knob(2.5, "initial value of beta", flat=("consmax_initial_beta",))
    initial_gamma: float = knob(100.0, "initial value of gamma", flat=("consmax_initial_gamma",), gt=0)
    base: Literal["e", "2"] = knob(
        "e", "base of the exponential", flat=("consmax_base",), values={"2": "2", "2.0": "2"}
    )


class Constants(Standalone):
    """Base of the kinds base^min(s - beta, clamp) / gamma."""

    as_output = True
    clamp: float | None = None

    def __init__(self, config, dims, heads):
        super().__init__(config, dims, heads)
        self.heads = heads
        self.base = math.e if config.base == "e" else 2.0

    def constants(self) -> tuple[Tensor, Tensor]:
        """beta and gamma, one a head or one for all."""
        raise NotImplementedError

    def weighting(self):
        """The Triton kernels take the logarithm of gamma: a negative one, which plain torch would bear, gives NaN."""
        return Weighting("consmax", base=self.base, clamp=self.clamp)

    def head_constants(self, device):
        beta, gamma = (c.expand(self.heads) for c in self.constants())
        return {"beta_H": beta, "gamma_H": gamma}

    def weights(self, scores_BHTS, live_TS):
        beta, gamma = (c.view(-1, 1, 1) for c in self.constants())
        # A masked score is cleared first: whatever it was, neither value nor gradient can overflow.
        exponent = wide(scores_BHTS).masked_fill(~live_TS, 0.0) - beta
        if self.clamp is not None:
            exponent = exponent.clamp(max=self.clamp)
        return (torch.exp2(exponent * math.log2(self.base)) / gamma).masked_fill(~live_TS, 0.0)


@register("softmax", "consmax")
class ConSmax(Constants):
    """base^(s - beta) / gamma with learned beta and gamma: no row maximum, no row sum, so every weight stands alone.

    In inference base^-beta / gamma is one constant a head, so a weight costs one exponential and one product.
    """

    class Config(ConstantsConfig):
        per: Literal["head", "layer"] = knob("head", "one beta and gamma per head or per layer", flat=("consmax_per",))
        clamp: float | None = knob(None, "upper bound of s - beta", flat=("consmax_clamp",))

    def __init__(self, config, dims, heads):
        super().__init__(config, dims, heads)
        size = heads if config.per == "head" else 1
        self.clamp = config.clamp
        self.beta = nn.Parameter(torch.full((size,), config.initial_beta))
        self.gamma = nn.Parameter(torch.full((size,), config.initial_gamma))

    def constants(self):
        return self.beta, self.gamma

    @staticmethod
    def declare(config, g, scores, heads):
        size = heads if config.per == "head" else 1
        constants = g.weight("beta", size), g.weight("gamma", size)
        return declare_constants(g, scores, constants, config.base, config.clamp)


def declare_constants(g, scores, constants, base: str, clamp: float | None, **more: int):
    """Records scores -> weights. Without a clamp, inference folds beta into the factor in front."""
    counts = {"exp" if base == "e" else "exp2": 1, "mul": 1}
    if clamp is not None:
        counts["compare"] = 1
    if g.run.stage == "train" or clamp is not None:
        counts["add"] = 1
    for primitive, count in more.items():
        counts[primitive] = counts.get(primitive, 0) + count
    return g.pointwise("consmax", scores, *constants, role="intermediate", **counts)
