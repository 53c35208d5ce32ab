"""Searches that judge a set of points once, against the baseline: the exhaustive grid, and random points.

Random points are the control of every search: random walks of up to four moves from the baseline, as many as the budget
of trials can measure, judged by the same rule and confirmed on fresh seeds.
"""

import random
from dataclasses import replace

from gptcore.errors import UserError

from .axes import axes, grid_points, size
from .greedy import seeds_of
from .moves import Candidate, Dropped, Generated, candidates
from .rounds import Decider, Node, Task
from .space import Space

WALK = 4  # moves of a random point, at most
GRID_AT_MOST = 100_000
TRIALS_IF_UNLIMITED = 60


class Sampled:
    """`best` is the point it ends with, `reason` why it ended once it has."""

    def __init__(self, space: Space, decider: Decider, start: Node):
        self.space, self.decider, self.best = space, decider, start
        self.rounds, self.reason = 0, ""

    def run(self) -> None:
        space = self.space
        self.rounds = 1
        found = random_points(space) if space.strategy.kind == "random" else _grid(space)
        task = Task(1, self.best, found, seeds_of(space.seeds, 1), seeds_of(space.seeds, 1, fresh=True))
        winners = self.decider.run(task)
        self.best = winners[0] if winners else self.best
        what = "random points are" if space.strategy.kind == "random" else "the grid is"
        self.reason = f"{what} judged once" if winners else "no candidate was an improvement"


def random_points(space: Space) -> Generated:
    """As many as the budget can measure with the fewest seeds, with trials left to tell the best apart."""
    rng = random.Random(f"{space.seeds.first}-{space.strategy.seed}" if space.strategy.seed else space.seeds.first)
    most = (space.budget.trials or TRIALS_IF_UNLIMITED) // space.seeds.min - 2 * space.seeds.max - 1
    found: dict[str, Candidate] = {}
    dropped: dict[tuple[str, str], Dropped] = {}
    for walk in range(50 * max(1, most)):
        if len(found) >= most:
            break
        at: Candidate | None = None
        for _ in range(rng.randint(1, WALK)):
            start = at.point if at else space.baseline
            near = candidates(space, start)
            dropped |= {(start.key, no.name): no for no in near.dropped_names}
            if not near.candidates:
                break
            move = rng.choice(near.candidates)
            name = f"{at.name}; {move.name}" if at else move.name
            at = replace(move, name=name, same_training=move.point.identity == space.baseline.identity)
        if at is None or at.point.key == space.baseline.key:
            continue
        if at.point.key in found:
            dropped[str(walk), at.name] = Dropped(at.name, "duplicate", f"the same as {found[at.point.key].name}")
        else:
            found[at.point.key] = at
    return Generated(tuple(found.values()), tuple(dropped.values()))


def _grid(space: Space) -> Generated:
    points = size(axes(space))
    if points > GRID_AT_MOST:
        raise UserError(f"the grid of these moves has {points:,} points, more than {GRID_AT_MOST:,}: drop some moves")
    found = grid_points(space)
    needed = (len(found.candidates) + 1) * space.seeds.min
    if space.budget.trials is not None and needed > space.budget.trials:
        raise UserError(
            f"the grid has {len(found.candidates):,} feasible points, {needed:,} trials with {space.seeds.min} seeds "
            f"each, and budget.trials allows {space.budget.trials:,}; raise it, or lower strategy.reach"
        )
    return found
