"""Greedy runs by the decision rule over a landscape whose truth is known, with a trainer that adds noise.

Measured here (seeded): how often a change of no effect is accepted, how much of a reported gain is luck, and whether
random search finds more with as many trainings.
"""

import math
import random
import statistics

import pytest

from search.decide import Evidence, Rule, confirm, decide

SURE = Rule()
FRESH = 4
NOMINAL = (1 - SURE.confidence) / 2


class Trainer:
    """Loss of a point on a seed: the truth, what the seed does to all points, and what it does to this one (sigma)."""

    def __init__(self, truth, sigma, seed):
        self.truth, self.sigma, self.rng = truth, sigma, random.Random(seed)
        self.known, self.common = {}, {}

    def __call__(self, point, seed):
        if (point, seed) not in self.known:
            common = self.common.setdefault(seed, self.rng.gauss(0, 10 * self.sigma))
            self.known[point, seed] = self.truth(point) + common + self.rng.gauss(0, self.sigma)
        return self.known[point, seed]


def greedy(trainer, start, neighbours, cost, budget=math.inf, select=SURE):
    """To the end: where it stops, and (true, selected, fresh gain, held) of all that went to confirmation.

    New seeds in every round: the incumbent was lucky on those by which it was selected.
    """
    incumbent, seed, tried = start, 0, []
    while len(trainer.known) < budget:
        counts = {str(p): (p, select.min_seeds) for p in neighbours(incumbent)}
        first, seed, found = seed, seed + select.max_seeds, None

        def gains(point, seeds, base=incumbent):
            return tuple(trainer(base, s) - trainer(point, s) for s in seeds)

        while found is None and len(trainer.known) < budget:
            decision = decide(
                [
                    Evidence(name, gains(p, range(first, first + n)), cost(p) - cost(incumbent))
                    for name, (p, n) in counts.items()
                ],
                select,
            )
            for name in decision.needs_seeds[:4]:
                counts[name] = (counts[name][0], counts[name][1] + 1)
            if decision.needs_seeds:
                continue
            if decision.chosen is None:
                return incumbent, tried
            point, _ = counts.pop(decision.chosen)
            selected = decision.judged[0]
            confirmed = confirm(selected, gains(point, range(seed, seed + FRESH)), SURE)
            seed += FRESH
            real = trainer.truth(incumbent) - trainer.truth(point)
            tried.append((real, selected.gain, confirmed.judged.gain, confirmed.holds))
            found = point if confirmed.holds else None
        incumbent = incumbent if found is None else found
    return incumbent, tried


# The landscape: depth, width / 16, ratio of the MLP, and a kind for each of some places, of which one is better and
# cheap, one worse and cheaper. Loss and cost are made up; only their shape (power laws, products) is that of a GPT.
HIGHEST = (8, 16, 4)
CAP = 100


def truth(point):
    depth, width, ratio, *kinds = point
    return 1.6 + 0.9 / depth**0.7 + 2.2 / width**0.8 + 0.25 / ratio + sum((0.0, -0.03, 0.04)[k] for k in kinds)


def cost(point):
    depth, width, ratio, *kinds = point
    return depth * width**2 * (4 + 2 * ratio) * 0.05 + 2 * width + sum((0.0, 0.3, -0.5)[k] for k in kinds) * width


def neighbours(point):
    lowest = (1, 2, 1)
    near = [
        (*point[:i], point[i] + step, *point[i + 1 :])
        for i in range(3)
        for step in (1, -1)
        if lowest[i] <= point[i] + step <= HIGHEST[i]
    ]
    near += [(*point[:i], k, *point[i + 1 :]) for i in range(3, len(point)) for k in range(3) if k != point[i]]
    return [p for p in near if cost(p) <= CAP]


def best_of_random(trainer, places, trainings, cap):
    """One seed each, the lowest loss."""
    draw = trainer.rng.randint
    while len(trainer.known) < trainings:
        point = (draw(1, 8), draw(2, 16), draw(1, 4), *(draw(0, 2) for _ in range(places)))
        if cost(point) <= cap:
            trainer(point, 0)
    return min(trainer.known, key=trainer.known.__getitem__)[0]


def test_one_look_accepts_what_has_no_effect_at_the_nominal_rate():
    """3,000 candidates of no effect, each judged once: 2.5 %, three standard errors are 0.9 %."""
    rng, once = random.Random(1), Rule(min_seeds=4, max_seeds=4)
    rounds = [
        [Evidence(str(i), tuple(rng.gauss(0, 0.02) for _ in range(4)), 1.0) for i in range(10)] for _ in range(300)
    ]
    accepted = sum(j.verdict == "improves" for r in rounds for j in decide(r, once).judged) / 3000
    assert accepted == pytest.approx(NOMINAL, abs=3 * math.sqrt(NOMINAL * (1 - NOMINAL) / 3000))


def test_confirmation_brings_a_round_back_to_the_nominal_rate():
    """Ten candidates of no effect: many a round selects one, for it looks five times at ten. Hardly any is confirmed.

    Measured over these 300 rounds: 41.0 % select at least one, 8 of the 213 selected are confirmed (3.8 %, standard
    error 1.1 %; nominal 2.5 %). Over 4,000 rounds: 41.2 %, and 2.47 % of 3,113 selected (0.28 %), 1.9 % of rounds.
    """
    runs = [
        greedy(Trainer(lambda p: 3.0, 0.02, s), 0, lambda p: range(1, 11), float, budget=400)[1] for s in range(300)
    ]
    tried = [t for run in runs for t in run]
    selecting = sum(bool(run) for run in runs) / len(runs)
    confirmed = sum(held for *_, held in tried) / len(tried)
    assert selecting > 4 * NOMINAL  # what a rule without confirmation would accept
    assert confirmed <= NOMINAL + 3 * math.sqrt(NOMINAL / len(tried))


def test_fresh_gains_are_unbiased_and_selected_ones_are_not():
    """Reported minus true gain in nats, sigma 0.05, over the 413 that went to confirmation and the 122 that held.

    Measured: at selection +0.0293 (standard error 0.0016), on fresh seeds +0.0022 (0.0018), on fresh seeds of those
    that held +0.0231 (0.0032). Over fifteen times as many runs: +0.0299, +0.0002 (0.0004), +0.0191 (0.0008). So the
    fresh gains of accepted steps alone say too much. Of 12 that were no better, none held.
    """
    tried = [t for s in range(100) for t in greedy(Trainer(truth, 0.05, s), (2, 6, 2, 0, 0, 0), neighbours, cost)[1]]
    held = [t for t in tried if t[3]]

    def bias(which, column):
        errors = [t[column] - t[0] for t in which]
        return statistics.mean(errors), statistics.stdev(errors) / math.sqrt(len(errors))

    (at_selection, s_error), (fresh, f_error), (kept, k_error) = bias(tried, 1), bias(tried, 2), bias(held, 2)
    assert at_selection > 3 * s_error
    assert abs(fresh) < 2 * f_error
    assert kept > 3 * k_error
    assert not any(real <= 0 for real, *_ in held) and sum(real <= 0 for real, *_ in tried) >= 10


@pytest.mark.parametrize(
    ("start", "confidence", "below_cap", "at_own_cost"),
    [((1, 2, 1), 0.95, 0, 3), ((1, 2, 1), 0.8, 0, 4), ((2, 6, 2), 0.95, 3, 4), ((2, 6, 2), 0.8, 4, 4)],
)
def test_against_random_search_with_as_many_trainings(start, confidence, below_cap, at_own_cost):
    """Wins of five in true loss with about 600 trainings: below the cap of cost, and at no more than its own cost.

    From the smallest point greedy has not reached the cap when the budget ends, and random search wins every time; it
    is the better choice there. From a fair point, and at equal cost, greedy mostly wins. `confidence` is that of
    selection; what is selected is confirmed at 95 % in any case.
    """
    wins = [0, 0]
    for s in range(5):
        trainer = Trainer(truth, 0.02, s)
        end, _ = greedy(trainer, (*start, 0, 0, 0, 0, 0, 0), neighbours, cost, 600, Rule(confidence=confidence))
        for i, cap in enumerate((CAP, cost(end))):
            other = best_of_random(Trainer(truth, 0.02, 100 + s), 6, len(trainer.known), cap)
            wins[i] += truth(end) < truth(other)
    assert wins == [below_cap, at_own_cost]
