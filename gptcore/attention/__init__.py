"""Slot `attention`: mixing of tokens. A kind is built with (config, dims).

Legend: B batch, T new tokens, S keys, C model width, H query heads, K key/value heads, D head width.
"""

from typing import Any

import torch
from torch import Tensor, nn

from ..config import Dims, Heads
from ..kernel_choice import Kernelled, Part
from ..ops import Graph
from ..ops import Tensor as OpTensor
from ..position import Position
from ..registry import KindConfig


class Attention(Kernelled, nn.Module):
    """Base of every kind. `residual` names the projection back to the residual stream."""

    residual: tuple[str, ...] = ()
    takes_bias = False  # whether scores exist that a position kind may add to
    part: Part = "attention"

    def __init__(self, config: KindConfig, dims: Dims):
        super().__init__()
        self.config: Any = config

    def forward(self, x_BTC: Tensor, position: Position, start: int, cache: Any = None) -> Tensor:
        """Mixed tokens (B, T, C). `start` is the position of the first token; a cache holds the ones before it."""
        raise NotImplementedError

    def kernel_obstacle(self, dropout: float = 0.0) -> str | None:
        return f"{self.config.kind} attention has no kernel"

    @staticmethod
    def heads(config: KindConfig, dims: Dims) -> Heads | None:
        """What a position kind rotates or biases; None when there is nothing of the kind."""
        return None

    def new_cache(self, batch: int, length: int, dtype: torch.dtype, device: torch.device) -> Any:
        """Empty decode state for up to `length` tokens, with `tensors()`; None when the kind cannot decode stepwise."""
        return None

    @staticmethod
    def declare(config: KindConfig, g: Graph, x: OpTensor, dims: Dims, position: KindConfig) -> OpTensor:
        raise NotImplementedError
