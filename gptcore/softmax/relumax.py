"""ReLU in place of softmax ("Replacing softmax with ReLU in vision transformers", arXiv 2309.08586)."""

import torch.nn.functional as F

from ..config import knob
from ..registry import register
from . import Elementwise, ElementwiseConfig


@register("softmax", "relumax")
class ReLUMax(Elementwise):
    """max(s + shift, 0) / divisor / keys.

    max(s + 1, 0) is the tangent of e^s at 0, so a fresh model weighs as softmax does; without the shift half of the
    keys of a fresh model would weigh nothing, and the others nearly nothing.
    """

    class Config(ElementwiseConfig):
        divisor: float = knob(1.0, "divides every weight", flat=("relumax_divisor",), gt=0)
        shift: float = knob(1.0, "added to every score", flat=("relumax_shift",))

    def curve(self, scores):
        return F.relu(scores + self.config.shift)

    def weighting(self):
        return self.standalone("relu", shift=self.config.shift)

    @staticmethod
    def per_element(config):
        return {"max": 1, "add": 1} if config.shift else {"max": 1}
