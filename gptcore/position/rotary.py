"""Rotary position embedding (RoFormer, arXiv 2104.09864), first and second half of a head paired as in GPT-NeoX."""

import torch
from torch import Tensor

from ..config import knob
from ..kernel_choice import Kernelled, Part
from ..registry import KindConfig, Problem, register
from . import Position


class RotaryConfig(KindConfig):
    """Knobs of every kind that turns queries and keys."""

    length: int | None = knob(
        None, "only the first so many entries of a head turn, as in GPT-NeoX; null: all",
        flat=("rope_length", "shortrope_length"), ge=2, multiple_of=2,
    )  # fmt: skip

    def turned(self, width: int) -> int:
        return self.length or width


@register("position", "rotary", on=("use_rotary_embeddings",))
class Rotary(Kernelled, Position):
    """Pairs (x_i, x_{i+D/2}) of queries and keys turn by angle t / theta^(2i/D)."""

    part: Part = "position"

    class Config(RotaryConfig):
        theta: float = knob(10000.0, "base of the wave lengths", flat=("rope_theta",), gt=0)

    def __init__(self, config, dims, heads):
        super().__init__(config, dims, heads)
        for width in {h.width for h in heads if h}:
            angle = self.angles(dims.block_size, config.turned(width))
            # Sine with the sign of the pairing folded in, so that rotation is two products and a sum.
            self.register_buffer(f"cos_{width}", torch.cat([angle.cos(), angle.cos()], 1).float(), persistent=False)
            self.register_buffer(f"sin_{width}", torch.cat([-angle.sin(), angle.sin()], 1).float(), persistent=False)

    def angles(self, length: int, width: int) -> Tensor:
        """By position and pair: (length, width / 2)."""
        frequency = self.config.theta ** (-torch.arange(0, width, 2, dtype=torch.float64) / width)
        return torch.outer(torch.arange(length, dtype=torch.float64), frequency)

    def kernel_obstacle(self, dropout=0.0):
        return None

    def _tables(self, D: int) -> tuple[Tensor, Tensor]:
        return getattr(self, f"cos_{D}"), getattr(self, f"sin_{D}")

    def rotate(self, q_BHTD, k_BKTD, start):
        if self.runs_kernel(q_BHTD):
            from kernels.rotary import rotary

            D = q_BHTD.shape[-1]
            return rotary(q_BHTD, k_BKTD, *self._tables(D), start, self.config.turned(D))
        return self._turn(q_BHTD, start), self._turn(k_BKTD, start)

    def rotate_projection(self, qkv_BTC, heads, key_heads, width, start):
        if not self.runs_kernel(qkv_BTC):
            return None
        from kernels.rotary import rotary_projection_

        turned = self.config.turned(width)
        return rotary_projection_(qkv_BTC, heads, key_heads, width, *self._tables(width), start, turned)

    def _turn(self, x, start):
        T, D = x.shape[-2:]
        cos, sin = (table[start : start + T].to(x.dtype) for table in self._tables(D))
        turned = self.config.turned(D)
        part = x if turned == D else x[..., :turned]
        part = part * cos + part.roll(turned // 2, dims=-1) * sin
        return part if turned == D else torch.cat([part, x[..., turned:]], dim=-1)

    @staticmethod
    def check_heads(config, heads):
        if config.turned(heads.width) > heads.width:
            yield Problem("length", f"length {config.length} exceeds the head width {heads.width}")
        elif config.turned(heads.width) % 2:
            yield Problem("kind", f"{config.kind} needs an even head width, not {heads.width}")

    @staticmethod
    def declare_rotate(config, g, x):
        *shape, D = x.shape
        return g.view(g.pointwise("rotate", g.view(x, *shape, config.turned(D)), mul=2, add=1), *x.shape)
