"""Self-normalising exponential linear unit (arXiv 1706.02515)."""

import torch.nn.functional as F

from ..registry import register
from . import Activation


@register("activation", "selu")
class SELU(Activation):
    """1.0507 x where x > 0, else 1.0507 * 1.6733 (exp(x) - 1)."""

    def forward(self, x):
        return F.selu(x)

    @staticmethod
    def per_element(config):
        return {"exp": 1, "mul": 2, "add": 1, "compare": 1}
