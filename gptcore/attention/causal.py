"""Causal multi-head attention with shared key/value heads and an optional sliding window."""

import math

from ..cache import KVCache
from ..config import knob
from ..masking import CausalMask
from ..registry import KindConfig, Problem, build, impl, register, slot
from . import Attention


@register("attention", "causal")
class CausalAttention(Attention):
    """concat_h(weights(q_h k_h^T / sqrt(D)) v_h) W_o; n_kv_head < n_head is GQA (arXiv 2305.13245), 1 is MQA."""

    residual = ("c_proj",)

    class Config(KindConfig):
        n_head: int = knob(6, "query heads", ge=1)
        n_kv_head: int | None = knob(None, "key/value heads; null: n_head", flat=("n_kv_head", "n_kv_group"), ge=1)
        window: int | None = knob(None, "see the last so many tokens; null: all", flat=("window_size",), ge=1)
        softmax: KindConfig = slot("softmax", "softmax", flat=("softmax_variant_attn",))
        linear: KindConfig = slot("linear", "linear", flat=("linear_variant_attn",))

        @property
        def kv_heads(self) -> int:
            return self.n_kv_head or self.n_head

    @classmethod
    def check(cls, config, dims):
        if dims.n_embd % config.n_head:
            yield Problem("n_head", f"n_embd {dims.n_embd} is not a multiple of n_head {config.n_head}")
        if config.n_head % config.kv_heads:
            yield Problem("n_kv_head", f"n_head {config.n_head} is not a multiple of n_kv_head {config.kv_heads}")

    def __init__(self, config, dims):
        super().__init__(config, dims)
        self.H, self.K, self.D = config.n_head, config.kv_heads, dims.n_embd // config.n_head
        self.dropout = dims.dropout
        self.c_attn = build(config.linear, dims.n_embd, (self.H + 2 * self.K) * self.D, bias=dims.bias)
        self.softmax = build(config.softmax, dims, self.H)
        self.c_proj = build(config.linear, self.H * self.D, dims.n_embd, bias=dims.bias)

    def forward(self, x_BTC, position, start, cache=None):
        B, T, _ = x_BTC.shape
        # Splitting before the transposition lets the backward pass join the three gradients without another copy.
        qkv = self.c_attn(x_BTC).split([self.H * self.D, self.K * self.D, self.K * self.D], dim=-1)
        q, k, v = (t.view(B, T, -1, self.D).transpose(1, 2) for t in qkv)
        q, k = position.rotate(q, k, start)
        if cache is not None:
            k, v = cache.extend(k, v)
        mask = CausalMask(T, k.shape[2], self.config.window)
        dropout = self.dropout if self.training else 0.0
        y = self.softmax.attend(q, k, v, mask, scale=1 / math.sqrt(self.D), dropout=dropout)
        return self.c_proj(y.transpose(1, 2).reshape(B, T, self.H * self.D))

    @staticmethod
    def head_width(config, dims):
        return dims.n_embd // config.n_head

    def new_cache(self, batch, length, dtype, device):
        capacity = min(length, self.config.window or length)
        return KVCache(batch, self.K, capacity, self.D, self.D, dtype, device)

    @staticmethod
    def declare(config, g, x, dims, position):
        B, T, C = x.shape
        H, K = config.n_head, config.kv_heads
        D, linear = C // H, impl(config.linear)
        with g.at("c_attn", slot="linear", kind=config.linear.kind):
            qkv = linear.declare(config.linear, g, x, (H + 2 * K) * D, bias=dims.bias)
        q, k, v = (g.view(qkv, B, heads, T, D) for heads in (H, K, K))
        with g.at("position", slot="position", kind=position.kind):
            q, k = (impl(position).declare_rotate(position, g, t) for t in (q, k))
        S = T
        if g.run.stage != "train":
            kept = min(T, config.window or T)
            g.move("k_write", g.view(k, B, K, kept, D), "kv")
            g.move("v_write", g.view(v, B, K, kept, D), "kv")
        if g.run.stage == "decode":
            S = min(g.run.S, config.window or g.run.S)
            k, v = g.cached("k", B, K, S, D), g.cached("v", B, K, S, D)
        live = B * H * g.run.live_pairs(config.window)
        size = {"batch": B * K, "m": H // K * T}  # query heads that share a key head form one product
        scores = g.matmul("qk", q, k, (B, H, T, S), **size, k=D, n=S, live=live, role="intermediate")
        with g.at("softmax", slot="softmax", kind=config.softmax.kind):
            weights = impl(config.softmax).declare(config.softmax, g, scores, H)
            if dims.dropout and g.run.stage == "train":
                weights = g.pointwise("dropout", weights, role="intermediate", compare=1, mul=1)
        y = g.matmul("av", weights, v, (B, H, T, D), **size, k=S, n=D)
        with g.at("c_proj", slot="linear", kind=config.linear.kind):
            return linear.declare(config.linear, g, g.view(y, B, T, H * D), C, bias=dims.bias)
