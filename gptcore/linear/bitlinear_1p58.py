"""Ternary weights: BitNet b1.58 (Ma et al., arXiv 2402.17764). The norm before the layer is that of the block."""

from ..config import knob
from ..registry import KindConfig, register
from .rounded import BitLinear


@register("linear", "bitlinear_1p58")
class BitLinear158(BitLinear):
    """Q(x) W'^T + b, W' = g clip(round(W / g), -1, 1), g = mean |W|; Q rounds each token by its largest magnitude."""

    weight_bits = 2

    class Config(KindConfig):
        activation_bits: int | None = knob(8, "bits of an input; null: not rounded", flat=(), ge=2, le=16)

    def round_weight(self, weight):
        mean = weight.abs().mean().clamp_min(1e-5)  # as the paper's epsilon: a matrix of zeros stays one
        return (weight / mean).round_().clamp_(-1, 1).mul_(mean)
