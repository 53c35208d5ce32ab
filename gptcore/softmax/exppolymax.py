"""Exponential left of 0, polynomial right of it: gradients like softmax, growth that cannot overflow."""

import math

import torch

from ..config import knob
from ..registry import Problem, register
from . import Elementwise, ElementwiseConfig
from .polymax import power_cost, sum_of


@register("softmax", "exppolymax")
class ExpPolymax(Elementwise):
    """s < 0: base^s; s >= 0: (s + x)^power - x^power + y, where x makes both slopes ln(base) at 0. / divisor / keys.

    x = (ln(base) / power)^(1 / (power - 1)); a straight line (power 1) has slope 1 wherever it starts. At y = 1 the
    pieces meet.
    """

    as_output = True

    class Config(ElementwiseConfig):
        base: float = knob(math.e, "base of the exponential", flat=("exppolymax_base",), gt=1)
        y_intercept: float = knob(1.0, "value at 0", flat=("exppolymax_y_intercept",), gt=0)
        power: float = knob(2.0, "power of positive scores", flat=("exppolymax_power",), ge=1)
        divisor: float = knob(1.0, "divides every weight", flat=("exppolymax_divisor",), gt=0)

    @classmethod
    def check(cls, config, dims):
        if config.power > 1 and math.log(math.log(config.base) / config.power) > (config.power - 1) * math.log(100):
            yield Problem("power", f"{config.power} is too near to 1 for base {config.base}: the slopes meet above 100")

    def curve(self, scores):
        c = self.config
        x = (math.log(c.base) / c.power) ** (1 / (c.power - 1)) if c.power > 1 else 0.0
        polynomial = (scores.clamp(min=0.0) + x).pow(c.power) + (c.y_intercept - x**c.power)
        exponential = torch.exp(scores.clamp(max=0.0) * math.log(c.base))
        return torch.where(scores < 0, exponential, polynomial)

    @staticmethod
    def per_element(config):
        scale = 0 if config.base == math.e else 1
        return sum_of({"compare": 1, "exp": 1, "mul": scale, "add": 2}, power_cost(config.power))
