"""No mlp at all, to see what it is worth."""

from ..registry import register
from . import MLP


@register("mlp", "identity")
class IdentityMLP(MLP):
    """x, so that the block adds its normalised input."""

    def forward(self, x_BTC):
        return x_BTC

    @staticmethod
    def declare(config, g, x, dims):
        return x
