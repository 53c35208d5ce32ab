"""Where each entry of a grown tensor comes from, axis by axis.

An axis says for every index of the child which index of the parent it takes, times a factor, or how it starts: at
zero, fresh (as initialised), or as the mean of the entries that were kept. An element that is new on several axes is
zero if any of them says so.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

ZERO, FRESH, MEAN = 0, 1, 2


@dataclass(frozen=True)
class Axis:
    """`source`: index of the parent or -1, `start`: how a new entry starts, `factor`: of entries that are kept.

    `size` is that of the parent. `average` weighs the parent's entries in a mean.
    """

    source: Tensor
    start: Tensor
    factor: Tensor
    size: int
    average: Tensor | None = None

    def times(self, factor: float) -> "Axis":
        return Axis(self.source, self.start, self.factor * factor, self.size, self.average)

    def starting(self, start: int) -> "Axis":
        return Axis(self.source, torch.full_like(self.source, start), self.factor, self.size, self.average)

    @property
    def kept(self) -> Tensor:
        return self.source >= 0


def axis(source: Tensor, size: int, start: int, factor: float = 1.0) -> Axis:
    ones = torch.ones(len(source), dtype=torch.float64)
    return Axis(source, torch.full_like(source, start), ones * factor, size)


def padded(old: int, new: int, start: int, factor: float = 1.0) -> Axis:
    """The first entries kept, further ones new; the last ones lost where there are fewer."""
    index = torch.arange(new)
    return axis(index.where(index < old, -1), old, start, factor)


def joined(parts: Sequence[Axis]) -> Axis:
    """Several axes one after the other."""
    sources, before = [], 0
    for part in parts:
        sources.append((part.source + before).where(part.kept, -1))
        before += part.size
    starts, factors = torch.cat([p.start for p in parts]), torch.cat([p.factor for p in parts])
    return Axis(torch.cat(sources), starts, factors, before)


def nested(outer: Axis, inner: Axis) -> Axis:
    """For every entry of `outer` (heads) all of `inner` (their entries). What is new outside starts as that says."""
    kept = outer.kept[:, None] & inner.kept
    source = (outer.source[:, None] * inner.size + inner.source).where(kept, -1)
    start = torch.where(outer.kept[:, None], inner.start, outer.start[:, None])
    factor = outer.factor[:, None] * inner.factor
    return Axis(source.flatten(), start.flatten(), factor.flatten(), outer.size * inner.size)


def tiled(part: Axis, count: int) -> Axis:
    """The same axis several times over; new entries are zero, for what is tiled need not vanish at zero."""
    return part if count == 1 else joined([part.starting(ZERO)] * count)


def transfer(fresh: Tensor, parent: Tensor, axes: Sequence[Axis]) -> tuple[Tensor, int]:
    """(the child's tensor, number of the parent's elements that live on in it). `fresh` is as initialised."""
    assert fresh.shape == tuple(len(a.source) for a in axes), (fresh.shape, [len(a.source) for a in axes])
    value, used = parent.double(), 1
    kept = torch.ones(fresh.shape, dtype=torch.bool)
    start = torch.full(fresh.shape, MEAN)
    for dim, a in enumerate(axes):
        shape = [-1 if d == dim else 1 for d in range(fresh.dim())]
        mean = value
        if a.average is not None:
            mean = value * a.average.view(shape)
        mean = mean.mean(dim, keepdim=True)
        value = value.index_select(dim, a.source.clamp_min(0))
        # The mean belongs to entries as they are kept: it takes their common factor.
        common = a.factor[a.kept].mean() if a.kept.any() else a.factor.new_ones(())
        value = torch.where(a.kept.view(shape), value * a.factor.view(shape), mean * common)
        new = ~a.kept.view(shape)
        kept, start = kept & ~new, torch.where(new, torch.minimum(start, a.start.view(shape)), start)
        used *= len(a.source[a.kept].unique())
    filler = fresh.double()
    if fresh.dim() > 1:  # a rounding range that is common to a matrix must not grow
        filler = filler.clamp(parent.double().min(), parent.double().max())
    value = torch.where(kept | (start == MEAN), value, torch.where(start == FRESH, filler, 0.0))
    return value.to(fresh.dtype), used
