"""Selective state space in the manner of Mamba-2 (arXiv 2405.21060): a decay of each head chosen by the token.

Training is the chunked form of section 6 there: inside a chunk products masked by the decay between two tokens,
between chunks the states, joined by one product with the decays between chunks. A decode step updates a state of
constant size. A short causal convolution goes before, a gate after it, as there.
"""

import math

import torch
import torch.nn.functional as F
from torch import nn

from ..cache import StateCache
from ..chunks import Chunks, cut, join
from ..config import Dims, knob
from ..precision import wide
from ..registry import KindConfig, Problem, build, impl, register, slot
from . import Attention


class _Convolution(torch.autograd.Function):
    """sum_j weight_j row_{t+j} + bias, by channel. Left to autograd it takes 1.6 times as long on a CPU."""

    @staticmethod
    def forward(ctx, row_BSI, weight_WI, bias_I):
        ctx.save_for_backward(row_BSI, weight_WI)
        W = len(weight_WI)
        T = row_BSI.shape[1] - W + 1
        out = torch.addcmul(bias_I, row_BSI[:, :T], weight_WI[0])
        for j in range(1, W):
            out.addcmul_(row_BSI[:, j : j + T], weight_WI[j])
        return out

    @staticmethod
    def backward(ctx, grad_BTI):
        row_BSI, weight_WI = ctx.saved_tensors
        T, to_row, to_weight = grad_BTI.shape[1], torch.zeros_like(row_BSI), []
        for j, weight_I in enumerate(weight_WI):
            to_row[:, j : j + T].addcmul_(grad_BTI, weight_I)
            to_weight.append((grad_BTI * row_BSI[:, j : j + T]).sum((0, 1)))
        return to_row, torch.stack(to_weight), grad_BTI.sum((0, 1))


@register("attention", "ssm")
class StateSpace(Attention):
    """h_t = exp(-dt_t e^A) h_{t-1} + dt_t B_t x_t^T; y_t = (C_t h_t + D x_t) silu(z_t), by head; joined by W_o."""

    residual = ("c_proj",)

    class Config(KindConfig):
        n_head: int = knob(6, "heads, each with a decay of its own", ge=1)
        head_width: int | None = knob(None, "width of x in a head; null: n_embd // n_head", flat=(), ge=1)
        state: int = knob(64, "width of B and C, which the heads share", flat=(), ge=1)
        conv: int = knob(4, "tokens that the convolution of x, B and C sees", flat=(), ge=2)
        chunk: int = knob(64, "tokens whose products are taken at once; longer texts pass on states", flat=(), ge=1)
        linear: KindConfig = slot("linear", "linear", flat=("linear_variant_attn",))

        def width(self, n_embd: int) -> int:
            """Of x in a head."""
            return self.head_width or n_embd // self.n_head

    @staticmethod
    def check(config, dims):
        if not config.width(dims.n_embd):
            yield Problem("n_head", f"n_head {config.n_head} exceeds n_embd {dims.n_embd}: say head_width")

    def __init__(self, config, dims: Dims):
        super().__init__(config, dims)
        self.H, self.P, self.N = config.n_head, config.width(dims.n_embd), config.state
        inner = self.H * self.P
        self.channels = inner + 2 * self.N
        self.c_attn = build(config.linear, dims.n_embd, inner + self.channels + self.H, bias=dims.bias)
        self.conv_weight = nn.Parameter((torch.rand(config.conv, self.channels) * 2 - 1) / math.sqrt(config.conv))
        self.conv_bias = nn.Parameter(torch.zeros(self.channels))
        # Steps between 0.001 and 0.1, evenly in the logarithm, and decay rates between 1 and 16, as published.
        dt = torch.exp(torch.rand(self.H) * math.log(100) + math.log(1e-3))
        self.dt_bias = nn.Parameter(dt + torch.log(-torch.expm1(-dt)))
        self.A_log = nn.Parameter(torch.log(1 + 15 * torch.rand(self.H)))
        self.D = nn.Parameter(torch.ones(self.H))
        self.c_proj = build(config.linear, inner, dims.n_embd, bias=dims.bias)

    def forward(self, x_BTC, position, start, cache=None):
        B, T, _ = x_BTC.shape
        H, P, N = self.H, self.P, self.N
        z, u, dt = self.c_attn(x_BTC).split([H * P, self.channels, H], dim=-1)
        state, past = cache.tensors() if cache is not None else (None, None)
        u, past = self._convolve(u, past)
        x, b_BTN, c_BTN = F.silu(u).split([H * P, N, N], dim=-1)
        x_BTHP = x.view(B, T, H, P)
        dt_BTH = F.softplus(wide(dt) + wide(self.dt_bias))
        # Its logarithm to base 2, never positive. On a CPU 200 000 values of exp take 0.16 ms, and 6 ms where results
        # are subnormal, as those of strong decays are; of exp2 0.06 ms either way.
        decay_BTH = dt_BTH * (wide(self.A_log).exp() * -math.log2(math.e))
        steps_BTHP = x_BTHP * dt_BTH.unsqueeze(-1)
        if state is None:
            y = self._parallel(steps_BTHP.to(x.dtype), b_BTN, c_BTN, decay_BTH)
        else:
            y, state = self._continue(steps_BTHP, wide(b_BTN), wide(c_BTN), decay_BTH, wide(state))
            cache.update(state, past)
        y = y.to(x.dtype).contiguous().addcmul_(x_BTHP, self.D.unsqueeze(-1))
        return self.c_proj(y.view(B, T, H * P) * F.silu(z))

    def _convolve(self, u_BTI, past_BWI):
        """sum_j weight_j u_{t-W+1+j}, by channel; and the inputs that the next token needs."""
        W, T = self.config.conv, u_BTI.shape[1]
        row = F.pad(u_BTI, (0, 0, W - 1, 0)) if past_BWI is None else torch.cat([past_BWI, u_BTI], dim=1)
        return _Convolution.apply(row.to(self.conv_weight.dtype), self.conv_weight, self.conv_bias), row[:, T:]

    def _parallel(self, x_BTHP, b_BTN, c_BTN, decay_BTH):
        """What the tokens of this piece say to each other; x is multiplied by its step already."""
        x_BKLHP, b_BKLN, c_BKLN, decay_BKLH = (cut(t, self.config.chunk) for t in (x_BTHP, b_BTN, c_BTN, decay_BTH))
        total_BKHL = decay_BKLH.cumsum(2).transpose(2, 3)
        L = total_BKHL.shape[-1]
        # Between s and t >= s the sum falls, so no power exceeds 1; the others are cut before they can.
        later = total_BKHL.new_full((L, L), float("-inf")).triu(1)
        between = (total_BKHL.unsqueeze(-1) - total_BKHL.unsqueeze(-2)).add_(later).exp2_()
        weights = (c_BKLN @ b_BKLN.mT).unsqueeze(2) * between
        y = (weights.to(x_BKLHP.dtype) @ x_BKLHP.transpose(2, 3)).transpose(2, 3)
        if y.shape[1] > 1:
            y = y + F.pad(self._earlier(x_BKLHP, b_BKLN, c_BKLN, total_BKHL), (0, 0, 0, 0, 0, 0, 1, 0))
        return join(y, x_BTHP.shape[1])

    @staticmethod
    def _earlier(x_BKLHP, b_BKLN, c_BKLN, total_BKHL):
        """What all chunks but the first hear of those before: (B, K - 1, L, H, P)."""
        H, P = x_BKLHP.shape[3:]
        last_BKH = total_BKHL[:, :-1, :, -1]
        fade = (last_BKH.unsqueeze(-1) - total_BKHL[:, :-1]).exp2().to(x_BKLHP.dtype).mT.unsqueeze(-1)
        states = wide(b_BKLN[:, :-1].mT @ (x_BKLHP[:, :-1] * fade).flatten(3)).unflatten(3, (H, P))
        sums_BHK = last_BKH.cumsum(1).mT
        later = sums_BHK.new_full((sums_BHK.shape[-1],) * 2, float("-inf")).triu(1)
        between = (sums_BHK.unsqueeze(-1) - sums_BHK.unsqueeze(-2) + later).exp2()
        states_BHKNP = (between @ states.permute(0, 3, 1, 2, 4).flatten(3)).unflatten(3, states.shape[2::2])
        y = wide(c_BKLN[:, 1:]) @ states_BHKNP.permute(0, 2, 3, 1, 4).flatten(3)
        return y.unflatten(3, (H, P)) * total_BKHL[:, 1:].exp2().mT.unsqueeze(-1)

    def _continue(self, x_BTHP, b_BTN, c_BTN, decay_BTH, state_BHNP):
        """Everything seen, and the state after it."""
        total_BTH = decay_BTH.cumsum(1)
        last_BH = total_BTH[:, -1]
        fade = (last_BH.unsqueeze(1) - total_BTH).exp2().unsqueeze(-1)
        new = (b_BTN.mT @ (x_BTHP * fade).flatten(2)).unflatten(2, (self.H, self.P)).transpose(1, 2)
        later = torch.addcmul(new, state_BHNP, last_BH.exp2()[:, :, None, None])
        if x_BTHP.shape[1] == 1:
            return (c_BTN.unsqueeze(1) @ later).transpose(1, 2), later
        y = self._parallel(x_BTHP, b_BTN, c_BTN, decay_BTH)
        return y + (c_BTN.unsqueeze(1) @ state_BHNP).transpose(1, 2) * total_BTH.exp2().unsqueeze(-1), later

    def new_cache(self, batch, length, dtype, device):
        shapes = [(batch, self.H, self.N, self.P), (batch, self.config.conv - 1, self.channels)]
        return StateCache(shapes, dtype, device)

    @classmethod
    def declare(cls, config, g, x, dims, position):
        B, T, C = x.shape
        H, P, N, W = config.n_head, config.width(C), config.state, config.conv
        inner, channels = H * P, H * P + 2 * N
        decode, stored = g.run.stage == "decode", g.run.stage != "train"
        with g.at("c_attn", slot="linear", kind=config.linear.kind):
            zu = impl(config.linear).declare(config.linear, g, x, inner + channels + H, bias=dims.bias)
        z, u, dt = g.split(zu, inner, channels, H)
        if stored:
            g.move("conv_write", g.view(u, B, min(T, W - 1), channels), "kv")
        past = (g.cached("conv", B, W - 1, channels),) if decode else ()
        weights = g.weight("conv_weight", W, channels), g.weight("conv_bias", channels)
        window = g.tensor("window", B, W * T, channels, role="intermediate")
        u = g.view(g.pointwise("conv", window, u, *weights, *past, role="intermediate", mul=1, add=1), B, T, channels)
        u = g.pointwise("conv_silu", u, exp=1, add=1, recip=1, mul=1)
        x, b, c = g.split(u, inner, N, N)
        x = g.view(x, B, T, H, P)
        # softplus(dt) = max(dt, 0) + log(1 + exp(-|dt|))
        dt = g.pointwise("dt", dt, g.weight("dt_bias", H), role="intermediate", add=3, max=1, exp=1, log=1)
        rate = g.pointwise("rate", g.weight("A_log", H), role="intermediate", exp=1, mul=1)
        decay = g.pointwise("decay", dt, rate, role="intermediate", mul=1)
        steps = g.pointwise("steps", x, dt, role="intermediate", mul=1)
        if decode:
            factor = g.pointwise("decay_exp", decay, role="intermediate", exp2=1)
            outer = g.matmul("bx", b, steps, (B, H, N, P), batch=B, m=N, k=T, n=inner, role="intermediate")
            old = g.cached("state", B, H, N, P)
            state = g.pointwise("add_state", outer, old, factor, role="intermediate", mul=1, add=1)
            y = g.matmul("c_state", c, state, (B, T, H, P), batch=B * H, m=T, k=N, n=P)
        else:
            y = cls._declare_chunks(g, Chunks(T, config.chunk), steps, b, c, decay)
            state = g.tensor("state", B, H, N, P, role="intermediate")
        if stored:
            g.move("state_write", state, "kv")
        y = g.pointwise("skip", y, x, g.weight("D", H), mul=1, add=1)
        y = g.pointwise("gate", g.view(y, B, T, inner), z, exp=1, add=1, recip=1, mul=2)
        with g.at("c_proj", slot="linear", kind=config.linear.kind):
            return impl(config.linear).declare(config.linear, g, y, C, bias=dims.bias)

    @staticmethod
    def _declare_chunks(g, chunks, x, b, c, decay):
        """Products are of whole chunks; of the last one only `live` elements are needed."""
        (B, T, H, P), N, K, L = x.shape, b.shape[-1], chunks.count, chunks.L
        live = B * chunks.live_pairs
        total = g.pointwise("cumsum", decay, role="intermediate", add=1)
        products = g.matmul("cb", c, b, (B, K, L, L), batch=B * K, m=L, k=N, n=L, live=live, role="intermediate")
        between = g.tensor("between", B, K, H, L, L, role="intermediate", live=H * live)
        weights = g.pointwise("weights", between, products, total, role="intermediate", add=1, exp2=1, mul=1)
        y = g.matmul("wx", weights, x, (B, T, H, P), batch=B * K * H, m=L, k=L, n=P)
        if K == 1:
            return y
        J = K - 1
        fade = g.pointwise("fade", g.view(total, B, J * L, H), role="intermediate", add=1, exp2=1)
        faded = g.pointwise("faded", g.view(x, B, J * L, H, P), fade, role="intermediate", mul=1)
        states = g.matmul("bx", b, faded, (B, J, H, N, P), batch=B * J, m=N, k=L, n=H * P, role="intermediate")
        sums = g.pointwise("sums", g.view(total, B, J, H), role="intermediate", add=1)
        pairs = g.tensor("chunk_pairs", B, H, J, J, role="intermediate", live=B * H * J * K // 2)
        pairs = g.pointwise("chunk_decays", pairs, sums, role="intermediate", add=1, exp2=1)
        states = g.matmul("join", pairs, states, (B, J, H, N, P), batch=B * H, m=J, k=J, n=N * P, role="intermediate")
        queries = g.tensor("later_c", B, J * L, N, live=B * chunks.later * N)
        earlier = g.matmul("c_state", queries, states, (B, J * L, H, P), batch=B * J, m=L, k=N, n=H * P)
        late = g.pointwise("late", g.view(total, B, chunks.later, H), role="intermediate", exp2=1)
        earlier, part = (g.view(t, B, chunks.later, H, P) for t in (earlier, y))
        return g.view(g.pointwise("add_earlier", earlier, late, part, mul=1, add=1), B, T, H, P)
