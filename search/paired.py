"""Paired statistics: a candidate against a baseline on the same seeds and data order, so that what a seed does to
both cancels in the difference.

Intervals are Student's t intervals of the mean difference; they take differences of different seeds as independent and
roughly normal. The distribution is summed in closed form for whole degrees of freedom (Abramowitz and Stegun, Handbook
of Mathematical Functions, 26.7.3 and 26.7.4) and inverted by bisection.
Not covered: several looks at growing data and several candidates at once; see `search.decide.confirm`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache


@dataclass(frozen=True, slots=True)
class Interval:
    """Mean of paired differences and where the true mean lies. One sample tells nothing of the spread: no ends."""

    mean: float
    low: float | None
    high: float | None
    seeds: int


def central_probability(t: float, freedom: int) -> float:
    """P(|T| < t) of Student's t with `freedom` (1, 2, ...) degrees of freedom, t >= 0."""
    angle = math.atan2(t, math.sqrt(freedom))
    odd = freedom % 2
    square = math.cos(angle) ** 2
    term = math.cos(angle) if odd else 1.0
    series = 0.0
    for power in range(odd, freedom - 1, 2):  # terms cos^power, each from the one before
        series += term
        term *= square * (power + 1) / (power + 2)
    series *= math.sin(angle)
    return 2 / math.pi * (angle + series) if odd else series


@lru_cache
def central_quantile(confidence: float, freedom: int) -> float:
    """t with P(|T| < t) = confidence: half-width of a two-sided interval in standard errors."""
    if not 0 < confidence < 1:
        raise ValueError(f"confidence lies between 0 and 1, not {confidence!r}")
    if freedom < 1:
        raise ValueError(f"degrees of freedom are 1 or more, not {freedom!r}")
    low, high = 0.0, 1.0
    while central_probability(high, freedom) < confidence:
        low, high = high, 2 * high
    while low < (middle := (low + high) / 2) < high:
        if central_probability(middle, freedom) < confidence:
            low = middle
        else:
            high = middle
    return high


def interval(differences: Sequence[float], confidence: float) -> Interval:
    """Mean and two-sided interval of the true mean. Identical differences (two or more) give a point.

    ValueError: no differences, or one that is not a finite number.
    """
    mean, deviation = _moments(differences)
    seeds = len(differences)
    if deviation is None:
        return Interval(mean, None, None, seeds)
    half = _half_width(deviation, seeds, confidence)
    return Interval(mean, mean - half, mean + half, seeds)


def expected_half_width(differences: Sequence[float], more: int, confidence: float) -> float | None:
    """Half-width of the interval after `more` seeds, should the spread stay as it looks now. None from one sample."""
    _, deviation = _moments(differences)
    return None if deviation is None else _half_width(deviation, len(differences) + more, confidence)


def best_case(differences: Sequence[float], more: int, confidence: float) -> Interval | None:
    """The interval after `more` seeds if the mean moves up as far as it may. None from one sample: nothing is excluded.

    The mean of all n + m differences lies about that of the first n with variance s^2 (1/n - 1/(n+m)); its upper
    prediction end at the same confidence is taken, and the spread as it looks now.
    """
    mean, deviation = _moments(differences)
    half = expected_half_width(differences, more, confidence)
    if deviation is None or half is None:
        return None
    seeds, total = len(differences), len(differences) + more
    mean += central_quantile(confidence, seeds - 1) * deviation * math.sqrt(1 / seeds - 1 / total)
    return Interval(mean, mean - half, mean + half, total)


def _moments(differences: Sequence[float]) -> tuple[float, float | None]:
    """Mean and sample standard deviation; identical differences are told from rounding, so that theirs is exactly 0."""
    if not differences:
        raise ValueError("no paired differences")
    for value in differences:
        if value is None or not math.isfinite(value):
            raise ValueError(f"a paired difference is {value!r}: leave out what failed or diverged")
    if len(differences) == 1:
        return differences[0], None
    if min(differences) == max(differences):
        return differences[0], 0.0
    mean = math.fsum(differences) / len(differences)
    return mean, math.hypot(*(value - mean for value in differences)) / math.sqrt(len(differences) - 1)


def _half_width(deviation: float, seeds: int, confidence: float) -> float:
    return central_quantile(confidence, seeds - 1) * deviation / math.sqrt(seeds)
