"""GELU (arXiv 1606.08415) in place of softmax: weights a little below zero are possible."""

import torch.nn.functional as F

from ..config import knob
from ..registry import register
from . import Elementwise, ElementwiseConfig


@register("softmax", "gelumax")
class GELUMax(Elementwise):
    """x Phi(x) / divisor / keys, x = s + shift, Phi the normal distribution function.

    At shift 1 a score of 0 weighs Phi(1) = 0.84; at shift 0 it would weigh nothing.
    """

    class Config(ElementwiseConfig):
        divisor: float = knob(1.0, "divides every weight", flat=("gelumax_divisor",), gt=0)
        shift: float = knob(1.0, "added to every score", flat=("gelumax_shift",))

    def curve(self, scores):
        return F.gelu(scores + self.config.shift)

    @staticmethod
    def per_element(config):
        # x/2 (1 + erf(x/sqrt 2))
        return {"erf": 1, "mul": 3, "add": 2 if config.shift else 1}
