"""Gated perceptron with a relu gate (GLU variants, arXiv 2002.05202)."""

from ..registry import KindConfig, register, slot
from . import GatedConfig, GatedMLP


@register("mlp", "reglu")
class ReGLU(GatedMLP):
    """W2 (relu(Wg x) * Wu x), as many parameters as a plain mlp of the same expansion factor."""

    class Config(GatedConfig):
        activation: KindConfig = slot("activation", "relu", flat=("activation_variant",))
