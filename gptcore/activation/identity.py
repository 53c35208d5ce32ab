"""No activation: what a non-linear function of its place is compared with."""

from ..registry import register
from . import Activation


@register("activation", "identity")
class Identity(Activation):
    """x."""

    def forward(self, x):
        return x

    @staticmethod
    def per_element(config):
        return {}

    @classmethod
    def declare(cls, config, g, x, role="activation"):
        return x
