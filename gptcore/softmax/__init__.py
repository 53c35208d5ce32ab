"""Slot `softmax`: how attention scores become weights.

A kind defines `weights`; one with a fused form also overrides `attend`. Legend: B batch, H query heads, K key/value
heads, T queries, S keys, D head width, E value width.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..config import Dims
from ..masking import CausalMask
from ..ops import Graph
from ..ops import Tensor as OpTensor
from ..registry import KindConfig


class Softmax(nn.Module):
    """Base of every kind. Built for the `heads` of one layer."""

    def __init__(self, config: KindConfig, dims: Dims, heads: int):
        super().__init__()
        self.config: Any = config

    def weights(self, scores_BHTS: Tensor, live_TS: Tensor) -> Tensor:
        """Weights of the shape of the scores, exactly zero where `live_TS` is False."""
        raise NotImplementedError

    def attend(
        self, q_BHTD: Tensor, k_BKSD: Tensor, v_BKSE: Tensor, mask: CausalMask, *, scale: float, dropout: float
    ) -> Tensor:
        """Weighted values (B, H, T, E). Query heads that share a key head are stacked into one product."""
        (B, H, T, D), (_, K, S, _) = q_BHTD.shape, k_BKSD.shape
        q = q_BHTD.reshape(B, K, H // K * T, D)
        scores = (q @ k_BKSD.transpose(-2, -1)).view(B, H, T, S) * scale
        weights = F.dropout(self.weights(scores, mask.live_TS(q.device)), dropout, training=dropout > 0)
        return (weights.view(B, K, H // K * T, S).to(v_BKSE.dtype) @ v_BKSE).view(B, H, T, -1)

    @staticmethod
    def declare(config: KindConfig, g: Graph, scores: OpTensor, heads: int) -> OpTensor:
        """Records scores -> weights, the scaling by 1/sqrt(D) included."""
        raise NotImplementedError


def fused_attention(q, k, v, mask: CausalMask, *, scale: float, dropout: float) -> Tensor:
    """torch's own exact softmax attention; never materialises the scores where the device has such a kernel."""
    live = None if mask.is_triangle or mask.is_full else mask.live_TS(q.device)
    return F.scaled_dot_product_attention(
        q, k, v, attn_mask=live, dropout_p=dropout, is_causal=mask.is_triangle and not mask.is_full, scale=scale,
        enable_gqa=bool(q.shape[1] != k.shape[1]),
    )  # fmt: skip


def masked_exponential(scores: Tensor, live: Tensor) -> Tensor:
    """exp(score - row maximum), zero where masked; rows without any live key are all zero. At least fp32."""
    scores = scores.float() if scores.dtype in (torch.float16, torch.bfloat16) else scores
    scores = scores.masked_fill(~live, float("-inf"))
    highest = scores.amax(dim=-1, keepdim=True)
    return torch.exp(scores - highest.masked_fill(highest == float("-inf"), 0.0))
