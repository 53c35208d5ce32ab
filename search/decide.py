"""Which candidate of a round is taken. Pure functions of paired gains (nats, say) and of changes of cost.

A gain whose interval lies above zero at no higher cost dominates and comes first; then the best gain per unit of added
cost; then, if a tolerance allows shrinks, the largest saving that with confidence loses no more than the tolerance.
All else is rejected. Nothing is ever divided by a change of cost that is zero or negative, so a worse and cheaper
candidate cannot pass for an efficient one.

The interval is two-sided: at 95 % a candidate of no effect is accepted in 2.5 % of cases when judged once. A round
judges many candidates, each as often as seeds are added: of ten without effect, at two to six seeds, one is selected in
41 % of rounds, with a gain that is luck. Therefore `confirm` judges the winner again, once, on fresh seeds alone, which
holds the nominal rate (measured 2.5 % of those selected, tests/search/test_decide_simulation.py).
The fresh gain is free of the selection, but the mean of those gains alone that were confirmed is not: they passed a
test. A gain to report is measured from start to end of a search, on seeds that decided nothing.
Not covered: the sum of many shrinks, each within the tolerance, has no bound here.
"""

import math
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

from .paired import Interval, best_case, interval

Verdict = Literal["dominates", "improves", "shrinks", "undecided", "noise", "worse"]
VERDICTS: tuple[Verdict, ...] = get_args(Verdict)  # best first
TAKEN: tuple[Verdict, ...] = ("dominates", "improves", "shrinks")
Cost = float | tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Evidence:
    """A candidate against the incumbent. ValueError: a gain or a cost that is no finite number."""

    name: str
    gains: tuple[float, ...]  # loss of the incumbent minus loss of the candidate on the same seed, one a seed
    cost_change: Cost  # several elements: compared in order, the first that is not zero decides

    def __post_init__(self) -> None:
        if not self.gains:
            raise ValueError(f"{self.name}: no gains")
        for what, values in (("gain", self.gains), ("change of cost", _elements(self.cost_change))):
            for value in values:
                if value is None or not math.isfinite(value):
                    raise ValueError(f"{self.name}: a {what} is {value!r}: leave out what failed or diverged")


@dataclass(frozen=True, slots=True)
class Rule:
    """How sure one must be. ValueError: values that make no rule."""

    confidence: float = 0.95  # of the two-sided interval of the gain
    shrink_tolerance: float | None = None  # what a cheaper candidate may lose; None: no shrinks
    min_seeds: int = 2  # fewer are never judged
    max_seeds: int = 6  # from here on a candidate is not undecided any more
    unit: str = "nats"  # of the gains, for words

    def __post_init__(self) -> None:
        if not 0 < self.confidence < 1:
            raise ValueError(f"confidence lies between 0 and 1, not {self.confidence!r}")
        if self.shrink_tolerance is not None and not 0 <= self.shrink_tolerance < math.inf:
            raise ValueError(f"shrink_tolerance is None or at least 0, not {self.shrink_tolerance!r}")
        if not 2 <= self.min_seeds <= self.max_seeds:
            raise ValueError(f"seeds: 2 <= min_seeds <= max_seeds, not {self.min_seeds!r} and {self.max_seeds!r}")


@dataclass(frozen=True, slots=True)
class Judged:
    """What is made of a candidate. `gain`, `low`, `high` in the unit of the gains; one seed has no interval."""

    name: str
    verdict: Verdict
    gain: float
    low: float | None
    high: float | None
    cost_change: Cost
    ratio: float | None  # gain a unit of added cost, where it improves
    seeds: int
    words: str


@dataclass(frozen=True, slots=True)
class Decision:
    """The outcome of a round. `judged` is ranked, best first."""

    chosen: str | None
    judged: tuple[Judged, ...]
    needs_seeds: tuple[str, ...]  # undecided ones that could still displace the choice, most promising first
    words: str


@dataclass(frozen=True, slots=True)
class Confirmation:
    """The winner on fresh seeds. `luck`: the gain at selection that did not repeat; negative if it grew."""

    judged: Judged
    holds: bool
    luck: float
    words: str


def decide(evidence: Sequence[Evidence], rule: Rule) -> Decision:
    """Judge every candidate, rank them and choose. The order of `evidence` does not matter.

    ValueError: a name that occurs twice, or costs of different shape.
    """
    twice = [name for name, count in Counter(e.name for e in evidence).items() if count > 1]
    if twice:
        raise ValueError(f"candidates of the same name: {', '.join(twice)}")
    if len({len(_elements(e.cost_change)) for e in evidence}) > 1:
        raise ValueError("changes of cost of different length cannot be compared")
    ranked = sorted((_judge(e, rule) for e in evidence), key=_rank)
    chosen = ranked[0] if ranked and ranked[0].verdict in TAKEN else None
    given = {e.name: e for e in evidence}
    open_ = [j for j in ranked if j.verdict == "undecided"]
    needs = tuple(j.name for j in open_ if chosen is None or _rank(_at_best(given[j.name], rule)) < _rank(chosen))
    return Decision(chosen.name if chosen else None, tuple(ranked), needs, _summary(chosen, ranked, needs))


def confirm(selected: Judged, gains_fresh: Sequence[float], rule: Rule) -> Confirmation:
    """Judge a selected candidate by seeds that had no part in its selection, and by these alone.

    Fix their number beforehand: adding seeds until the result pleases brings the error back that this removes.
    ValueError: fewer than `rule.min_seeds` gains, or one that is no finite number.
    """
    if len(gains_fresh) < rule.min_seeds:
        raise ValueError(f"{selected.name}: {len(gains_fresh)} fresh seeds, the rule asks for {rule.min_seeds}")
    final = replace(rule, max_seeds=len(gains_fresh))  # nothing remains undecided
    judged = _judge(Evidence(selected.name, tuple(gains_fresh), selected.cost_change), final)
    holds = judged.verdict in TAKEN
    luck = selected.gain - judged.gain
    repeats = "The selection holds" if holds else "The selection does not hold"
    changed = f" (as {judged.verdict}, not {selected.verdict})" if holds and judged.verdict != selected.verdict else ""
    lucky = f"{selected.gain:+.4g} {rule.unit} at selection, of which {luck:+.4g} was luck"
    words = f"{repeats}{changed}: {lucky}; {judged.words}"
    return Confirmation(judged, holds, luck, words)


def rank_at(evidence: Evidence, gain: float, rule: Rule) -> tuple:
    """The place of a candidate, as a sort key with the best first, if its true gain were known to be `gain`."""
    found = Interval(gain, gain, gain, max(len(evidence.gains), 2))
    verdict = _accepted(found, evidence.cost_change, rule) or ("worse" if gain < 0 else "noise")
    return _rank(_judged(evidence, found, verdict, ""))


def _judge(evidence: Evidence, rule: Rule) -> Judged:
    found = interval(evidence.gains, rule.confidence)
    verdict: Verdict | None = "undecided"
    if found.seeds >= rule.min_seeds:
        verdict = _accepted(found, evidence.cost_change, rule)
    if verdict is None:
        if found.seeds < rule.max_seeds and _at_best(evidence, rule).verdict in TAKEN:
            verdict = "undecided"
        else:
            verdict = "worse" if found.high is not None and found.high < 0 else "noise"
    return _judged(evidence, found, verdict, _reason(found, verdict, evidence.cost_change, rule))


def _at_best(evidence: Evidence, rule: Rule) -> Judged:
    """How the candidate would be judged after all its seeds if their mean moves up as far as it may."""
    more = max(rule.max_seeds - len(evidence.gains), 0)
    found = best_case(evidence.gains, more, rule.confidence)
    if found is None:  # one seed: no gain is excluded
        found = Interval(sys.float_info.max, sys.float_info.max, sys.float_info.max, rule.max_seeds)
    return _judged(evidence, found, _accepted(found, evidence.cost_change, rule) or "noise", "")


def _accepted(found: Interval, change: Cost, rule: Rule) -> Verdict | None:
    """The rule itself."""
    _, step = _deciding(change)
    if found.low is None:
        return None
    if found.low > 0:
        return "improves" if step > 0 else "dominates"
    if step < 0 and rule.shrink_tolerance is not None and found.low >= -rule.shrink_tolerance:
        return "shrinks"
    return None


def _judged(evidence: Evidence, found: Interval, verdict: Verdict, words: str) -> Judged:
    change = evidence.cost_change
    ratio = _per_cost(found.mean, change)[1] if verdict == "improves" else None
    return Judged(evidence.name, verdict, found.mean, found.low, found.high, change, ratio, found.seeds, words)


def _rank(judged: Judged) -> tuple:
    """Sort key, best first: the verdict, then what counts within it, then cost and name."""
    cost, gain = _elements(judged.cost_change), judged.gain
    within: tuple
    if judged.verdict == "improves":
        within = (*_order(gain, judged.cost_change), -gain)
    elif judged.verdict == "shrinks":
        within = (cost, -gain)
    elif judged.verdict == "undecided":  # a gain for nothing, a gain at a cost, a loss
        _, step = _deciding(judged.cost_change)
        kind = 2 if gain <= 0 else 1 if step > 0 else 0
        within = (kind, *(_order(gain, judged.cost_change) if kind == 1 else (-gain,)))
    else:
        within = (-gain,)
    return (VERDICTS.index(judged.verdict), *within, cost, judged.name)


def _order(gain: float, change: Cost) -> tuple[int, float]:
    """Sort key of gains at a cost. A later element of an ordered cost weighs nothing beside an earlier one."""
    index, ratio = _per_cost(gain, change)
    return -index, -ratio


def _per_cost(gain: float, change: Cost) -> tuple[int, float]:
    """Place of the deciding element, and gain over it. Only for a rise; a tiny one must not overflow to infinity."""
    index, step = _deciding(change)
    assert step > 0, "a gain is divided by a rise of cost only"
    largest = sys.float_info.max
    return index, max(-largest, min(largest, gain / step))


def _deciding(change: Cost) -> tuple[int, float]:
    """Place and value of the first element that is not zero."""
    elements = _elements(change)
    return next(((i, value) for i, value in enumerate(elements) if value != 0), (len(elements), 0.0))


def _elements(change: Cost) -> tuple[float, ...]:
    return change if isinstance(change, tuple) else (change,)


def _reason(found: Interval, verdict: Verdict, change: Cost, rule: Rule) -> str:
    """One sentence: what was measured, and what follows from it."""
    _, step = _deciding(change)
    shown = "(" + ", ".join(f"{c:+.4g}" for c in change) + ")" if isinstance(change, tuple) else f"{change:+.4g}"
    gained = f"gain {found.mean:+.4g} {rule.unit}"
    if found.low is None or found.high is None:
        return f"{gained} on one seed, cost {shown}: no interval yet."
    at = f"{100 * rule.confidence:g} %, {found.seeds} seeds"
    measured = f"{gained} ({found.low:+.4g} to {found.high:+.4g}, {at}), cost {shown}"
    tolerance = rule.shrink_tolerance
    allowed = f"the tolerance of {tolerance:g} {rule.unit}" if tolerance is not None else ""
    cheaper = step < 0 and found.low <= 0
    spare = "no tolerance allows a shrink" if tolerance is None else f"it may lose more than {allowed}"
    follows = {
        "dominates": "better and " + ("cheaper" if step < 0 else "no dearer"),
        "improves": f"{_per_cost(found.mean, change)[1]:.4g} {rule.unit} a unit of added cost" if step > 0 else "",
        "shrinks": f"cheaper, and loses no more than {allowed}",
        "undecided": f"open, up to {rule.max_seeds - found.seeds} more seeds could tell",
        "noise": f"cheaper, but within noise, and {spare}" if cheaper else "within noise",
        "worse": f"cheaper, but worse, and {spare}" if cheaper else "worse",
    }
    return f"{measured}: {follows[verdict]}."


def _summary(chosen: Judged | None, ranked: Sequence[Judged], needs: Sequence[str]) -> str:
    counts = Counter(j.verdict for j in ranked)
    found = ", ".join(f"{counts[v]} {v}" for v in VERDICTS if counts[v]) or "no candidates"
    first = f"{chosen.name} is taken ({found}): {chosen.words}" if chosen else f"Nothing is taken ({found})."
    return first + (f" More seeds could still change this: {', '.join(needs)}." if needs else "")
