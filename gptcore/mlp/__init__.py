"""Slot `mlp`: the position-wise network of a block. A kind is built with (config, dims)."""

from typing import Any

from torch import Tensor, nn

from ..config import Dims
from ..ops import Graph
from ..ops import Tensor as OpTensor
from ..registry import KindConfig


class MLP(nn.Module):
    """Base of every kind: (B, T, C) -> (B, T, C). `residual` names the projection back to the residual stream."""

    residual: tuple[str, ...] = ()

    def __init__(self, config: KindConfig, dims: Dims):
        super().__init__()
        self.config: Any = config

    def forward(self, x_BTC: Tensor) -> Tensor:
        raise NotImplementedError

    @staticmethod
    def declare(config: KindConfig, g: Graph, x: OpTensor, dims: Dims) -> OpTensor:
        raise NotImplementedError
