"""A Kolmogorov-Arnold network in the place of the mlp (Liu et al., arXiv 2404.19756): learned functions on its edges.

The edge from input i to output o has a function of its own, w_oi act(x_i) + sum_j c_oij B_j(x_i); an output is the sum
over its edges, and nothing else is applied to it. The B_j are the same on all edges, so that their values side by side
and one product with the coefficients make a layer.

    bspline      B-splines of degree n = `order` over `grid` equal intervals from -span to span, and of the n intervals
                 beyond either end that reach into it. At a distance of a intervals from its middle one is
                     sum_j (-1)^j binomial(n + 1, j) max(0, (n + 1) / 2 - j - a)^n / n!    over j < (n + 1) / 2,
                 Schoenberg's sum of truncated powers folded at its middle, so that no large numbers cancel. They add
                 up to one on the grid; far from it only the base path is left.
    polynomial   Chebyshev polynomials T_1 .. T_order of tanh(x) (arXiv 2405.07200).
"""

import math
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..config import knob
from ..precision import wide
from ..registry import KindConfig, Problem, build, impl, register, slot
from . import MLP

HIGHEST_DEGREE = 5  # of splines: beyond it the terms of the sum outgrow what they leave


def bump(distance: Tensor, degree: int, power: int) -> Tensor:
    """The formula above for power = degree; for degree - 1 what its derivative by the distance is, but for the sign."""
    total: Any = None
    for j in range((degree + 2) // 2):
        term = ((degree + 1) / 2 - j - distance).clamp_min_(0)
        term = term.pow_(power) if power else term.sign_()
        share = (-1) ** j * math.comb(degree + 1, j) / math.factorial(power)
        total = term.mul_(share) if total is None else total.add_(term, alpha=share)
    return total


class Splines(torch.autograd.Function):
    """(..., I), degree, grid, span -> (..., J I), the values of spline j for all inputs side by side.

    One spline at a time, for temporaries that stay in the cache: on all of them at once the passes over memory took
    five times as long as the arithmetic. Derivatives are computed where they are used, so that `x` is all that is kept.
    """

    @staticmethod
    def forward(ctx, x, degree, grid, span):
        ctx.save_for_backward(x)
        ctx.shape = degree, grid, span
        u = (x + span) * (grid / (2 * span))
        values = x.new_empty(*x.shape[:-1], grid + degree, x.shape[-1])
        for j in range(grid + degree):
            values[..., j, :] = bump((u - (j - (degree - 1) / 2)).abs_(), degree, degree)
        return values.flatten(-2)

    @staticmethod
    def backward(ctx, grad):
        (x,), (degree, grid, span) = ctx.saved_tensors, ctx.shape
        u, total = (x + span) * (grid / (2 * span)), torch.zeros_like(x)
        for j, part in enumerate(grad.unflatten(-1, (grid + degree, -1)).unbind(-2)):
            offset = u - (j - (degree - 1) / 2)
            slope = bump(offset.abs(), degree, degree - 1).mul_(offset.sign_())
            total.addcmul_(slope, part, value=-1)
        return total.mul_(grid / (2 * span)), None, None, None


class Edges(nn.Module):
    """One layer: (..., d_in) -> (..., d_out)."""

    def __init__(self, config: Any, d_in: int, d_out: int, *, bias: bool):
        super().__init__()
        self.config = config
        self.activation = build(config.activation)
        self.weight = nn.Parameter(torch.empty(d_out, d_in))
        self.coefficients = nn.Parameter(torch.empty(d_out, config.terms() * d_in))
        self.bias = nn.Parameter(torch.empty(d_out)) if bias else None

    def features(self, x: Tensor) -> Tensor:
        """The functions common to all edges, function by function, computed in at least fp32."""
        config, x32 = self.config, wide(x)
        if config.basis == "bspline":
            return Splines.apply(x32, config.order, config.grid, config.span).to(x.dtype)
        t = torch.tanh(x32)
        parts, doubled = [t], 2 * t
        for k in range(2, config.order + 1):  # T_k = 2 t T_(k-1) - T_(k-2), T_0 = 1
            parts.append(doubled * parts[-1] - (parts[-2] if k > 2 else 1))
        return torch.cat(parts, -1).to(x.dtype)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(self.activation(x), self.weight) + F.linear(self.features(x), self.coefficients, self.bias)

    def init_weights(self, std: float) -> None:
        # At most one of a spline's neighbours is large at a time, polynomials are all of the order of one.
        share = 1 if self.config.basis == "bspline" else math.sqrt(1 + self.config.order)
        nn.init.normal_(self.weight, std=std / share)
        nn.init.normal_(self.coefficients, std=std / share)
        if self.bias is not None:
            nn.init.zeros_(self.bias)


@register("mlp", "kan")
class KolmogorovArnold(MLP):
    """y_o = sum_i (w_oi act(x_i) + sum_j c_oij B_j(x_i)), twice: up to the hidden width and down again."""

    residual = ("c_proj",)

    class Config(KindConfig):
        """`expansion_factor` means the parameters of a plain mlp with that factor.

        The hidden width is that of the plain mlp over 1 + the number of B_j, rounded to a multiple of 8.
        """

        basis: Literal["bspline", "polynomial"] = knob("bspline", "family of the functions on the edges", flat=())
        order: int = knob(3, "degree of the splines, or of the last polynomial", flat=("kan_poly_order",), ge=1, le=16)
        grid: int = knob(5, "intervals of the splines", flat=(), ge=1, le=64)
        span: float = knob(1.0, "the splines cover inputs from -span to span", flat=(), gt=0)
        activation: KindConfig = slot("activation", "silu", flat=("kan_base_activation",))
        expansion_factor: float = knob(4.0, "of a plain mlp of equal size", flat=("mlp_expansion_factor",), gt=0)
        hidden_size: int | None = knob(None, "hidden width itself, instead of the factor", flat=("mlp_size",), ge=1)

        def terms(self) -> int:
            """Functions of an edge beside its base path."""
            return self.grid + self.order if self.basis == "bspline" else self.order

        def width(self, n_embd: int) -> int:
            equal = self.expansion_factor * n_embd / (1 + self.terms())
            return self.hidden_size or max(8, round(equal / 8) * 8)

    @classmethod
    def check(cls, config, dims):
        if impl(config.activation).narrowing > 1:
            yield Problem("activation", f"{config.activation.kind} halves the width, and an edge has one input")
        if config.basis == "bspline" and config.order > HIGHEST_DEGREE:
            yield Problem("order", f"splines of degree {config.order} lose digits; at most {HIGHEST_DEGREE}")

    def __init__(self, config, dims):
        super().__init__(config, dims)
        hidden = config.width(dims.n_embd)
        self.c_fc = Edges(config, dims.n_embd, hidden, bias=dims.bias)
        self.c_proj = Edges(config, hidden, dims.n_embd, bias=dims.bias)

    def forward(self, x_BTC):
        return self.c_proj(self.c_fc(x_BTC))

    @staticmethod
    def declare(config, g, x, dims):
        for name, width in (("c_fc", config.width(dims.n_embd)), ("c_proj", dims.n_embd)):
            with g.at(name):
                x = _declare_edges(config, g, x, width, bias=dims.bias)
        return x


def _declare_edges(config, g, x, d_out, *, bias):
    *lead, d_in = x.shape
    values = config.terms() * d_in
    with g.at("activation", slot="activation", kind=config.activation.kind):
        base = impl(config.activation).declare(config.activation, g, x)
    if config.basis == "bspline":
        u, n = g.pointwise("place", x, role="intermediate", add=1, mul=1), (config.order + 2) // 2
        for j in range(config.terms()):  # the distance, then n powers of what is left of the reach, each with its share
            g.pointwise(f"spline{j}", u, add=1 + n + n - 1, max=1 + n, mul=n * config.order)
    else:
        t = g.pointwise("tanh", x, tanh=1)
        for k in range(2, config.order + 1):
            g.pointwise(f"t{k}", t, mul=2, add=1)
    features = g.tensor("features", *lead, values)  # the values above, side by side
    size = {"m": math.prod(lead), "n": d_out, "role": "intermediate"}
    base = g.matmul("base", base, g.weight("weight", d_out, d_in), (*lead, d_out), k=d_in, **size)
    curved = g.matmul("curved", features, g.weight("coefficients", d_out, values), (*lead, d_out), k=values, **size)
    extra = (g.weight("bias", d_out),) if bias else ()
    return g.pointwise("sum", base, curved, *extra, add=1 + bias)
