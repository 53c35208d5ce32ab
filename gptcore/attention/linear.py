"""Linear attention (arXiv 2006.16236): the exponential of softmax replaced by a product of positive features.

Training cuts the sequence in chunks (arXiv 2312.06635, section 4, without its gate): masked products inside a chunk,
sums over all chunks before it between them. A decode step reads and updates two sums, however long the context is.
"""

from typing import Literal

import torch
import torch.nn.functional as F

from ..cache import StateCache
from ..chunks import Chunks, cut, join
from ..config import Dims, knob
from ..ops import Graph
from ..ops import Tensor as OpTensor
from ..precision import wide
from ..registry import KindConfig, Problem, build, impl, register, slot
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
        chunk: int = knob(64, "tokens whose products are taken at once; longer texts pass on sums", flat=(), ge=1)
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
        return positive + (x - positive).exp() if self.config.feature == "elu_plus_one" else positive

    def forward(self, x_BTC, position, start, cache=None):
        B, T, _ = x_BTC.shape
        H, D, E = self.H, self.D, self.E
        qk, v = self.c_attn(x_BTC).split([2 * H * D, H * E], dim=-1)
        q, k = self.features(qk.view(B, T, 2 * H, D)).split(H, dim=2)
        v = v.view(B, T, H, E)
        q = q / D  # a constant factor of both sums: fp16 holds a mean, no sum
        if cache is None:
            y, total = self._parallel(q, k, v)
        else:
            y, total = self._continue(q, k, wide(v), cache)
        y = (y / (total + self.config.eps)).to(x_BTC.dtype)
        return self.c_proj(y.reshape(B, T, H * E))

    def _parallel(self, q_BTHD, k_BTHD, v_BTHE):
        """Both sums over the tokens of this piece."""
        q, k, v = (cut(t.to(v_BTHE.dtype), self.config.chunk).transpose(2, 3) for t in (q_BTHD, k_BTHD, v_BTHE))
        products_BKHLL = (q @ k.mT).tril_()
        y, total = products_BKHLL @ v, wide(products_BKHLL).sum(-1, keepdim=True)
        if y.shape[1] > 1:
            keys, values = k[:, :-1], v[:, :-1]
            sums = torch.cat([wide(keys.mT @ values), wide(keys).sum(3).unsqueeze(-1)], dim=-1)
            before = wide(q[:, 1:]) @ sums.cumsum(1)
            earlier, earlier_total = F.pad(before, (0, 0, 0, 0, 0, 0, 1, 0)).split([v.shape[-1], 1], dim=-1)
            y, total = y + earlier, total + earlier_total
        T = q_BTHD.shape[1]
        return join(y.transpose(2, 3), T), join(total.transpose(2, 3), T)

    def _continue(self, q_BTHD, k_BTHD, v_BTHE, cache: StateCache):
        """Both sums over everything seen."""
        state, keys = (wide(t) for t in cache.tensors())
        q, k, v = (t.transpose(1, 2) for t in (q_BTHD, k_BTHD, v_BTHE))
        later, later_keys = state + k.mT @ v, keys + k.sum(2)
        if q.shape[2] == 1:
            y, total = (q @ later).transpose(1, 2), (q_BTHD * later_keys.unsqueeze(1)).sum(-1, keepdim=True)
        else:
            y, total = self._parallel(q_BTHD, k_BTHD, v_BTHE)
            y = y + (q @ state).transpose(1, 2)
            total = total + (q_BTHD * keys.unsqueeze(1)).sum(-1, keepdim=True)
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
            y, total = cls._declare_chunks(g, Chunks(T, config.chunk), q, k, v)
            state = g.tensor("state", B, H, D, E, role="intermediate")
            keys = g.tensor("keys", B, H, D, role="intermediate")
        if g.run.stage != "train":
            g.move("state_write", state, "kv")
            g.move("keys_write", keys, "kv")
        total = g.pointwise("recip", total, role="intermediate", add=1, recip=1)
        y = g.pointwise("normalise", y, total, mul=1)
        with g.at("c_proj", slot="linear", kind=config.linear.kind):
            return impl(config.linear).declare(config.linear, g, g.view(y, B, T, H * E), C, bias=dims.bias)

    @staticmethod
    def _declare_chunks(g, chunks, q, k, v):
        """Products are of whole chunks; of the last one only `live` elements are needed."""
        (B, H, T, D), E, K, L = q.shape, v.shape[-1], chunks.count, chunks.L
        size = {"batch": B * K * H, "m": L, "live": B * H * chunks.live_pairs, "role": "intermediate"}
        products = g.matmul("qk", q, k, (B, K, H, L, L), **size, k=D, n=L)
        total = g.reduce("sum", products, add=1)
        y = g.matmul("av", products, v, (B, H, T, E), batch=B * K * H, m=L, k=L, n=E)
        if K == 1:
            return y, total
        J = K - 1
        outer = g.matmul("kv", k, v, (B, J, H, D, E), batch=B * J * H, m=D, k=L, n=E, role="intermediate")
        keys = g.reduce("chunk_keys", g.view(k, B, J, H, D, L), add=1)
        states = g.pointwise("add_states", outer, role="intermediate", add=1)
        keys = g.pointwise("add_keys", keys, role="intermediate", add=1)
        states = g.view(states, B, J, H, D, E + 1)  # the sums of keys are its last column
        queries = g.tensor("later_q", B, J, H, L, D, live=B * chunks.later * H * D)
        earlier = g.matmul("q_state", queries, states, (B, J, H, L, E + 1), batch=B * J * H, m=L, k=D, n=E + 1)
        earlier, part = (g.view(t, B, H, chunks.later, E + 1) for t in (earlier, y))
        both = g.pointwise("add_earlier", earlier, part, g.view(total, B, H, chunks.later), add=1)
        return g.view(both, B, H, T, E), g.view(both, B, H, T, 1)
