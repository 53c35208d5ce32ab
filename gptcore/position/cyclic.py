"""Learned absolute positions that start anew after every period, so that a table serves any context."""

import torch
import torch.nn.functional as F
from torch import nn

from ..config import knob
from ..registry import KindConfig, register
from . import Position


@register("position", "cyclic")
class CyclicPosition(Position):
    """x_t + table[t mod n]."""

    class Config(KindConfig):
        cycle: int = knob(64, "n, rows of the table", flat=("position_cycle",), ge=1)

    def __init__(self, config, dims, heads):
        super().__init__(config, dims, heads)
        self.weight = nn.Parameter(torch.empty(config.cycle, dims.n_embd))

    def init_weights(self, std):
        nn.init.normal_(self.weight, std=std)

    def embed(self, x_BTC, start):
        position = torch.arange(start, start + x_BTC.shape[1], device=x_BTC.device)
        return x_BTC + F.embedding(position % self.config.cycle, self.weight)

    @staticmethod
    def declare_embed(config, g, x, dims):
        B, T, C = x.shape
        index = g.tensor("positions", T, role="index")
        rows = g.gather("rows", g.weight("weight", config.cycle, C), index, T, C)
        return g.pointwise("add", x, rows, add=1)
