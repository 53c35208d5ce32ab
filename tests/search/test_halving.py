"""Pruning at a rung: what the rule ranks best goes on, noise drops nobody, and it never costs a search its winner."""

import random

import pytest

from search.decide import Evidence, Rule, decide
from search.halving import prune

RULE = Rule(0.8, None, 2, 6)


def exact(name, gain, cost):
    return Evidence(name, (gain, gain), cost)


def test_without_noise_the_best_share_goes_on():
    found = prune([exact(f"c{i}", 0.1 * i, 1.0) for i in range(1, 10)], 3, RULE)
    assert found.kept == ("c9", "c8", "c7") and [name for name, _ in found.dropped] == [
        f"c{i}" for i in range(6, 0, -1)
    ]


def test_best_is_by_the_rule_and_not_by_the_gain():
    evidence = [exact("small but free", 0.02, 0.0), exact("large", 0.5, 100.0), exact("dear", 0.6, 1000.0)]
    assert prune(evidence, 3, RULE).kept == ("small but free",)
    assert decide(evidence, RULE).chosen == "small but free"


def test_ties_and_noise_drop_nobody():
    assert prune([exact(n, 0.1, 1.0) for n in "abcdef"], 3, RULE).kept[0] == "a"
    noisy = [Evidence("best", (0.2, 0.1), 1.0), Evidence("close", (0.05, 0.2), 1.0), Evidence("far", (-3.0, -3.1), 1.0)]
    found = prune(noisy, 3, RULE)
    assert found.kept == ("best", "close") and found.dropped[0][0] == "far" and "for sure" in found.dropped[0][1]


def test_a_shrink_that_a_tolerance_allows_is_kept_in_the_race():
    evidence = [exact("cheaper", -0.01, -5.0), *(exact(f"worse {i}", -0.5, 1.0) for i in range(5))]
    allowed = Rule(0.8, 0.05, 2, 6)
    assert prune(evidence, 6, allowed).kept == ("cheaper",)


@pytest.mark.parametrize("noise", [0.0, 0.01, 0.03])
def test_how_often_the_truly_best_is_lost(noise):
    """Of ten candidates the one of the best true ratio: pruning by intervals keeps it nearly always."""
    rng = random.Random(1)
    lost = dropped = 0
    for _ in range(200):
        true = [rng.uniform(-0.1, 0.1) for _ in range(10)]
        true[0] = 0.12
        evidence = [
            Evidence(f"c{i}", tuple(g + rng.gauss(0, noise) for _ in range(3)), 1.0) for i, g in enumerate(true)
        ]
        found = prune(evidence, 3, RULE)
        lost += "c0" not in found.kept
        dropped += len(found.dropped)
    assert lost <= 2  # of 200
    assert dropped > 200 * (3 if noise < 0.02 else 1)  # and it does prune


@pytest.mark.parametrize(("eta", "seeds", "words"), [(1, 2, "eta is 2"), (3, 1, "two seeds")])
def test_wrong_use(eta, seeds, words):
    with pytest.raises(ValueError, match=words):
        prune([Evidence("a", (0.1,) * seeds, 1.0)], eta, RULE)


def test_nothing_to_prune():
    assert prune([], 3, RULE).kept == ()
