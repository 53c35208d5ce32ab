"""Squared ReLU in place of softmax (its use as an activation: Primer, arXiv 2109.08668)."""

import torch.nn.functional as F

from ..config import knob
from ..registry import register
from . import Elementwise, ElementwiseConfig


@register("softmax", "relu2max")
class ReLU2Max(Elementwise):
    """max(s + shift, 0)^2 / divisor / keys.

    At shift 1 a score of 0 weighs 1 and rows of a fresh model sum to 1; at shift 0 they would start next to nothing.
    """

    class Config(ElementwiseConfig):
        divisor: float = knob(1.0, "divides every weight", flat=("relu2max_divisor",), gt=0)
        shift: float = knob(1.0, "added to every score", flat=("relu2max_shift",))

    def curve(self, scores):
        return F.relu(scores + self.config.shift).square()

    def weighting(self):
        return self.standalone("relu2", shift=self.config.shift)

    @staticmethod
    def per_element(config):
        return {"max": 1, "mul": 1, "add": 1} if config.shift else {"max": 1, "mul": 1}
