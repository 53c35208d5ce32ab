"""Slot `norm`: normalisation of the last dimension. A kind is built with (config, width, dims)."""

from typing import Any

from torch import Tensor, nn

from ..config import Dims
from ..ops import Graph
from ..ops import Tensor as OpTensor
from ..registry import KindConfig


class Norm(nn.Module):
    """Base of every kind. `forward` keeps shape and type, whatever dimensions come before the last."""

    def __init__(self, config: KindConfig, width: int, dims: Dims):
        super().__init__()
        self.config: Any = config
        self.width = width

    def forward(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    @staticmethod
    def declare(config: KindConfig, g: Graph, x: OpTensor, dims: Dims) -> OpTensor:
        """Records one normalisation of the last dimension of `x`."""
        raise NotImplementedError
