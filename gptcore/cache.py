"""Keys and values kept between decode steps."""

import torch
from torch import Tensor


class KVCache:
    """The last `capacity` keys (B, K, capacity, D) and values (B, K, capacity, E), token t at place t mod capacity."""

    def __init__(self, batch: int, heads: int, capacity: int, k_width: int, v_width: int, dtype, device):
        self.capacity = capacity
        self.length = 0  # tokens seen
        self.k = torch.zeros(batch, heads, capacity, k_width, dtype=dtype, device=device)
        self.v = torch.zeros(batch, heads, capacity, v_width, dtype=dtype, device=device)

    def tensors(self) -> list[Tensor]:
        """Everything that is kept."""
        return [self.k, self.v]

    def extend(self, k_BKTD: Tensor, v_BKTE: Tensor, *, ordered: bool = False) -> tuple[Tensor, Tensor]:
        """Appends T tokens; returns every key and value that the T queries may need, oldest first.

        A single token at a full ring gets the ring as it lies: all of it is visible, so its order does not matter,
        unless `ordered` says that it does (a bias by distance).
        """
        T, old = k_BKTD.shape[2], self.length
        self.length += T
        if self.length <= self.capacity:
            self.k[:, :, old : self.length], self.v[:, :, old : self.length] = k_BKTD, v_BKTE
            return self.k[:, :, : self.length], self.v[:, :, : self.length]
        if T == 1:
            at = old % self.capacity
            self.k[:, :, at : at + 1], self.v[:, :, at : at + 1] = k_BKTD, v_BKTE
            if ordered:
                return self.k.roll(-(at + 1), dims=2), self.v.roll(-(at + 1), dims=2)
            return self.k, self.v
        keys, values = self._append(self.k, k_BKTD, old), self._append(self.v, v_BKTE, old)
        for ring, rows in ((self.k, keys), (self.v, values)):
            ring.copy_(rows[:, :, -self.capacity :].roll(self.length % self.capacity, dims=2))
        return keys, values

    def _append(self, ring: Tensor, new: Tensor, old: int) -> Tensor:
        past = ring[:, :, :old] if old <= self.capacity else ring.roll(-(old % self.capacity), dims=2)
        return torch.cat([past, new], dim=2)


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
