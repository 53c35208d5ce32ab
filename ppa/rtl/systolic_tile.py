"""Output-stationary systolic tile: a grid of multiply-accumulators, the composition test of the integer operators."""

import numpy as np

from . import Operator, Streams, register
from .integers import signed, unsigned


@register
class SystolicTile(Operator):
    """Cell (i, j) sums the products of row i of A and column j of B; skew and drain stand in the .sv."""

    module = "systolic_tile"
    clocked = True
    points = {"systolic_tile_int8_4x4": {"ROWS": 4, "COLUMNS": 4, "WIDTH": 8, "ACC_WIDTH": 32}}
    CLEARED_EVERY = 64  # cycles of the stimulus: sums of the length of a head

    def __init__(self, **parameters: int):
        super().__init__(**parameters)
        self.rows, self.columns, self.width, self.acc_width = parameters.values()

    def inputs(self):
        select = {"row": (self.rows - 1).bit_length(), "column": (self.columns - 1).bit_length()}
        return {"clear": 1, "a": self.rows * self.width, "b": self.columns * self.width, **select}

    def outputs(self):
        return {"sum": self.acc_width}

    def reset(self, streams):
        self.a, self.b, self.clear, self.acc = np.zeros((4, self.rows, self.columns, streams), dtype=np.int64)

    def step(self, x: Streams) -> Streams:
        streams = np.arange(len(x["a"]))
        out = {"sum": self.acc[x["row"], x["column"], streams]}
        kept = np.where(self.clear == 1, 0, self.acc)
        self.acc = unsigned(kept + signed(self.a, self.width) * signed(self.b, self.width), self.acc_width)
        # Every cell hands its operands on, to the right and down; clear goes down the first column and to the right.
        left = np.stack([x["a"] >> i * self.width & (1 << self.width) - 1 for i in range(self.rows)])
        top = np.stack([x["b"] >> j * self.width & (1 << self.width) - 1 for j in range(self.columns)])
        first = np.concatenate([x["clear"][None], self.clear[:-1, 0]])
        self.a = np.concatenate([left[:, None], self.a[:, :-1]], axis=1)
        self.b = np.concatenate([top[None], self.b[:-1]], axis=0)
        self.clear = np.concatenate([first[:, None], self.clear[:, :-1]], axis=1)
        return out

    def stimulus(self, rng, streams, cycle):
        """Random operands without a pause, sums begun anew at times, all cells read in turn."""
        cell = (cycle + np.arange(streams)) % (self.rows * self.columns)
        clear = (cycle + np.arange(streams)) % self.CLEARED_EVERY == 0
        drain = {"clear": clear.astype(np.int64), "row": cell // self.columns, "column": cell % self.columns}
        return {**super().stimulus(rng, streams, cycle), **drain}
