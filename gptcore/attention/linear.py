"""Linear attention (arXiv 2006.16236): the exponential of softmax replaced by a product of positive features.

Training multiplies the masked T x T products, as short blocks like it best; a decode step reads and updates two sums,
however long the context is.
"""

from typing import Literal

import torch
import torch.nn.functional as F

from ..cache import StateCache
from ..config import Dims, knob
from ..ops import Graph
from ..ops import Tensor as OpTensor
from ..registry import KindConfig, Problem, build, impl, register, slot
from ..softmax import wide
from . import Attention


@register("attention", "linear")
class LinearAttention(Attention):
    """y_t = sum_{s<=t} (phi(q_t) phi(k_s)) v_s / sum_{s<=t} phi(q_t) phi(k_s), by head; joined by W_o."""

    residual = ("c_proj",)

    class Config(KindConfig):
        n_head: int = knob(6, "heads", ge=1)
        qk_width: int | None = knob(None, "width of a query and key; null: n_embd // n_head", flat=(), ge=1)
        v_width: int | None = knob(None, "width of a value; null: n_embd // n_head", flat=(), ge=1)
        feature: Literal["elu_plus_one", "rectified", "softmax"] = knob(
            "elu_plus_one", "phi: elu(x) + 1, max(x, 0), or exp(x) over its sum in the head", flat=()
        )
        eps: float = knob(1e-6, "added to the sum over the keys", flat=(), gt=0)
        linear: KindConfig = slot("linear", "linear", flat=("linear_variant_attn",))

        def widths(self, n_embd: int) -> tuple[int, int]:
            """Of a query or key, and of a value."""
            return self.qk_width or n_embd // self.n_head, self.v_width or n_embd // self.n_head

    @staticmethod
    def check(config, dims):
        if not all(config.widths(dims.n_embd)):
            yield Problem("n_head", f"n_head {config.n_head} exceeds n_embd {dims.n_embd}: say qk_width and v_width")

    def __init__(self, config, dims: Dims):
        super().__init__(config, dims)
        self.H, (self.D, self.E) = config.n_head, config.widths(dims.n_embd)
        self.c_attn = build(config.linear, dims.n_embd, self.H * (2 * self.D + self.E), bias=dims.bias)
        self.c_proj = build(config.linear, self.H * self.E, dims.n_embd, bias=dims.bias)

    def features(self, x):
        x = wide(x)
        if self.config.feature == "softmax":
            return torch.softmax(x, dim=-1)
        positive = F.relu(x)
        return positive + x.clamp(max=0).exp() if self.config.feature == "elu_plus_one" else positive

    def forward(self, x_BTC, position, start, cache=None):
        B, T, _ = x_BTC.shape
        H, D, E = self.H, self.D, self.E
        qk, v = self.c_attn(x_BTC).split([2 * H * D, H * E], dim=-1)
        q, k = self.features(qk.view(B, T, 2 * H, D)).transpose(1, 2).split(H, dim=1)
        v = v.view(B, T, H, E).transpose(1, 2)
        q = q / D  # a constant factor of both sums: fp16 holds a mean, no sum
        if cache is None:
            y, total = self._parallel(q.to(v.dtype), k.to(v.dtype), v)
        else:
            y, total = self._continue(q, k, wide(v), cache)
        y = (y / (total + self.config.eps)).to(x_BTC.dtype)
        return self.c_proj(y.transpose(1, 2).reshape(B, T, H * E))

    @staticmethod
    def _parallel(q_BHTD, k_BHTD, v_BHTE):
        """Both sums over the tokens of this piece."""
        products = (q_BHTD @ k_BHTD.transpose(-2, -1)).tril()
        return products @ v_BHTE, wide(products).sum(-1, keepdim=True)

    def _continue(self, q_BHTD, k_BHTD, v_BHTE, cache: StateCache):
        """Both sums over everything seen."""
        state, keys = (wide(t) for t in cache.tensors())
        later, later_keys = state + k_BHTD.transpose(-2, -1) @ v_BHTE, keys + k_BHTD.sum(2)
        if q_BHTD.shape[2] == 1:
            y, total = q_BHTD @ later, (q_BHTD * later_keys.unsqueeze(2)).sum(-1, keepdim=True)
        else:
            y, total = self._parallel(q_BHTD, k_BHTD, v_BHTE)
            y, total = y + q_BHTD @ state, total + (q_BHTD * keys.unsqueeze(2)).sum(-1, keepdim=True)
        cache.update(later, later_keys)
        return y, total

    def new_cache(self, batch, length, dtype, device):
        return StateCache([(batch, self.H, self.D, self.E), (batch, self.H, self.D)], dtype, device)

    @staticmethod
    def declare_features(config, g: Graph, name: str, x: OpTensor) -> OpTensor:
        if config.feature == "rectified":
            return g.pointwise(name, x, max=1)
        if config.feature == "elu_plus_one":
            return g.pointwise(name, x, compare=1, exp=1, add=1)
        e = g.pointwise(name + "_exp", x, g.reduce(name + "_max", x, max=1), role="intermediate", add=1, exp=1)
        return g.pointwise(name, e, g.reduce(name + "_sum", e, add=1), div=1)

    @classmethod
    def declare(cls, config, g, x, dims, position):
        B, T, C = x.shape
        H, (D, E) = config.n_head, config.widths(C)
        with g.at("c_attn", slot="linear", kind=config.linear.kind):
            qkv = impl(config.linear).declare(config.linear, g, x, H * (2 * D + E), bias=dims.bias)
        q, k, v = (g.view(t, B, H, T, t.shape[-1] // H) for t in g.split(qkv, H * D, H * D, H * E))
        q, k = cls.declare_features(config, g, "phi_q", q), cls.declare_features(config, g, "phi_k", k)
        q = g.pointwise("scale", q, mul=1)
        if g.run.stage == "decode":
            state, keys = g.cached("state", B, H, D, E), g.cached("keys", B, H, D)
            outer = g.matmul("kv", k, v, (B, H, D, E), batch=B * H, m=D, k=T, n=E, role="intermediate")
            state = g.pointwise("add_state", outer, state, role="intermediate", add=1)
            keys = g.pointwise("add_keys", g.view(k, B, H, D), keys, role="intermediate", add=1)
            total = g.reduce("sum", g.pointwise("q_keys", q, keys, role="intermediate", mul=1), add=1)
            y = g.matmul("q_state", q, state, (B, H, T, E), batch=B * H, m=T, k=D, n=E)
        else:
            live = B * H * g.run.live_pairs()
            products = g.matmul("qk", q, k, (B, H, T, T), batch=B * H, m=T, k=D, n=T, live=live, role="intermediate")
            total = g.reduce("sum", products, add=1)
            y = g.matmul("av", products, v, (B, H, T, E), batch=B * H, m=T, k=T, n=E)
            state = g.tensor("state", B, H, D, E, role="intermediate")
            keys = g.tensor("keys", B, H, D, role="intermediate")
        if g.run.stage != "train":
            g.move("state_write", state, "kv")
            g.move("keys_write", keys, "kv")
        total = g.pointwise("recip", total, role="intermediate", add=1, recip=1)
        y = g.pointwise("normalise", y, total, mul=1)
        with g.at("c_proj", slot="linear", kind=config.linear.kind):
            return impl(config.linear).declare(config.linear, g, g.view(y, B, T, H * E), C, bias=dims.bias)
