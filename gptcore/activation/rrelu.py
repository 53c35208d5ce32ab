"""Randomised leaky rectifier (arXiv 1505.00853)."""

import torch.nn.functional as F

from ..config import knob
from ..precision import wide
from ..registry import KindConfig, Problem, register
from . import Activation


@register("activation", "rrelu")
class RReLU(Activation):
    """max(x, slope x), in training a new random slope for each element, afterwards the mean slope."""

    class Config(KindConfig):
        lower: float = knob(1 / 8, "smallest slope below zero", flat=("rrelu_lower",), ge=0, le=1)
        upper: float = knob(1 / 3, "largest slope below zero", flat=("rrelu_upper",), ge=0, le=1)

    @classmethod
    def check(cls, config, dims):
        if config.lower > config.upper:
            yield Problem("lower", f"lower {config.lower} exceeds upper {config.upper}")

    def forward(self, x):
        y = F.rrelu(wide(x), self.config.lower, self.config.upper, training=self.training)
        return y.to(x.dtype)

    @staticmethod
    def per_element(config):
        return {"mul": 1, "max": 1}
