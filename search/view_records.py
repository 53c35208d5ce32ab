"""What `search.view` makes of a study: plain frozen data for its page and its figures.

Gains are positive when better, in the unit of the score; costs in SI units.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from statistics import fmean
from typing import Any, Literal

from .decide import Judged
from .paired import Interval
from .trial import State

BEYOND = 1.0  # charts leave out points that are worse than this share of what is interesting
Measured = Literal["none", "selection", "fresh", "confirmed", "start"]  # what a gain rests on, weakest first


def cost_names(settings: Mapping[str, Any]) -> tuple[str, ...]:
    """The costs that a study keeps low."""
    rule = settings.get("cost", {})
    return (rule["name"],) if rule.get("name") else tuple(rule.get("weights") or rule.get("lexicographic") or ())


@dataclass(frozen=True, slots=True)
class Score:
    """What is improved. `start` is its mean over the trials of the baseline; None where they do not tell it."""

    name: str
    unit: str
    rises: bool  # higher is better
    start: float | None
    seeds: int

    def at(self, gain: float) -> float:
        """The score at a gain over the start; the gain itself where the score of the start is not known."""
        return gain if self.start is None else self.start + gain if self.rises else self.start - gain

    @property
    def upward(self) -> bool:
        """Whether a larger `at` is better."""
        return self.rises or self.start is None


@dataclass(frozen=True, slots=True)
class Point:
    """A configuration on a machine. `gain` is over the start; `measured` says on what its last link rests."""

    key: str
    config_hash: str
    name: str
    round: int  # 0: the start
    costs: Mapping[str, float]
    intervals: Mapping[str, tuple[float, float]]
    gain: Interval | None = None
    measured: Measured = "none"
    verdict: str = ""


@dataclass(frozen=True, slots=True)
class Step:
    """A move that was taken. `ratio`: gain per unit of added cost, None unless the cost rose."""

    point: Point
    gain: Interval  # over the step before, on the seeds that confirmed it
    cost_change: float | tuple[float, ...] | None
    ratio: float | None


@dataclass(frozen=True, slots=True)
class Row:
    """A candidate of a round as it was judged, and judged again on fresh seeds if it won."""

    judged: Judged
    confirmed: Judged | None
    holds: bool
    luck: float


def gain_of(judged: Judged) -> Interval:
    """Its paired gain over the incumbent of its round."""
    return Interval(judged.gain, judged.low, judged.high, judged.seeds)


@dataclass(frozen=True, slots=True)
class Round:
    """A decision. `beam_round`: that of a search whose rounds have several, one a point of its beam."""

    number: int
    beam_round: int | None
    chosen: str | None
    words: str
    rows: tuple[Row, ...]
    failed: Mapping[str, str]
    pruned: Mapping[str, str]
    dropped: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Used:
    """What a study has used. `seconds` are the coordinator's, `trial_seconds` those of all trials, whoever ran them."""

    states: Mapping[State, int]
    trials: int
    reused: int
    seconds: float
    trial_seconds: float
    tokens: int
    rounds: int
    limits: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class End:
    """Where a search is. `gain`: start against end; `fresh` where seeds that decided nothing measured it, or nothing
    moved. Otherwise it is the sum of its steps, without ends."""

    study: str
    costs: Mapping[str, float]
    intervals: Mapping[str, tuple[float, float]]
    gain: Interval
    fresh: bool
    moves: int
    reason: str | None  # None: under way
    used: Used


@dataclass(frozen=True, slots=True)
class Comparison:
    """The end of a search beside those of its random controls, counted."""

    controls: int
    ahead: int  # controls with a smaller gain
    clear: int  # of these, those whose interval lies below
    behind: int  # controls with a larger gain
    no_dearer: int  # controls that cost at least as much, by the cost of the study
    both: int  # controls with a smaller gain that cost at least as much
    summed: int  # controls whose gain is the sum of their steps, since no fresh seeds measured it


@dataclass(frozen=True, slots=True)
class Failure:
    key: str
    name: str
    state: State
    seed: int
    attempts: int
    reason: str
    log_tail: str


@dataclass(frozen=True, slots=True)
class Curve:
    """Validation loss in nats by step, at the steps that all seeds have: mean, lowest and highest seed."""

    name: str
    seeds: int
    steps: tuple[int, ...]
    mean: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    words: str = ""  # what is special about its trials

    @classmethod
    def of(cls, name: str, curves: Iterable[Iterable[tuple[int, float]]], words: str = "") -> "Curve | None":
        """From the curves of the seeds; None where they have no step in common."""
        by_step = [dict(curve) for curve in curves]
        steps = sorted(set.intersection(*map(set, by_step))) if by_step else []
        if not steps:
            return None
        at = [[curve[step] for curve in by_step] for step in steps]
        lows, highs = (min(values) for values in at), (max(values) for values in at)
        return cls(name, len(by_step), tuple(steps), tuple(map(fmean, at)), tuple(lows), tuple(highs), words)


@dataclass(frozen=True, slots=True)
class Chart:
    """A cost that differs between estimated points: those that have it, and which of them no other beats in both."""

    cost: str
    points: tuple[Point, ...]
    front: tuple[Point, ...]  # cheapest first


@dataclass(frozen=True, slots=True)
class StudyView:
    name: str
    settings: Mapping[str, Any]
    space: str
    score: Score
    start: Point | None
    path: tuple[Step, ...]
    points: tuple[Point, ...]
    charts: tuple[Chart, ...]
    kept: tuple[Point, ...]  # the front of a search that keeps one
    rounds: tuple[Round, ...]
    end: End | None
    controls: tuple[End, ...]
    failures: tuple[Failure, ...]
    curves: tuple[Curve, ...]

    @property
    def left_out(self) -> int:
        """Points without an estimate."""
        return sum(point.gain is None for point in self.points)

    @property
    def warm(self) -> bool:
        """Whether candidates were trained on from grown weights."""
        return self.settings.get("strategy", {}).get("start") == "warm"

    @property
    def finished(self) -> bool:
        return self.end is not None and self.end.reason is not None

    def cost_of(self, costs: Mapping[str, float]) -> tuple[float, ...] | None:
        """What the search keeps low: a cost in its unit, a weighted mean relative to the start, or costs in turn."""
        names, base = cost_names(self.settings), self.start.costs if self.start else {}
        if not names or any(name not in costs for name in names):
            return None
        weights = self.settings["cost"].get("weights")
        if weights:
            return (sum(w * costs[n] / base[n] for n, w in weights.items()) / sum(weights.values()),)
        return tuple(costs[name] for name in names)

    def way(self, cost: str) -> list[Point]:
        """The start and the steps, as far as they have this cost."""
        points = [*([self.start] if self.start else []), *(step.point for step in self.path)]
        return [point for point in points if point.gain is not None and cost in point.costs]

    def ends(self, cost: str) -> list[End]:
        """The end and those of the controls, where fresh seeds have measured them. What has not moved is no end."""
        found = [end for end in (self.end, *self.controls) if end is not None]
        return [end for end in found if end.fresh and end.moves and cost in end.costs]

    def least_gain(self, chart: Chart) -> float:
        """What a chart shows at least: below the worst of front, path and ends by no more than their range."""
        gains = [p.gain.mean for p in (*chart.front, *self.way(chart.cost)) if p.gain is not None]
        gains += [end.gain.mean for end in self.ends(chart.cost)]
        if len(set(gains)) < 2:
            return -math.inf
        return min(gains) - BEYOND * (max(gains) - min(gains))

    @property
    def comparison(self) -> Comparison:
        """With the controls that have ended."""
        ended = [c for c in self.controls if c.reason is not None]
        if self.end is None:
            return Comparison(len(ended), 0, 0, 0, 0, 0, 0)
        mine, cost = self.end.gain, self.cost_of(self.end.costs)
        ahead = [c for c in ended if mine.mean > c.gain.mean]
        clear = [c for c in ahead if mine.low is not None and c.gain.high is not None and mine.low > c.gain.high]
        dearer = [c for c in ended if cost is not None and (its := self.cost_of(c.costs)) is not None and its >= cost]
        behind = sum(c.gain.mean > mine.mean for c in ended)
        both = sum(c in dearer for c in ahead)
        summed = sum(not c.fresh for c in ended)
        return Comparison(len(ended), len(ahead), len(clear), behind, len(dearer), both, summed)
