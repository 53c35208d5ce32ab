"""What every attention with scores does once queries, keys and values exist: weights, weighted values, projection."""

from typing import Any

import torch
from pydantic import Field

from kernels.attention_reference import Weighting

from .. import kernel_choice
from ..config import Dims, knob
from ..masking import CausalMask
from ..ops import Graph
from ..ops import Tensor as OpTensor
from ..position import Position
from ..quantize import Points, declare_point
from ..registry import KindConfig, Strict, build, impl, slot
from ..softmax import Scoring
from . import Attention


class AttentionBits(Strict):
    """Bits at every place of attention where hardware would round; null: not rounded."""

    every: int | None = knob(None, "all places that say nothing", flat=("quantize_attn_act_bits",), ge=2, le=16)
    input: int | None = knob(None, "what attention reads", flat=("quantize_attn_act_input_bits",), ge=2, le=16)
    q: int | None = knob(None, "queries", flat=("quantize_attn_act_qk_mult_q_input_bits",), ge=2, le=16)
    k: int | None = knob(
        None, "keys, as they are cached", flat=("quantize_attn_act_qk_mult_k_input_bits",), ge=2, le=16
    )
    scores: int | None = knob(None, "what softmax reads", flat=("quantize_attn_act_softmax_input_bits",), ge=2, le=16)
    weights: int | None = knob(
        None, "what softmax writes", flat=("quantize_attn_act_pv_mult_p_input_bits",), ge=2, le=16
    )
    v: int | None = knob(
        None, "values, as they are cached", flat=("quantize_attn_act_pv_mult_v_input_bits",), ge=2, le=16
    )
    heads: int | None = knob(None, "weighted values", flat=("quantize_attn_act_pv_mult_output_bits",), ge=2, le=16)
    output: int | None = knob(None, "what attention writes", flat=("quantize_attn_act_output_bits",), ge=2, le=16)


class ScoredConfig(KindConfig):
    """Knobs of every attention that has scores."""

    n_head: int = knob(6, "query heads", ge=1)
    window: int | None = knob(None, "see the last so many tokens; null: all", flat=("window_size",), ge=1)
    softmax: KindConfig = slot("softmax", "softmax", flat=("softmax_variant_attn",))
    linear: KindConfig = slot("linear", "linear", flat=("linear_variant_attn",))
    linear_proj: KindConfig | None = slot("linear", None, flat=("linear_variant_attn_proj",))
    bias_qkv: bool | None = knob(None, "biases of queries, keys and values; null: model.bias", flat=())
    bias_proj: bool | None = knob(None, "bias of the projection; null: model.bias", flat=())
    softcap: float | None = knob(
        None, "scores stay within +- this by tanh (Gemma 2, arXiv 2408.00118)", flat=("attn_logit_softcapping",), gt=0
    )
    rounding: AttentionBits = Field(default_factory=AttentionBits)


class ScoredAttention(Attention):
    """Weighted values of H heads of width E, side by side, projected. What is weighted is up to the kind."""

    residual: tuple[str, ...] = ("c_proj",)
    takes_bias = True
    E: int

    def __init__(self, config, dims: Dims):
        super().__init__(config, dims)
        self.H = config.n_head
        self.dropout = dims.dropout
        self.bias_qkv = dims.bias if config.bias_qkv is None else config.bias_qkv

    def _build_rest(self, dims: Dims) -> None:
        """Everything after queries, keys and values; last, because initial weights are drawn in the order built."""
        self.softmax: Any = build(self.config.softmax, dims, self.H)
        self.weighting: Weighting | str = self.softmax.weighting()
        self.points = Points(self.config.rounding, dims.rounding)
        self._build_projection(dims, dims.bias if self.config.bias_proj is None else self.config.bias_proj)

    def _build_projection(self, dims: Dims, bias: bool) -> None:
        config = self.config
        self.c_proj = build(config.linear_proj or config.linear, self.H * self.E, dims.n_embd, bias=bias)

    def _project(self, y_BHTE):
        B, _, T, _ = y_BHTE.shape
        return self.c_proj(y_BHTE.transpose(1, 2).reshape(B, T, self.H * self.E))

    def head_width(self, T: int, S: int) -> int:
        """The wider of a key and a value head, as T queries and S keys are multiplied."""
        raise NotImplementedError

    def kernel_obstacle(self, dropout=0.0, T=1, S=1):
        width = self.head_width(T, S)
        if isinstance(self.weighting, str):
            return self.weighting
        if self._rounds:
            return "no kernel rounds scores or weights"
        if dropout:
            return f"no kernel drops weights (dropout {dropout})"
        if width > kernel_choice.WIDEST:
            return f"no kernel has heads wider than {kernel_choice.WIDEST}, but these have {width}"
        return None

    @property
    def _rounds(self) -> bool:
        return "scores" in self.points or "weights" in self.points

    def _scoring(self, q_BHTD: torch.Tensor, S: int, scale: float, position: Position, start: int) -> Scoring:
        """How the queries, the last T of S tokens, score those they see, and whether a kernel does it."""
        T, dropout = q_BHTD.shape[2], self.dropout if self.training else 0.0
        bias = slopes = None
        fused = self._is_fused(q_BHTD, S, dropout)
        if position.has_bias:
            slopes = position.slopes(self.H) if fused else None
            bias = position.bias(self.H, T, S, start, q_BHTD) if slopes is None else None
        return Scoring(
            CausalMask(T, S, self.config.window), scale, dropout, self.config.softcap, bias,
            self.points if self._rounds else None, slopes, fused,
        )  # fmt: skip

    def _is_fused(self, q_BHTD: torch.Tensor, S: int, dropout: float) -> bool:
        device = q_BHTD.device
        if self.kernel == "reference" or (self.kernel == "auto" and device.type != "cuda"):
            return False  # what `choose` says, without its price in every step on a CPU
        obstacle = self.kernel_obstacle(dropout, q_BHTD.shape[2], S)
        return kernel_choice.choose(self.kernel, device, kernel_choice.working_type(q_BHTD), obstacle).path == "triton"

    def _attend(self, q_BHTD, k_BKSD, v_BKSE, scoring: Scoring):
        """Weighted values (B, H, T, E)."""
        if scoring.fused:
            assert isinstance(self.weighting, Weighting)
            constants = self.softmax.head_constants(q_BHTD.device)
            return kernel_choice.attend(self.weighting, constants, q_BHTD, k_BKSD, v_BKSE, scoring)
        return self.softmax.attend(q_BHTD, k_BKSD, v_BKSE, scoring)

    def _output(self, y_BHTE):
        """Weighted values -> what the residual stream gets."""
        return self.points("output", self._project(self.points("heads", y_BHTE)))

    @staticmethod
    def _declare_part(g: Graph, name: str, part: Any, x: OpTensor, *args: Any, **kwargs: Any) -> OpTensor:
        """Records what the module `name` of configuration `part`, if there is one, does to `x`."""
        if part is None:
            return x
        with g.at(name, slot=impl(part).slot, kind=part.kind):
            return impl(part).declare(part, g, x, *args, **kwargs)

    @staticmethod
    def _declare_weights(config, g: Graph, scores: OpTensor, dims: Dims, position, *, scaled: bool) -> OpTensor:
        """Records products of queries and keys (B, H, T, S) -> weights; `scaled` when the queries were already."""
        _, H, T, S = scores.shape
        with g.at("position", slot="position", kind=position.kind, root=True):
            bias = impl(position).declare_bias(position, g, H, T, S)
        softmax = {"slot": "softmax", "kind": config.softmax.kind}
        with g.at("softmax", **softmax):
            if not scaled:
                scores = g.pointwise("scale", scores, role="intermediate", mul=1)
            if config.softcap is not None:
                scores = g.pointwise("softcap", scores, role="intermediate", mul=2, tanh=1)
            if bias is not None:
                scores = g.pointwise("bias", scores, bias, role="intermediate", add=1)
        scores = declare_point(config.rounding, dims.rounding, g, "scores", scores)
        with g.at("softmax", **softmax):
            weights = impl(config.softmax).declare(config.softmax, g, scores, H)
        weights = declare_point(config.rounding, dims.rounding, g, "weights", weights)
        if dims.dropout and g.run.stage == "train":
            with g.at("softmax", **softmax):
                weights = g.pointwise("dropout", weights, role="intermediate", compare=1, mul=1)
        return weights

    @classmethod
    def _declare_output(cls, config, g: Graph, y: OpTensor, dims: Dims) -> OpTensor:
        y = declare_point(config.rounding, dims.rounding, g, "heads", y)
        bias = dims.bias if config.bias_proj is None else config.bias_proj
        out = cls._declare_projection(config, g, y, dims.n_embd, bias)
        return declare_point(config.rounding, dims.rounding, g, "output", out)

    @classmethod
    def _declare_projection(cls, config, g: Graph, y: OpTensor, C: int, bias: bool) -> OpTensor:
        B, H, T, E = y.shape
        return cls._declare_part(
            g, "c_proj", config.linear_proj or config.linear, g.view(y, B, T, H * E), C, bias=bias
        )  # fmt: skip
