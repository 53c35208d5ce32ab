"""Beam, grid, random points, NSGA-II and rungs on a table of losses, against what brute force says of it."""

from dataclasses import replace

import pytest
from table_executor import MOVES, Table, loss_of, run, space

from gptcore.errors import UserError
from search.axes import axes, candidate_at, grid_points
from search.evolve import Member, _front
from search.sampled import random_points
from search.space import SpaceError

SMALL = {
    "model.n_layer": ["+1", "-1"], "model.attention.softmax": {"choices": ["softmax", "consmax", "relumax"]},
}  # fmt: skip


def best_by_hand(found):
    """The best ratio of loss reduction to added parameters of all points, or the largest gain at no added cost."""
    start = loss_of(found.baseline.config.model_dump())
    free, paid = [], []
    for candidate in grid_points(found).candidates:
        gain = start - loss_of(candidate.point.config.model_dump())
        rise = candidate.costs.params - found.baseline_costs.params
        if gain > 0.01:
            (free if rise <= 0 else paid).append((gain if rise <= 0 else gain / rise, candidate.point.key))
    return max(free or paid)[1]


def test_grid_is_the_product_of_what_moves_reach():
    found = space(strategy={"kind": "grid", "reach": 3})
    grid = axes(found)
    assert [len(axis.values) for axis in grid] == [5, 5, 3]  # layers 1..5; widths 16..80 (0 is no width); 3 kinds
    assert [axis.ordered for axis in grid] == [True, True, False]
    shapes = set()
    for candidate in grid_points(found).candidates:
        model = candidate.point.config.model
        shapes.add((model.n_layer, model.n_embd, model.attention.softmax.kind))
    kinds = ("softmax", "consmax", "relumax")
    wanted = {(n, w, k) for n in range(1, 6) for w in range(16, 81, 16) for k in kinds} - {(2, 32, "softmax")}
    assert shapes == wanted
    named = candidate_at(found, grid, [3, 4, 1])
    assert named.name == "n_layer 2 -> 4; n_embd 32 -> 80; softmax -> consmax"


def test_grid_finds_the_best_point(tmp_path):
    found = space(strategy={"kind": "grid", "reach": 1}, moves=SMALL)
    outcome, rows, trials = run(tmp_path, Table(), strategy={"kind": "grid", "reach": 1}, moves=SMALL)
    assert outcome.point.key == best_by_hand(found)
    assert len(rows) == 1 and len(rows[0].content["considered"]) == 3 * 3 - 1
    again = Table()
    assert run(tmp_path, again, strategy={"kind": "grid", "reach": 1}, moves=SMALL)[0] == outcome and not again.started


def test_grid_that_the_budget_cannot_hold_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"8 feasible points, 18 trials .* allows 17"):
        run(tmp_path, Table(), strategy={"kind": "grid", "reach": 1}, moves=SMALL, budget={"trials": 17})
    with pytest.raises(SpaceError, match="single layers"):
        space(strategy={"kind": "grid"}, moves={**SMALL, "layers": {"duplicate": True}})


def random_keys(seed):
    found = space(strategy={"kind": "random", "seed": seed}, budget={"trials": 40})
    return {candidate.point.key for candidate in random_points(found).candidates}


def test_random_controls_differ_by_their_seed_alone():
    assert random_keys(1) == random_keys(1) != random_keys(2)


def test_beam_keeps_several_points_and_ends_no_worse(tmp_path):
    narrow, _, _ = run(tmp_path, Table(), "narrow")
    wide, rows, trials = run(tmp_path, Table(), "wide", strategy={"beam": 2})
    first = [row for row in rows if row.content["round"] == 1]
    second = [row for row in rows if row.content["round"] == 2]
    assert len(first) == 1 and len(second) == 2
    assert sum(c["holds"] for c in first[0].content["confirmations"]) == 2
    assert {row.content["incumbent"]["name"] for row in second} == {
        c["name"] for c in first[0].content["confirmations"] if c["holds"]
    }
    before = loss_of(space().baseline.config.model_dump())

    def ratio(outcome):
        rise = outcome.costs.params - space().baseline_costs.params
        return (before - loss_of(outcome.point.config.model_dump())) / rise

    assert ratio(wide) >= ratio(narrow)
    again = Table()
    assert run(tmp_path, again, "wide", strategy={"beam": 2})[0] == wide and not again.started


def test_rungs_save_steps_and_choose_the_same(tmp_path):
    plain, thrifty = Table(), Table()
    whole, _, _ = run(tmp_path, plain, "whole", budget={"rounds": 2})
    pruned, rows, _ = run(tmp_path, thrifty, "pruned", budget={"rounds": 2}, strategy={"rungs": [5], "eta": 3})
    assert [s.name for s in pruned.steps] == [s.name for s in whole.steps]
    assert rows[0].content["pruned"] and thrifty.steps < 0.9 * plain.steps
    assert "softmax -> relumax" in rows[0].content["pruned"]  # by far the worst
    chosen = {row.chosen for row in rows}
    assert not chosen & set(rows[0].content["pruned"])
    again = Table()
    same, told, _ = run(tmp_path, again, "pruned", budget={"rounds": 2}, strategy={"rungs": [5], "eta": 3})
    assert (same, told) == (pruned, rows) and not again.started


def test_what_a_rung_stopped_goes_on_when_another_search_needs_its_end(tmp_path):
    run(tmp_path, Table(), budget={"rounds": 1}, strategy={"rungs": [5]})
    rest = Table()
    _, _, trials = run(tmp_path, rest, budget={"rounds": 1}, extend=True)
    assert all(state == "done" for _, state, _ in trials) and all(spec.pause_at is None for spec in rest.specs)


@pytest.mark.parametrize("alive", [1, 5, 12, 20])
def test_a_killed_search_with_rungs_resumes_to_the_same_decisions(tmp_path, alive):
    strategy = {"strategy": {"rungs": [5]}, "budget": {"rounds": 2}}
    whole, rows, _ = run(tmp_path, Table(), "whole", **strategy)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, Table(alive), "killed", **strategy)
    resumed, again, _ = run(tmp_path, Table(), "killed", **strategy)
    assert (resumed, again) == (whole, rows)


def test_rungs_must_be_where_losses_are_measured():
    for rungs, words in (
        ([3], "multiples of train.eval_interval"),
        ([10], "below train.max_iters"),
        ([5, 5], "ascending"),
    ):
        with pytest.raises(SpaceError, match=words):
            space(strategy={"rungs": rungs})


def test_nsga2_finds_the_front(tmp_path):
    pytest.importorskip("optuna")
    strategy = {"kind": "nsga2", "population": 8, "objectives": ["params"]}
    found = space(strategy=strategy, moves=MOVES, budget={"trials": 120})
    outcome, rows, _ = run(tmp_path, Table(), strategy=strategy, budget={"trials": 120})
    measured = rows[0].content["measured"]
    points = [c for c in grid_points(found).candidates]
    truth = [
        Member(c, (loss_of(c.point.config.model_dump()), c.costs.params)) for c in points
    ]  # fmt: skip
    front = {m.candidate.point.key for m in _front(truth)}
    reached = {c["key"] for c in rows[0].content["considered"]}
    assert measured < len(points) + 1 and len(front & reached) >= len(front) / 2
    assert outcome.steps and outcome.gain is not None and outcome.gain.low > 0
    again = Table()
    assert run(tmp_path, again, strategy=strategy, budget={"trials": 120})[0] == outcome and not again.started


def test_a_front_is_what_nothing_beats():
    members = [Member(None, goals) for goals in ((1.0, 5.0), (2.0, 4.0), (2.0, 5.0), (3.0, 1.0), (1.0, 5.0))]
    assert [m.goals for m in _front(members)] == [(1.0, 5.0), (2.0, 4.0), (3.0, 1.0), (1.0, 5.0)]


@pytest.mark.parametrize("kind", ["random", "greedy"])
@pytest.mark.parametrize("trials", [26, 30, 36, 44])
def test_seeds_that_a_confirmation_needs_are_kept_for_it(tmp_path, kind, trials):
    """Noise asks for more seeds than there are: something is confirmed all the same, and start and end are measured."""

    class Noisy(Table):
        def start(self, spec):
            super().start(spec)
            wobble = 0.03 * (int(spec.key[:6], 16) * (spec.seed + 1) % 7 - 3)
            self.results[-1] = replace(self.results[-1], loss=self.results[-1].loss + wobble)

    outcome, rows, found = run(tmp_path, Noisy(), strategy={"kind": kind}, budget={"trials": trials}, moves=SMALL)
    assert len(found) <= trials and rows[0].content["confirmations"]
    if outcome.steps:
        assert outcome.gain is not None
