"""What is kept of past tokens between decode steps."""

from collections.abc import Sequence

import torch
from torch import Tensor


class RowCache:
    """The last `capacity` rows of each kept tensor (B, K, capacity, width), token t at place t mod capacity."""

    def __init__(self, batch: int, heads: int, capacity: int, widths: Sequence[int], dtype, device):
        self.capacity = capacity
        self.length = 0  # tokens seen
        self._rings = [torch.zeros(batch, heads, capacity, width, dtype=dtype, device=device) for width in widths]

    def tensors(self) -> list[Tensor]:
        """Everything that is kept."""
        return self._rings

    def extend(self, *new_BKTD: Tensor, ordered: bool = False) -> tuple[Tensor, ...]:
        """Appends T tokens to each tensor; returns every row that the T queries may need, oldest first.

        A single token at a full ring gets the ring as it lies: all of it is visible, so its order does not matter,
        unless `ordered` says that it does (a bias by distance).
        """
        T, old = new_BKTD[0].shape[2], self.length
        self.length += T
        pairs = list(zip(self._rings, new_BKTD, strict=True))
        if self.length <= self.capacity:
            for ring, new in pairs:
                ring[:, :, old : self.length] = new
            return tuple(ring[:, :, : self.length] for ring in self._rings)
        if T == 1:
            at = old % self.capacity
            for ring, new in pairs:
                ring[:, :, at : at + 1] = new
            return tuple(ring.roll(-(at + 1), dims=2) if ordered else ring for ring in self._rings)
        whole = [self._append(ring, new, old) for ring, new in pairs]
        for ring, rows in zip(self._rings, whole, strict=True):
            ring.copy_(rows[:, :, -self.capacity :].roll(self.length % self.capacity, dims=2))
        return tuple(whole)

    def _append(self, ring: Tensor, new: Tensor, old: int) -> Tensor:
        past = ring[:, :, :old] if old <= self.capacity else ring.roll(-(old % self.capacity), dims=2)
        return torch.cat([past, new], dim=2)


class KVCache(RowCache):
    """Keys (B, K, capacity, D) and values (B, K, capacity, E)."""

    def __init__(self, batch: int, heads: int, capacity: int, k_width: int, v_width: int, dtype, device):
        super().__init__(batch, heads, capacity, (k_width, v_width), dtype, device)


class StateCache:
    """Decode state of a size that does not depend on the context; zeros before the first token."""

    def __init__(self, shapes: list[tuple[int, ...]], dtype, device):
        self._tensors = [torch.zeros(shape, dtype=dtype, device=device) for shape in shapes]

    def tensors(self) -> list[Tensor]:
        """Everything that is kept."""
        return self._tensors

    def update(self, *new: Tensor) -> None:
        """Replaces every tensor, in place."""
        for old, value in zip(self._tensors, new, strict=True):
            old.copy_(value)
