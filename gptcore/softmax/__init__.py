"""Slot `softmax`: how attention scores become weights.

A kind defines `weights`; one with a fused form also overrides `attend`. Legend: B batch, H query heads, K key/value
heads, T queries, S keys, D head width, E value width.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kernels.attention_reference import Weighting
from kernels.elementwise import elementwise_attention
from kernels.extra_term import extra_term_attention

from ..config import Dims, knob
from ..masking import CausalMask
from ..ops import Graph
from ..ops import Tensor as OpTensor
from ..precision import wide
from ..quantize import Points
from ..registry import KindConfig


@dataclass(frozen=True)
class Scoring:
    """From dot products to scores, which of them count, and what happens to the weights.

    score = round(cap(scale q k) + bias), cap(x) = softcap tanh(x / softcap). `points` may round "scores" and "weights".
    """

    mask: CausalMask
    scale: float
    dropout: float = 0.0
    softcap: float | None = None
    bias_HTS: Tensor | None = None
    points: Points | None = None
    slopes_H: Tensor | None = None  # in place of a bias -slope times the distance, where `fused`
    fused: bool = False  # whether the Triton kernels compute it

    @property
    def is_plain(self) -> bool:
        """Nothing between product, bias and weights that a fused form would have to know of."""
        return self.softcap is None and self.points is None

    def scores(self, products_BHTS: Tensor, live_TS: Tensor) -> Tensor:
        scores = products_BHTS * self.scale
        if self.softcap is not None:
            scores = torch.tanh(scores / self.softcap) * self.softcap
        if self.bias_HTS is not None:
            scores = scores + self.bias_HTS
        if self.points is not None and "scores" in self.points:  # masked scores must not widen the range
            scores = self.points("scores", scores.masked_fill(~live_TS, 0.0))
        return scores


class Softmax(nn.Module):
    """Base of every kind. Built for the `heads` of one layer."""

    as_output = False  # whether every live weight is positive, so that it can be a distribution over tokens
    ordered = False  # whether the order of the keys in a row matters

    def __init__(self, config: KindConfig, dims: Dims, heads: int):
        super().__init__()
        self.config: Any = config

    def weights(self, scores_BHTS: Tensor, live_TS: Tensor) -> Tensor:
        """Weights of the shape of the scores, exactly zero where `live_TS` is False."""
        raise NotImplementedError

    def weighting(self) -> Weighting | str:
        """What the attention kernels compute these very weights by, or why they cannot."""
        return f"no kernel weighs like {self.config.kind}"

    def head_constants(self, device: torch.device) -> dict[str, Any]:
        """Constants of that weighting, one a head, by the names that the kernels have for them."""
        return {}

    def attend(self, q_BHTD: Tensor, k_BKSD: Tensor, v_BKSE: Tensor, scoring: Scoring) -> Tensor:
        """Weighted values (B, H, T, E). Query heads that share a key head are stacked into one product."""
        (B, H, T, D), (_, K, S, _) = q_BHTD.shape, k_BKSD.shape
        live = scoring.mask.live_TS(q_BHTD.device)
        q = q_BHTD.reshape(B, K, H // K * T, D)
        scores = scoring.scores((q @ k_BKSD.transpose(-2, -1)).view(B, H, T, S), live)
        weights = self.weights(scores, live)
        if scoring.points is not None:
            weights = scoring.points("weights", weights)
        weights = F.dropout(weights, scoring.dropout, training=scoring.dropout > 0)
        return (weights.view(B, K, H // K * T, S).to(v_BKSE.dtype) @ v_BKSE).view(B, H, T, -1)

    @staticmethod
    def declare(config: KindConfig, g: Graph, scores: OpTensor, heads: int) -> OpTensor:
        """Records scores -> weights; the scores are scaled already."""
        raise NotImplementedError


def fused_attention(q, k, v, scoring: Scoring, temperature: float = 1.0) -> Tensor:
    """torch's own exact softmax attention; never materialises the scores where the device has such a kernel.

    Softmax of `temperature * scores`; `scoring` must be plain.
    """
    mask, bias = scoring.mask, scoring.bias_HTS
    fused_mask = mask.is_triangle and not mask.is_full and bias is None
    live = None if mask.is_triangle or mask.is_full else mask.live_TS(q.device)
    if bias is not None:
        live = mask.live_TS(q.device) if live is None else live
        live = (bias * temperature).masked_fill(~live, float("-inf"))
    return F.scaled_dot_product_attention(
        q, k, v, attn_mask=live, dropout_p=scoring.dropout, is_causal=fused_mask, scale=scoring.scale * temperature,
        enable_gqa=bool(q.shape[1] != k.shape[1]),
    )  # fmt: skip


# Far below any score, and finite: rows without a live key stay free of NaN until they are cleared.
MASKED = -1e30


def live_count(live: Tensor, scores: Tensor) -> Tensor:
    """How many of its keys each query sees, at least 1: (T, 1), in the type of the scores."""
    seen = live.expand(*live.shape[:-1], scores.shape[-1]).sum(-1, keepdim=True)
    return seen.clamp_min(1).to(scores.dtype)


class Standalone(Softmax):
    """Base of the kinds without any row statistic. Those that the kernels' family knows run in closed form."""

    def attend(self, q_BHTD, k_BKSD, v_BKSE, scoring) -> Tensor:
        weighting = self.weighting()
        if isinstance(weighting, str) or scoring.dropout > 0 or not scoring.is_plain:
            return super().attend(q_BHTD, k_BKSD, v_BKSE, scoring)
        return elementwise_attention(
            q_BHTD, k_BKSD, v_BKSE, weighting, scoring.scale, window=scoring.mask.window, bias_HTS=scoring.bias_HTS,
            **self.head_constants(q_BHTD.device),
        )  # fmt: skip


class ElementwiseConfig(KindConfig):
    """Knobs of every kind whose weights stand alone; each adds its own `divisor`."""

    div_by_seq_len: bool = knob(True, "also divide by the number of keys that the query sees (arXiv 2309.08586)")


class Elementwise(Standalone):
    """Base of the curves: weight = curve(score) / divisor, and by the keys in sight if asked.

    The defaults of a kind make curve(0) / divisor about 1: scores of a fresh model are near 0 (0.02 normal weights
    behind a norm), so rows start with a sum of about 1, as those of softmax do.
    """

    def curve(self, scores_BHTS: Tensor) -> Tensor:
        raise NotImplementedError

    def weights(self, scores_BHTS, live_TS):
        # A masked score is cleared before the curve: whatever it was, neither value nor gradient can overflow.
        scores = wide(scores_BHTS).masked_fill(~live_TS, 0.0)
        share = live_TS.to(scores.dtype) / self.config.divisor
        return self.curve(scores) * (share / live_count(live_TS, scores) if self.config.div_by_seq_len else share)

    def standalone(self, kind: str, **settings: Any) -> Weighting:
        """The weighting of a curve that the kernels know."""
        return Weighting(kind, divisor=self.config.divisor, by_keys=self.config.div_by_seq_len, **settings)

    @staticmethod
    def per_element(config: KindConfig) -> Mapping[str, int]:
        """Primitive operations of the curve for one score."""
        raise NotImplementedError

    @classmethod
    def declare(cls, config: Any, g: Graph, scores: OpTensor, heads: int) -> OpTensor:
        counts: dict[str, Any] = dict(cls.per_element(config))
        if config.div_by_seq_len or config.divisor != 1:  # one factor a row, known beforehand
            counts["mul"] = counts.get("mul", 0) + 1
        return g.pointwise("curve", scores, role="intermediate", **counts)


class NormalisedConfig(KindConfig):
    """Knobs of the kinds that divide by a sum over the row."""

    lobo: Literal["none", "fixed", "learned"] = knob("none", "an extra term exp(b) in the sum: rows may sum to less")
    lobo_per: Literal["head", "layer"] = knob("head", "one learned b per head or per layer")
    lobo_init: float = knob(0.0, "b, or its first value", flat=("lobo_init", "flash_lobo_log_const"))


class Normalised(Softmax):
    """Base of the kinds exp(s) / sum exp(s), s some function of the score.

    With `lobo` the sum has one more term exp(b), as if each row had another key with score b and value 0: a head can
    look at nothing (b = 0: Miller, "Attention is off by one", 2023; learned: sinks of gpt-oss, arXiv 2508.10925).
    """

    as_output = True

    def __init__(self, config, dims, heads):
        super().__init__(config, dims, heads)
        self.heads = heads
        if config.lobo == "learned":
            self.lobo = nn.Parameter(torch.full((heads if config.lobo_per == "head" else 1,), config.lobo_init))

    def head_constants(self, device):
        if self.config.lobo == "none":
            return {}
        fixed = self.config.lobo == "fixed"
        b = torch.full((1,), self.config.lobo_init, dtype=torch.float64, device=device) if fixed else self.lobo
        return {"lobo_H": b.expand(self.heads)}

    def attend_exactly(self, q_BHTD, k_BKSD, v_BKSE, scoring: Scoring, temperature: float = 1.0) -> Tensor:
        """Softmax of `temperature * scores`, with its extra term if any, by torch's own kernels if they can."""
        if scoring.is_plain and self.config.lobo == "none":
            return fused_attention(q_BHTD, k_BKSD, v_BKSE, scoring, temperature)
        q, bare = q_BHTD, scoring.bias_HTS is None and not scoring.dropout and scoring.is_plain
        equal = q.shape[-1] == v_BKSE.shape[-1] and q.dtype == v_BKSE.dtype and scoring.mask.is_triangle
        here = q.device.type == "cpu" and not torch.is_autocast_enabled("cpu") and not torch.jit.is_tracing()
        if not (bare and equal and here):
            return Softmax.attend(self, q, k_BKSD, v_BKSE, scoring)
        b_H = self.head_constants(q.device)["lobo_H"]
        return extra_term_attention(q, k_BKSD, v_BKSE, b_H, scoring.scale * temperature)

    def log_extra(self, scores: Tensor) -> Tensor | None:
        """b by head (H or 1, 1, 1); None without the extra term."""
        if self.config.lobo == "none":
            return None
        fixed = self.config.lobo == "fixed"
        b = scores.new_full((1,), self.config.lobo_init) if fixed else self.lobo.to(scores.dtype)
        return b.view(-1, 1, 1)

    def normalise(self, scores: Tensor, live: Tensor) -> Tensor:
        """exp(score) / (sum exp(score) + exp(b)) over the live keys; zeros where there are none."""
        scores = wide(scores).masked_fill(~live, MASKED)
        b = self.log_extra(scores)
        if b is None:
            return torch.softmax(scores, dim=-1).masked_fill(~live, 0.0)
        column = b.expand(*scores.shape[:-1], 1)
        return torch.softmax(torch.cat([scores, column], dim=-1), dim=-1)[..., :-1]

    @staticmethod
    def declare_lobo(config: Any, g: Graph, total: OpTensor, heads: int) -> OpTensor:
        """Records the sum with its extra term."""
        if config.lobo == "none":
            return total
        learned = (g.weight("lobo", heads if config.lobo_per == "head" else 1),) if config.lobo == "learned" else ()
        return g.pointwise("lobo", total, *learned, role="intermediate", add=2, exp=1)
