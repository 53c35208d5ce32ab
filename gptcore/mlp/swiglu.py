"""Gated perceptron with a silu gate (GLU variants, arXiv 2002.05202)."""

from ..registry import KindConfig, register, slot
from . import GatedConfig, GatedMLP


@register("mlp", "swiglu")
class SwiGLU(GatedMLP):
    """W2 (silu(Wg x) * Wu x), as many parameters as a plain mlp of the same expansion factor."""

    class Config(GatedConfig):
        activation: KindConfig = slot("activation", "silu", flat=("activation_variant",))
