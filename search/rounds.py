"""One decision: candidates against an incumbent, from their first trial to a confirmed winner, and its record.

    candidates -> paired trials -> (rungs) -> decide -> more seeds where they matter -> confirm on fresh seeds -> record

Seeds pair everything: one seed fixes weights, data order and evaluation for the incumbent and for every candidate.
Candidates are selected at a lower confidence than they are confirmed with; confirmation alone sets how often a move of
no effect is taken, and a strict selection on few seeds overlooks most real ones
(tests/search/test_decide_simulation.py).
A candidate whose trial failed is left out, with the reason. A move of the machine alone needs no trial.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from .cost import Costs, change
from .decide import TAKEN, Confirmation, Decision, Evidence, Judged, Rule, confirm, decide
from .halving import prune
from .lab import Lab, Run
from .moves import Candidate, Generated
from .point import Point
from .space import Space
from .steptime import StepTimes

CONFIRMED_AT_MOST = 3  # winners of a round that are measured again before the round ends without a move
SEEDED_AT_ONCE = 4  # undecided candidates that get a seed more at a time


@dataclass(frozen=True, slots=True)
class Node:
    """A point that a search has reached, and how: the node before, the move, and its confirmation on fresh seeds.

    `weights`: key and run folder of the trial that its candidates grow from, where a search starts warm.
    """

    point: Point
    costs: Costs
    before: "Node | None" = None
    round: int = 0
    name: str = ""
    confirmation: Confirmation | None = None
    weights: tuple[str, str] | None = None

    @property
    def path(self) -> tuple["Node", ...]:
        """The steps from the baseline to here, without the baseline."""
        return (*self.before.path, self) if self.before is not None else ()


@dataclass(frozen=True, slots=True)
class Task:
    """What a round decides. `want`: winners it may return. `number` counts the decisions of a study."""

    number: int
    incumbent: Node
    found: Generated
    seeds: Sequence[int]
    fresh: Sequence[int]
    want: int = 1
    about: Mapping[str, Any] = field(default_factory=dict)


class Decider:
    """Decides the rounds of one study."""

    def __init__(self, space: Space, lab: Lab, step_times: StepTimes | None = None):
        self.space, self.lab, self.step_times = space, lab, step_times
        r, seeds = space.rule, space.seeds
        self.rule = Rule(r.confidence, r.shrink_tolerance, seeds.min, seeds.max, unit=space.score.unit)
        self.selection = replace(self.rule, confidence=r.selection_confidence)
        self._recorded = {row.round for row in lab.ledger.decisions(lab.study)}

    def run(self, task: Task) -> list[Node]:
        """The winners, best first; none where nothing holds. BudgetSpent, RunError: see Lab."""
        if self.step_times is not None:
            task = self.step_times.priced(task, self.space)
        return _Round(self, task).run()

    def evidence(self, name: str, gains: tuple[float, ...], new: Costs, old: Costs) -> Evidence:
        return Evidence(name, gains, change(new, old, self.space.baseline_costs, self.space.cost))

    def record(self, number: int, chosen: str | None, words: str, content: Mapping[str, Any]) -> None:
        """Once: a resumed search decides the same again."""
        if number not in self._recorded:
            self.lab.ledger.decide(self.lab.study, number, chosen=chosen, words=words, content=content)
            self._recorded.add(number)

    def about(self, point: Point, costs: Costs) -> dict[str, Any]:
        """A point as records hold it. `config_hash` is that of all its trials."""
        identity = self.lab.identity(Run(point, 0))
        intervals = {name: list(ends) for name, ends in costs.intervals.items()}
        return {
            "key": point.key, "config_hash": identity.config_hash, "costs": costs.as_dict(), "intervals": intervals,
        }  # fmt: skip


class _Round:
    def __init__(self, decider: Decider, task: Task):
        self.decider, self.lab, self.task = decider, decider.lab, task
        self.rule, self.selection = decider.rule, decider.selection
        self.by_name = {candidate.name: candidate for candidate in task.found.candidates}
        self.seeds = {name: list(task.seeds[: self.rule.min_seeds]) for name in self.by_name}
        self.pruned: dict[str, str] = {}
        self.failed: dict[str, str] = {}

    def run(self) -> list[Node]:
        task = self.task
        self.lab.say(f"round {task.number}: {len(self.by_name)} candidates{_dropped(task.found)}")
        self._first_trials()
        decision = self._selected()
        confirmations = self._confirmations(decision)
        held = [c for c in confirmations if c.holds]
        words = held[0].words if held else _refusal(decision, confirmations)
        chosen = held[0].judged.name if held else None
        self._record(decision, confirmations, chosen, words)
        self.lab.say(f"round {task.number}: {'took ' + chosen if chosen else 'no move'}: {words}")
        return [self._node(c) for c in held]

    def _node(self, confirmation: Confirmation) -> Node:
        winner, before = self.by_name[confirmation.judged.name], self.task.incumbent
        weights = before.weights
        if weights is not None and not winner.same_training:
            weights = self.lab.trial_of(self._runs(winner, self.task.fresh[:1])[0])
        return Node(winner.point, winner.costs, before, self.task.number, winner.name, confirmation, weights)

    # -- trials --------------------------------------------------------------------------------------------------

    def _runs(self, of: Candidate | None, seeds: Iterable[int]) -> list[Run]:
        """Of a candidate, or of the incumbent: that of a move of the machine alone is the incumbent's."""
        node = self.task.incumbent
        trained = of is not None and not of.same_training
        point, name = (of.point, of.name) if of is not None and trained else (node.point, node.name or "baseline")
        return [Run(point, seed, node.weights, name) for seed in seeds]

    def _first_trials(self) -> None:
        """The first seeds of all; with rungs, of those that are still in the running at each."""
        begin = self.task.seeds[: self.rule.min_seeds]
        trained = [c for c in self.task.found.candidates if not c.same_training]
        if not trained:
            return
        for rung in self.decider.space.strategy.rungs:
            self.lab.measure([*self._runs(None, begin), *(r for c in trained for r in self._runs(c, begin))], rung)
            trained = self._kept(trained, begin, rung)
        self.lab.measure([*self._runs(None, begin), *(r for c in trained for r in self._runs(c, begin))])

    def _kept(self, trained: list[Candidate], begin: Sequence[int], rung: int) -> list[Candidate]:
        """Those that a rung lets pass. What has no score at its step is kept: a failure is reported as one, and a run
        that ended early has cost what it costs."""
        incumbent = self._runs(None, begin)
        for run in incumbent:
            if self.lab.failed(run):
                raise self.lab.untrained(run)
        evidence = []
        for candidate in trained:
            pairs = zip(incumbent, self._runs(candidate, begin), strict=True)
            found = [(self.lab.at(old, rung), self.lab.at(new, rung)) for old, new in pairs]
            gains = tuple(self.lab.score.gain(a, b) for a, b in found if a is not None and b is not None)
            if len(gains) == len(incumbent):
                costs = candidate.costs, self.task.incumbent.costs
                evidence.append(self.decider.evidence(candidate.name, gains, *costs))
        dropped = prune(evidence, self.decider.space.strategy.eta, self.selection, f"at step {rung} ").dropped
        self.pruned |= dict(dropped)
        if dropped:
            self.lab.say(f"  step {rung}: {len(dropped)} of {len(evidence)} candidates are pruned")
        return [c for c in trained if c.name not in self.pruned]

    # -- judging -------------------------------------------------------------------------------------------------

    def _selected(self) -> Decision:
        """Decides, and adds seeds where they could change the decision, until none could, or none could be confirmed:
        what it takes to confirm a winner is kept back."""
        confirmation = 2 * len(self.task.fresh)
        while True:
            decision = decide(self._evidence(), self.selection)
            wanting = [n for n in decision.needs_seeds if len(self.seeds[n]) < self.rule.max_seeds][:SEEDED_AT_ONCE]
            more = {name: self.task.seeds[len(self.seeds[name])] for name in wanting}
            runs = [run for n, seed in more.items() for of in (None, self.by_name[n]) for run in self._runs(of, [seed])]
            if not runs or not self.lab.has_room(runs, confirmation):
                return decision
            for name, seed in more.items():
                self.seeds[name].append(seed)
            self.lab.measure(runs)

    def _evidence(self) -> list[Evidence]:
        evidence = []
        for name, candidate in self.by_name.items():
            if name in self.pruned:
                continue
            gains = self._gains(candidate, self.seeds[name])
            if isinstance(gains, str):
                self.failed[name] = gains
            else:
                evidence.append(self.decider.evidence(name, gains, candidate.costs, self.task.incumbent.costs))
        return evidence

    def _gains(self, candidate: Candidate, seeds: Iterable[int]) -> tuple[float, ...] | str:
        seeds = list(seeds)
        if candidate.same_training:
            return tuple(0.0 for _ in seeds)
        return self.lab.gains(self._runs(None, seeds), self._runs(candidate, seeds))

    def _confirmations(self, decision: Decision) -> list[Confirmation]:
        """Winners in their order, each measured on seeds that chose nothing, until enough of them hold."""
        task, held = self.task, 0
        tried: list[Confirmation] = []
        for judged in [j for j in decision.judged if j.verdict in TAKEN][: max(CONFIRMED_AT_MOST, task.want)]:
            winner = self.by_name[judged.name]
            runs = [run for of in (None, winner) for run in self._runs(of, task.fresh)]
            if not winner.same_training:
                if tried and not self.lab.has_room(runs, 0):
                    break
                self.lab.measure(runs)
            gains = self._gains(winner, task.fresh)
            if isinstance(gains, str):
                continue
            tried.append(confirm(judged, gains, self.rule))
            held += tried[-1].holds
            if held == task.want:
                break
        return tried

    # -- the record ----------------------------------------------------------------------------------------------

    def _record(
        self, decision: Decision, confirmations: Sequence[Confirmation], chosen: str | None, words: str
    ) -> None:
        task, about = self.task, self.decider.about
        content = {
            **task.about,
            "incumbent": {**about(task.incumbent.point, task.incumbent.costs), "name": task.incumbent.name},
            "considered": [
                {"name": c.name, **about(c.point, c.costs), "move": c.move.as_dict()} for c in task.found.candidates
            ],
            "dropped": task.found.dropped, "failed": self.failed, "pruned": self.pruned, "words": decision.words,
            "judged": [plain(j) for j in decision.judged],
            "confirmations": [{**plain(c.judged), "holds": c.holds, "luck": c.luck} for c in confirmations],
        }  # fmt: skip
        self.decider.record(task.number, chosen, words, content)


def plain(judged: Judged) -> dict[str, Any]:
    """As JSON has it."""
    change = judged.cost_change
    return {**asdict(judged), "cost_change": list(change) if isinstance(change, tuple) else change}


def _dropped(found: Generated) -> str:
    words = ", ".join(f"{count} {reason}" for reason, count in found.dropped.items())
    return f"; left out before any training: {words}" if words else ""


def _refusal(decision: Decision, confirmations: Sequence[Confirmation]) -> str:
    if not confirmations:
        return decision.words
    return "; ".join(["what was selected did not hold on fresh seeds", *(c.words for c in confirmations)])
