"""Causal multi-head attention: shared key/value heads, sliding window, normalised queries and keys, soft cap."""

import math
from typing import Any, Literal

import torch
from torch import nn

from ..cache import KVCache
from ..config import Dims, Heads, knob
from ..linear.linear import Dense
from ..ops import Graph
from ..quantize import bits_at, declare_point
from ..registry import KindConfig, Problem, build, impl, register, slot
from .scored import ScoredAttention, ScoredConfig


class HeadedConfig(ScoredConfig):
    """Knobs of every attention that has queries, keys and values."""

    n_kv_head: int | None = knob(None, "key/value heads; null: n_head", flat=("n_kv_head", "n_kv_group"), ge=1)
    groups: Literal["even", "uneven"] = knob("even", "whether every key head must serve as many query heads", flat=())
    linear_q: KindConfig | None = slot("linear", None, flat=("linear_variant_q",))
    linear_k: KindConfig | None = slot("linear", None, flat=("linear_variant_k",))
    linear_v: KindConfig | None = slot("linear", None, flat=("linear_variant_v",))
    qk_norm: KindConfig | None = slot("norm", None, flat=("norm_variant_qk",))
    v_norm: KindConfig | None = slot("norm", None, flat=("norm_variant_v",))
    qk_scale: Literal["fixed", "learned"] = knob(
        "fixed", "1/sqrt(D), or one learned factor a head (arXiv 2010.04245)", flat=(),
        switch={"use_qk_norm_scale": "learned"},
    )  # fmt: skip

    @property
    def kv_heads(self) -> int:
        return self.n_kv_head or self.n_head

    def qk_width(self, n_embd: int) -> int:
        """Width of a query and key head."""
        return n_embd // self.n_head

    def v_width(self, n_embd: int) -> int:
        """Width of a value head."""
        return n_embd // self.n_head

    def projections(self, n_embd: int) -> dict[str, tuple[Any, int]]:
        """Module -> (linear configuration, output width); one fused product unless they are chosen separately."""
        widths = {
            "q": self.n_head * self.qk_width(n_embd),
            "k": self.kv_heads * self.qk_width(n_embd),
            "v": self.kv_heads * self.v_width(n_embd),
        }
        chosen = {name: getattr(self, "linear_" + name) for name in widths}
        if not any(chosen.values()):
            return {"c_attn": (self.linear, sum(widths.values()))}
        return {"c_attn_" + name: (chosen[name] or self.linear, width) for name, width in widths.items()}


class HeadedAttention(ScoredAttention):
    """Queries, keys and values by head; the kinds differ in how wide the heads are and how they are joined."""

    Config: Any = HeadedConfig
    c_attn: Any  # of one fused product; separately chosen ones are c_attn_q, c_attn_k, c_attn_v

    @classmethod
    def check(cls, config, dims):
        if config.kv_heads > config.n_head:
            yield Problem("n_kv_head", f"n_kv_head {config.kv_heads} exceeds n_head {config.n_head}")
        elif config.n_head % config.kv_heads and config.groups == "even":
            yield Problem(
                "n_kv_head",
                f"n_head {config.n_head} is not a multiple of n_kv_head {config.kv_heads}; to share keys unevenly say "
                "groups: uneven",
            )

    def __init__(self, config, dims: Dims):
        super().__init__(config, dims)
        self.K = config.kv_heads
        self.D, self.E = config.qk_width(dims.n_embd), config.v_width(dims.n_embd)
        self.projections = tuple(config.projections(dims.n_embd))
        for name, (linear, width) in config.projections(dims.n_embd).items():
            setattr(self, name, build(linear, dims.n_embd, width, bias=self.bias_qkv))
        if config.qk_norm is not None:
            self.q_norm, self.k_norm = (build(config.qk_norm, self.D, dims) for _ in range(2))
            self.q_norm.narrow = self.k_norm.narrow = True
        if config.v_norm is not None:
            self.v_norm = build(config.v_norm, self.E, dims)
        if config.qk_scale == "learned":
            # log2(T^2 - T) times a cosine lets a score win over T others (eq. 4 there); products hold lengths, too.
            size = max(dims.block_size, 2)
            initial = 1 / math.sqrt(self.D)
            if config.qk_norm is not None:
                initial = math.log2(size * size - size) / _squared_length(config.qk_norm, self.D, dims)
            self.scale = nn.Parameter(torch.full((self.H,), initial))
        if self.H % self.K:
            self.register_buffer("group", torch.arange(self.H) * self.K // self.H, persistent=False)
        self._build_rest(dims)

    def forward(self, x_BTC, position, start, cache=None):
        config, points = self.config, self.points
        B, T, _ = x_BTC.shape
        x_BTC = points("input", x_BTC)
        turned = None
        if len(self.projections) == 1:
            qkv = self.c_attn(x_BTC)
            if type(self.c_attn) is Dense and config.qk_norm is None:  # others may keep what they return
                turned = position.rotate_projection(qkv, self.H, self.K, self.D, start)
            # Splitting before the transposition lets the backward pass join the three gradients without another copy.
            qkv = (qkv if turned is None else turned).split([self.H * self.D, self.K * self.D, self.K * self.E], dim=-1)
        else:
            qkv = [getattr(self, name)(x_BTC) for name in self.projections]
        q, k, v = (t.view(B, T, n, -1).transpose(1, 2) for t, n in zip(qkv, (self.H, self.K, self.K), strict=True))
        if config.qk_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        if config.v_norm is not None:
            v = self.v_norm(v)
        if turned is None:
            q, k = position.rotate(q, k, start)
        scale = 1 / math.sqrt(self.D)
        if config.qk_scale == "learned":
            q, scale = q * self.scale.to(q.dtype).view(-1, 1, 1), 1.0
        q, k, v = points("q", q), points("k", k), points("v", v)
        if cache is not None:
            k, v = cache.extend(k, v, ordered=position.has_bias or self.softmax.ordered)
        scoring = self._scoring(q, k.shape[2], scale, position, start)
        if self.H % self.K:
            k, v = k[:, self.group], v[:, self.group]
        return self._output(self._attend(q, k, v, scoring))

    def head_width(self, T, S):
        return max(self.D, self.E)

    @staticmethod
    def heads(config, dims):
        return Heads(config.n_head, config.qk_width(dims.n_embd))

    def new_cache(self, batch, length, dtype, device):
        capacity = min(length, self.config.window or length)
        return KVCache(batch, self.K, capacity, self.D, self.E, dtype, device)

    @classmethod
    def declare(cls, config, g: Graph, x, dims, position):
        B, T, C = x.shape
        H, K, D, E = config.n_head, config.kv_heads, config.qk_width(C), config.v_width(C)

        def rounded(name, t):
            return declare_point(config.rounding, dims.rounding, g, name, t)

        x = rounded("input", x)
        bias = dims.bias if config.bias_qkv is None else config.bias_qkv
        outs = [
            cls._declare_part(g, name, linear, x, width, bias=bias)
            for name, (linear, width) in config.projections(C).items()
        ]
        shapes = ((B, H, T, D), (B, K, T, D), (B, K, T, E))
        q, k, v = (g.view(out, *s) for out, s in zip(outs * 3 if len(outs) == 1 else outs, shapes, strict=True))
        q, k = (cls._declare_part(g, f"{n}_norm", config.qk_norm, t, dims) for n, t in (("q", q), ("k", k)))
        v = cls._declare_part(g, "v_norm", config.v_norm, v, dims)
        with g.at("position", slot="position", kind=position.kind):
            q, k = (impl(position).declare_rotate(position, g, t) for t in (q, k))
        if config.qk_scale == "learned":
            q = g.pointwise("scale_q", q, g.weight("scale", H), mul=1)
        q, k, v = rounded("q", q), rounded("k", k), rounded("v", v)
        S = T
        widths = {"k": bits_at(config.rounding, "k"), "v": bits_at(config.rounding, "v")}
        if g.run.stage != "train":
            kept = min(T, config.window or T)
            g.move("k_write", g.view(k, B, K, kept, D), "kv", bits=widths["k"])
            g.move("v_write", g.view(v, B, K, kept, E), "kv", bits=widths["v"])
        if g.run.stage == "decode":
            S = min(g.run.S, config.window or g.run.S)
            k = g.cached("k", B, K, S, D, bits=widths["k"])
            v = g.cached("v", B, K, S, E, bits=widths["v"])
        live = B * H * g.run.live_pairs(config.window)
        # Query heads that share a key head form one product, where every key head serves as many.
        size = {"batch": B * K, "m": H // K * T} if H % K == 0 else {"batch": B * H, "m": T}
        scores = g.matmul("qk", q, k, (B, H, T, S), **size, k=D, n=S, live=live, role="intermediate")
        weights = cls._declare_weights(config, g, scores, dims, position, scaled=config.qk_scale == "learned")
        y = g.matmul("av", weights, v, (B, H, T, E), **size, k=S, n=E)
        return cls._declare_output(config, g, y, dims)


def _squared_length(norm: KindConfig, width: int, dims: Dims) -> float:
    """Of what a fresh norm makes of a vector: 1 or `width`, for most."""
    with torch.device("cpu"), torch.random.fork_rng(devices=[]), torch.no_grad():
        signs = 1.0 - 2.0 * (torch.arange(width) % 2)
        return build(norm, width, dims)(signs).square().sum().item() or 1.0


@register("attention", "causal")
class CausalAttention(HeadedAttention):
    """concat_h(weights(q_h k_h^T / sqrt(D)) v_h) W_o; n_kv_head < n_head is GQA (arXiv 2305.13245), 1 is MQA."""

    class Config(HeadedConfig):
        pass

    @classmethod
    def check(cls, config, dims):
        if dims.n_embd % config.n_head:
            yield Problem("n_head", f"n_embd {dims.n_embd} is not a multiple of n_head {config.n_head}")
        yield from super().check(config, dims)
