"""Rounding to few bits, as hardware does; gradients as if nothing were rounded (straight-through, arXiv 1308.3432).

    fake_quantize   one tensor to `bits`, back in floating point
    Points          every place of a module where hardware would round, by name

Ranges of activations come from single tokens (`range: token`) or are learned (`range: learned`): a range taken over a
whole batch would let a token see the ones after it.
"""

import math
from typing import Any, Literal

import torch
from torch import Tensor, nn

from .config import RoundingConfig
from .kernel_choice import Kernelled, Part
from .ops import Graph
from .ops import Tensor as OpTensor
from .precision import wide
from .registry import Strict

Method = Literal["symmetric", "affine"]


def straight_through(x: Tensor, rounded: Tensor, strength: Tensor | float = 1.0) -> Tensor:
    """Value `x + strength (rounded - x)`, exactly `rounded` at strength 1; gradient of `x`."""
    return torch.lerp(x.detach(), rounded.detach(), strength) + (x - x.detach())


def quantize(x: Tensor, bits: int, method: Method = "symmetric", dim: int | None = None) -> tuple[Tensor, Tensor, Any]:
    """(codes, scale, zero point) so that `(codes - zero) * scale` is close to `x`.

    symmetric: codes of -(2^(bits-1) - 1) to 2^(bits-1) - 1, zero point 0. affine: 0 to 2^bits - 1, zero is exact. The
    range is that of `x` over `dim`, or over everything.
    """
    if method == "symmetric":
        highest = x.abs().amax() if dim is None else x.abs().amax(dim, keepdim=True)
        scale = _positive(highest / (2 ** (bits - 1) - 1))
        return torch.round(x / scale), scale, 0
    low, high = x.aminmax() if dim is None else x.aminmax(dim=dim, keepdim=True)
    low, high = low.clamp(max=0), high.clamp(min=0)
    scale = _positive((high - low) / (2**bits - 1))
    zero = torch.round(-low / scale)
    return (torch.round(x / scale) + zero).clamp(0, 2**bits - 1), scale, zero


def _positive(scale: Tensor) -> Tensor:
    return scale.clamp_min(torch.finfo(scale.dtype).tiny)


def fake_quantize(
    x: Tensor, bits: int, method: Method = "symmetric", dim: int | None = None, strength: Tensor | float = 1.0
) -> Tensor:
    """`x` rounded to `bits` by the range over `dim` (None: the whole tensor), straight-through gradient.

    Statistics are taken in at least fp32. `strength` fades from no rounding (0) to rounding (1).
    """
    with torch.no_grad():
        codes, scale, zero = quantize(wide(x), bits, method, dim)
        rounded = ((codes - zero) * scale).to(x.dtype)
    return straight_through(x, rounded, strength)


class Rounding(nn.Module):
    """Base of everything whose rounding a schedule may fade in; `strength` is 1 unless a schedule says otherwise."""

    strength: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("strength", torch.ones(()), persistent=False)


def set_strength(model: nn.Module, strength: float) -> None:
    """Sets how strongly everything in the model rounds: 0 not at all, 1 fully."""
    for module in model.modules():
        if isinstance(getattr(module, "strength", None), Tensor):
            module.strength.fill_(strength)  # type: ignore[union-attr,operator]


class RoundActivation(Kernelled, Rounding):
    """One place where activations are rounded. `learned` is the step size of LSQ (arXiv 1902.08153), one a place."""

    part: Part = "rounding"

    def __init__(self, bits: int, config: RoundingConfig):
        super().__init__()
        self.bits, self.config = bits, config
        if config.range == "learned":
            highest = 2 ** (bits - 1) - 1
            # A normalised activation spans about four standard deviations; training moves the step from there.
            self.log2_step = nn.Parameter(torch.tensor(math.log2(4.0 / highest)))

    def kernel_obstacle(self, dropout: float = 0.0) -> str | None:
        return None if self.config.range == "token" else "no kernel rounds by a learned range"

    def forward(self, x: Tensor) -> Tensor:
        if self.runs_kernel(x):
            from kernels.fake_quantise import fake_quantise

            return fake_quantise(x, self.bits, self.config.method, -1, self.strength)
        if self.config.range == "token":
            return fake_quantize(x, self.bits, self.config.method, -1, self.strength.to(x.dtype))
        highest = 2 ** (self.bits - 1) - 1
        step = torch.exp2(self.log2_step).to(x.dtype)
        scaled = (x / step).clamp(-highest, highest)
        rounded = straight_through(scaled, torch.round(scaled)) * step
        return x + self.strength.to(x.dtype) * (rounded - x)


class Points(nn.Module):
    """The rounded places of a module: `points("q", q)` rounds q if the configuration gives that place bits."""

    def __init__(self, bits: Strict, config: RoundingConfig):
        super().__init__()
        chosen = _chosen(bits)
        self.rounders = nn.ModuleDict({name: RoundActivation(b, config) for name, b in chosen.items()})

    def __contains__(self, name: str) -> bool:
        return name in self.rounders

    def forward(self, name: str, x: Tensor) -> Tensor:
        return self.rounders[name](x) if name in self.rounders else x


def _chosen(bits: Strict) -> dict[str, int]:
    """Place -> bits; `every` holds for all places that say nothing."""
    every: int | None = bits.every  # type: ignore[attr-defined]
    values = {name: getattr(bits, name) or every for name in type(bits).model_fields if name != "every"}
    return {name: value for name, value in values.items() if value}


def bits_at(bits: Strict, name: str) -> int | None:
    """Bits of a place, None where nothing is rounded."""
    return _chosen(bits).get(name)


def declare_point(bits: Strict, config: RoundingConfig, g: Graph, name: str, x: OpTensor) -> OpTensor:
    """Records the rounding of `x` at a place; what follows reads it at its new width."""
    width = bits_at(bits, name)
    if width is None:
        return x
    kept: Any = "intermediate" if x.role == "intermediate" else "activation"
    with g.at(f"points.rounders.{name}"):
        if config.range == "learned":
            step = g.weight("log2_step")
            return g.pointwise("round", x, step, role=kept, bits=width, mul=1, round=1, max=1, compare=1)
        if config.method == "affine":
            low_high = g.reduce("range", x, max=1, compare=1)
            return g.pointwise("round", x, low_high, role=kept, bits=width, mul=1, round=1, add=1)
        return g.pointwise("round", x, g.reduce("range", x, max=1), role=kept, bits=width, mul=1, round=1)
