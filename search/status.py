"""Where a study stands, from its ledger alone: what monitors show and print. Nothing is written, no torch is imported.

    watch(path, lambda ledger: read_status(ledger, study))    cheap enough for twice a second at 1,000 trials

Losses and gains are those of the trials, in nats a token; the gains of steps are in the unit of the study's score, as
the search recorded them. The gain of a candidate of the round under way is the mean paired difference so far, of fresh
seeds as soon as there are some, without an interval; in a beam there is none. The time left is that of the budget at
the rate so far, an upper bound: a search may end before. Not covered: candidates without trials in the ledger, and the
costs of candidates that are not decided on yet, but for their number of parameters.
"""

import statistics
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from .differs import differs
from .records import DecisionRow, Study
from .trial import FAILED, STATES, State
from .view_records import cost_names
from .watch import Brief, Unchanged, leader

SHOWN = 8  # ends and failures
Phase = Literal["running", "stopped", "finished", "unknown"]


@dataclass(frozen=True, slots=True)
class Standing:
    """A point with what is known of it. `loss`: mean over the seeds that are done, nats; None without any."""

    name: str
    config_hash: str
    loss: float | None
    seeds: int
    costs: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class StepTaken:
    round: int
    name: str
    gain: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True, slots=True)
class Row:
    """A candidate of the round: its trials by state, and its paired gain over the incumbent on `pairs` seeds."""

    name: str
    config_hash: str
    state: str
    counts: Mapping[State, int]
    loss: float | None
    gain: float | None
    pairs: int
    fresh: bool
    costs: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class End:
    """How a trial ended, or why its last attempt failed."""

    key: str
    name: str
    seed: int
    state: State
    loss: float | None
    seconds: float
    reason: str


@dataclass(frozen=True, slots=True)
class Use:
    """Of a budget; no limit is None."""

    name: str
    used: float
    limit: float | None


@dataclass(frozen=True, slots=True)
class Status:
    study: str
    phase: Phase
    led_by: str
    strategy: str
    machine: str
    unit: str
    cost_names: tuple[str, ...]
    round: int | None
    final: bool
    """Whether start and end are being measured afresh."""
    counts: Mapping[State, int]
    elapsed_s: float
    trials_per_minute: float | None
    at_most_s: float | None
    budget: tuple[Use, ...]
    incumbent: Standing | None
    best: Standing | None
    steps: tuple[StepTaken, ...]
    candidates: tuple[Row, ...]
    recent: tuple[End, ...]
    failures: tuple[End, ...]
    reason: str
    """Why it is finished."""
    gain: Mapping[str, Any] | None
    """Start against end on fresh seeds, of a finished search."""


def read_status(ledger: Unchanged, study: str) -> Status:
    """UserError: no such study."""
    return Picture(ledger, study).status()


class Picture:
    """What the rows of a study say together. `outcome` is None again when a finished search goes on."""

    def __init__(self, ledger: Unchanged, study: str):
        self.ledger, self.about = ledger, ledger.study(study)
        self.settings, self.decisions, self.trials = self.about.settings, ledger.decisions(study), ledger.brief(study)
        outcome = ledger.outcome(study)
        self.by_config: dict[str, list[Brief]] = {}
        for trial in self.trials:
            self.by_config.setdefault(trial.config_hash, []).append(trial)
        kind = self.settings.get("strategy", {}).get("kind")
        last = max((_round_of(row) for row in self.decisions), default=0)
        open_ = any(t.state in ("queued", "running") for t in self.trials)
        self.outcome = None if outcome is None or open_ or last > outcome["rounds"] else outcome
        newest = max((self._place(t.seed)[0] for t in self.trials), default=1) if self.settings else 1
        self.round: int = min(newest, self.outcome["rounds"]) if self.outcome else newest
        if kind == "nsga2":  # its generations share the seeds of the one decision that there is
            self.round = 1 if self.outcome else min(newest, last + 1)
        self.start: Mapping[str, Any] = self.settings.get("baseline") or {}
        first = self.by_config.get(self.start.get("config_hash", "")) or self.trials
        self.base = self._config(first[0]) if first else {}
        self._costs: dict[tuple[str, str], Mapping[str, float]] = {}
        for entry in (e for row in self.decisions for e in row.content.get("considered", ())):
            self._costs[entry["config_hash"], _machine(entry)] = entry["costs"]
        self._at = _machine(self._before(self.round))

    def status(self) -> Status:
        about, settings, outcome = self.about, self.settings, self.outcome
        led, led_by = leader(self.ledger.path, about.name)
        phase: Phase = "finished" if outcome else "unknown" if led is None else "running" if led else "stopped"
        ended = sorted((t for t in self.trials if t.ended is not None), key=lambda t: -(t.ended or 0))
        failures = [t for t in self.trials if t.state in ("queued", "running") and t.reason]
        failures += [t for t in ended if t.state in FAILED]
        budget = _budget(about, self.trials, self.round)
        own = sum(t.source is None and t.state != "infeasible" for t in ended)
        rate = 60 * own / about.elapsed_s if own and about.elapsed_s > 0 else None
        return Status(
            about.name, phase, led_by, settings.get("strategy", {}).get("kind", ""), settings.get("machine") or "",
            settings.get("unit", "nats"), cost_names(settings), self.round if settings else None, self._final(),
            _counts(self.trials), about.elapsed_s, rate,
            None if outcome else _at_most(budget, ended, about.elapsed_s), budget, self.incumbent(), self.best(),
            self.steps(), tuple(self.candidates()), tuple(map(self.end, ended[:SHOWN])),
            tuple(map(self.end, failures[:SHOWN])), outcome["reason"] if outcome else "",
            outcome.get("gain") if outcome else None,
        )  # fmt: skip

    def name(self, trial: Brief) -> str:
        """The move that led to it, or what its configuration changes."""
        return trial.name or self.differs(trial) or "baseline"

    def _config(self, trial: Brief) -> Mapping[str, Any]:
        return self.ledger.configs(self.about.name, [trial.key])[trial.key]

    def differs(self, trial: Brief) -> str:
        """What the configuration of a trial changes against the baseline, or the first trial of a sweep."""
        return differs(self._config(trial), self.base)

    def end(self, trial: Brief) -> End:
        reason = trial.reason if trial.state != "done" else ""
        return End(trial.key, self.name(trial), trial.seed, trial.state, trial.loss, trial.seconds, reason)

    def incumbent(self) -> Standing | None:
        """None for a sweep."""
        end = self.outcome.get("end") if self.outcome else None
        entry = end or self._after(self.round) or self.start
        return self._standing(entry["config_hash"], entry["costs"]) if entry else None

    def best(self) -> Standing | None:
        """Of the lowest mean loss. The best of many looks better than it is."""
        means = {name: found for name, rows in self.by_config.items() if (found := _mean(rows)) is not None}
        name = min(means, key=means.__getitem__, default=None)
        return None if name is None else self._standing(name, self._known(name))

    def _standing(self, config_hash: str, costs: Mapping[str, float]) -> Standing:
        trials = self.by_config.get(config_hash, [])
        name, seeds = self.name(trials[0]) if trials else "baseline", len(_losses(trials))
        if seeds > 1:  # trials of a sweep are named with their seed, and this is a mean
            parts = [part for part in name.split(", ") if part != f"seed={trials[0].seed}"]
            name = ", ".join(parts) or "as the file says"
        return Standing(name, config_hash, _mean(trials), seeds, costs)

    def steps(self) -> tuple[StepTaken, ...]:
        if self.outcome:
            path = self.outcome["path"]
            return tuple(StepTaken(s["round"], s["name"], *map(s.get, ("gain", "low", "high"))) for s in path)
        found = []
        for row in self.decisions:
            for judged in row.content.get("confirmations", ()):
                if row.chosen == judged["name"] and judged["holds"]:
                    found.append(
                        StepTaken(_round_of(row), judged["name"], judged["gain"], judged["low"], judged["high"])
                    )
        return tuple(found)

    def candidates(self) -> list[Row]:
        """Those of the round under way that have trials, or of the last round; best gain first, failures last."""
        base = self._before(self.round).get("config_hash")
        if base is None:
            return []
        before = _losses(self.by_config.get(base, ()))
        if self.settings.get("strategy", {}).get("beam", 1) > 1:
            before = {}  # which point of the beam a candidate comes from is known once it is decided
        own = {name: [t for t in rows if self._of_round(t)] for name, rows in self.by_config.items() if name != base}
        rows = [self._row(trials, before) for trials in own.values() if trials]
        return sorted(rows, key=lambda r: (r.state in FAILED, r.gain is None, -(r.gain or 0.0), r.loss is None, r.loss))

    def _row(self, trials: list[Brief], before: Mapping[int, float]) -> Row:
        losses = _losses(trials)
        pairs = {seed: before[seed] - loss for seed, loss in losses.items() if seed in before}
        fresh = {seed: gain for seed, gain in pairs.items() if self._fresh(seed)}
        gains = (fresh or pairs).values()
        counts = _counts(trials)
        state: str = next((s for s in (*FAILED, "running", "queued", "pruned") if s in counts), "done")
        if state in ("running", "queued") and any(self._fresh(t.seed) for t in trials):
            state = "confirming"
        return Row(
            self.name(trials[0]), trials[0].config_hash, state, counts,
            _mean(trials), statistics.fmean(gains) if gains else None,
            len(gains), bool(fresh), self._known(trials[0].config_hash),
        )  # fmt: skip

    def _known(self, config_hash: str) -> Mapping[str, float]:
        """Costs on the machine of the incumbent. Before a decision only what trials tell: the number of parameters."""
        if config_hash == self.start.get("config_hash") and _machine(self.start) == self._at:
            return self.start["costs"]
        params = max((t.params for t in self.by_config.get(config_hash, ())), default=0)
        return self._costs.get((config_hash, self._at)) or ({"params": float(params)} if params else {})

    def _before(self, round_: int) -> Mapping[str, Any]:
        """The point that a round starts from; empty for a sweep."""
        own = next((row.content.get("incumbent") for row in self.decisions if _round_of(row) == round_), None)
        return own or self._after(round_ - 1) or self.start

    def _after(self, round_: int) -> Mapping[str, Any] | None:
        """The point that was taken last, up to a round."""
        taken = None
        for row in self.decisions:
            if row.chosen is not None and _round_of(row) <= round_:
                taken = next((e for e in row.content["considered"] if e["name"] == row.chosen), taken)
        return taken

    def _final(self) -> bool:
        """Only the last measurement looks at the baseline again that a search has left behind."""
        start, base = self.start.get("config_hash"), self._before(self.round).get("config_hash")
        left = start is not None and start != base and self.outcome is None
        return left and any(self._of_round(t) for t in self.by_config.get(start or "", ()))

    def _place(self, seed: int) -> tuple[int, bool]:
        """(round, whether it is a fresh seed of it): the inverse of `search.greedy.seeds_of`."""
        seeds = self.settings["seeds"]
        halves = (seed - seeds["first"]) // seeds["max"]
        return halves // 2 + 1, halves % 2 == 1

    def _fresh(self, seed: int) -> bool:
        return self._place(seed)[1]

    def _of_round(self, trial: Brief) -> bool:
        return self._place(trial.seed)[0] == self.round


def _losses(trials: Iterable[Brief]) -> dict[int, float]:
    """Nats by seed, of what is done."""
    return {t.seed: t.loss for t in trials if t.state == "done" and t.loss is not None}


def _mean(trials: Iterable[Brief]) -> float | None:
    losses = _losses(trials)
    return statistics.fmean(losses.values()) if losses else None


def _machine(entry: Mapping[str, Any]) -> str:
    return entry.get("key", "").rpartition("-")[2]


def _round_of(row: DecisionRow) -> int:
    """A wide beam decides several times a round."""
    return row.content.get("round", row.round)


def _counts(trials: Iterable[Brief]) -> dict[State, int]:
    found = Counter(trial.state for trial in trials)
    return {state: found[state] for state in STATES if state in found}


def _budget(about: Study, trials: Iterable[Brief], round_: int) -> tuple[Use, ...]:
    """As the search counts: what another study has trained is used, too, but for the wall-clock time."""
    limits = about.settings.get("budget") or {}
    counted = [t for t in trials if t.state != "infeasible"]
    used = {**_amounts(counted), "seconds": about.elapsed_s, "rounds": round_ if about.settings else 0}
    return tuple(Use(name, value, limits.get(name)) for name, value in used.items())


def _amounts(trials: Iterable[Brief]) -> dict[str, float]:
    trials = list(trials)
    hours = sum(t.seconds for t in trials) / 3600
    return {"trials": len(trials), "tokens": sum(t.tokens for t in trials), "gpu_hours": hours}


def _at_most(budget: Iterable[Use], ended: Iterable[Brief], elapsed_s: float) -> float | None:
    """Seconds until the first limit, at the mean rate of the trials that the study trained itself; None: not known."""
    if elapsed_s <= 0:
        return None
    ended = [t for t in ended if t.state != "infeasible"]
    spent, own = _amounts(ended), _amounts(t for t in ended if t.source is None)
    spent, own = {**spent, "seconds": elapsed_s}, {**own, "seconds": elapsed_s}
    limits = {use.name: use.limit for use in budget if use.limit is not None and own.get(use.name)}
    return min((max(0.0, limit - spent[n]) * elapsed_s / own[n] for n, limit in limits.items()), default=None)
