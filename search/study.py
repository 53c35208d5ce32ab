"""A whole search: its strategy, what it found measured afresh, and its record.

A search is a function of its space and of the results of its trials, and of nothing else. So the same command resumes
it: it goes through the same rounds again, finds their trials in the ledger, and trains only what is not there.

At the end start and end are measured from scratch on seeds that decided nothing: the gains of the steps, which had to
pass, are too large, and those of a warm start are gains of training on.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from .cost import Costs
from .evolve import Evolution, front_rows
from .executors import Executor
from .greedy import Greedy, seeds_of
from .lab import BudgetSpent, Lab, Run
from .ledger import Ledger
from .paired import Interval, interval
from .point import Point
from .rounds import Decider, Node
from .sampled import Sampled
from .space import Space
from .steptime import Measure, StepTimes
from .trial import Limits


class Strategy(Protocol):
    """Proposes points and has them decided; `best` is where it has got to, whatever stops it."""

    best: Node
    rounds: int
    reason: str

    def run(self) -> None: ...


STRATEGIES: dict[str, Callable[[Space, Decider, Node], Any]] = {
    "greedy": Greedy, "random": Sampled, "grid": Sampled, "nsga2": Evolution,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Outcome:
    """Where a search ended: the point it is at, the way there, and why it went no further.

    `gain`: start against end on fresh seeds; None where nothing moved or the budget is spent.
    """

    point: Point
    costs: Costs
    steps: tuple[Node, ...]
    reason: str
    rounds: int
    gain: Interval | None = None


class Search:
    """One study under way. `say` hears a line for everything that happens."""

    def __init__(
        self, space: Space, ledger: Ledger, executor: Executor, folder: Path, *, limits: Limits = Limits(),
        say: Callable[[str], object] = lambda line: None, measure_steps: Measure | None = None,
    ):  # fmt: skip
        self.lab = Lab(space, ledger, executor, folder, limits=limits, say=say)
        step_times = StepTimes(space, ledger, measure_steps) if space.measures_steps else None
        if step_times is not None:
            space = self.lab.space = replace(space, baseline_costs=step_times.of_baseline())
        self.space = space
        self.decider = Decider(space, self.lab, step_times)

    def run(self) -> Outcome:
        """Until no move helps or the budget is spent. RunError where the baseline itself cannot be trained."""
        space = self.space
        strategy, reason = None, ""
        try:
            strategy = STRATEGIES[space.strategy.kind](space, self.decider, self._start())
            strategy.run()
            reason = strategy.reason
        except BudgetSpent as spent:
            reason = f"the budget is spent: {spent}"
        best = strategy.best if strategy is not None else Node(space.baseline, space.baseline_costs)
        rounds = strategy.rounds if strategy is not None else 0
        outcome = Outcome(best.point, best.costs, best.path, reason, rounds)
        if best.path:
            outcome = replace(outcome, gain=self._measured(outcome))
        self.lab.ledger.conclude(self.lab.study, self._record(outcome, strategy))
        return outcome

    def _start(self) -> Node:
        space, weights = self.space, None
        if space.strategy.start == "warm":
            run = Run(space.baseline, space.seeds.first, name="baseline")
            self.lab.measure([run])
            weights = self.lab.trial_of(run)
        return Node(space.baseline, space.baseline_costs, weights=weights)

    def _measured(self, outcome: Outcome) -> Interval | None:
        """The gain of the whole search, each of both trained from scratch; where only the machine moved, 0 it is."""
        if outcome.point.identity == self.space.baseline.identity:
            return Interval(0.0, 0.0, 0.0, 0)
        seeds, score = seeds_of(self.space.seeds, outcome.rounds + 1), self.lab.score
        ends = [
            [Run(point, seed, name=name) for seed in seeds]
            for point, name in ((self.space.baseline, "baseline"), (outcome.point, "winner"))
        ]
        self.lab.kept_back = 0
        try:
            self.lab.measure([run for runs in ends for run in runs])
        except BudgetSpent:
            return None
        pairs = [(self.lab.value(a), self.lab.value(b)) for a, b in zip(*ends, strict=True)]
        gains = [score.gain(a, b) for a, b in pairs if not isinstance(a, str) and not isinstance(b, str)]
        return interval(gains, self.space.rule.confidence) if gains else None

    def _record(self, outcome: Outcome, strategy: Strategy | None) -> dict[str, Any]:
        about, gain = self.decider.about, outcome.gain
        path = []
        for node in outcome.steps:
            judged = node.confirmation.judged if node.confirmation else None
            ends = {"gain": judged.gain, "low": judged.low, "high": judged.high} if judged else {}
            path.append({"round": node.round, "name": node.name, **about(node.point, node.costs), **ends})
        front = front_rows(strategy.front, about) if isinstance(strategy, Evolution) else []
        return {
            "reason": outcome.reason, "rounds": outcome.rounds,
            "start": about(self.space.baseline, self.space.baseline_costs),
            "end": {
                **about(outcome.point, outcome.costs), "config": outcome.point.config.model_dump(mode="json"),
                "hardware": outcome.point.machine.model_dump(mode="json"),
            },
            "path": path, "front": front,
            "gain": {"mean": gain.mean, "low": gain.low, "high": gain.high, "seeds": gain.seeds} if gain else None,
        }  # fmt: skip
