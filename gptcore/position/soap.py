"""Symmetric overlapping angular positions: every pair of a head turns alike, around a circle of few angles.

One short table of sines, an eighth of the circle of it by symmetry, is all that hardware keeps. Distances that are
equal modulo the number of angles cannot be told apart.
"""

import math

import torch

from ..config import knob
from ..registry import register
from .rotary import Rotary, RotaryConfig


@register("position", "soap")
class SymmetricOverlapAngular(Rotary):
    """Pairs (x_i, x_{i+D/2}) of queries and keys turn by angle 2 pi (t mod n) / n."""

    class Config(RotaryConfig):
        angles: int = knob(512, "n, positions in a full turn", flat=("sym_rot_num_angles",), ge=2)

    def angles(self, length, width):
        step = torch.arange(length, dtype=torch.float64) % self.config.angles
        return (step * (2 * math.pi / self.config.angles))[:, None].expand(length, width // 2)
