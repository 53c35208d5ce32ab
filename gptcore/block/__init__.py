"""Slot `block`: how attention, mlp, norms and residuals form a layer. A kind is built with (config, layer, dims).

Legend: B batch, T tokens, C width.
"""

from collections.abc import Callable
from typing import Any, Literal

import torch.nn.functional as F
from torch import Tensor, nn

from ..config import Dims, LayerConfig, knob
from ..ops import Graph
from ..ops import Tensor as OpTensor
from ..position import Position
from ..registry import KindConfig, build, impl, slot

Placement = Literal["pre", "post", "peri", "output"]
# The norm or norms of a sub-layer f: before f, after the sum, before and after f, after f.
_BEFORE, _AFTER = ("pre", "peri"), ("peri", "output")


class BlockConfig(KindConfig):
    """Knobs of every block."""

    placement: Placement = knob(
        "pre", "norm before the sub-layer, after the sum, around the sub-layer, or at its output", flat=(),
        switch={"use_pre_ln": "pre", "use_post_ln": "post", "use_peri_ln": "peri"},
    )  # fmt: skip
    residual: KindConfig = slot("residual", "add", flat=("residual_variant",))


class Block(nn.Module):
    """Base of every kind. Attributes `attn` and `mlp` are what layers may share."""

    attn: nn.Module
    mlp: nn.Module
    ln_2: Any

    def __init__(self, config: KindConfig, layer: LayerConfig, dims: Dims):
        super().__init__()
        self.config: Any = config
        self.dropout = dims.dropout

    def forward(self, x_BTC: Tensor, position: Position, start: int, cache=None) -> Tensor:
        raise NotImplementedError

    @staticmethod
    def declare(
        config: KindConfig, g: Graph, x: OpTensor, layer: LayerConfig, dims: Dims, position: KindConfig
    ) -> OpTensor:
        raise NotImplementedError

    def add_norms(self, name: str, placement: Placement, norm: KindConfig, dims: Dims) -> None:
        """The norms of one sub-layer: `name`, and `name`_out where there are two."""
        first = build(norm, dims.n_embd, dims)
        first.narrow = placement in _BEFORE
        setattr(self, name, first)
        if placement == "peri":
            setattr(self, name + "_out", build(norm, dims.n_embd, dims))

    def before(self, x_BTC: Tensor, name: str, placement: Placement) -> Tensor:
        """What the sub-layer reads."""
        return getattr(self, name)(x_BTC) if placement in _BEFORE else x_BTC

    def join(
        self, x_BTC: Tensor, y_BTC: Tensor, name: str, placement: Placement, residual: Callable[..., Tensor]
    ) -> Tensor:
        """The stream with the output of a sub-layer."""
        x_BTC = residual(x_BTC, self._branch(y_BTC, name, placement))
        return getattr(self, name)(x_BTC) if placement == "post" else x_BTC

    def _branch(self, y_BTC: Tensor, name: str, placement: Placement) -> Tensor:
        """The output of a sub-layer as it joins the stream."""
        if placement in _AFTER:
            y_BTC = getattr(self, name + "_out" if placement == "peri" else name)(y_BTC)
        return F.dropout(y_BTC, self.dropout) if self.training and self.dropout else y_BTC


def declare_norm(g: Graph, name: str, norm: Any, x: OpTensor, dims: Dims) -> OpTensor:
    with g.at(name, slot="norm", kind=norm.kind):
        return impl(norm).declare(norm, g, x, dims)


def declare_before(g: Graph, name: str, placement: Placement, norm: Any, x: OpTensor, dims: Dims) -> OpTensor:
    """Records what `Block.before` computes."""
    return declare_norm(g, name, norm, x, dims) if placement in _BEFORE else x


def declare_join(
    g: Graph,
    x: OpTensor,
    y: OpTensor,
    name: str,
    placement: Placement,
    norm: Any,
    residual: Any,
    number: int,
    dims: Dims,
) -> OpTensor:
    """Records what `Block.join` computes; the residual module is `residual_<number>`."""
    if placement in _AFTER:
        y = declare_norm(g, name + "_out" if placement == "peri" else name, norm, y, dims)
    if dims.dropout and g.run.stage == "train":
        y = g.pointwise(f"residual_{number}_dropout", y, compare=1, mul=1)
    with g.at(slot="residual", kind=residual.kind):
        x = impl(residual).declare(residual, g, f"residual_{number}", x, y, dims)
    return declare_norm(g, name, norm, x, dims) if placement == "post" else x


def declare_parts(g: Graph, layer: Any, dims: Dims, position: KindConfig, part: str, x: OpTensor) -> OpTensor:
    """Records the attention or the mlp of a layer; only what comes out of it on a graph without parts."""
    if g.without_parts:
        g.passed.append(x)
        return g.tensor(part, *x.shape)
    config = layer.attention if part == "attn" else layer.mlp
    with g.at(part, slot=impl(config).slot, kind=config.kind):
        extra = (position,) if part == "attn" else ()
        return impl(config).declare(config, g, x, dims, *extra)
