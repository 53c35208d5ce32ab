"""Slot `norm`: normalisation of the last dimension. A kind is built with (config, width, dims)."""

from typing import Any

import torch
from torch import Tensor, nn

from ..config import Dims
from ..kernel_choice import Kernelled, Part, working_type
from ..ops import Graph
from ..ops import Tensor as OpTensor
from ..registry import KindConfig

Stream = Tensor | tuple[Tensor, Tensor]  # the residual stream, or the stream and a branch that is yet to be added


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

    def read(self, x: Stream) -> tuple[Tensor, Tensor]:
        """(the stream, its norm); a sum that was left to do is done."""
        return self.of_sum(*x) if isinstance(x, tuple) else (x, self(x))

    def of_sum(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """(x + y, its norm), where the kernel runs: those who hand over a sum ask `runs_kernel(x)` first."""
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
