"""The coordinator: proposes, has trials run, decides, and writes all of it into the ledger.

    incumbent -> candidates -> paired trials -> decide -> more seeds where they matter -> confirm on fresh seeds -> next

A search is a function of its space and of the results of its trials, and of nothing else. So the same command resumes
it: it goes through the same rounds again, finds their trials in the ledger, and trains only what is not there.

Seeds pair everything: one seed fixes weights, data order and evaluation for the incumbent and for every candidate.
Every round has seeds of its own: on those that chose the incumbent all others look worse than they are. Candidates are
selected at a lower confidence than they are confirmed with; confirmation alone sets how often a move of no effect is
taken, and a strict selection on few seeds overlooks most real ones (tests/search/test_decide_simulation.py). At the end
start and end are measured on seeds that decided nothing: the gains of the steps, which had to pass, are too large.

A candidate whose trial failed is left out, with the reason. A move of the machine alone needs no trial.
"""

import random
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from gptcore.errors import RunError

from .cost import Costs, change, violations
from .decide import TAKEN, Confirmation, Decision, Evidence, Judged, Rule, confirm, decide
from .executors import Executor
from .ledger import Ledger
from .moves import Candidate, Generated, candidates
from .paired import Interval, interval
from .point import Point
from .records import NewTrial
from .space import Space
from .trial import ENDED, Identity, Limits, TrialResult

WAIT_S = 1.0
CONFIRMED_AT_MOST = 3  # winners of a round that are measured again before the round ends without a move
SEEDED_AT_ONCE = 4  # undecided candidates that get a seed more at a time
SELECTION_CONFIDENCE = 0.8
WALK = 4  # moves of a random point, at most


class BudgetSpent(Exception):
    """The budget allows no more trials."""


@dataclass(frozen=True, slots=True)
class Step:
    """A round that moved on."""

    round: int
    name: str
    point: Point
    costs: Costs
    confirmation: Confirmation


@dataclass(frozen=True, slots=True)
class Outcome:
    """Where a search ended: the point it is at, the way there, and why it went no further."""

    point: Point
    costs: Costs
    steps: tuple[Step, ...]
    reason: str
    rounds: int
    gain: Interval | None = None  # nats, start against end on fresh seeds; None where nothing moved or budget is spent


class Search:
    """One study under way. `say` hears a line for everything that happens."""

    def __init__(
        self, space: Space, ledger: Ledger, executor: Executor, folder: Path, *, limits: Limits = Limits(),
        say: Callable[[str], object] = lambda line: None,
    ):  # fmt: skip
        self.space, self.ledger, self.executor, self.folder = space, ledger, executor, folder
        self.limits, self.say = limits, say
        self.rule = Rule(space.rule.confidence, space.rule.shrink_tolerance, space.seeds.min, space.seeds.max)
        self.selection = replace(self.rule, confidence=min(SELECTION_CONFIDENCE, self.rule.confidence))
        self._decided = {row.round for row in ledger.decisions(space.name)}
        self._ended: dict[str, TrialResult] = {}
        self._counted: set[str] = set()
        self.tokens = 0

    def run(self) -> Outcome:
        """Rounds until no move helps or the budget is spent. RunError where the baseline itself cannot be trained."""
        outcome = self._rounds()
        if not outcome.steps:
            return outcome
        seeds = self._seeds(outcome.rounds + 1)
        ends = (self.space.baseline, outcome.point)
        try:
            self._measure([(point, seed) for point in ends for seed in seeds])
        except BudgetSpent:
            return outcome
        losses = [[self._ended[self._identity(point, seed).key].loss for seed in seeds] for point in ends]
        gains = [a - b for a, b in zip(*losses, strict=True) if a is not None and b is not None]
        return replace(outcome, gain=interval(gains, self.rule.confidence) if gains else None)

    def _rounds(self) -> Outcome:
        space = self.space
        point, price = space.baseline, space.baseline_costs
        steps: list[Step] = []
        round_ = 0
        try:
            while space.budget.rounds is None or round_ < space.budget.rounds:
                round_ += 1
                step = self._round(round_, point, price, self._candidates(point, {s.point.key for s in steps}))
                if step is None:
                    return Outcome(point, price, tuple(steps), "no candidate was an improvement", round_)
                steps.append(step)
                point, price = step.point, step.costs
                if space.strategy.kind == "random":
                    return Outcome(point, price, tuple(steps), "random points are judged once", round_)
        except BudgetSpent as spent:
            return Outcome(point, price, tuple(steps), f"the budget is spent: {spent}", round_)
        return Outcome(point, price, tuple(steps), "all rounds of the budget are done", round_)

    def _seeds(self, round_: int, fresh: bool = False) -> range:
        """Those of a round: to select with, or `fresh` ones to confirm with."""
        seeds = self.space.seeds
        start = seeds.first + seeds.max * (2 * (round_ - 1) + fresh)
        return range(start, start + seeds.max)

    def _candidates(self, point: Point, seen: set[str]) -> Generated:
        if self.space.strategy.kind == "random":
            return self._random_points()
        return candidates(self.space, point, seen | {self.space.baseline.key})

    def _random_points(self) -> Generated:
        """As many random walks from the baseline as the budget of trials can measure; the control of every search."""
        space = self.space
        rng = random.Random(space.seeds.first)
        most = (space.budget.trials or 60) // space.seeds.min - space.seeds.max - 1
        found: dict[str, Candidate] = {}
        for _ in range(50 * max(1, most)):
            if len(found) >= most:
                break
            at: Candidate | None = None
            for _ in range(rng.randint(1, WALK)):
                near = candidates(space, at.point if at else space.baseline).candidates
                if not near:
                    break
                move = rng.choice(near)
                name = f"{at.name}; {move.name}" if at else move.name
                at = replace(move, name=name, same_training=move.point.identity == space.baseline.identity)
            if at is not None and at.point.key != space.baseline.key and not violations(at.costs, space.constraints):
                found.setdefault(at.point.key, at)
        return Generated(tuple(found.values()), ())

    def _round(self, round_: int, point: Point, price: Costs, found: Generated) -> Step | None:
        """One decision, recorded with everything that was considered."""
        by_name = {candidate.name: candidate for candidate in found.candidates}
        self.say(f"round {round_}: {len(by_name)} candidates{_dropped(found)}")
        begin = self._seeds(round_)[: self.rule.min_seeds]
        seeds = {name: list(begin) for name in by_name}
        self._measure([(point, seed) for seed in begin])
        self._measure([(c.point, seed) for c in found.candidates if not c.same_training for seed in seeds[c.name]])
        while True:
            failed, evidence = self._evidence(point, price, by_name, seeds)
            decision = decide(evidence, self.selection)
            wanting = [n for n in decision.needs_seeds if len(seeds[n]) < self.rule.max_seeds][:SEEDED_AT_ONCE]
            if not wanting:
                break
            for name in wanting:
                seeds[name].append(seeds[name][-1] + 1)
            last = {seeds[name][-1] for name in wanting}
            self._measure([(point, seed) for seed in sorted(last)])
            self._measure([(by_name[n].point, seeds[n][-1]) for n in wanting if not by_name[n].same_training])
        confirmations = self._confirmations(round_, point, by_name, decision)
        taken = confirmations[-1] if confirmations and confirmations[-1].holds else None
        chosen = taken.judged.name if taken else None
        words = taken.words if taken else _refusal(decision, confirmations)
        self._record(round_, point, price, found, decision, confirmations, failed, chosen, words)
        self.say(f"round {round_}: {'took ' + chosen if chosen else 'no move'}: {words}")
        if taken is None or chosen is None:
            return None
        return Step(round_, chosen, by_name[chosen].point, by_name[chosen].costs, taken)

    def _confirmations(
        self, round_: int, point: Point, by_name: Mapping[str, Candidate], decision: Decision
    ) -> list[Confirmation]:
        """Winners in their order, each measured on seeds that chose nothing, until one holds."""
        fresh = self._seeds(round_, fresh=True)
        tried: list[Confirmation] = []
        for judged in [j for j in decision.judged if j.verdict in TAKEN][:CONFIRMED_AT_MOST]:
            winner = by_name[judged.name]
            self._measure([(p, s) for p in (point, winner.point) for s in fresh if not winner.same_training])
            gains = self._gains(point, winner, fresh)
            if isinstance(gains, str):
                continue
            tried.append(confirm(judged, gains, self.rule))
            if tried[-1].holds:
                break
        return tried

    def _evidence(
        self, point: Point, price: Costs, by_name: Mapping[str, Candidate], seeds: Mapping[str, list[int]]
    ) -> tuple[dict[str, str], list[Evidence]]:
        """(candidates whose trials failed, with the reason; evidence on the others)."""
        failed: dict[str, str] = {}
        evidence = []
        for name, candidate in by_name.items():
            gains = self._gains(point, candidate, seeds[name])
            if isinstance(gains, str):
                failed[name] = gains
                continue
            rise = change(candidate.costs, price, self.space.baseline_costs, self.space.cost)
            evidence.append(Evidence(name, gains, rise))
        return failed, evidence

    def _gains(self, point: Point, candidate: Candidate, seeds: Iterable[int]) -> tuple[float, ...] | str:
        """Paired loss reductions, or why there are none."""
        if candidate.same_training:
            return tuple(0.0 for _ in seeds)
        gains = []
        for seed in seeds:
            before, after = (self._ended[self._identity(p, seed).key] for p in (point, candidate.point))
            if before.loss is None:
                raise RunError(f"the incumbent cannot be trained with seed {seed}: {before.state}, {before.reason}")
            if after.loss is None:
                return f"seed {seed}: {after.state}{', ' + after.reason if after.reason else ''}"
            gains.append(before.loss - after.loss)
        return tuple(gains)

    # -- trials --------------------------------------------------------------------------------------------------

    def _seeded(self, point: Point, seed: int) -> Any:
        train = point.config.train.model_copy(update={"seed": seed, "out_dir": None, "sample_tokens": 0})
        return point.config.model_copy(update={"train": train})

    def _identity(self, point: Point, seed: int) -> Identity:
        return Identity.of(self._seeded(point, seed))

    def _measure(self, wanted: Iterable[tuple[Point, int]]) -> None:
        """Returns when every trial has ended. BudgetSpent before any of them starts that the budget does not hold."""
        new = []
        for point, seed in wanted:
            identity = self._identity(point, seed)
            if identity.key in self._ended:
                continue
            config = self._seeded(point, seed).model_dump(mode="json")
            new.append(NewTrial(identity, config, str(self.folder / "trials" / identity.key), self.limits))
        if not new:
            return
        keys = {trial.identity.key for trial in new}
        self._afford(len(keys - self._counted))
        self._counted |= keys
        self.ledger.add(self.space.name, new)
        self._collect(keys)

    def _afford(self, more: int) -> None:
        budget = self.space.budget
        if budget.trials is not None and len(self._counted) + more > budget.trials:
            raise BudgetSpent(f"{len(self._counted)} trials, {more} more wanted, {budget.trials} allowed")
        if budget.tokens is not None and self.tokens >= budget.tokens:
            raise BudgetSpent(f"{self.tokens:,} tokens")
        spent = self.ledger.study(self.space.name).elapsed_s
        if budget.seconds is not None and spent >= budget.seconds:
            raise BudgetSpent(f"{spent:.0f} s")

    def _collect(self, keys: set[str]) -> None:
        began, done = time.monotonic(), 0
        while True:
            for trial in self.ledger.trials(self.space.name, ENDED):
                if trial.key in keys:
                    keys.discard(trial.key)
                    self.tokens += trial.tokens
                    self._ended[trial.key] = TrialResult(trial.key, trial.state, trial.loss, reason=trial.reason)
            if not keys:
                break
            while len(self.executor.running()) < self.executor.capacity:
                claimed = self.ledger.claim(self.space.name, 1, keys=keys)
                if not claimed:
                    break
                self.executor.start(claimed[0])
            for result in self.executor.wait(WAIT_S):
                state = self.ledger.finish(self.space.name, result)
                done += state != "queued"
                loss = f", loss {result.loss:.4f}" if result.loss is not None else ""
                self.say(f"  {result.key}: {result.state}{loss}{', ' + result.reason if result.reason else ''}")
            now = time.monotonic()
            self.ledger.spend(self.space.name, now - began)
            began = now

    def _record(
        self, round_: int, point: Point, price: Costs, found: Generated, decision: Decision,
        confirmations: list[Confirmation], failed: Mapping[str, str], name: str | None, words: str,
    ) -> None:  # fmt: skip
        if round_ in self._decided:
            return
        content = {
            "incumbent": {"key": point.key, "costs": price.as_dict()},
            "considered": [
                {"name": c.name, "key": c.point.key, "costs": c.costs.as_dict(), "move": c.move.as_dict()}
                for c in found.candidates
            ],
            "dropped": found.dropped, "failed": dict(failed), "words": decision.words,
            "judged": [_plain(j) for j in decision.judged],
            "confirmations": [{**_plain(c.judged), "holds": c.holds, "luck": c.luck} for c in confirmations],
        }  # fmt: skip
        self.ledger.decide(self.space.name, round_, chosen=name, words=words, content=content)
        self._decided.add(round_)


def _plain(judged: Judged) -> dict[str, Any]:
    return asdict(judged)


def _dropped(found: Generated) -> str:
    if not found.dropped:
        return ""
    return "; left out before any training: " + ", ".join(f"{n} {reason}" for reason, n in found.dropped.items())


def _refusal(decision: Decision, confirmations: list[Confirmation]) -> str:
    if confirmations:
        return "; ".join(f"{c.judged.name}: {c.words}" for c in confirmations)
    return decision.words
