"""No position information but the causal mask (NoPE, arXiv 2305.19466)."""

from ..registry import register
from . import Position


@register("position", "none", off=("use_abs_pos_embeddings",))
class NoPosition(Position):
    """Nothing is added or rotated."""
