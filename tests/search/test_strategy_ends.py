"""What strategies do where trials fail or end early, and where the budget ends in the middle of a round."""

from dataclasses import replace

import pytest
from table_executor import MOVES, Table, run, space

from gptcore.errors import RunError, UserError
from search.space import SpaceError

KINDS = {"model.attention.softmax": {"choices": ["softmax", "consmax", "relumax"]}}
NSGA2 = {"kind": "nsga2", "population": 8, "objectives": ["params"]}


class Early(Table):
    """Trials of some kinds have lost patience after their first evaluation."""

    def __init__(self, kinds):
        super().__init__()
        self.kinds = kinds

    def start(self, spec):
        super().start(spec)
        if spec.config["model"]["attention"]["softmax"]["kind"] in self.kinds:
            result = self.results[-1]
            self.results[-1] = replace(result, state="done", loss=result.curve[0][1], curve=result.curve[:1])


RUNGS = {"strategy": {"rungs": [5], "eta": 3}, "budget": {"rounds": 1}}


def test_a_rung_keeps_what_ended_before_it(tmp_path):
    _, rows, _ = run(tmp_path, Early(["consmax"]), **RUNGS)
    pruned = rows[0].content["pruned"]
    assert "softmax -> relumax" in pruned and "softmax -> consmax" not in pruned
    assert "softmax -> consmax" in {judged["name"] for judged in rows[0].content["judged"]}


def test_a_rung_that_the_incumbent_did_not_reach_prunes_nothing(tmp_path):
    _, rows, _ = run(tmp_path, Early(["softmax"]), **RUNGS)
    assert not rows[0].content["pruned"] and len(rows[0].content["judged"]) == len(rows[0].content["considered"])


@pytest.mark.parametrize("strategy", [{}, {"rungs": [5]}], ids=["whole", "rungs"])
def test_an_incumbent_that_fails_is_told(tmp_path, strategy):
    with pytest.raises(RunError, match="the incumbent cannot be trained with seed 1: diverged, NaN"):
        run(tmp_path, Table(broken=["softmax"]), strategy=strategy)


def test_a_beam_does_not_start_warm():
    with pytest.raises(SpaceError, match="beam .* take.? start: scratch"):
        space(strategy={"beam": 2, "start": "warm"})


def test_what_a_beam_has_confirmed_outlives_the_budget(tmp_path):
    """48 trials end in the second round: one point of the beam has a confirmed child, the other no trials left."""
    outcome, rows, trials = run(tmp_path, Table(), strategy={"beam": 2}, budget={"trials": 48})
    assert "budget is spent" in outcome.reason and len(rows) == 2 and len(trials) <= 48
    assert rows[1].content["incumbent"]["name"] == rows[0].chosen
    assert [step.name for step in outcome.steps] == [rows[0].chosen, rows[1].chosen] and outcome.gain.low > 0


def test_a_first_round_that_the_budget_cannot_hold_is_refused(tmp_path):
    with pytest.raises(UserError, match="does not hold the first round: 0 trials, 14 more wanted, 12 allowed .18 with"):
        run(tmp_path, Table(), budget={"trials": 18})


class Slow(Table):
    """Takes a second of the clock, and of the trial, for each."""

    def __init__(self, clock):
        super().__init__()
        self.clock = clock

    def start(self, spec):
        super().start(spec)
        self.clock[0] += 1.0
        self.results[-1] = replace(self.results[-1], seconds=1.0)


@pytest.mark.parametrize("budget", [{"seconds": 45}, {"gpu_hours": 45 / 3600}, {"tokens": 4500}], ids=lambda b: [*b][0])
def test_a_search_that_time_or_tokens_ended_comes_to_the_same_again(tmp_path, monkeypatch, budget):
    """45 trials' worth: what measures start and end is kept back, and to run it again trains and changes nothing."""
    clock = [0.0]
    monkeypatch.setattr("search.running.time.monotonic", lambda: clock[0])
    outcome, rows, trials = run(tmp_path, Slow(clock), budget=budget)
    assert "budget is spent" in outcome.reason and outcome.steps
    assert outcome.gain.low > 0 and 30 < len(trials) <= 45
    again = Slow(clock)
    assert run(tmp_path, again, budget=budget) == (outcome, rows, trials) and not again.started


def test_evolution_ends_where_everything_fails(tmp_path):
    """A failure is no new point each time it is asked for again: without new ones it ends."""
    pytest.importorskip("optuna")
    table = Table(broken=["consmax", "relumax"])
    outcome, rows, trials = run(tmp_path, table, strategy=NSGA2, moves=KINDS, budget={"rounds": 60})
    assert not outcome.steps and outcome.rounds < 10
    assert rows[0].content["considered"] == [] and table.started == len(trials) == 2 * 3


def test_evolution_does_not_judge_the_baseline_against_itself(tmp_path):
    pytest.importorskip("optuna")
    outcome, rows, _ = run(tmp_path, Table(), strategy=NSGA2, budget={"rounds": 4})
    assert space().baseline.key not in {entry["key"] for entry in rows[0].content["considered"]}
    assert rows[0].content["dropped"].keys() <= {"constraint", "impossible combination", "invalid value"}


def test_evolution_keeps_its_front_when_the_tokens_are_spent(tmp_path):
    pytest.importorskip("optuna")
    from search.ledger import Ledger

    outcome, rows, trials = run(tmp_path, Table(), strategy=NSGA2, budget={"tokens": 3000, "rounds": 10})
    assert "budget is spent" in outcome.reason and not rows and 1500 <= len(trials) * 100 <= 3000
    with Ledger(tmp_path / "a.sqlite") as ledger:
        front = ledger.outcome(space().name)["front"]
    ends = sorted((entry["costs"]["params"], entry["gain"]) for entry in front)
    assert len(ends) > 1 and ends == sorted(ends, key=lambda end: end[1])  # what costs more is better


@pytest.mark.parametrize("strategy", [{"kind": "random"}, NSGA2], ids=["random", "nsga2"])
def test_what_breaks_a_constraint_is_counted_and_never_trained(tmp_path, strategy):
    if strategy["kind"] == "nsga2":
        pytest.importorskip("optuna")
    most = 2 * space().baseline_costs.params
    _, rows, _ = run(
        tmp_path, Table(), strategy=strategy, budget={"trials": 60}, moves=MOVES, constraints={"params": {"max": most}}
    )
    content = rows[0].content
    assert content["dropped"]["constraint"] > 0
    assert all(entry["costs"]["params"] <= most for entry in content["considered"])
