"""Slot `norm`: normalisation of the last dimension. A kind is built with (config, width, dims)."""

from typing import Any

import torch
from torch import Tensor, nn

from ..config import Dims
from ..kernel_choice import Kernelled, Part, working_type
from ..ops import Graph
from ..ops import Tensor as OpTensor
from ..registry import KindConfig


class Norm(Kernelled, nn.Module):
    """Base of every kind. `forward` keeps the shape, whatever dimensions come before the last, and the type, unless
    `narrow` says that only products read the result: a kernel then writes it in their type.
    """

    part: Part = "norm"
    narrow = False

    def __init__(self, config: KindConfig, width: int, dims: Dims):
        super().__init__()
        self.config: Any = config
        self.width = width

    def forward(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def of_sum(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """(x + y, its norm)."""
        total = x + y
        return total, self(total)

    def kernel_obstacle(self, dropout: float = 0.0) -> str | None:
        return f"no kernel for norm {self.config.kind}"

    def _written(self, x: Tensor) -> torch.dtype:
        """The type that a kernel writes."""
        return working_type(x) if self.narrow else x.dtype

    @staticmethod
    def declare(config: KindConfig, g: Graph, x: OpTensor, dims: Dims) -> OpTensor:
        """Records one normalisation of the last dimension of `x`."""
        raise NotImplementedError
