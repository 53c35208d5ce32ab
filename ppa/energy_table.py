"""Energy of a mapped loop nest: how often each level of a memory hierarchy is accessed, times a table of energies.

The manner of Accelergy and Timeloop (Wu et al., ICCAD 2019; Parashar et al., ISPASS 2019): an energy reference table
gives the energy of each action of each component, a mapping gives the counts. Counted, with Timeloop's conventions:

- A level keeps a tile of an operand while the loops outside of it do not change it; loops of other dimensions that lie
  innermost among those do not (temporal reuse). A tile that slides along the innermost loop outside is fetched without
  what it shares with the one before; otherwise tiles that overlap, and those needed again, are fetched whole.
- A read for several instances at once is one read, where no spatial loop between the levels indexes the operand
  (multicast). Partial sums of instances are added on their way to the next level (spatial reduction), at no cost.
- A multiply-accumulate unit reads its operands and the partial sum for every product: it has no registers of its own.
- An update is preceded by a read of the sum so far, unless it is the first. A sum that left unfinished is filled in
  again. Taking a tile out of a level is part of the update of the next one.

Not covered: networks, address generation, compression, gating of zeros, sharing of overlaps between neighbours.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from gptcore.errors import UserError

Counts = dict[tuple[str, str], float]  # (component, action) -> how often


@dataclass(frozen=True)
class Loop:
    dimension: str
    size: int
    spatial: bool = False


@dataclass(frozen=True)
class Level:
    """A memory and the loops around what lies inside of it, outermost first; `words` are moved by one action.

    A level that keeps nothing only holds loops (a spatial array).
    """

    name: str
    loops: tuple[Loop, ...]
    keeps: frozenset[str] = frozenset()
    words: int = 1


@dataclass(frozen=True)
class Operand:
    """Axes of a tensor, each a sum of dimensions with factors: {"P": 2, "R": 1} is an axis of index 2 p + r."""

    name: str
    axes: tuple[Mapping[str, int], ...]
    output: bool = False

    def indexed_by(self, dimension: str) -> bool:
        return any(dimension in axis for axis in self.axes)

    def size(self, extents: Mapping[str, int]) -> int:
        """Words of a tile that covers so much of each dimension."""
        return math.prod(self.lengths(extents))

    def lengths(self, extents: Mapping[str, int]) -> list[int]:
        return [1 + sum(f * (extents.get(d, 1) - 1) for d, f in axis.items()) for axis in self.axes]


@dataclass(frozen=True)
class Scalars:
    """Words of one operand that one level reads, is filled with from outside, and takes from inside; all instances."""

    reads: int = 0
    fills: int = 0
    updates: int = 0


def products(levels: Sequence[Level]) -> int:
    return math.prod(loop.size for level in levels for loop in level.loops)


def cycles(levels: Sequence[Level]) -> int:
    return math.prod(loop.size for level in levels for loop in level.loops if not loop.spatial)


def instances(levels: Sequence[Level], i: int) -> int:
    """How many of a level are in use."""
    return math.prod(loop.size for level in levels[:i] for loop in level.loops if loop.spatial)


def accesses(levels: Sequence[Level], operand: Operand) -> dict[str, Scalars]:
    """Words moved at each level that keeps the operand; `levels` are outermost first. UserError if none keeps it."""
    kept = [i for i, level in enumerate(levels) if operand.name in level.keeps]
    if not kept:
        raise UserError(f"no level keeps {operand.name}")
    result = {}
    for i, inside in zip(kept, [*kept[1:], None], strict=True):
        between = [loop for level in levels[i:inside] for loop in level.loops if loop.spatial]
        ways = math.prod(loop.size for loop in between if operand.indexed_by(loop.dimension))
        each = cycles(levels) if inside is None else _taken(levels, operand, inside)
        moved = each * ways * instances(levels, i)
        taken = _taken(levels, operand, i) * instances(levels, i)
        if operand.output:
            new = _values(levels, operand, i) * instances(levels, i)
            result[levels[i].name] = Scalars(reads=moved - new, fills=taken - new, updates=moved)
        else:
            result[levels[i].name] = Scalars(reads=moved, fills=0 if i == kept[0] else taken)
    return result


def _outside(levels: Sequence[Level], i: int) -> list[Loop]:
    """Loops in time around a level, outermost first."""
    return [loop for level in levels[:i] for loop in level.loops if not loop.spatial and loop.size > 1]


def _extents(levels: Sequence[Level]) -> dict[str, int]:
    extents: dict[str, int] = {}
    for level in levels:
        for loop in level.loops:
            extents[loop.dimension] = extents.get(loop.dimension, 1) * loop.size
    return extents


def _values(levels: Sequence[Level], operand: Operand, i: int) -> int:
    """Different words of an output that one instance of a level ever holds."""
    tiles = math.prod(loop.size for loop in _outside(levels, i) if operand.indexed_by(loop.dimension))
    return tiles * operand.size(_extents(levels[i:]))


def _taken(levels: Sequence[Level], operand: Operand, i: int) -> int:
    """Words that one instance of a level takes in over the whole nest."""
    outside, extents = _outside(levels, i), _extents(levels[i:])
    slides = bool(outside) and operand.indexed_by(outside[-1].dimension)
    while outside and not operand.indexed_by(outside[-1].dimension):
        outside.pop()
    tile, times = operand.size(extents), math.prod(loop.size for loop in outside)
    if not slides:
        return times * tile
    along, step = outside[-1], _innermost_step(levels, i)
    kept = math.prod(
        max(0, length - step * axis.get(along.dimension, 0))
        for axis, length in zip(operand.axes, operand.lengths(extents), strict=True)
    )
    return times * tile - times // along.size * (along.size - 1) * kept


def _innermost_step(levels: Sequence[Level], i: int) -> int:
    """By how much the innermost loop in time outside of a level moves its dimension: the extent that lies inside."""
    loops = [loop for level in levels[:i] for loop in level.loops]
    place = max(k for k, loop in enumerate(loops) if not loop.spatial and loop.size > 1)
    inside = [*loops[place + 1 :], *(loop for level in levels[i:] for loop in level.loops)]
    return math.prod(loop.size for loop in inside if loop.dimension == loops[place].dimension)


def actions(levels: Sequence[Level], operands: Sequence[Operand]) -> Counts:
    """Reads and writes of each component, in its words; `leak`: cycles of instances in use; `compute` of the `mac`."""
    counts: Counts = {("mac", "compute"): products(levels)}
    for operand in operands:
        by_level = accesses(levels, operand)
        for level in levels:
            words = by_level.get(level.name, Scalars())
            for action, number in (("read", words.reads), ("write", words.fills + words.updates)):
                if number:
                    counts[level.name, action] = counts.get((level.name, action), 0) + number / level.words
    for i, level in enumerate(levels):
        if level.keeps:
            counts[level.name, "leak"] = cycles(levels) * instances(levels, i)
    return counts


def energy_j(counts: Counts, table_j: Mapping[tuple[str, str], float]) -> dict[str, float]:
    """Energy of each component: the sum over its actions of count times energy. UserError for an unpriced action."""
    unpriced = sorted(set(counts) - set(table_j))
    if unpriced:
        raise UserError(f"no energy for {', '.join(f'{action} of {component}' for component, action in unpriced)}")
    result: dict[str, float] = {}
    for (component, action), number in counts.items():
        result[component] = result.get(component, 0.0) + number * table_j[component, action]
    return result
