"""Slot `position`: how the model knows where a token stands. One module serves the whole model.

A kind may act at three places, each of which does nothing by default: on the embeddings (`embed`), on queries and
keys (`rotate`), and, before anything is built, on what it demands of an attention layer (`check_layer`).
"""

from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

from ..config import Dims
from ..ops import Graph
from ..ops import Tensor as OpTensor
from ..registry import KindConfig, Problem


class Position(nn.Module):
    """Base of every kind. `head_widths` are the distinct widths of the heads that will be rotated."""

    def __init__(self, config: KindConfig, dims: Dims, head_widths: frozenset[int]):
        super().__init__()
        self.config: Any = config

    def embed(self, x_BTC: Tensor, start: int) -> Tensor:
        """Token embeddings with position; `start` is the position of the first token."""
        return x_BTC

    def rotate(self, q_BHTD: Tensor, k_BKTD: Tensor, start: int) -> tuple[Tensor, Tensor]:
        """Queries and keys with position."""
        return q_BHTD, k_BKTD

    @staticmethod
    def check_layer(config: KindConfig, head_width: int) -> Iterator[Problem]:
        return iter(())

    @staticmethod
    def declare_embed(config: KindConfig, g: Graph, x: OpTensor, dims: Dims) -> OpTensor:
        return x

    @staticmethod
    def declare_rotate(config: KindConfig, g: Graph, x: OpTensor) -> OpTensor:
        """Records the rotation of queries or keys."""
        return x
