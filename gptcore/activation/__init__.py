"""Slot `activation`: an element-wise function. `per_element` counts its primitives."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from ..ops import Graph
from ..ops import Tensor as OpTensor
from ..registry import KindConfig


class Activation(nn.Module):
    """Base of every kind. `forward` keeps the shape."""

    def __init__(self, config: KindConfig):
        super().__init__()
        self.config: Any = config

    def forward(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    @staticmethod
    def per_element(config: KindConfig) -> Mapping[str, int]:
        """Primitive operations for one element."""
        raise NotImplementedError

    @classmethod
    def declare(cls, config: KindConfig, g: Graph, x: OpTensor) -> OpTensor:
        counts: dict[str, Any] = dict(cls.per_element(config))
        return g.pointwise("activation", x, **counts)
