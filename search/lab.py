"""The trials of one study: what was measured, what may still be, all of it in the ledger.

Whoever searches asks for runs, a point and a seed each, and gets paired gains. A run is trained once: what the ledger
knows is not trained again, so the same search on the same ledger goes through the same rounds without training.
"""

import math
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from gptcore.errors import RunError, UserError

from .executors import Executor
from .ledger import Ledger
from .point import Point
from .records import NewTrial
from .running import run_trials
from .score import Score
from .space import Space
from .trial import Identity, Limits, TrialResult


class BudgetSpent(Exception):
    """The budget allows no more trials."""


@dataclass(frozen=True, slots=True)
class Run:
    """One training: `parent` is the key and the folder of the trial that it grows from. The name is for people."""

    point: Point
    seed: int
    parent: tuple[str, str] | None = None
    name: str = ""


class Lab:
    """Measures runs for a study of the ledger, that of the name of the space, as far as the budget of the space goes.

    `say` hears a line for everything that happens.
    """

    def __init__(
        self, space: Space, ledger: Ledger, executor: Executor, folder: Path, *, limits: Limits = Limits(),
        say: Callable[[str], object] = lambda line: None,
    ):  # fmt: skip
        self.space, self.ledger, self.executor, self.folder = space, ledger, executor, folder
        self.study, self.limits, self.say = space.name, limits, say
        self.score: Score = space.score
        self._ended: dict[str, TrialResult] = {}
        self._curves: dict[str, dict[int, float]] = {}
        self._identities: dict[tuple[str, str], Identity] = {}
        self._counted: set[str] = set()
        self._seen = 0  # the number of the last end that was read
        # Start and end are measured once more when all is decided: so many trials, but at most a third of the budget,
        # are for nothing else.
        self.kept_back = 2 * space.seeds.max
        self._read()

    # -- what is known -------------------------------------------------------------------------------------------

    def value(self, run: Run) -> float | str:
        """The score of a run that was measured, or how it failed."""
        end = self._ended[self.key(run)]
        value = self.score.value(end)
        return value if value is not None else f"{end.state}{', ' + end.reason if end.reason else ''}"

    def gains(self, before: Iterable[Run], after: Iterable[Run]) -> tuple[float, ...] | str:
        """Paired gains of runs that were measured, or why there are none. RunError where `before` has failed."""
        gains = []
        for old, new in zip(before, after, strict=True):
            was, now = self.value(old), self.value(new)
            if isinstance(was, str):
                raise self.untrained(old)
            if isinstance(now, str):
                return f"seed {new.seed}: {now}"
            gains.append(self.score.gain(was, now))
        return tuple(gains)

    def untrained(self, incumbent: Run) -> RunError:
        """What to raise where it failed: nothing can be compared with it."""
        return RunError(f"the incumbent cannot be trained with seed {incumbent.seed}: {self.value(incumbent)}")

    def curve(self, run: Run) -> dict[int, float]:
        """Step -> validation loss, in nats whatever the score."""
        key = self.key(run)
        if key not in self._curves:
            self._curves[key] = dict(self.ledger.curve(self.study, key))
        return self._curves[key]

    def trial_of(self, run: Run) -> tuple[str, str]:
        """(key, run folder), as a run that grows from this one names its parent."""
        trial = self.ledger.trial(self.study, self.key(run))
        assert trial is not None
        return trial.key, trial.folder

    def failed(self, run: Run) -> bool:
        return self._ended[self.key(run)].state not in ("done", "pruned")

    def at(self, run: Run, step: int) -> float | None:
        """The score at a step of the learning curve; None for a run that failed, or ended before the step."""
        loss = None if self.failed(run) else self.curve(run).get(step)
        return None if loss is None else self.score.of_loss(loss)

    @property
    def trials(self) -> int:
        """How many the study has asked for, whoever trained them."""
        return len(self._counted)

    # -- identities ----------------------------------------------------------------------------------------------

    def key(self, run: Run) -> str:
        return self.identity(run).key

    def identity(self, run: Run) -> Identity:
        """That of its trial; all but the seed is remembered."""
        about = run.point.identity, run.parent[0] if run.parent else ""
        found = self._identities.get(about)
        if found is None:
            config = _seeded(run.point, run.seed)
            found = self._identities[about] = Identity.of(config, about[1] or None, self.score.tasks)
        return replace(found, seed=run.seed)

    # -- measuring -----------------------------------------------------------------------------------------------

    def measure(self, runs: Iterable[Run], until: int | None = None) -> None:
        """Returns when every run has ended, or has reached the step `until`.

        BudgetSpent before any of them starts that the budget does not hold.
        """
        wanted = {self.key(run): run for run in runs}
        new = wanted.keys() - self._counted
        if new:  # counted whoever trained them, so that a resumed search ends where it would have
            self._afford(new)
            self._counted |= new
        missing = {key: run for key, run in wanted.items() if not self._far_enough(key, until)}
        if not missing:
            return
        self.ledger.add(self.study, [self._new(run, until) for run in missing.values()])
        self._read()
        paused = [key for key in missing if key in self._ended and not self._far_enough(key, until)]
        self.ledger.go_on(self.study, paused, until)
        for key in paused:
            del self._ended[key]
            self._curves.pop(key, None)
        run_trials(
            self.ledger, self.executor, self.study, {key for key in missing if key not in self._ended},
            lambda result, _: self.say(_line(result, wanted.get(result.key))),
        )  # fmt: skip
        self._read()

    def _far_enough(self, key: str, until: int | None) -> bool:
        end = self._ended.get(key)
        if end is None or end.state != "pruned":
            return end is not None
        return until is not None and until <= max((step for step, _ in self.ledger.curve(self.study, key)), default=-1)

    def _new(self, run: Run, until: int | None) -> NewTrial:
        identity, config = self.identity(run), _seeded(run.point, run.seed).model_dump(mode="json")
        folder = str(self.folder / "trials" / identity.key)
        return NewTrial(
            identity, config, folder, self.limits, pause_at=until, parent=run.parent, tasks=self.score.tasks,
            name=run.name,
        )  # fmt: skip

    def has_room(self, runs: Iterable[Run], spare: int) -> bool:
        """Whether the budget of trials holds these runs and `spare` more."""
        new = {self.key(run) for run in runs} - self._counted
        return len(self._counted) + len(new) + spare <= self._allowed_trials()

    def _allowed_trials(self) -> float:
        trials = self.space.budget.trials
        return math.inf if trials is None else trials - min(self.kept_back, trials // 3)

    def _afford(self, new: Collection[str]) -> None:
        budget, count, allowed = self.space.budget, len(self._counted), self._allowed_trials()
        if count + len(new) > allowed:
            kept = f" ({budget.trials} with the last measurement)" if allowed != budget.trials else ""
            words = f"{count} trials, {len(new)} more wanted, {allowed} allowed{kept}"
            if not count:
                raise UserError(f"budget.trials does not hold the first round: {words}; raise it or drop some moves")
            raise BudgetSpent(words)
        known = [self._ended[key] for key in self._counted if key in self._ended]
        tokens, seconds = sum(end.tokens for end in known), math.fsum(end.seconds for end in known)
        if self._exceeds(budget.tokens, tokens, len(known), len(new)):
            raise BudgetSpent(f"{tokens:,} of {budget.tokens:,} tokens")
        if budget.gpu_hours and self._exceeds(3600 * budget.gpu_hours, seconds, len(known), len(new)):
            raise BudgetSpent(f"{seconds / 3600:.3g} of {budget.gpu_hours:g} hours of trials")
        # The time of this study says nothing about trials that have ended: a search that resumes goes through them.
        elapsed = self.ledger.study(self.study).elapsed_s
        if not self._ended.keys() >= set(new) and self._exceeds(budget.seconds, elapsed, len(known), len(new)):
            raise BudgetSpent(f"{budget.seconds:g} s of wall-clock time")

    def _exceeds(self, limit: float | None, used: float, trials: int, more: int) -> bool:
        """Whether `more` trials would, if they take what `trials` have so far, with the last measurement kept back."""
        if limit is None:
            return False
        each = used / max(trials, 1)
        return used + more * each > limit - min(self.kept_back * each, limit / 3)

    def _read(self) -> None:
        """Takes in what has ended since the last look."""
        for trial in self.ledger.ends(self.study, self._seen):
            assert trial.ended is not None
            self._seen = max(self._seen, trial.ended)
            self._ended[trial.key] = TrialResult(
                trial.key, trial.state, trial.loss, reason=trial.reason, seconds=trial.seconds, tokens=trial.tokens,
                scores=trial.scores,
            )  # fmt: skip


def _seeded(point: Point, seed: int) -> Any:
    train = point.config.train.model_copy(update={"seed": seed, "out_dir": None, "sample_tokens": 0})
    return point.config.model_copy(update={"train": train})


def _line(result: TrialResult, run: Run | None) -> str:
    """What happened to a trial, for people."""
    name = f"{run.name}, seed {run.seed}" if run is not None and run.name else result.key
    loss = f", loss {result.loss:.4f}" if result.loss is not None else ""
    return f"  {name}: {result.state}{loss}{', ' + result.reason if result.reason else ''}"
