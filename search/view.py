"""What a study has come to, as plain data: everything its page and its figures show. Read from the ledger alone.

    study_view(ledger, name) -> StudyView

The gain of a candidate over the start is a chain: the confirmed gains of the steps that led to the incumbent of its
round, plus its own paired gain against that incumbent (on fresh seeds where it was measured again, else at selection).
Its interval is that of the last link alone. Steps had to pass a test, so that a chain is on average too long; the end
of a search has a gain of its own, start against end on seeds that decided nothing. A candidate without a paired gain
(failed, pruned) has no estimate.

Nothing is estimated, trained or written here. Not covered: candidates of a round that is still under way.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from statistics import fmean
from typing import Any, get_args

from .decide import Judged
from .ledger import Ledger
from .paired import Interval
from .records import DecisionRow, Study, Trial
from .score import Score as Scorer
from .trial import FAILED
from .view_records import (
    Chart,
    Curve,
    End,
    Failure,
    Measured,
    Point,
    Round,
    Row,
    Score,
    Step,
    StudyView,
    Used,
    cost_names,
)

CHARTED = ("area_m2", "energy_per_token_j", "latency_s", "params")
FINALISTS = 6  # learning curves shown, that of the start not counted
NO_CHANGE = Interval(0.0, 0.0, 0.0, 0)
Entry = Mapping[str, Any]


def study_view(ledger: Ledger, study: str) -> StudyView:
    """Reads a study, finished or under way, and its random controls `STUDY.random1`, ... UserError: no such study."""
    found = ledger.study(study)
    trials, decisions = ledger.trials(study), ledger.decisions(study)
    outcome = _outcome(ledger, study, trials, decisions)
    start = _start(found, decisions, outcome)
    points = _points(start, decisions)
    path = _path(points, decisions, outcome)
    names = {point.config_hash: point.name for point in reversed(points.values())}
    estimated = [point for point in points.values() if point.gain is not None]
    more = [name for name in cost_names(found.settings) if name not in CHARTED]
    controls = [s for s in ledger.studies() if _number(s.name, study) is not None]
    controls.sort(key=lambda s: _number(s.name, study) or 0)
    return StudyView(
        name=study, settings=found.settings, space=found.space, score=_score(found.settings, start, trials),
        start=start, path=path, points=tuple(points.values()),
        charts=tuple(chart for name in (*CHARTED, *more) if (chart := _chart(name, estimated))),
        kept=tuple(_kept(entry, points) for entry in (outcome or {}).get("front") or ()),
        rounds=tuple(_round(row) for row in decisions), end=_end(ledger, found),
        controls=tuple(end for control in controls if (end := _end(ledger, control))),
        failures=tuple(
            Failure(t.key, t.name or names.get(t.config_hash, ""), t.state, t.seed, t.attempts, t.reason, t.log_tail)
            for t in trials
            if t.state in FAILED or t.state == "queued" and t.attempts > t.interrupted and t.reason
        ),
        curves=tuple(_curves(ledger, study, _finalists(start, path, decisions), trials)),
    )  # fmt: skip


def front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Places of those (cost, badness) that no other beats in one while it equals or beats them in the other."""
    found: list[int] = []
    least = math.inf
    for i in sorted(range(len(points)), key=lambda i: points[i]):
        if points[i][1] < least or found and points[i] == points[found[-1]]:
            least = points[i][1]
            found.append(i)
    return found


def _outcome(
    ledger: Ledger, study: str, trials: Sequence[Trial], decisions: Sequence[DecisionRow]
) -> dict[str, Any] | None:
    """What a study came to, unless it has been extended since and goes on from there."""
    found = ledger.outcome(study)
    if found is None or any(t.state in ("queued", "running") for t in trials):
        return None
    return found if _rounds(decisions) <= found["rounds"] else None


def _rounds(decisions: Sequence[DecisionRow]) -> int:
    """Those that have been decided; a round of a beam takes several decisions."""
    return max((row.content.get("round", row.round) for row in decisions), default=0)


def _number(name: str, study: str) -> int | None:
    """That of a random control of a study."""
    head, _, digits = name.rpartition(".random")
    return int(digits) if head == study and digits.isdecimal() else None


def _place(entry: Entry, name: str, round_: int) -> Point:
    """A point as decisions and outcomes write it. A cost that is not known is left out."""
    costs = {cost: value for cost, value in entry["costs"].items() if value is not None and math.isfinite(value)}
    ends = {cost: (low, high) for cost, (low, high) in (entry.get("intervals") or {}).items()}
    return Point(entry["key"], entry.get("config_hash", ""), name, round_, costs, ends)


def _start(study: Study, decisions: Sequence[DecisionRow], outcome: Entry | None) -> Point | None:
    """As the outcome has it, or the first decision: with the costs that had to be measured. Else from the settings."""
    said = outcome["start"] if outcome else decisions[0].content["incumbent"] if decisions else None
    said = said or study.settings.get("baseline")
    return replace(_place(said, "start", 0), gain=NO_CHANGE, measured="start") if said else None


def _points(start: Point | None, decisions: Sequence[DecisionRow]) -> dict[str, Point]:
    """All points by key, each with its best measured chain."""
    found = {start.key: start} if start else {}
    for row in decisions:
        content = row.content
        before = found.get(content["incumbent"]["key"])
        links: dict[str, tuple[Entry, Measured]] = {j["name"]: (j, "selection") for j in content["judged"]}
        links |= {c["name"]: (c, "confirmed" if c["holds"] else "fresh") for c in content["confirmations"]}
        for entry in content["considered"]:
            point = _place(entry, entry["name"], row.round)
            if entry["name"] in links and before is not None and before.gain is not None:
                link, measured = links[entry["name"]]
                gain = _chained(before.gain.mean, link)
                point = replace(point, gain=gain, measured=measured, verdict=link["verdict"])
            known = found.get(point.key)
            if known is None or _strength(point) > _strength(known):
                found[point.key] = point
    return found


def _chained(before: float, link: Entry) -> Interval:
    low, high = (None if link[end] is None else before + link[end] for end in ("low", "high"))
    return Interval(before + link["gain"], low, high, link["seeds"])


def _kept(entry: Entry, points: Mapping[str, Point]) -> Point:
    """A member of the front of a search: as it was judged, or with the mean gain that it was kept for."""
    judged = points.get(entry["key"])
    if judged is not None and judged.gain is not None:
        return judged
    return replace(_place(entry, entry["name"], 0), gain=Interval(entry["gain"], None, None, 0), measured="selection")


def _strength(point: Point) -> tuple[int, int]:
    return get_args(Measured).index(point.measured), point.gain.seeds if point.gain else 0


def _path(points: Mapping[str, Point], decisions: Sequence[DecisionRow], outcome: Entry | None) -> tuple[Step, ...]:
    """The steps of the outcome; of a study under way those that lead to the point taken last."""
    taken: dict[str, tuple[str, Entry]] = {}  # by key: the incumbent, the confirmation
    last: str | None = None
    for row in decisions:
        keys = {entry["name"]: entry["key"] for entry in row.content["considered"]}
        incumbent = row.content["incumbent"]["key"]
        taken |= {keys[c["name"]]: (incumbent, c) for c in row.content["confirmations"] if c["holds"]}
        last = keys[row.chosen] if row.chosen else last
    if outcome is not None:
        return tuple(_step(points.get(e["key"]) or _place(e, e["name"], e["round"]), taken, e) for e in outcome["path"])
    way: list[str] = []
    while last in taken and last not in way:
        way.insert(0, last)
        last = taken[last][0]
    return tuple(_step(points[key], taken, {}) for key in way)


def _step(point: Point, taken: Mapping[str, tuple[str, Entry]], said: Entry) -> Step:
    link = {
        "seeds": 0,
        "cost_change": None,
        "ratio": None,
        **said,
        **(taken[point.key][1] if point.key in taken else {}),
    }
    change = link["cost_change"]
    gain = Interval(link["gain"], link["low"], link["high"], link["seeds"])
    return Step(point, gain, tuple(change) if isinstance(change, list) else change, link["ratio"])


def _score(settings: Entry, start: Point | None, trials: Sequence[Trial]) -> Score:
    scorer = Scorer(
        settings.get("score", "loss"), settings.get("tokens_per_byte", 1.0), settings.get("better", "lower")
    )
    of_start = _done(trials, start.config_hash) if start else []
    values = [value for t in of_start if (value := _value(scorer, t)) is not None]
    mean = fmean(values) if values else None
    return Score(scorer.name, scorer.unit, scorer.better == "higher", mean, len(values))


def _value(scorer: Scorer, trial: Trial) -> float | None:
    if scorer.tasks:
        return trial.scores.get(scorer.tasks[0])
    return None if trial.loss is None else scorer.of_loss(trial.loss)


def _done(trials: Sequence[Trial], config_hash: str) -> list[Trial]:
    """Those of a configuration that are done: trained from scratch, if any were, since grown ones have learned more."""
    done = [t for t in trials if t.config_hash == config_hash and t.state == "done"]
    return [t for t in done if t.spec.parent is None] or done


def _chart(cost: str, estimated: Sequence[Point]) -> Chart | None:
    points = tuple(point for point in estimated if cost in point.costs)
    if len({point.costs[cost] for point in points}) < 2:
        return None
    best = front([(point.costs[cost], -point.gain.mean) for point in points if point.gain])
    return Chart(cost, points, tuple(points[i] for i in best))


def _round(row: DecisionRow) -> Round:
    content = row.content
    again = {c["name"]: c for c in content["confirmations"]}
    rows = []
    for entry in content["judged"]:
        c = again.get(entry["name"])
        rows.append(Row(_judged(entry), _judged(c) if c else None, bool(c and c["holds"]), c["luck"] if c else 0.0))
    return Round(
        number=row.round, beam_round=content.get("round"), chosen=row.chosen, words=row.words, rows=tuple(rows),
        failed=content["failed"], pruned=content.get("pruned", {}), dropped=content["dropped"],
    )  # fmt: skip


def _judged(entry: Entry) -> Judged:
    values = {name: entry[name] for name in Judged.__dataclass_fields__}
    change = values["cost_change"]
    return Judged(**values | {"cost_change": tuple(change) if isinstance(change, list) else change})


def _used(ledger: Ledger, study: Study, trials: Sequence[Trial], rounds: int) -> Used:
    return Used(
        states=ledger.counts(study.name), trials=len(trials), reused=sum(t.source is not None for t in trials),
        seconds=study.elapsed_s, trial_seconds=math.fsum(t.seconds for t in trials),
        tokens=sum(t.tokens for t in trials), rounds=rounds,
        limits={k: v for k, v in study.settings.get("budget", {}).items() if v is not None},
    )  # fmt: skip


def _end(ledger: Ledger, study: Study) -> End | None:
    """Where a study is; None where nothing says where it began."""
    decisions, trials = ledger.decisions(study.name), ledger.trials(study.name)
    outcome = _outcome(ledger, study.name, trials, decisions)
    start = _start(study, decisions, outcome)
    if start is None:
        return None
    path = _path(_points(start, decisions), decisions, outcome)
    at = _place(outcome["end"], "end", 0) if outcome else path[-1].point if path else start
    said = (outcome or {}).get("gain")
    if said:
        gain = Interval(said["mean"], said["low"], said["high"], said["seeds"])
    else:
        gain = Interval(math.fsum(s.gain.mean for s in path), None, None, 0) if path else NO_CHANGE
    used = _used(ledger, study, trials, outcome["rounds"] if outcome else _rounds(decisions))
    reason = outcome["reason"] if outcome else None
    return End(study.name, at.costs, at.intervals, gain, bool(said) or not path, len(path), reason, used)


def _finalists(start: Point | None, path: Sequence[Step], decisions: Sequence[DecisionRow]) -> dict[str, str]:
    """Names by configuration: the incumbent, those measured again in the last rounds, and the start."""
    found: dict[str, str] = {}
    if path:
        found[path[-1].point.config_hash] = path[-1].point.name
    for row in reversed(decisions):
        of_round = {entry["name"]: entry for entry in row.content["considered"]}
        for c in reversed(row.content["confirmations"]):
            if len(found) < FINALISTS:
                found.setdefault(of_round[c["name"]].get("config_hash", ""), c["name"])
    if start:  # what changes the machine alone is trained like the start
        found.pop(start.config_hash, None)
        found[start.config_hash] = "start"
    return found


def _curves(ledger: Ledger, study: str, finalists: Mapping[str, str], trials: Sequence[Trial]) -> Iterator[Curve]:
    for config_hash, name in finalists.items():
        done = _done(trials, config_hash)
        words = "; ".join(sorted({t.words for t in done if t.words}))
        curve = Curve.of(name, [ledger.curve(study, t.key) for t in done], words)
        if curve is not None:
            yield curve
