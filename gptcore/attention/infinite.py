"""Attention whose head widths are free of the model width: "infinite" heads, in number and in size."""

from typing import Literal

from ..config import knob
from ..registry import Problem, build, impl, register
from .causal import HeadedAttention, HeadedConfig


@register("attention", "infinite")
class InfiniteAttention(HeadedAttention):
    """concat_h(weights(q_h k_h^T / sqrt(D)) v_h) W_o with D, E of any size; or sums of heads, projected and added."""

    class Config(HeadedConfig):
        n_qk_head_dim: int = knob(64, "width of query and key heads", ge=1)
        n_v_head_dim: int = knob(64, "width of value heads", ge=1)
        join: Literal["concat", "sum"] = knob(
            "concat", "one projection of all heads side by side, or n_cproj projections of sums of heads", flat=(),
            switch={"use_concat_heads": "concat"},
        )  # fmt: skip
        n_cproj: int = knob(1, "projections when heads are summed, each of n_head / n_cproj heads", ge=1)

        def qk_width(self, n_embd: int) -> int:
            return self.n_qk_head_dim

        def v_width(self, n_embd: int) -> int:
            return self.n_v_head_dim

    residual = ("c_proj",)

    @classmethod
    def check(cls, config, dims):
        yield from super().check(config, dims)
        if config.n_head % config.n_cproj:
            yield Problem("n_cproj", f"n_head {config.n_head} is not a multiple of n_cproj {config.n_cproj}")
        if config.join == "concat" and config.n_cproj > 1:
            yield Problem("n_cproj", "n_cproj counts projections of summed heads: say join: sum")

    def _build_projection(self, dims, bias):
        # Several projections that are added are one projection of their inputs side by side.
        width = (self.H if self.config.join == "concat" else self.config.n_cproj) * self.E
        self.c_proj = build(self.config.linear_proj or self.config.linear, width, dims.n_embd, bias=bias)

    def _project(self, y_BHTE):
        if self.config.join == "concat":
            return super()._project(y_BHTE)
        B, H, T, E = y_BHTE.shape
        groups = self.config.n_cproj
        summed = y_BHTE.view(B, groups, H // groups, T, E).sum(2)
        return self.c_proj(summed.transpose(1, 2).reshape(B, T, groups * E))

    @staticmethod
    def _declare_projection(config, g, y, C, bias):
        B, H, T, E = y.shape
        groups = H if config.join == "concat" else config.n_cproj
        if config.join == "sum" and groups < H:
            y = g.pointwise("sum_heads", y, add=1)
        linear = config.linear_proj or config.linear
        with g.at("c_proj", slot="linear", kind=linear.kind):
            return impl(linear).declare(linear, g, g.view(y, B, T, groups * E), C, bias=bias)
