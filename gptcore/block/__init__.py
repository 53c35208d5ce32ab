"""Slot `block`: how attention, mlp and norms form a layer. A kind is built with (config, layer configuration, dims)."""

from typing import Any

from torch import Tensor, nn

from ..config import Dims, LayerConfig
from ..ops import Graph
from ..ops import Tensor as OpTensor
from ..position import Position
from ..registry import KindConfig


class Block(nn.Module):
    """Base of every kind."""

    def __init__(self, config: KindConfig, layer: LayerConfig, dims: Dims):
        super().__init__()
        self.config: Any = config

    def forward(self, x_BTC: Tensor, position: Position, start: int, cache=None) -> Tensor:
        raise NotImplementedError

    @staticmethod
    def declare(
        config: KindConfig, g: Graph, x: OpTensor, layer: LayerConfig, dims: Dims, position: KindConfig
    ) -> OpTensor:
        raise NotImplementedError
