"""Rotary position embedding (RoFormer, arXiv 2104.09864), first and second half of a head paired as in GPT-NeoX."""

import torch

from ..config import knob
from ..registry import KindConfig, Problem, register
from . import Position


@register("position", "rotary", on=("use_rotary_embeddings",))
class Rotary(Position):
    """Pairs (x_i, x_{i+D/2}) of queries and keys turn by angle t / theta^(2i/D)."""

    class Config(KindConfig):
        theta: float = knob(10000.0, "base of the wave lengths", flat=("rope_theta",), gt=0)

    def __init__(self, config, dims, head_widths):
        super().__init__(config, dims, head_widths)
        for width in head_widths:
            frequency = config.theta ** (-torch.arange(0, width, 2, dtype=torch.float64) / width)
            angle = torch.outer(torch.arange(dims.block_size, dtype=torch.float64), frequency)
            # Sine with the sign of the pairing folded in, so that rotation is two products and a sum.
            self.register_buffer(f"cos_{width}", torch.cat([angle.cos(), angle.cos()], 1).float(), persistent=False)
            self.register_buffer(f"sin_{width}", torch.cat([-angle.sin(), angle.sin()], 1).float(), persistent=False)

    def rotate(self, q_BHTD, k_BKTD, start):
        return self._turn(q_BHTD, start), self._turn(k_BKTD, start)

    def _turn(self, x, start):
        T, D = x.shape[-2:]
        cos = getattr(self, f"cos_{D}")[start : start + T].to(x.dtype)
        sin = getattr(self, f"sin_{D}")[start : start + T].to(x.dtype)
        return x * cos + x.roll(D // 2, dims=-1) * sin

    @staticmethod
    def check_layer(config, head_width):
        if head_width % 2:
            yield Problem("kind", f"rotary needs an even head width, not {head_width}")

    @staticmethod
    def declare_rotate(config, g, x):
        return g.pointwise("rotate", x, mul=2, add=1)
