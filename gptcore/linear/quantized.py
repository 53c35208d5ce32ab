"""Weights of few bits, rounded in every forward pass so that training gets used to it.

Jacob et al., arXiv 1712.05877; the gradient passes straight through the rounding (Bengio et al., arXiv 1308.3432).
"""

from typing import Literal

from ..config import QUANT_METHODS, knob
from ..kernel_choice import Kernelled, Part
from ..quantize import quantize
from ..registry import KindConfig, register
from .rounded import RoundedLinear, declare_rounded


@register("linear", "quantized")
class Quantized(Kernelled, RoundedLinear):
    """x W'^T + b, W' = s (round(W / s + z) - z), s and z of the whole matrix or of each output."""

    classic = ("quantized_linear",)
    part: Part = "rounding"

    class Config(KindConfig):
        bits: int = knob(8, "bits of a weight", flat=("quantize_linear_bits",), ge=2, le=8)
        method: Literal["symmetric", "affine"] = knob(
            "symmetric", "codes around zero, or between the extremes", flat=("quantize_linear_method",),
            values=QUANT_METHODS,
        )  # fmt: skip
        per: Literal["tensor", "channel"] = knob("tensor", "one range for the matrix, or one an output", flat=())

    def kernel_obstacle(self, dropout=0.0):
        return None

    def weight_in_use(self):
        if not self.runs_kernel(self.weight):
            return super().weight_in_use()
        from kernels.fake_quantise import fake_quantise

        dim = -1 if self.config.per == "channel" else None
        return fake_quantise(self.weight, self.config.bits, self.config.method, dim, self.strength)

    def round_weight(self, weight):
        dim = -1 if self.config.per == "channel" else None
        codes, scale, zero = quantize(weight, self.config.bits, self.config.method, dim)
        return (codes - zero) * scale

    @staticmethod
    def declare(config, g, x, d_out, *, bias):
        if config.method == "symmetric":
            return declare_rounded(g, x, d_out, config.bits, bias=bias)
        # s (x C^T - z sum(x)), C being the stored codes
        return declare_rounded(g, x, d_out, config.bits, g.reduce("sum", x, add=1), bias=bias, mul=2, add=1)
