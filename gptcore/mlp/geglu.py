"""Gated perceptron with a gelu gate (GLU variants, arXiv 2002.05202)."""

from ..registry import KindConfig, register, slot
from . import GatedConfig, GatedMLP


@register("mlp", "geglu")
class GEGLU(GatedMLP):
    """W2 (gelu(Wg x) * Wu x), as many parameters as a plain mlp of the same expansion factor."""

    class Config(GatedConfig):
        activation: KindConfig = slot("activation", "gelu", flat=("activation_variant",))
