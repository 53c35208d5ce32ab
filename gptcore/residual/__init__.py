"""Slot `residual`: how the output of a sub-layer joins the residual stream. A kind is built with (config, dims)."""

from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..config import Dims, knob
from ..ops import Graph
from ..ops import Tensor as OpTensor
from ..registry import KindConfig


class Residual(nn.Module):
    """Base of every kind."""

    is_sum = False  # x + y and nothing else, which a norm may take into its kernel

    def __init__(self, config: KindConfig, dims: Dims):
        super().__init__()
        self.config: Any = config

    def forward(self, x_BTC: Tensor, y_BTC: Tensor) -> Tensor:
        """The stream `x` with the branch `y` taken up."""
        raise NotImplementedError

    @classmethod
    def declare(cls, config: KindConfig, g: Graph, name: str, x: OpTensor, y: OpTensor, dims: Dims) -> OpTensor:
        """Records the combination as operation `name`; the scope is the block, the module is called `name` too."""
        raise NotImplementedError


class ScaleConfig(KindConfig):
    """A factor on the branch, the same or different by depth, fixed or learned."""

    scale: float = knob(1.0, "factor on the branch", flat=("residual_scale",))
    depth_power: float = knob(0.0, "the factor of layer l (from 1) is divided by l to this power", flat=())
    learned: Literal["no", "scalar", "channel"] = knob("no", "whether training moves the factor", flat=())

    def initial(self, layer: int) -> float:
        return self.scale / (layer + 1) ** self.depth_power


class ScaledResidual(Residual):
    """Base of the kinds with one factor, `alpha`: a constant, a learned scalar, or a learned vector."""

    def __init__(self, config, dims):
        super().__init__(config, dims)
        self.initial = config.initial(dims.layer)
        if config.learned != "no":
            self.alpha = nn.Parameter(torch.full((dims.n_embd if config.learned == "channel" else 1,), self.initial))

    def factor(self, like: Tensor) -> Any:
        return self.initial if self.config.learned == "no" else self.alpha.to(like.dtype)

    @staticmethod
    def declare_factor(config, g: Graph, name: str, dims: Dims) -> list[OpTensor]:
        """The learned factor as an operand, if it is learned."""
        with g.at(name):
            return (
                [] if config.learned == "no" else [g.weight("alpha", dims.n_embd if config.learned == "channel" else 1)]
            )
