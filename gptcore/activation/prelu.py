"""Leaky rectifier with a learned slope (arXiv 1502.01852), one for each place in the network."""

import torch
import torch.nn.functional as F
from torch import nn

from ..config import knob
from ..registry import KindConfig, register
from . import Activation


@register("activation", "prelu")
class PReLU(Activation):
    """x where x > 0, else slope x, the slope learned."""

    class Config(KindConfig):
        initial_slope: float = knob(0.25, "initial slope below zero", flat=("prelu_init",))

    def __init__(self, config):
        super().__init__(config)
        self.slope = nn.Parameter(torch.full((1,), config.initial_slope))

    def forward(self, x):
        return F.prelu(x, self.slope.to(x.dtype))

    @staticmethod
    def per_element(config):
        return {"mul": 1, "compare": 1}  # a learned slope may exceed one, so no max

    @staticmethod
    def parameters_of(config):
        return {"slope": (1,)}
