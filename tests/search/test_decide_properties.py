"""Properties of the decision rule over random rounds of candidates."""

import math
import statistics
from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from search.decide import TAKEN, VERDICTS, Evidence, Rule, decide
from search.paired import best_case

quick = settings(max_examples=100, deadline=None)
# Exact in binary, so that a shift changes no spread. A middle and noise about it, so that every verdict occurs.
noises = st.lists(st.sampled_from([0, 0, 1, -1, 2, -3, 9, -20, 70]), min_size=1, max_size=6)
gains = st.tuples(st.integers(-90, 90), noises).map(lambda drawn: tuple((drawn[0] + k) / 1024 for k in drawn[1]))
changes = st.one_of(st.sampled_from([0.0, -0.0, 5e-324, -5e-324, 1e-300, 1e300]), st.integers(-40, 40).map(float))
rules = st.builds(
    Rule,
    confidence=st.sampled_from([0.8, 0.95]),
    shrink_tolerance=st.sampled_from([None, 0.0, 0.02, 0.3]),
    max_seeds=st.integers(2, 6),
)


@st.composite
def rounds(draw, least=0, shape=None):
    """Candidates named a, b, c ...; costs are numbers or tuples of two or three."""
    shape = draw(st.sampled_from([None, 2, 3])) if shape is None else shape
    cost = changes if shape is None else st.tuples(*[changes] * shape)
    found = draw(st.lists(st.tuples(gains, cost), min_size=least, max_size=7))
    return [Evidence("abcdefg"[i], *values) for i, values in enumerate(found)]


def sign(change):
    return next((math.copysign(1, c) for c in (change if isinstance(change, tuple) else (change,)) if c), 0)


@quick
@given(rounds(), rules, st.randoms())
def test_order_of_candidates_does_not_matter(round_, rule, random):
    shuffled = list(round_)
    random.shuffle(shuffled)
    assert decide(shuffled, rule) == decide(round_, rule)


@quick
@given(rounds(least=1), rules)
def test_another_candidate_is_chosen_or_changes_nothing(round_, rule):
    *others, new = round_
    before, after = decide(others, rule), decide(round_, rule)
    assert after.chosen in (before.chosen, new.name)
    assert [j for j in after.judged if j.name != new.name] == list(before.judged)


@quick
@given(rounds(least=1), rules, st.integers(0, 99), st.integers(0, 30))
def test_a_worse_candidate_changes_nothing(round_, rule, extra_cost, loss):
    """Worse: loses more on every seed than a candidate that is there, and costs as much or more."""
    decision = decide(round_, rule)
    like = next((e for e in round_ if e.name == decision.chosen), round_[0])
    change = like.cost_change
    change = (change[0] + extra_cost, *change[1:]) if isinstance(change, tuple) else change + extra_cost
    below = Evidence("z", tuple(g - (1 + loss) / 1024 for g in like.gains), change)
    again = decide([*round_, below], rule)
    assert again.chosen == decision.chosen or (decision.chosen is None and again.chosen is None)


@quick
@given(rounds(), rules)
def test_what_is_chosen_is_never_worse_and_dearer(round_, rule):
    decision = decide(round_, rule)
    for judged in decision.judged:
        if judged.verdict in TAKEN:
            lost = -judged.gain
            assert lost < 0 or (sign(judged.cost_change) < 0 and lost <= rule.shrink_tolerance)
            assert judged.low > 0 or judged.verdict == "shrinks"
    assert (decision.chosen is not None) == any(j.verdict in TAKEN for j in decision.judged)


@quick
@given(rounds(), rules)
def test_no_infinity_and_no_nan_and_a_ratio_for_a_rise_only(round_, rule):
    for judged in decide(round_, rule).judged:
        numbers = [v for v in (judged.gain, judged.low, judged.high, judged.ratio) if v is not None]
        assert all(map(math.isfinite, numbers))
        assert (judged.ratio is None) or (judged.verdict == "improves" and sign(judged.cost_change) > 0)
        assert not any(word in judged.words for word in ("inf", "nan"))
        assert (judged.low is None) == (judged.seeds == 1)


@quick
@given(rounds(least=1), rules, st.integers(1, 300), st.data())
def test_a_better_loss_never_costs_a_rank(round_, rule, shift, data):
    """On every seed alike. (On one seed only, it may: the spread grows, and with it the doubt.)"""
    at = data.draw(st.integers(0, len(round_) - 1))
    better = replace(round_[at], gains=tuple(g + shift / 1024 for g in round_[at].gains))
    before = [j.name for j in decide(round_, rule).judged]
    after_ = decide([better if e is round_[at] else e for e in round_], rule)
    after = [j.name for j in after_.judged]
    assert after.index(better.name) <= before.index(better.name)
    assert [n for n in after if n != better.name] == [n for n in before if n != better.name]


@quick
@given(rounds(), rules)
def test_ranked_by_verdict_and_seeds_only_for_undecided(round_, rule):
    decision = decide(round_, rule)
    order = [VERDICTS.index(j.verdict) for j in decision.judged]
    assert order == sorted(order) and len(order) == len(round_)
    undecided = [j for j in decision.judged if j.verdict == "undecided"]
    assert set(decision.needs_seeds) <= {j.name for j in undecided}
    assert all(j.seeds < max(rule.max_seeds, rule.min_seeds) for j in undecided)


@quick
@given(rounds(least=2), st.sampled_from([None, 0.02]))
def test_who_is_asked_for_no_seeds_would_not_win_in_the_best_case(round_, tolerance):
    """Six gains of the best mean that was foreseen, spread as the first ones are: +-s sqrt(5/6) three times each."""
    rule = Rule(max_seeds=6, shrink_tolerance=tolerance)
    decision = decide(round_, rule)
    for old in round_:
        judged = next(j for j in decision.judged if j.name == old.name)
        if judged.verdict != "undecided" or old.name in decision.needs_seeds:
            continue
        found = best_case(old.gains, 6 - judged.seeds, rule.confidence)
        middle, spread = (1e6, 0.0) if found is None else (found.mean, statistics.stdev(old.gains))
        final = replace(old, gains=(middle - spread * math.sqrt(5 / 6), middle + spread * math.sqrt(5 / 6)) * 3)
        assert decide([final if e is old else e for e in round_], rule).chosen == decision.chosen
