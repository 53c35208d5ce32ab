"""Slot `block`: how attention, mlp, norms and residuals form a layer. A kind is built with (config, layer, dims).

A block may leave the sum at its end to whoever reads the stream next, whose norm takes it into its kernel: it is told
so by `apart`, and then returns (stream, branch). So every norm runs inside of its own block, where FSDP gathers its
parameters. Without a kernel a block reads and returns the stream itself.

Legend: B batch, T tokens, C width.
"""

from typing import Any, Literal

import torch.nn.functional as F
from torch import Tensor, nn

from ..config import Dims, LayerConfig, knob
from ..norm import Stream
from ..ops import Graph
from ..ops import Tensor as OpTensor
from ..position import Position
from ..registry import KindConfig, build, impl, slot
from ..residual import Residual

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
    """Base of every kind. Attributes `attn` and `mlp` are what layers may share; `ln_1` reads the stream first."""

    attn: nn.Module
    mlp: nn.Module
    ln_2: Any

    def __init__(self, config: KindConfig, layer: LayerConfig, dims: Dims):
        super().__init__()
        self.config: Any = config
        self.dropout = dims.dropout
        self.placed: dict[str, Placement] = {}  # norm -> where it stands

    def forward(self, x: Stream, position: Position, start: int, cache=None, apart: bool = False) -> Stream:
        """The stream after the layer; with `apart`, which a kind may ignore, perhaps the parts of its last sum.

        Parts come in only where `takes_sum` says so, and go through `before`.
        """
        raise NotImplementedError

    def takes_sum(self, x_BTC: Tensor, name: str = "ln_1") -> bool:
        """Whether norm `name` reads the stream, of which `x` is a part, by a kernel that does the sum before it."""
        return self.placed.get(name) in _BEFORE and getattr(self, name).runs_kernel(x_BTC)

    @staticmethod
    def declare(
        config: KindConfig, g: Graph, x: OpTensor, layer: LayerConfig, dims: Dims, position: KindConfig
    ) -> OpTensor:
        raise NotImplementedError

    def add_norms(self, name: str, placement: Placement, norm: KindConfig, dims: Dims) -> None:
        """The norms of one sub-layer: `name`, and `name`_out where there are two."""
        self.placed[name] = placement
        first = build(norm, dims.n_embd, dims)
        first.narrow = placement in _BEFORE
        setattr(self, name, first)
        if placement == "peri":
            setattr(self, name + "_out", build(norm, dims.n_embd, dims))

    def before(self, x: Stream, name: str) -> tuple[Tensor, Tensor]:
        """(the stream, what the sub-layer reads)."""
        if self.placed[name] in _BEFORE:
            return getattr(self, name).read(x)
        assert isinstance(x, Tensor)
        return x, x

    def join(self, x_BTC: Tensor, y_BTC: Tensor, name: str, residual: Residual, apart: bool) -> Stream:
        """The stream with the output of a sub-layer; its two parts if they may be apart, and nothing but adds them."""
        placement = self.placed[name]
        if placement in _AFTER:
            y_BTC = getattr(self, name + "_out" if placement == "peri" else name)(y_BTC)
        if self.training and self.dropout:
            y_BTC = F.dropout(y_BTC, self.dropout)
        if apart and residual.is_sum and placement != "post":
            return x_BTC, y_BTC
        x_BTC = residual(x_BTC, y_BTC)
        return getattr(self, name)(x_BTC) if placement == "post" else x_BTC


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
