"""ConSmax as its hardware computes it: integer scores, a table, one constant a head (arXiv 2402.10930).

Bit-exact, for a circuit to be compared with. N = `bits`, p significant bits (the leading one included) of `format`:

    code     c = clamp(round(s / step), -2^(N-1), 2^(N-1) - 1), step = 2^(log2_reach + 1 - N), ties to even: +-reach
             in 2^N codes; a power of two, so that scaling is a shift
    full     e = T[c],                T[c] = R(base^(c step)), 2^N entries
    split    e = R(H[h] L[l]),        c = h 2^m + l, m = floor(N/2), 0 <= l < 2^m, h signed;
             H[h] = R(base^(h 2^m step)), L[l] = R(base^(l step)): 2^(N-m) + 2^m entries and a multiplier instead
    weight   w = R(e C),              C = R(base^-beta / gamma), one constant a head, computed in fp32 and then rounded

R(x) rounds a positive number to p significant bits, ties to even; what is then below the smallest normal number of the
format becomes 0, what is above the largest becomes the largest. bf16: p = 8, 2^-126, (2 - 2^-7) 2^127; fp16: p = 11,
2^-14, 65504. There are no subnormal numbers, infinities or signs. Products are exact before they are rounded.

Gradients are those of base^(s - beta) / gamma at the rounded weight (straight-through, arXiv 1308.3432); a score beyond
the last code passes none.
"""

import math
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from ..config import knob
from ..precision import wide
from ..registry import register
from . import Softmax
from .consmax import ConstantsConfig


class Format(NamedTuple):
    dtype: torch.dtype
    significand: int  # bits, the leading one included
    lowest: float
    highest: float


FORMATS = {
    "bf16": Format(torch.bfloat16, 8, 2.0**-126, (2 - 2.0**-7) * 2.0**127),
    "fp16": Format(torch.float16, 11, 2.0**-14, 65504.0),
}


def round_number(x: float, form: Format) -> float:
    """R of one positive number."""
    fraction, exponent = math.frexp(x)
    rounded = math.ldexp(round(math.ldexp(fraction, form.significand)), exponent - form.significand)
    return 0.0 if rounded < form.lowest else min(rounded, form.highest)


def round_tensor(x: Tensor, form: Format) -> Tensor:
    """R of positive fp32 numbers."""
    rounded = x.clamp(max=form.highest).to(form.dtype).to(x.dtype)
    # Conversion knows subnormal numbers: what p bits would round below the smallest normal one is cut off before it.
    return rounded.masked_fill(x < form.lowest * (1 - 2.0 ** -(form.significand + 1)), 0.0)


def table(config) -> list[float]:
    """e of every code, from the lowest code on; the split tables multiplied out."""
    form, step = FORMATS[config.format], 2.0 ** (config.log2_reach + 1 - config.bits)
    codes = range(-(2 ** (config.bits - 1)), 2 ** (config.bits - 1))

    def power(exponent: float) -> float:
        return round_number(math.exp(exponent) if config.base == "e" else 2.0**exponent, form)

    if config.table == "full":
        return [power(c * step) for c in codes]
    low = 2 ** (config.bits // 2)
    return [round_number(power((c - c % low) * step) * power(c % low * step), form) for c in codes]


class _TableWeights(torch.autograd.Function):
    """Weights of (B, H, T, S) scores by a table of all codes; beta and gamma have one value a head."""

    @staticmethod
    def forward(ctx, scores, beta, gamma, live, entries, scale, ln_base, form):
        H, size = scores.shape[1], entries.shape[0]
        constant = round_tensor(torch.exp(beta.float() * -ln_base) / gamma.float(), form)
        by_head = round_tensor(entries * constant[:, None], form)  # significands are short: products are exact in fp32
        codes = torch.round(scores * scale) + size // 2
        inside = (codes >= 0) & (codes < size)
        address = codes.clamp(0, size - 1).long() + torch.arange(H, device=scores.device)[:, None, None] * size
        weights = by_head.flatten()[address].to(scores.dtype).masked_fill(~live, 0.0)
        ctx.save_for_backward(weights, inside, gamma)
        ctx.ln_base, ctx.beta_dtype = ln_base, beta.dtype
        return weights

    @staticmethod
    def backward(ctx, d_weights):
        weights, inside, gamma = ctx.saved_tensors
        d = d_weights * weights
        by_head = d.sum(dim=(0, 2, 3))
        d_beta = (by_head * -ctx.ln_base).to(ctx.beta_dtype)
        d_gamma = -by_head.to(gamma.dtype) / gamma
        return d * inside * ctx.ln_base, d_beta, d_gamma, None, None, None, None, None


@register("softmax", "consmax_quan")
class ConSmaxQuan(Softmax):
    """R(table[round(s / step)] C), C = R(base^-beta / gamma): quantised ConSmax, bit-exact, in bf16 or fp16."""

    ratios: Tensor

    class Config(ConstantsConfig):
        bits: int = knob(8, "width of a score", flat=("consmax_quan_bits",), ge=2, le=12)
        log2_reach: int = knob(3, "scores of +-2^this", flat=("consmax_quan_log2_reach",), ge=-4, le=5)
        table: Literal["full", "split"] = knob(
            "split", "one table of 2^bits, or two of its halves multiplied", flat=("consmax_quan_table",)
        )
        format: Literal["bf16", "fp16"] = knob("bf16", "of tables, constant and weights", flat=("consmax_quan_format",))

    def __init__(self, config, dims, heads):
        super().__init__(config, dims, heads)
        self.ln_base = 1.0 if config.base == "e" else math.log(2)
        self.scale = 2.0 ** (config.bits - 1 - config.log2_reach)
        self.beta = nn.Parameter(torch.full((heads,), config.initial_beta))
        self.gamma = nn.Parameter(torch.full((heads,), config.initial_gamma))
        # Numerators and denominators, as a change of the model's type leaves integers alone; the quotients are exact.
        ratios = [e.as_integer_ratio() for e in table(config)]
        self.register_buffer("ratios", torch.tensor(ratios).T.contiguous(), persistent=False)

    def weights(self, scores_BHTS, live_TS):
        scores = wide(scores_BHTS).masked_fill(~live_TS, 0.0)
        numerators, denominators = self.ratios.float()
        entries, form = numerators / denominators, FORMATS[self.config.format]
        return _TableWeights.apply(scores, self.beta, self.gamma, live_TS, entries, self.scale, self.ln_base, form)

    @staticmethod
    def declare(config, g, scores, heads):
        constants = g.weight("beta", heads), g.weight("gamma", heads)
        deployed = g.run.stage != "train"  # training keeps wide values
        codes = g.pointwise(
            "code", scores, role="intermediate", bits=config.bits if deployed else None, shift=1, round=1, compare=2
        )  # fmt: skip
        tables = 1 if config.table == "full" else 2
        return g.pointwise(
            "table", codes, *constants, role="intermediate", bits=16 if deployed else None, lut=tables, mul=tables
        )  # fmt: skip
