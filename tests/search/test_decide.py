"""The decision rule: every case of signs, ranking, seeds, confirmation, and the fault that it must not have."""

import math
from dataclasses import astuple
from itertools import product

import pytest

from search.decide import Evidence, Rule, confirm, decide

# Three seeds each, t(2) = 4.303: mean +-0.0025 about it (s = 0.001).
BETTER = (0.019, 0.020, 0.021)
WITHIN = (-0.001, 0.000, 0.001)
WORSE = (-0.021, -0.020, -0.019)
JUDGED_ONCE = {"min_seeds": 3, "max_seeds": 3}

# Rows: gain; columns: cost change below, equal to and above zero. By hand from the statement of the rule.
EXPECTED = {
    None: {BETTER: ("dominates", "dominates", "improves"), WITHIN: ("noise",) * 3, WORSE: ("worse",) * 3},
    0.0: {BETTER: ("dominates", "dominates", "improves"), WITHIN: ("noise",) * 3, WORSE: ("worse",) * 3},
    0.01: {  # more than the noise, less than the loss of WORSE
        BETTER: ("dominates", "dominates", "improves"),
        WITHIN: ("shrinks", "noise", "noise"),
        WORSE: ("worse", "worse", "worse"),
    },
    0.1: {  # more than both: what is worse for certain, but by little, may shrink as well
        BETTER: ("dominates", "dominates", "improves"),
        WITHIN: ("shrinks", "noise", "noise"),
        WORSE: ("shrinks", "worse", "worse"),
    },
}
CASES = [
    (tolerance, gains, change, verdict)
    for tolerance, rows in EXPECTED.items()
    for gains, verdicts in rows.items()
    for change, verdict in zip((-2.5, 0.0, 4.0), verdicts, strict=True)
]


def mean(values):
    return math.fsum(values) / len(values)


@pytest.mark.parametrize(("tolerance", "values", "change", "verdict"), CASES)
@pytest.mark.parametrize("shape", [lambda c: c, lambda c: (c,), lambda c: (0.0, c, -c), lambda c: (c, -7.0 * (c != 0))])
def test_every_case_of_signs(tolerance, values, change, verdict, shape):
    decision = decide([Evidence("a", values, shape(change))], Rule(shrink_tolerance=tolerance, **JUDGED_ONCE))
    (judged,) = decision.judged
    assert judged.verdict == verdict
    assert decision.chosen == ("a" if verdict in ("dominates", "improves", "shrinks") else None)
    assert judged.ratio == (pytest.approx(0.020 / 4.0) if verdict == "improves" else None)
    assert decision.needs_seeds == () and judged.seeds == 3
    assert judged.low == pytest.approx(mean(values) - 4.3027 * 0.001 / math.sqrt(3), abs=1e-7)


def test_identical_and_cheaper_is_a_shrink_even_at_tolerance_zero():
    round_ = [Evidence("a", (0.0, 0.0), -1.0)]
    assert decide(round_, Rule(shrink_tolerance=0.0)).chosen == "a"
    assert decide(round_, Rule()).chosen is None


def peer(evidence):
    """The fault: efficiency = dScore / dCost, kept if positive."""
    return {e.name for e in evidence if mean(e.gains) / e.cost_change > 0}


def test_worse_and_cheaper_is_rejected_and_better_and_cheaper_comes_first():
    worse_cheaper, better_cheaper = Evidence("down", WORSE, -16.0), Evidence("free", BETTER, -16.0)
    at_a_cost = Evidence("up", (0.5, 0.5, 0.6), 16.0)
    round_ = [worse_cheaper, better_cheaper, at_a_cost]
    decision = decide(round_, Rule(**JUDGED_ONCE))
    assert [(j.name, j.verdict) for j in decision.judged] == [
        ("free", "dominates"), ("up", "improves"), ("down", "worse")
    ]  # fmt: skip
    assert decision.chosen == "free"
    assert decide([worse_cheaper], Rule(**JUDGED_ONCE)).chosen is None
    assert peer(round_) == {"down", "up"}  # what this rule must never do


def test_ranking_within_each_verdict():
    def ranked(*rows, **rule):
        decision = decide([Evidence(*row) for row in rows], Rule(**rule))
        return "".join(j.name for j in decision.judged), decision.chosen

    by = lambda gain: (gain, gain)  # noqa: E731  a point: no noise
    # Dominating: gain first, however cheap the other is; then cost; then name.
    assert ranked(("a", by(0.1), -99.0), ("b", by(0.2), 0.0), ("d", by(0.1), -1.0), ("c", by(0.1), -1.0)) == (
        "bacd",
        "b",
    )
    # Improving: ratio, not gain; at one ratio the larger gain.
    assert ranked(("a", by(0.5), 10.0), ("b", by(0.25), 1.0), ("c", by(0.5), 2.0)) == ("cba", "c")
    # Shrinking: the largest saving, then the smaller loss.
    rows = ("a", by(-0.01), -3.0), ("b", by(-0.02), -5.0), ("c", by(-0.015), -5.0)
    assert ranked(*rows, shrink_tolerance=0.05) == ("cba", "c")
    # A shrink never comes before a gain.
    assert ranked(("a", by(0.0), -1e9), ("b", by(1e-6), 1e9), shrink_tolerance=0.1) == ("ba", "b")
    # Ordered costs: an element costs nothing beside any rise of an earlier one.
    assert ranked(("a", by(0.9), (1.0, 0.0)), ("b", by(0.1), (0.0, 50.0)), ("c", by(0.2), (2.0, -9.0))) == ("bac", "b")


def test_ordered_costs_are_divided_by_the_element_that_decides():
    judged = {j.name: j for j in decide([Evidence("a", BETTER, (0.0, 4.0, -3.0))], Rule()).judged}
    assert judged["a"].ratio == pytest.approx(0.02 / 4.0)


def test_seeds_are_asked_for_where_they_can_matter():
    unsure = (-0.05, 0.15)  # may well gain
    hopeless = (-0.11, -0.10)  # t(1) = 12.7: the interval holds zero by 0.0635 + ..., more seeds will not
    rule = Rule(max_seeds=6)
    decision = decide([Evidence("a", unsure, 1.0), Evidence("b", (0.3,), 1.0), Evidence("c", hopeless, 1.0)], rule)
    assert decision.chosen is None and decision.needs_seeds == ("b", "a")
    assert [j.verdict for j in decision.judged] == ["undecided", "undecided", "worse"]
    assert "a" in decision.words and "b" in decision.words
    # What cannot outdo the choice needs none: at a cost beside one that dominates, or at a far worse ratio.
    free = Evidence("free", (0.20, 0.21, 0.20), -1.0)
    assert decide([free, Evidence("a", unsure, 1.0)], rule).needs_seeds == ()
    assert decide([free, Evidence("a", unsure, -1.0)], rule).needs_seeds == ("a",)
    good = Evidence("good", (0.20, 0.21, 0.20), 1.0)
    assert decide([good, Evidence("a", unsure, 1e6)], rule).needs_seeds == ()
    assert decide([good, Evidence("a", unsure, 1.0)], rule).needs_seeds == ("a",)
    # All seeds used: it is noise. Five of six with a mean of nothing: the sixth would not tell.
    assert decide([Evidence("a", unsure * 3, 1.0)], rule).judged[0].verdict == "noise"
    assert decide([Evidence("a", (0.1, -0.1, 0.1, -0.1, 0.0), 1.0)], rule).judged[0].verdict == "noise"


def test_fewer_than_the_least_seeds_are_never_judged():
    decision = decide([Evidence("a", BETTER, -1.0)], Rule(min_seeds=4))
    assert (decision.chosen, decision.needs_seeds) == (None, ("a",))
    assert decide([], Rule()) == decide((), Rule()) and decide([], Rule()).chosen is None


def test_confirmation_uses_fresh_seeds_alone():
    selected = decide([Evidence("a", (0.10, 0.11, 0.12), 2.0)], Rule()).judged[0]
    good = confirm(selected, (0.049, 0.050, 0.051), Rule())
    assert good.holds and good.judged.verdict == "improves" and good.judged.seeds == 3
    assert good.judged.gain == pytest.approx(0.05) and good.luck == pytest.approx(0.06)
    assert good.judged.ratio == pytest.approx(0.025)
    gone = confirm(selected, (0.02, -0.02, 0.01), Rule(max_seeds=9))
    assert not gone.holds and gone.judged.verdict == "noise" and "does not hold" in gone.words
    assert not confirm(selected, (-0.11, -0.11, -0.12), Rule(shrink_tolerance=1.0)).holds  # dearer: no shrink
    # Better and cheaper before, on fresh seeds only cheaper: still taken where shrinks are, and said so.
    cheaper = decide([Evidence("a", (0.10, 0.11, 0.12), -2.0)], Rule()).judged[0]
    fresh = (0.001, -0.001, 0.0)
    assert not confirm(cheaper, fresh, Rule()).holds
    shrunk = confirm(cheaper, fresh, Rule(shrink_tolerance=0.01))
    assert shrunk.holds and "as shrinks, not dominates" in shrunk.words
    for bad in ((0.1,), (0.1, math.nan)):
        with pytest.raises(ValueError):
            confirm(selected, bad, Rule())


@pytest.mark.parametrize(
    ("values", "change"),
    [
        ((), 1.0), ((0.1, math.nan), 1.0), ((math.inf,), 1.0), ((0.1, None), 1.0), ((0.1,), math.nan),
        ((0.1,), (0.0, math.inf)),
    ],
)  # fmt: skip
def test_failed_seeds_and_unknown_costs_are_refused(values, change):
    with pytest.raises(ValueError, match="a: "):
        Evidence("a", values, change)


def test_rounds_that_cannot_be_compared_are_refused():
    one = Evidence("a", (0.1, 0.2), 1.0)
    with pytest.raises(ValueError, match="same name: a"):
        decide([one, one], Rule())
    with pytest.raises(ValueError, match="different length"):
        decide([one, Evidence("b", (0.1, 0.2), (1.0, 2.0))], Rule())


@pytest.mark.parametrize(
    "values",
    [
        {"confidence": 1.0}, {"confidence": math.nan}, {"shrink_tolerance": -0.1}, {"shrink_tolerance": math.inf},
        {"shrink_tolerance": math.nan}, {"min_seeds": 1}, {"min_seeds": 4, "max_seeds": 3},
    ],
)  # fmt: skip
def test_impossible_rules_are_refused(values):
    with pytest.raises(ValueError):
        Rule(**values)


def test_words_say_what_was_measured_and_why():
    table = product((BETTER, WITHIN, WORSE), (-2.0, 2.0), (None, 0.01, 0.1))
    said = set()
    for values, change, tolerance in table:
        judged = decide([Evidence("a", values, change)], Rule(shrink_tolerance=tolerance, **JUDGED_ONCE)).judged[0]
        said.add(judged.words.split(": ", 1)[1])
        assert (
            f"{mean(values):+.4g} nats" in judged.words and "3 seeds" in judged.words and f"{change:+g}" in judged.words
        )
        assert "None" not in judged.words and None not in astuple(judged)[2:5]
    assert said == {
        "better and cheaper.", "0.01 nats a unit of added cost.", "within noise.", "worse.",
        "cheaper, but within noise, and no tolerance allows a shrink.",
        "cheaper, but worse, and no tolerance allows a shrink.",
        "cheaper, and loses no more than the tolerance of 0.01 nats.",
        "cheaper, and loses no more than the tolerance of 0.1 nats.",
        "cheaper, but worse, and it may lose more than the tolerance of 0.01 nats.",
    }  # fmt: skip
