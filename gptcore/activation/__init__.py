"""Slot `activation`: an element-wise function. `per_element` counts its primitives, `parameters_of` what it learns."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from ..ops import Graph, Role
from ..ops import Tensor as OpTensor
from ..registry import KindConfig


class Activation(nn.Module):
    """Base of every kind. `forward` keeps the shape, but for a last dimension that is `narrowing` times smaller."""

    narrowing: int = 1

    def __init__(self, config: KindConfig):
        super().__init__()
        self.config: Any = config

    def forward(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def kernel_name(self) -> str | None:
        """What `kernels.mlp` calls this very function; None where it has none."""
        return None

    @staticmethod
    def per_element(config: KindConfig) -> Mapping[str, int]:
        """Primitive operations for one element of the result."""
        raise NotImplementedError

    @staticmethod
    def parameters_of(config: KindConfig) -> Mapping[str, tuple[int, ...]]:
        """Shape of every learned tensor, by its name in the module."""
        return {}

    @classmethod
    def declare(cls, config: KindConfig, g: Graph, x: OpTensor, role: Role = "activation") -> OpTensor:
        """Records one application; `role` is that of the result."""
        counts: dict[str, Any] = dict(cls.per_element(config))
        weights = [g.weight(name, *shape) for name, shape in cls.parameters_of(config).items()]
        return g.pointwise("activation", x, *weights, role=role, **counts)
