"""Squareplus in place of softmax: the shape of softplus without exponential and logarithm (arXiv 2112.11687)."""

import math

import torch

from ..config import knob
from ..registry import register
from . import Elementwise, ElementwiseConfig


@register("softmax", "squareplus")
class Squareplus(Elementwise):
    """(s + sqrt(s^2 + b)) / 2 / divisor / keys; at b = 4 (ln 2)^2 it meets softplus in 0, so divisor ln 2 gives 1."""

    as_output = True

    class Config(ElementwiseConfig):
        b: float = knob(4 * math.log(2) ** 2, "how round the bend is", flat=("squareplus_b",), gt=0)
        divisor: float = knob(math.log(2), "divides every weight", flat=("squareplus_divisor",), gt=0)

    def curve(self, scores):
        # With m = (|s| + sqrt(s^2 + b)) / 2 the value is m right of 0 and b/(4 m) left of it, where s + sqrt cancels.
        right = scores > 0
        size = torch.where(right, scores, -scores)  # unlike abs(), its gradient at 0 is that of the branch taken
        m = (torch.sqrt(scores * scores + self.config.b) + size) * 0.5
        return torch.where(right, m, 0.25 * self.config.b / m)

    @staticmethod
    def per_element(config):
        return {"mul": 2, "add": 2, "sqrt": 1}
