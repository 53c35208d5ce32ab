"""The two-layer perceptron of GPT-2."""

from ..registry import register
from . import DenseConfig, DenseMLP


@register("mlp", "mlp")
class TwoLayer(DenseMLP):
    """W2 activation(W1 x)."""

    class Config(DenseConfig):
        pass
