"""Gaussian error linear unit (arXiv 1606.08415)."""

from typing import Literal

import torch.nn.functional as F

from ..config import knob
from ..registry import KindConfig, register
from . import Activation


@register("activation", "gelu")
class GELU(Activation):
    """x Phi(x), Phi the normal distribution function; or its tanh approximation, as in GPT-2."""

    class Config(KindConfig):
        approximate: Literal["none", "tanh"] = knob("none", "exact, or the tanh form", flat=("gelu_approximate",))

    def forward(self, x):
        return F.gelu(x, approximate=self.config.approximate)

    def kernel_name(self):
        return "gelu" if self.config.approximate == "none" else "gelu_tanh"

    @staticmethod
    def per_element(config):
        # exact: x/2 (1 + erf(x/sqrt 2)); tanh: x/2 (1 + tanh(c x (1 + a x^2)))
        return {"erf": 1, "mul": 3, "add": 1} if config.approximate == "none" else {"tanh": 1, "mul": 6, "add": 2}
