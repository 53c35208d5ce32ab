"""Selective state space in the manner of Mamba-2 (arXiv 2405.21060): a decay of each head chosen by the token.

Training multiplies T x T products by the decay between two tokens; a decode step updates a state of constant size.
A short causal convolution goes before, a gate after it, as there.
"""

import math

import torch
import torch.nn.functional as F
from torch import nn

from ..cache import StateCache
from ..config import Dims, knob
from ..masking import CausalMask
from ..registry import KindConfig, Problem, build, impl, register, slot
from ..softmax import wide
from . import Attention


@register("attention", "ssm")
class StateSpace(Attention):
    """h_t = exp(-dt_t e^A) h_{t-1} + dt_t B_t x_t^T; y_t = (C_t h_t + D x_t) silu(z_t), by head; joined by W_o."""

    residual = ("c_proj",)

    class Config(KindConfig):
        n_head: int = knob(6, "heads, each with a decay of its own", ge=1)
        head_width: int | None = knob(None, "width of x in a head; null: n_embd // n_head", flat=(), ge=1)
        state: int = knob(64, "width of B and C, which the heads share", flat=(), ge=1)
        conv: int = knob(4, "tokens that the convolution of x, B and C sees", flat=(), ge=2)
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
        x, b, c = F.silu(u).split([H * P, N, N], dim=-1)
        x_BHTP, b_B1TN, c_B1TN = x.reshape(B, T, H, P).transpose(1, 2), b.unsqueeze(1), c.unsqueeze(1)
        dt_BHT = F.softplus(wide(dt) + wide(self.dt_bias)).transpose(1, 2)
        decay_BHT = -dt_BHT * wide(self.A_log).exp().unsqueeze(-1)  # its logarithm, never positive
        if state is None:
            y = self._parallel(x_BHTP, b_B1TN, c_B1TN, dt_BHT, decay_BHT.cumsum(-1))
        else:
            wider = wide(x_BHTP), wide(b_B1TN), wide(c_B1TN)
            y, state = self._continue(wider, dt_BHT, decay_BHT, wide(state))
            cache.update(state, past)
        y = y.to(x.dtype) + x_BHTP * self.D.view(H, 1, 1)
        return self.c_proj(y.transpose(1, 2).reshape(B, T, H * P) * F.silu(z))

    def _convolve(self, u_BTI, past_BWI):
        """sum_j weight_j u_{t-W+1+j}, by channel; and the inputs that the next token needs."""
        W, T = self.config.conv, u_BTI.shape[1]
        row = F.pad(u_BTI, (0, 0, W - 1, 0)) if past_BWI is None else torch.cat([past_BWI, u_BTI], dim=1)
        out = self.conv_bias + row[:, :T] * self.conv_weight[0]
        for j in range(1, W):
            out = torch.addcmul(out, row[:, j : j + T], self.conv_weight[j])
        return out, row[:, T:]

    @staticmethod
    def _parallel(x_BHTP, b_B1TN, c_B1TN, dt_BHT, total_BHT):
        """What the tokens of this piece say to each other; `total` is the sum of the logarithms of decays."""
        T = x_BHTP.shape[2]
        live = CausalMask(T, T).live_TS(x_BHTP.device)
        # Between s and t >= s the sum falls, so no exponential exceeds 1; the others are cut before they can.
        between = (total_BHT.unsqueeze(-1) - total_BHT.unsqueeze(-2)).masked_fill(~live, float("-inf")).exp()
        weights = (c_B1TN @ b_B1TN.transpose(-2, -1)) * (between * dt_BHT.unsqueeze(-2))
        return weights.to(x_BHTP.dtype) @ x_BHTP

    def _continue(self, xbc, dt_BHT, decay_BHT, state_BHNP):
        """Everything seen, and the state after it."""
        x_BHTP, b_B1TN, c_B1TN = xbc
        total = decay_BHT.cumsum(-1)
        last = total[..., -1:]
        scaled = x_BHTP * ((last - total).exp() * dt_BHT).unsqueeze(-1)
        later = state_BHNP * last.exp().unsqueeze(-1) + b_B1TN.transpose(-2, -1) @ scaled
        if x_BHTP.shape[2] == 1:
            return c_B1TN @ later, later
        y = self._parallel(x_BHTP, b_B1TN, c_B1TN, dt_BHT, total)
        return y + (c_B1TN @ state_BHNP) * total.exp().unsqueeze(-1), later

    def new_cache(self, batch, length, dtype, device):
        shapes = [(batch, self.H, self.N, self.P), (batch, self.config.conv - 1, self.channels)]
        return StateCache(shapes, dtype, device)

    @staticmethod
    def declare(config, g, x, dims, position):
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
        x, b, c = g.view(x, B, H, T, P), g.view(b, B, 1, T, N), g.view(c, B, 1, T, N)
        # softplus(dt) = max(dt, 0) + log(1 + exp(-|dt|))
        dt = g.pointwise("dt", dt, g.weight("dt_bias", H), role="intermediate", add=3, max=1, exp=1, log=1)
        rate = g.pointwise("rate", g.weight("A_log", H), role="intermediate", exp=1)
        decay = g.pointwise("decay", dt, rate, role="intermediate", mul=1)
        if decode:
            scaled = g.pointwise("dt_x", x, dt, role="intermediate", mul=1)
            factor = g.pointwise("decay_exp", decay, role="intermediate", exp=1)
            outer = g.matmul("bx", b, scaled, (B, H, N, P), batch=B * H, m=N, k=T, n=P, role="intermediate")
            old = g.cached("state", B, H, N, P)
            state = g.pointwise("add_state", outer, old, factor, role="intermediate", mul=1, add=1)
            y = g.matmul("c_state", c, state, (B, H, T, P), batch=B * H, m=T, k=N, n=P)
        else:
            live = g.run.live_pairs()
            total = g.pointwise("cumsum", decay, role="intermediate", add=1)
            products = g.matmul("cb", c, b, (B, 1, T, T), batch=B, m=T, k=N, n=T, live=B * live, role="intermediate")
            between = g.tensor("between", B, H, T, T, role="intermediate", live=B * H * live)
            counts = {"add": 1, "exp": 1, "mul": 2}
            weights_BHTT = g.pointwise("weights", between, products, total, dt, role="intermediate", **counts)
            y = g.matmul("wx", weights_BHTT, x, (B, H, T, P), batch=B * H, m=T, k=T, n=P)
            state = g.tensor("state", B, H, N, P, role="intermediate")
        if stored:
            g.move("state_write", state, "kv")
        y = g.pointwise("skip", y, x, g.weight("D", H), mul=1, add=1)
        y = g.pointwise("gate", g.view(y, B, T, inner), z, exp=1, add=1, recip=1, mul=2)
        with g.at("c_proj", slot="linear", kind=config.linear.kind):
            return impl(config.linear).declare(config.linear, g, y, C, bias=dims.bias)
