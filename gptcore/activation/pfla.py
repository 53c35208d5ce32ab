"""Piecewise-linear activation with learned values, and on request learned places of its bends."""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import nn

from ..config import knob
from ..precision import wide
from ..registry import KindConfig, register
from . import Activation
from .tables import check_bounds, linear_table, piecewise_polynomial, table_index, uniform_segments

CROWDING = 8  # learned knots come at most so many times closer than equal ones


@register("activation", "pfla")
class PiecewiseFullyLearned(Activation):
    """Straight lines through learned points, the outermost prolonged; they start on gelu.

    Learned knots are left + (right - left) times the running sum of shares that are softmax(gaps), but for a smallest
    share. So they keep their order, and a grid as fine as that share holds at most one knob a cell: a look-up and one
    comparison find the segment, where a binary search took ten times as long.
    """

    class Config(KindConfig):
        points: int = knob(50, "learned points, bounds included", flat=("pfla_num_points",), ge=2)
        left: float = knob(-10.0, "leftmost point", flat=("pfla_left_bound",))
        right: float = knob(10.0, "rightmost point", flat=("pfla_right_bound",))
        knots: Literal["uniform", "learned"] = knob("uniform", "places of the points", flat=("pfla_knots",))

    @classmethod
    def check(cls, config, dims):
        yield from check_bounds(config)

    def __init__(self, config):
        super().__init__(config)
        self.values = nn.Parameter(F.gelu(torch.linspace(config.left, config.right, config.points)))
        self.gaps = nn.Parameter(torch.zeros(config.points - 1)) if config.knots == "learned" else None

    def forward(self, x):
        x32, config = wide(x), self.config
        values = self.values.to(x32.dtype)
        if self.gaps is None:
            slope = values.diff()
            offset, segment = uniform_segments(x32, config.left, config.right, len(slope))
            return piecewise_polynomial(offset, segment, linear_table(values, slope[:1], slope[-1:])).to(x.dtype)
        knots = self._knots(self.gaps.to(x32.dtype))
        slope = values.diff() / knots.diff()
        table_PS = torch.stack([values[:-1] - slope * knots[:-1], slope])
        return piecewise_polynomial(x32, self._segment(x32, knots), table_PS).to(x.dtype)

    def _knots(self, gaps):
        config = self.config
        share = (1 - 1 / CROWDING) * gaps.softmax(0) + 1 / (CROWDING * len(gaps))
        return config.left + (config.right - config.left) * F.pad(share.cumsum(0), (1, 0))

    @torch.no_grad()
    def _segment(self, x, knots):
        cells = CROWDING * (len(knots) - 1)
        per_unit = cells / (self.config.right - self.config.left)
        starts = self.config.left + torch.arange(cells, dtype=x.dtype, device=x.device) / per_unit
        inner = knots[1:-1].contiguous()
        cell = table_index((x - self.config.left) * per_unit, cells)
        segment = torch.bucketize(starts, inner, right=True).index_select(0, cell.flatten()).view(x.shape)
        upper = F.pad(inner, (0, 1), value=math.inf)
        return segment + (x > upper.index_select(0, segment.flatten()).view(x.shape))

    @staticmethod
    def per_element(config):
        # place in units of the grid, its integer part within the table; a row of it; one step of Horner
        search = {"mul": 2, "add": 2, "round": 1, "max": 1, "compare": 1, "lut": 1}
        return search if config.knots == "uniform" else search | {"compare": 2, "lut": 2}

    @staticmethod
    def parameters_of(config):
        return {"values": (config.points,)} | ({"gaps": (config.points - 1,)} if config.knots == "learned" else {})
