"""GELU with its bend moved along the axis by a fixed or learned amount."""

import torch
import torch.nn.functional as F
from torch import nn

from ..config import knob
from ..registry import KindConfig, register
from . import Activation


@register("activation", "gelu_shifted")
class ShiftedGELU(Activation):
    """gelu(x - shift)."""

    class Config(KindConfig):
        shift: float = knob(0.0, "(initial) shift", flat=("shifted_gelu_initial_shift",))
        learned: bool = knob(True, "whether the shift is learned", flat=("shifted_gelu_learnable_shift",))

    def __init__(self, config):
        super().__init__(config)
        self.shift = nn.Parameter(torch.full((1,), config.shift)) if config.learned else None

    def forward(self, x):
        return F.gelu(x - (self.config.shift if self.shift is None else self.shift.to(x.dtype)))

    @staticmethod
    def per_element(config):
        return {"erf": 1, "mul": 3, "add": 2}  # x/2 (1 + erf(x/sqrt 2)) of the difference

    @staticmethod
    def parameters_of(config):
        return {"shift": (1,)} if config.learned else {}
