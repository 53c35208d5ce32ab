"""Successive halving on paired learning curves (Jamieson and Talwalkar, arXiv 1502.07943; rungs as in Hyperband,
arXiv 1603.06560): of the candidates that reached a step, the best 1/eta go on, and whoever may be as good as they.

"Best" is what the decision rule ranks best: a small gain for nothing stays ahead of a large one that costs much. Losses
are compared at the same step and on the same seeds only. A candidate is dropped if even at the upper end of its
interval it ranks below all of the best 1/eta at the lower ends of theirs; so noise drops nobody.
Not covered: curves that cross later. A candidate that learns slowly at first is judged by where it is at the rung.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from .decide import Evidence, Rule, decide, rank_at


@dataclass(frozen=True, slots=True)
class Pruned:
    """Both best first. `dropped` says why."""

    kept: tuple[str, ...]
    dropped: tuple[tuple[str, str], ...]


def prune(evidence: Sequence[Evidence], eta: int, rule: Rule, where: str = "") -> Pruned:
    """Of candidates with their gains at a rung, which go on. `where` names the rung for people.

    ValueError: eta below 2, or a candidate with fewer than two seeds, whose interval nobody knows.
    """
    if eta < 2:
        raise ValueError(f"eta is 2 or more, not {eta!r}")
    if any(len(e.gains) < 2 for e in evidence):
        raise ValueError("a rung compares intervals, which takes two seeds")
    given = {e.name: e for e in evidence}
    most = max((len(e.gains) for e in evidence), default=2)
    judged = decide(evidence, replace(rule, min_seeds=2, max_seeds=most)).judged  # nothing remains undecided
    best = judged[: math.ceil(len(judged) / eta)]
    bar = max((rank_at(given[j.name], _end(j.low), rule) for j in best), default=())
    kept, dropped = [j.name for j in best], []
    for one in judged[len(best) :]:
        if rank_at(given[one.name], _end(one.high), rule) > bar:
            dropped.append((one.name, f"{where}behind the {len(best)} best of {len(judged)} for sure: {one.words}"))
        else:
            kept.append(one.name)
    return Pruned(tuple(kept), tuple(dropped))


def _end(value: float | None) -> float:
    assert value is not None, "two seeds have an interval"
    return value
