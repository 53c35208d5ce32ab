"""Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434, section 2.1; V3, arXiv 2412.19437).

Keys and values of all heads come from one narrow latent. It cannot be turned by position, so a query and key have a
second part that is: its key is computed from the token and shared by the heads. Only the latent and the shared key are
kept. A decode step never forms keys or values: with W_uk on the side of the query and W_uv behind the weighted sum,
it is attention over one key head, the latents themselves.

Legend, beside that of the slot: L width of the latent, N of a query and key head without position, R of its part with
position, E of a value head.
"""

import math
from typing import Any, NamedTuple

import torch

from ..cache import RowCache
from ..config import Dims, Heads, knob
from ..linear.linear import Dense
from ..quantize import bits_at, declare_point
from ..registry import KindConfig, Problem, build, impl, register, slot
from ..softmax import Softmax
from .scored import ScoredAttention, ScoredConfig

Plain: Any = Dense  # of the up projections, which a decode step multiplies by from the other side


class Widths(NamedTuple):
    """What the null widths of a configuration come to; `Q` is the width of what queries are computed from or are."""

    L: int
    N: int
    R: int
    E: int
    Q: int


@register("attention", "mla")
class LatentAttention(ScoredAttention):
    """concat_h(weights(q_h k_h^T / sqrt(N+R)) v_h) W_o, k_h = [c W_uk_h, rot(x W_kr)], v_h = c W_uv_h, c = norm(x W_c).

    Rounding points: `k` is the shared part of the keys and `v` the latent, which is what is cached. `linear` does not
    apply to W_uk and W_uv.
    """

    class Config(ScoredConfig):
        kv_latent: int | None = knob(
            None, "width of the latent of keys and values; null: n_embd // 4", flat=("mla_latent_dim",), ge=1
        )
        q_latent: int | None = knob(None, "width of a latent of the queries; null: none", flat=(), ge=1)
        rope_width: int | None = knob(
            None, "width of the part of queries and keys that position turns; null: half of nope_width, even",
            flat=("mla_rotary_dim",), ge=1,
        )  # fmt: skip
        nope_width: int | None = knob(
            None, "width of a query and key head without that part; null: n_embd // n_head", flat=(), ge=1
        )
        v_width: int | None = knob(None, "width of a value head; null: n_embd // n_head", flat=(), ge=1)
        latent_norm: KindConfig = slot("norm", "rmsnorm")

        def widths(self, n_embd: int) -> Widths:
            N = self.nope_width or n_embd // self.n_head
            R = self.rope_width or max(2, N // 4 * 2)
            L, E = self.kv_latent or max(1, n_embd // 4), self.v_width or n_embd // self.n_head
            return Widths(L, N, R, E, self.q_latent or self.n_head * (N + R))

        def absorbs(self, n_embd: int, T: int, S: int) -> bool:
            """Whether T tokens after others take fewer products over the S latents than over keys and values.

            One token does; a long piece would rather form what it uses often. A prompt always forms them.
            """
            L, N, _, E, _ = self.widths(n_embd)
            return bool(S > T) and bool(T * L * (N + E) + T * S * 2 * L < S * L * (N + E) + T * S * (N + E))

    @classmethod
    def check(cls, config, dims):
        _, N, _, E, _ = config.widths(dims.n_embd)
        if not (N and E):
            yield Problem("n_head", f"n_head {config.n_head} exceeds n_embd {dims.n_embd}: say nope_width and v_width")

    def __init__(self, config, dims: Dims):
        super().__init__(config, dims)
        self.n_embd = dims.n_embd
        self.L, self.N, self.R, self.E, self.Q = config.widths(dims.n_embd)
        # All that is computed from the token in one product: queries (or their latent), latent, shared key.
        self.c_attn = build(config.linear, dims.n_embd, self.Q + self.L + self.R, bias=self.bias_qkv)
        if config.q_latent is not None:
            self.q_norm = build(config.latent_norm, self.Q, dims)
            self.q_up = build(config.linear, self.Q, self.H * (self.N + self.R), bias=False)
        self.kv_norm = build(config.latent_norm, self.L, dims)
        self.kv_up = Plain(None, self.L, self.H * (self.N + self.E), bias=False)  # W_uk of all heads, then W_uv
        self._build_rest(dims)

    def forward(self, x_BTC, position, start, cache=None):
        points = self.points
        B, T, _ = x_BTC.shape
        q, latent_BTL, shared_BTR = self.c_attn(points("input", x_BTC)).split([self.Q, self.L, self.R], dim=-1)
        if self.config.q_latent is not None:
            q = self.q_up(self.q_norm(q))
        nope_BHTN, rope_BHTR = q.view(B, T, self.H, -1).transpose(1, 2).split([self.N, self.R], dim=-1)
        rope_BHTR, shared_B1TR = position.rotate(rope_BHTR, shared_BTR.unsqueeze(1), start)
        q_BHTD = points("q", torch.cat([nope_BHTN, rope_BHTR], dim=-1))
        latent_B1TL = points("v", self.kv_norm(latent_BTL)).unsqueeze(1)
        rows = torch.cat([latent_B1TL, points("k", shared_B1TR)], dim=-1)
        if cache is not None:
            (rows,) = cache.extend(rows, ordered=position.has_bias or self.softmax.ordered)
        S = rows.shape[2]
        scoring = self._scoring(q_BHTD, S, 1 / math.sqrt(self.N + self.R), position, start)
        attend = self._over_latents if self.config.absorbs(self.n_embd, T, S) else self._over_heads
        return self._output(attend(q_BHTD, rows, scoring))

    def head_width(self, T, S):
        return self.L + self.R if self.config.absorbs(self.n_embd, T, S) else max(self.N + self.R, self.E)

    def _over_heads(self, q_BHTD, rows_B1SW, scoring):
        """Weighted values, the keys and values of every head formed from the latents."""
        B, _, S, _ = rows_B1SW.shape
        latent_BSL, shared_BSR = rows_B1SW.squeeze(1).split([self.L, self.R], dim=-1)
        k, v = self.kv_up(latent_BSL).split([self.H * self.N, self.H * self.E], dim=-1)
        shared_BSHR = shared_BSR.unsqueeze(2).expand(B, S, self.H, self.R)
        k_BHSD = torch.cat([k.view(B, S, self.H, self.N), shared_BSHR], dim=-1).transpose(1, 2)
        v_BHSE = v.view(B, S, self.H, self.E).transpose(1, 2)
        return self._attend(q_BHTD, k_BHSD, v_BHSE, scoring)

    def _over_latents(self, q_BHTD, rows_B1SW, scoring):
        """The same over one key head: (q W_uk) c = q (W_uk c), and the sum of W_uv c is W_uv times the sum of c."""
        uk_NL, uv_EL = self.kv_up.weight.split([self.H * self.N, self.H * self.E])
        nope_BHTN, rope_BHTR = q_BHTD.split([self.N, self.R], dim=-1)
        nope_BHTL = self._by_head(nope_BHTN, uk_NL.view(self.H, self.N, self.L))
        q_BHTW = torch.cat([nope_BHTL, rope_BHTR], dim=-1)
        # The explicit form stacks the heads, and so do the kernels; torch's fused one would repeat the rows for each.
        values_B1SL = rows_B1SW[..., : self.L]
        if scoring.fused:
            y_BHTL = self._attend(q_BHTW, rows_B1SW, values_B1SL, scoring)
        else:
            y_BHTL = Softmax.attend(self.softmax, q_BHTW, rows_B1SW, values_B1SL, scoring)
        return self._by_head(y_BHTL, uv_EL.view(self.H, self.E, self.L).transpose(1, 2))

    @staticmethod
    def _by_head(x_BHTi, weight_Hio):
        """A product for each head, all sequences at once, so that no weight is copied."""
        B, H, T, _ = x_BHTi.shape
        out = x_BHTi.transpose(0, 1).reshape(H, B * T, -1) @ weight_Hio
        return out.view(H, B, T, -1).transpose(0, 1)

    @staticmethod
    def heads(config, dims):
        return Heads(config.n_head, config.widths(dims.n_embd).R)

    def new_cache(self, batch, length, dtype, device):
        capacity = min(length, self.config.window or length)
        return RowCache(batch, 1, capacity, [self.L + self.R], dtype, device)

    @classmethod
    def declare(cls, config, g, x, dims, position):
        B, T, C = x.shape
        H, (L, N, R, E, Q) = config.n_head, config.widths(C)

        def rounded(name, t):
            return declare_point(config.rounding, dims.rounding, g, name, t)

        bias = dims.bias if config.bias_qkv is None else config.bias_qkv
        joint = cls._declare_part(g, "c_attn", config.linear, rounded("input", x), Q + L + R, bias=bias)
        q, latent, shared = g.split(joint, Q, L, R)
        if config.q_latent is not None:
            q = cls._declare_part(g, "q_norm", config.latent_norm, q, dims)
            q = cls._declare_part(g, "q_up", config.linear, q, H * (N + R), bias=False)
        nope, rope = g.split(g.view(q, B, H, T, N + R), N, R)
        with g.at("position", slot="position", kind=position.kind):
            rope, shared = (impl(position).declare_rotate(position, g, t) for t in (rope, g.view(shared, B, 1, T, R)))
        if bits_at(config.rounding, "q"):
            nope, rope = g.split(rounded("q", g.tensor("q", B, H, T, N + R)), N, R)  # the two parts side by side
        latent = g.view(cls._declare_part(g, "kv_norm", config.latent_norm, latent, dims), B, 1, T, L)
        latent, shared = rounded("v", latent), rounded("k", shared)
        S = T
        widths = {"latent": bits_at(config.rounding, "v"), "shared": bits_at(config.rounding, "k")}
        if g.run.stage != "train":
            kept = min(T, config.window or T)
            g.move("latent_write", g.view(latent, B, 1, kept, L), "kv", bits=widths["latent"])
            g.move("shared_write", g.view(shared, B, 1, kept, R), "kv", bits=widths["shared"])
        if g.run.stage == "decode":
            S = min(g.run.S, config.window or g.run.S)
            latent = g.cached("latent", B, 1, S, L, bits=widths["latent"])
            shared = g.cached("shared", B, 1, S, R, bits=widths["shared"])
        live = {"live": B * H * g.run.live_pairs(config.window), "role": "intermediate"}

        def weigh(products):
            size = {"batch": B, "m": H * T, "k": R, "n": S}  # one key for all heads
            turned = g.matmul("qk_shared", rope, shared, (B, H, T, S), **size, **live)
            products = g.pointwise("qk_sum", products, turned, role="intermediate", add=1)
            return cls._declare_weights(config, g, products, dims, position, scaled=False)

        attend = cls._declare_over_latents if config.absorbs(C, T, S) else cls._declare_over_heads
        return cls._declare_output(config, g, attend(g, nope, latent, E, live, weigh), dims)

    @staticmethod
    def _declare_over_heads(g, nope, latent, E, live, weigh):
        B, H, T, N = nope.shape
        S, L = latent.shape[2:]
        with g.at("kv_up", slot=Plain.slot, kind=Plain.kind):
            up = Plain.declare(None, g, g.view(latent, B, S, L), H * (N + E), bias=False)
        k, v = g.view(up, B, H, S, N), g.view(up, B, H, S, E)
        weights = weigh(g.matmul("qk", nope, k, (B, H, T, S), batch=B * H, m=T, k=N, n=S, **live))
        return g.matmul("av", weights, v, (B, H, T, E), batch=B * H, m=T, k=S, n=E)

    @staticmethod
    def _declare_over_latents(g, nope, latent, E, live, weigh):
        B, H, T, N = nope.shape
        S, L = latent.shape[2:]
        with g.at("kv_up", slot=Plain.slot, kind=Plain.kind):
            up = g.weight("weight", H * (N + E), L)
            q = g.matmul("of_query", nope, g.view(up, H * N, L), (B, H, T, L), batch=H, m=B * T, k=N, n=L)
        weights = weigh(g.matmul("qk", q, latent, (B, H, T, S), batch=B, m=H * T, k=L, n=S, **live))
        y = g.matmul("av", weights, latent, (B, H, T, L), batch=B, m=H * T, k=S, n=L)
        with g.at("kv_up", slot=Plain.slot, kind=Plain.kind):
            return g.matmul("of_values", y, g.view(up, H * E, L), (B, H, T, E), batch=H, m=B * T, k=L, n=E)
