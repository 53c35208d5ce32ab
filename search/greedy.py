"""Greedy search: from each point it has reached, the moves that the rule takes, round after round.

With a beam of one it is plain: the best confirmed move of a round is where the next begins. A wider beam takes up to so
many confirmed moves from every point it holds, measures all of them against the baseline on the seeds that confirmed
them, and goes on from those that the same rule ranks best. Every round has seeds of its own: on those that chose the
incumbent all others look worse than they are.
"""

from collections.abc import Sequence

from .decide import TAKEN, decide
from .lab import BudgetSpent, Run
from .moves import candidates
from .rounds import Decider, Node, Task
from .space import Seeds, Space


def seeds_of(seeds: Seeds, round_: int, fresh: bool = False) -> range:
    """Those of a round: to select with, or `fresh` ones to confirm with."""
    start = seeds.first + seeds.max * (2 * (round_ - 1) + fresh)
    return range(start, start + seeds.max)


class Greedy:
    """`best` is the point that the search would end with now, `reason` why it ended once it has."""

    def __init__(self, space: Space, decider: Decider, start: Node):
        self.space, self.decider = space, decider
        self.beam = [start]
        self.seen = {start.point.key}
        self.rounds, self.decisions = 0, 0
        self.reason = ""

    @property
    def best(self) -> Node:
        return self.beam[0]

    def run(self) -> None:
        """BudgetSpent leaves it at the best point of the last whole round, or at what was confirmed to be better."""
        open_ = list(self.beam)
        while self.space.budget.rounds is None or self.rounds < self.space.budget.rounds:
            self.rounds += 1
            children: list[Node] = []
            try:
                for node in open_:
                    children += self._step(node, {child.point.key for child in children})
                if not children:
                    self.reason = "no candidate was an improvement"
                    return
                self.beam = self._ranked([*self.beam, *children])[: self.space.strategy.beam]
            except BudgetSpent:
                self.beam = [child for child in children if child.before is self.best] or self.beam
                raise
            self.seen |= {child.point.key for child in children}
            open_ = [node for node in children if node in self.beam]
            if not open_:
                self.reason = "no new point was among the best of the beam"
                return
        self.reason = "all rounds of the budget are done"

    def _step(self, node: Node, taken: set[str]) -> list[Node]:
        self.decisions += 1
        width = self.space.strategy.beam
        about = {"round": self.rounds} if width > 1 else {}
        task = Task(
            self.decisions, node, candidates(self.space, node.point, self.seen | taken),
            seeds_of(self.space.seeds, self.rounds), seeds_of(self.space.seeds, self.rounds, fresh=True), width, about,
        )  # fmt: skip
        return self.decider.run(task)

    def _ranked(self, nodes: Sequence[Node]) -> list[Node]:
        """Best first, by the rule, all against the baseline on the seeds of this round's confirmations."""
        if self.space.strategy.beam == 1:
            return [nodes[-1]]
        lab, fresh = self.decider.lab, seeds_of(self.space.seeds, self.rounds, fresh=True)
        baseline = Node(self.space.baseline, self.space.baseline_costs)
        lab.measure([Run(n.point, seed, n.weights, n.name) for n in (baseline, *nodes) for seed in fresh])
        first = [Run(baseline.point, seed) for seed in fresh]
        evidence, by_name = [], {}
        for index, node in enumerate(nodes):
            gains = lab.gains(first, [Run(node.point, seed, node.weights) for seed in fresh])
            if not isinstance(gains, str):
                by_name[str(index)] = node
                evidence.append(self.decider.evidence(str(index), gains, node.costs, self.space.baseline_costs))
        judged = decide(evidence, self.decider.rule).judged
        return [by_name[j.name] for j in judged if j.verdict in TAKEN or by_name[j.name].before is None]
