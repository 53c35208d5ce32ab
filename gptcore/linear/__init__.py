"""Slot `linear`: a learned affine map of the last dimension. A kind is built with (config, d_in, d_out, bias=...)."""

from typing import Any

from torch import Tensor, nn

from ..ops import Graph
from ..ops import Tensor as OpTensor
from ..registry import KindConfig


class Linear(nn.Module):
    """Base of every kind: (..., d_in) -> (..., d_out)."""

    def __init__(self, config: KindConfig, d_in: int, d_out: int, *, bias: bool):
        super().__init__()
        self.config: Any = config
        self.d_in, self.d_out = d_in, d_out

    def forward(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def init_weights(self, std: float) -> None:
        """Fills the parameters, matrices with standard deviation `std`."""
        raise NotImplementedError

    @staticmethod
    def declare(config: KindConfig, g: Graph, x: OpTensor, d_out: int, *, bias: bool) -> OpTensor:
        """Records one application to `x`; the scope is the module's name."""
        raise NotImplementedError
