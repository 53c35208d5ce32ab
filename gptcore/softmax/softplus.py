"""Softplus in place of softmax."""

import math

import torch.nn.functional as F

from ..config import knob
from ..registry import register
from . import Elementwise, ElementwiseConfig


@register("softmax", "softplus")
class Softplus(Elementwise):
    """ln(1 + e^s) / divisor / keys; the divisor ln 2 lets a score of 0 weigh 1."""

    as_output = True

    class Config(ElementwiseConfig):
        divisor: float = knob(math.log(2), "divides every weight", flat=("softplus_divisor",), gt=0)

    def curve(self, scores):
        return F.softplus(scores)

    def weighting(self):
        return self.standalone("softplus")

    @staticmethod
    def per_element(config):
        # max(s, 0) + ln(1 + e^-|s|), which cannot overflow
        return {"exp": 1, "log": 1, "add": 2, "max": 1}
