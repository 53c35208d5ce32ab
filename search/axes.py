"""The grid that moves span: for each thing they change, the values within reach of the baseline.

A setting with choices takes each of them; one with steps or factors, what up to `strategy.reach` of them lead to. Moves
of single layers span no grid. Coordinates are indices into the axes; the baseline is one of the points.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING

from gptcore.errors import UserError

from .cost import costs, violations
from .moves import Candidate, Dropped, Generated, Move, Path, Rejected, apply
from .point import Point

if TYPE_CHECKING:
    from .space import Space

Chain = tuple[Move, ...]


@dataclass(frozen=True, slots=True)
class Axis:
    """Settings that change together; a value is the chain of moves that leads to it from the baseline's, which is ().

    `ordered`: neighbouring values are alike, as steps are and choices are not.
    """

    paths: tuple[Path, ...]
    values: tuple[Chain, ...]
    ordered: bool


def axes(space: "Space") -> tuple[Axis, ...]:
    """In the order of the file; those with the baseline's value alone are left out."""
    by_paths: dict[tuple[Path, ...], list[Move]] = {}
    for move in space.moves:
        if not move.per_layer and move.op not in ("duplicate", "remove"):
            by_paths.setdefault(move.paths, []).append(move)
    found = (_axis(paths, moves, space) for paths, moves in by_paths.items())
    return tuple(axis for axis in found if len(axis.values) > 1)


def _axis(paths: tuple[Path, ...], moves: Sequence[Move], space: "Space") -> Axis:
    down: list[Chain] = []
    up: list[Chain] = []
    chosen: list[Chain] = []
    for move in moves:
        side = chosen if move.op == "set" else up if move.value > (0 if move.op == "add" else 1) else down
        side += [(move,) * n for n in range(1, 2 if move.op == "set" else space.strategy.reach + 1)]
    distinct: dict[str, Chain] = {space.baseline.key: ()}
    for chain in (*sorted(down, key=len, reverse=True), (), *sorted(up, key=len), *chosen):
        try:
            distinct.setdefault(_moved(space.baseline, chain)[0].key, chain)
        except Rejected:
            continue
    order = {chain: n for n, chain in enumerate((*sorted(down, key=len, reverse=True), (), *up, *chosen))}
    return Axis(paths, tuple(sorted(distinct.values(), key=order.__getitem__)), not chosen)


def _moved(point: Point, chain: Chain) -> tuple[Point, str]:
    """The point at the end of a chain, and the whole way as one move in words. Rejected where it breaks off."""
    names = []
    for move in chain:
        try:
            point, name = apply(move, point)
        except Rejected as no:
            if no.reason != "unchanged":
                raise
        else:
            names.append(name)
    if len(names) < 2:
        return point, "".join(names)
    return point, f"{names[0].split(' -> ')[0]} -> {names[-1].split(' -> ')[-1]}"


def candidate_at(space: "Space", grid: Sequence[Axis], coordinates: Sequence[int]) -> Candidate:
    """The point of the grid, priced. Rejected where it is impossible or breaks a constraint."""
    point, names = space.baseline, []
    for axis, index in zip(grid, coordinates, strict=True):
        if axis.values[index]:
            before = point.key
            point, name = _moved(point, axis.values[index])
            names += [name] if point.key != before else []
    for path, message in point.config.problems():
        raise Rejected("impossible combination", f"{'.'.join(map(str, path))}: {message}")
    try:
        price = costs(point, space)
    except UserError as error:
        raise Rejected("cannot be priced", str(error)) from error
    if broken := violations(price, space.constraints):
        raise Rejected("constraint", "; ".join(broken))
    words = "; ".join(names) or "baseline"
    whole = Move(tuple(path for axis in grid for path in axis.paths), "set", list(coordinates), words)
    return Candidate(words, whole, point, price, point.identity == space.baseline.identity)


def grid_points(space: "Space") -> Generated:
    """Every feasible point of the grid but the baseline."""
    grid = axes(space)
    found: dict[str, Candidate] = {}
    dropped = []
    for coordinates in product(*(range(len(axis.values)) for axis in grid)):
        try:
            candidate = candidate_at(space, grid, coordinates)
        except Rejected as no:
            dropped.append(Dropped(str(coordinates), no.reason, no.words))
        else:
            if candidate.point.key != space.baseline.key:
                found.setdefault(candidate.point.key, candidate)
    return Generated(tuple(found.values()), tuple(dropped))


def size(grid: Sequence[Axis]) -> int:
    """Points of the grid, feasible or not."""
    return len(list(product(*(axis.values for axis in grid))))
