"""NSGA-II (Deb et al., IEEE TEC 6(2), 2002) through optuna's ask and tell: the trade of score against several costs.

Genes are the coordinates of the grid that the moves span (search.axes). Each point is trained on the same seeds as the
baseline; what is kept low is the score's mean and the costs of `strategy.objectives`. An infeasible point is told as
failed and a known one costs nothing. At the end the front goes through the same rule as in any other search: its
members are judged against the baseline, and the winner is confirmed on fresh seeds.
"""

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gptcore.errors import UserError

from .axes import Axis, axes, candidate_at
from .greedy import seeds_of
from .lab import Run
from .moves import Candidate, Dropped, Generated, Rejected
from .rounds import Decider, Node, Task
from .space import Space

if TYPE_CHECKING:
    import optuna

POPULATIONS_IF_UNLIMITED = 6
FRUITLESS = 20  # generations without a new feasible point before it ends


@dataclass(frozen=True, slots=True)
class Member:
    """A measured point: `goals` are what is minimised, the negative mean gain over the baseline first."""

    candidate: Candidate
    goals: tuple[float, ...]


class Evolution:
    """`best` is the point it ends with, `front` all that nothing measured is better than in every goal."""

    def __init__(self, space: Space, decider: Decider, start: Node):
        self.space, self.decider, self.best = space, decider, start
        self.grid = axes(space)
        self.rounds, self.reason = 0, ""
        self.members: dict[str, Member] = {}
        self.failed: set[str] = set()
        self.dropped: dict[str, Dropped] = {}
        self.front: tuple[Member, ...] = ()

    def run(self) -> None:
        space, lab = self.space, self.decider.lab
        if not self.grid:
            raise UserError("nsga2 needs moves that span a grid; moves of single layers alone do not")
        study = self._study()
        seeds = seeds_of(space.seeds, 1)[: space.seeds.min]
        lab.measure([Run(space.baseline, seed, name="baseline") for seed in seeds])
        last, fruitless = self._generations(), 0
        try:
            while self.rounds < last and fruitless < FRUITLESS:
                new = self._generation(study, seeds)
                fruitless = 0 if new else fruitless + 1
                self.rounds += bool(new)
        finally:  # what was measured stays, whatever the budget says
            self.front = _front(list(self.members.values()))
        self.rounds += 1
        found = Generated(
            tuple(m.candidate for m in self.front if m.candidate.point.key != space.baseline.key),
            tuple(self.dropped.values()),
        )  # fmt: skip
        task = Task(
            1, self.best, found, seeds_of(space.seeds, 1), seeds_of(space.seeds, 1, fresh=True),
            about={"measured": len(self.members)},
        )  # fmt: skip
        winners = self.decider.run(task)
        self.best = winners[0] if winners else self.best
        self.reason = f"{self.rounds - 1} generations are over"

    def _generations(self) -> int:
        """As many as the trials allow, with what it takes to judge and confirm members of the front kept back."""
        space = self.space
        if space.budget.rounds is not None:
            return space.budget.rounds
        if space.budget.trials is None:
            return POPULATIONS_IF_UNLIMITED
        spare = space.budget.trials - 6 * space.seeds.max - space.seeds.min
        return max(1, spare // (space.strategy.population * space.seeds.min))

    def _study(self) -> "optuna.Study":
        try:
            import optuna
        except ImportError as error:
            raise UserError("strategy nsga2 needs optuna: pip install 'gptcore[evolve]'") from error
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        goals = 1 + len(self.space.strategy.objectives)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            sampler = optuna.samplers.NSGAIISampler(
                population_size=self.space.strategy.population, seed=self.space.strategy.seed + self.space.seeds.first
            )
        return optuna.create_study(directions=["minimize"] * goals, sampler=sampler)

    def _generation(self, study: "optuna.Study", seeds: Sequence[int]) -> int:
        """Asks for a population, measures what is new in it, and tells all of it; how many were new."""
        import optuna

        asked: list[tuple[Any, Candidate | None]] = []
        for _ in range(self.space.strategy.population):
            trial = study.ask()
            asked.append((trial, self._candidate(_coordinates(trial, self.grid))))
        new = {c.point.key: c for _, c in asked if c is not None and not self._known(c)}
        self.decider.lab.measure(
            [Run(c.point, seed, name=c.name) for c in new.values() if not c.same_training for seed in seeds]
        )
        for key, one in new.items():
            goals = self._goals(one, seeds)
            if goals is None:
                self.failed.add(key)
            else:
                self.members[key] = Member(one, goals)
        for trial, candidate in asked:
            member = self.members.get(candidate.point.key) if candidate is not None else None
            if member is None:
                study.tell(trial, state=optuna.trial.TrialState.FAIL)
            else:
                study.tell(trial, member.goals)
        self.decider.lab.say(f"generation {self.rounds + 1}: {len(new)} new points of {len(asked)}")
        return len(new)

    def _candidate(self, coordinates: Sequence[int]) -> Candidate | None:
        try:
            return candidate_at(self.space, self.grid, coordinates)
        except Rejected as no:
            self.dropped[str(coordinates)] = Dropped(str(coordinates), no.reason, no.words)
            return None

    def _known(self, candidate: Candidate) -> bool:
        return candidate.point.key in self.members or candidate.point.key in self.failed

    def _goals(self, candidate: Candidate, seeds: Sequence[int]) -> tuple[float, ...] | None:
        before = [Run(self.space.baseline, seed) for seed in seeds]
        after = before if candidate.same_training else [Run(candidate.point, seed) for seed in seeds]
        gains = self.decider.lab.gains(before, after)
        if isinstance(gains, str):
            return None
        costs = [getattr(candidate.costs, name) for name in self.space.strategy.objectives]
        return -math.fsum(gains) / len(gains), *costs


def _coordinates(trial: Any, grid: Sequence[Axis]) -> list[int]:
    """Steps are numbers, so that crossover and mutation know neighbours; choices are not."""
    found = []
    for index, axis in enumerate(grid):
        name, last = str(index), len(axis.values) - 1
        if axis.ordered:
            found.append(trial.suggest_int(name, 0, last))
        else:
            found.append(trial.suggest_categorical(name, list(range(last + 1))))
    return found


def _front(members: Sequence[Member]) -> tuple[Member, ...]:
    """Those that no other is at least as good as in all goals and better in one."""

    def beaten(m: Member) -> bool:
        return any(o.goals != m.goals and all(a <= b for a, b in zip(o.goals, m.goals, strict=True)) for o in members)

    return tuple(m for m in members if not beaten(m))


def front_rows(front: Sequence[Member], about: Any) -> list[Mapping[str, Any]]:
    """As an outcome holds them."""
    return [
        {"name": m.candidate.name, **about(m.candidate.point, m.candidate.costs), "gain": -m.goals[0]} for m in front
    ]
