"""Learned absolute positions, as in GPT-2."""

import torch
from torch import nn

from ..registry import register
from . import Position


@register("position", "learned", on=("use_abs_pos_embeddings",))
class LearnedPosition(Position):
    """x_t + table[t]."""

    def __init__(self, config, dims, heads):
        super().__init__(config, dims, heads)
        self.weight = nn.Parameter(torch.empty(dims.block_size, dims.n_embd))

    def init_weights(self, std):
        nn.init.normal_(self.weight, std=std)

    def embed(self, x_BTC, start):
        return x_BTC + self.weight[start : start + x_BTC.shape[1]]

    @staticmethod
    def declare_embed(config, g, x, dims):
        B, T, C = x.shape
        index = g.tensor("positions", T, role="index")
        rows = g.gather("rows", g.weight("weight", dims.block_size, C), index, T, C)
        return g.pointwise("add", x, rows, add=1)
