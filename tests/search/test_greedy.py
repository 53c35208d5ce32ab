"""The coordinator on a table of losses: decides as the rule says, resumes to the same decisions, keeps its budget."""

import json

import pytest
import yaml
from table_executor import MODEL, Table, run, space

from gptcore.cli import main
from gptcore.config import identity
from gptcore.errors import RunError, UserError
from gptcore.loader import load as load_config
from search.ledger import Ledger


def test_dominating_move_first_then_the_best_gain_per_parameter(tmp_path):
    outcome, rows, _ = run(tmp_path, Table())
    assert outcome.steps[0].name == "softmax -> consmax"  # better, for 4 parameters
    assert all(step.confirmation.holds and step.confirmation.judged.gain > 0 for step in outcome.steps)
    assert outcome.gain is not None and outcome.gain.low > 0
    judged = {j["name"]: j for j in rows[0].content["judged"]}
    cheaper = judged["n_layer 2 -> 1"]
    assert cheaper["cost_change"] < 0 and cheaper["gain"] < 0 and cheaper["verdict"] == "worse"  # never taken
    assert judged["softmax -> relumax"]["verdict"] == "worse"


def test_pairing_removes_what_a_seed_does(tmp_path):
    _, rows, _ = run(tmp_path, Table(), budget={"rounds": 1})
    for judged in rows[0].content["judged"]:
        assert judged["high"] - judged["low"] < 0.1  # seeds alone move a loss by 0.2


@pytest.mark.parametrize("alive", [0, 1, 3, 7, 11, 16, 23])
def test_a_killed_search_resumes_to_the_same_decisions(tmp_path, alive):
    whole, rows, trials = run(tmp_path, Table(), "whole")
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, Table(alive), "killed")
    rest = Table()
    resumed, again, found = run(tmp_path, rest, "killed")
    assert (resumed, again, found) == (whole, rows, trials)
    lost = rest.started - (len(trials) - alive)  # what had run, but was not yet in the ledger
    assert 0 <= lost <= Table.capacity


def test_a_finished_search_trains_nothing_again_and_can_be_extended(tmp_path):
    first, _, trials = run(tmp_path, Table(), budget={"rounds": 1})
    idle = Table()
    assert run(tmp_path, idle, budget={"rounds": 1})[0] == first and idle.started == 0
    more = Table()
    extended, rows, all_trials = run(tmp_path, more, budget={"rounds": 2})
    assert len(rows) == 2 and extended.steps[0].name == first.steps[0].name and trials < all_trials


def test_the_budget_of_trials_is_kept(tmp_path):
    outcome, _, trials = run(tmp_path, Table(), budget={"trials": 20})
    assert len(trials) <= 20 and "budget is spent" in outcome.reason
    outcome, _, _ = run(tmp_path, Table(), "tokens", budget={"tokens": 500})
    assert "tokens" in outcome.reason


def test_a_candidate_that_fails_is_left_out_with_its_reason(tmp_path):
    outcome, rows, _ = run(tmp_path, Table(broken=("consmax",)), budget={"rounds": 1})
    assert "diverged, NaN" in rows[0].content["failed"]["softmax -> consmax"]
    assert outcome.steps and outcome.steps[0].name != "softmax -> consmax"
    with pytest.raises(RunError, match="incumbent cannot be trained"):
        run(tmp_path, Table(broken=("softmax",)), "none")


def test_a_move_of_the_machine_needs_no_trial_and_is_no_gain(tmp_path):
    moves = {"hardware.array.rows": ["x2", "x0.5"]}
    outcome, rows, trials = run(tmp_path, Table(), moves=moves, cost="area_m2")
    assert not outcome.steps and all(j["gain"] == 0 for j in rows[0].content["judged"])
    assert not trials
    taken, _, _ = run(tmp_path, Table(), "shrink", moves=moves, cost="area_m2", rule={"shrink_tolerance": 0.0})
    assert taken.steps[0].name == "array rows 16 -> 8" and taken.costs.area_m2 < space().baseline_costs.area_m2


def test_random_control_has_the_same_budget(tmp_path):
    outcome, rows, trials = run(tmp_path, Table(), strategy={"kind": "random"}, budget={"trials": 30})
    assert len(rows) == 1 and len(trials) <= 30 and len(rows[0].content["considered"]) >= 8
    assert run(tmp_path, Table(), strategy={"kind": "random"}, budget={"trials": 30})[0] == outcome


def test_wrong_usage(tmp_path, capsys):
    assert main(["search"]) == 2 and "describes a search" in capsys.readouterr().err
    path = tmp_path / "s.yaml"
    path.write_text(
        json.dumps({"baseline": {"model": MODEL}, "hardware": "edge-sky130", "cost": "beauty", "moves": {}})
    )
    assert main(["search", str(path)]) == 2
    assert "no cost 'beauty'" in capsys.readouterr().err
    with pytest.raises(UserError, match="another space file"):
        run(tmp_path, Table(), "same")
        run(tmp_path, Table(), "same", cost="area_m2")


def test_command_end_to_end(tmp_path, capsys, corpus):
    """A real search of one round with training in this process; the second call trains nothing."""
    path, out = tmp_path / "tiny.yaml", tmp_path / "out"
    text = f"""
baseline: {{model: {{n_layer: 1, n_embd: 16, block_size: 16, attention: {{kind: causal, n_head: 2}}}},
  data: {{dataset: "{corpus}"}}, hardware: edge-sky130}}
cost: params
moves: {{model.n_embd: [+16], model.attention.softmax: {{choices: [consmax]}}}}  # kinds must survive the file
budget: {{rounds: 1}}
seeds: {{first: 1, min: 2, max: 2}}
train: {{max_iters: 3, warmup_iters: 1, eval_interval: 3, eval_iters: 2, batch_size: 2, sample_tokens: 0}}
"""
    path.write_text(text)
    assert main(["search", str(path), "--executor", "inline", "-o", str(out)]) == 0
    told = capsys.readouterr().out
    assert "round 1:" in told and "written:" in told
    assert {"ledger.sqlite", "winner.yaml", "decisions.md", "results.yaml", "trials.csv"} <= {
        p.name for p in out.iterdir()
    }
    (decision,) = yaml.safe_load((out / "results.yaml").read_text())["decisions"]
    winner = identity(load_config(out / "winner.yaml").config)
    keys = {c["name"]: c["key"] for c in decision["content"]["considered"]}
    reached = keys[decision["chosen"]] if decision["chosen"] else decision["content"]["incumbent"]["key"]
    assert reached.startswith(winner)
    assert main(["search", str(path), "--executor", "inline", "-o", str(out)]) == 0
    assert ": done, loss" not in capsys.readouterr().out
    with Ledger(out / "ledger.sqlite") as ledger:
        ledger.lead("tiny", ledger.study("tiny").space_hash, "", extend=True)
        ledger.retry("tiny", ["done"])  # as after a crash: what waits runs under the limits of the new command
    assert main(["search", str(path), "--executor", "inline", "-o", str(out), "--attempts", "5", "--extend"]) == 0
    with Ledger(out / "ledger.sqlite", read_only=True) as ledger:
        assert {trial.spec.limits.attempts for trial in ledger.trials("tiny")} == {5}
