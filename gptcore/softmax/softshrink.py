"""Soft shrinkage in place of softmax: small weights become exact zeros, and far ones may be negative."""

import torch.nn.functional as F

from ..config import knob
from ..registry import register
from . import Elementwise, ElementwiseConfig


@register("softmax", "softshrink")
class SoftShrink(Elementwise):
    """sign(x) max(|x| - lambda, 0) / divisor / keys, x = s + shift.

    Without a shift all scores of a fresh model would lie between -lambda and lambda, where neither weights nor
    gradients exist, and nothing could ever train. At shift = 1 + lambda a score of 0 weighs 1.
    """

    class Config(ElementwiseConfig):
        threshold: float = knob(0.5, "lambda: what is smaller counts nothing", flat=("softshrink_attn_lambda",), ge=0)
        divisor: float = knob(1.0, "divides every weight", flat=("softshrink_attn_divisor",), gt=0)
        shift: float = knob(1.5, "added to every score", flat=("softshrink_attn_shift",))

    def curve(self, scores):
        return F.softshrink(scores + self.config.shift, self.config.threshold)

    @staticmethod
    def per_element(config):
        # max(x - lambda, 0) + min(x + lambda, 0), x + lambda and x - lambda straight from the score
        return {"add": 3, "max": 2}
