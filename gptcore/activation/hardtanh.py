"""Hard tanh: a straight line between two bounds (Collobert, 2004), the cheapest bounded activation."""

import torch.nn.functional as F

from ..config import knob
from ..registry import KindConfig, register
from . import Activation


@register("activation", "hardtanh")
class HardTanh(Activation):
    """min(max(x, -bound), bound)."""

    class Config(KindConfig):
        bound: float = knob(1.0, "largest magnitude of the result", flat=(), gt=0)

    def forward(self, x):
        return F.hardtanh(x, -self.config.bound, self.config.bound)

    @staticmethod
    def per_element(config):
        return {"max": 1, "compare": 1}
