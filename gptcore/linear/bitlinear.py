"""One bit a weight: BitNet (Wang et al., arXiv 2310.11453). The norm before the layer is that of the block."""

import torch

from ..config import knob
from ..registry import KindConfig, register
from .rounded import BitLinear


@register("linear", "bitlinear")
class BitLinear1(BitLinear):
    """Q(x) W'^T + b, W' = mean |W| sign(W - mean W), sign(0) = -1; Q rounds each token by its largest magnitude."""

    weight_bits = 1

    class Config(KindConfig):
        activation_bits: int | None = knob(8, "bits of an input; null: not rounded", flat=(), ge=2, le=16)

    def round_weight(self, weight):
        size = weight.abs().mean()
        return torch.where(weight > weight.mean(), size, -size)
