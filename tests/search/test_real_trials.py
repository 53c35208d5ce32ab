"""Trials that really train: pausing changes no bit, growing starts where the parent ended, step times are measured."""

import json

import pytest

from gptcore.errors import RunError
from search.ledger import Ledger
from search.space import from_mapping
from search.steptime import _in_process
from search.study import Search
from search.trial import Identity, TrialSpec
from search.worker import run_trial

pytestmark = pytest.mark.usefixtures("corpus")


def small(corpus, **train):
    wanted = {
        "max_iters": 8,
        "warmup_iters": 2,
        "eval_interval": 2,
        "eval_iters": 2,
        "batch_size": 2,
        "seed": 3,
    } | train
    model = {"n_layer": 1, "n_embd": 16, "block_size": 16, "attention": {"kind": "causal", "n_head": 2}, "dropout": 0.1}
    return {"model": model, "data": {"dataset": str(corpus)}, "train": wanted, "hardware": "edge-sky130"}


def trial(config, folder, **more):
    from gptcore.loader import from_dict

    parent, tasks = more.get("parent"), more.get("tasks", ())
    key = Identity.of(from_dict(config), parent[0] if parent else None, tasks).key
    return run_trial(TrialSpec(key, config, config["train"]["seed"], str(folder), **more))


def test_a_paused_trial_goes_on_to_the_same_bits(tmp_path, corpus):
    config = small(corpus)
    whole = trial(config, tmp_path / "whole")
    first = trial(config, tmp_path / "parts", pause_at=4)
    assert (first.state, first.loss, [s for s, _ in first.curve]) == ("pruned", None, [0, 2, 4])
    assert first.key == whole.key and trial(config, tmp_path / "parts", pause_at=4).curve == first.curve
    second = trial(config, tmp_path / "parts", pause_at=5)  # between two evaluations
    assert second.state == "pruned" and second.curve == first.curve
    rest = trial(config, tmp_path / "parts")
    assert (rest.state, rest.loss, rest.curve, rest.tokens) == (whole.state, whole.loss, whole.curve, whole.tokens)


def test_a_pause_beyond_the_end_is_none(tmp_path, corpus):
    assert trial(small(corpus), tmp_path, pause_at=8).state == "done"


def test_contents_of_the_data_set_are_part_of_what_a_trial_is(tmp_path, corpus, monkeypatch):
    from search import trial as module

    here = trial(small(corpus), tmp_path / "a").key
    monkeypatch.setattr(module, "data_hash", lambda dataset: "another text")
    assert trial(small(corpus), tmp_path / "b").key != here
    config = small(corpus)
    result = run_trial(TrialSpec(here, config, 3, str(tmp_path / "c")))
    assert result.state == "failed" and "holds other tokens here" in result.reason


def test_a_warm_trial_starts_where_its_parent_ended(tmp_path, corpus):
    parent = trial(small(corpus), tmp_path / "parent")
    grown = small(corpus, max_iters=4)
    grown["model"]["n_layer"] = 2
    child = trial(grown, tmp_path / "child", parent=(parent.key, str(tmp_path / "parent")))
    assert child.state == "done", child.reason
    assert child.curve[0][1] == pytest.approx(parent.curve[-1][1], rel=1e-5)
    assert child.words and child.key != trial(grown, tmp_path / "cold").key
    gone = trial(grown, tmp_path / "orphan", parent=(parent.key, str(tmp_path / "nowhere")))
    assert gone.state == "failed" and "no checkpoint" in gone.reason


def test_a_warm_search(tmp_path, corpus):
    space = from_mapping({
        "baseline": small(corpus), "cost": "params", "moves": {"model.n_embd": ["+16"], "model.n_layer": ["+1"]},
        "seeds": {"first": 1, "min": 2, "max": 2}, "budget": {"rounds": 2}, "strategy": {"start": "warm"},
        "rule": {"confidence": 0.51},
    })  # fmt: skip
    from search.executors import Inline

    with Ledger(tmp_path / "l.sqlite") as ledger:
        ledger.lead(space.name, space.identity, "text", settings=space.settings())
        outcome = Search(space, ledger, Inline(), tmp_path).run()
        trials = ledger.trials(space.name)
    parents = {json.loads(t.extra_json)["parent"][0] for t in trials if json.loads(t.extra_json)["parent"]}
    first = [t.key for t in trials if t.name == "baseline" and not json.loads(t.extra_json)["parent"]]
    assert parents and first[0] in parents
    assert all(t.words for t in trials if json.loads(t.extra_json)["parent"])
    if outcome.steps:  # and both ends are measured from scratch
        assert {t.name for t in trials if not json.loads(t.extra_json)["parent"]} == {"baseline", "winner"}


def test_step_times_are_measured_once_and_kept(tmp_path, corpus):
    space = from_mapping({
        "baseline": small(corpus), "cost": "step_time_s", "moves": {"model.n_layer": ["+1", "+9"]},
        "seeds": {"first": 1, "min": 2, "max": 2}, "constraints": {"step_time_s": {"max": 0.05}},
    })  # fmt: skip
    calls = []

    def measure(configs):
        calls.append([c["model"]["n_layer"] for c in configs])
        return {"baseline_s": 0.01, "ratios": [float(layers) for layers in calls[-1]]}

    class Table:
        capacity = 1

        def __init__(self):
            self.results = []

        def start(self, spec):
            from search.trial import TrialResult

            loss = 3.0 - 0.1 * spec.config["model"]["n_layer"]
            self.results.append(TrialResult(spec.key, "done", loss, ((0, loss),)))

        def wait(self, timeout_s):
            found, self.results = self.results, []
            return found

        def running(self):
            return [r.key for r in self.results]

        def close(self):
            pass

    def search():
        with Ledger(tmp_path / "l.sqlite") as ledger:
            ledger.lead(space.name, space.identity, "text", settings=space.settings())
            one = Search(space, ledger, Table(), tmp_path, measure_steps=measure)
            return one.run(), ledger.decisions(space.name)

    outcome, rows = search()
    assert outcome.costs.step_time_s == pytest.approx(0.05)  # 5 layers at 10 ms; the sixth is one too many
    assert rows[0].content["dropped"] == {"constraint": 1} and rows[0].content["judged"][0]["cost_change"] == 0.01
    assert search()[0] == outcome and all(len(set(c)) == len(c) for c in calls[1:])
    known = len(calls)
    search()
    assert len(calls) == known


def test_a_step_is_timed_in_a_process_of_its_own(corpus):
    from gptcore.loader import from_dict

    config = from_dict(small(corpus)).with_vocab(20).model_dump(mode="json")
    found = _in_process([config, config])
    assert found["baseline_s"] > 0 and len(found["ratios"]) == 2 and found["ratios"][0] == 1.0 < 2 * found["ratios"][1]
    with pytest.raises(RunError, match="cannot be measured"):
        _in_process([{"model": {"n_layer": "many"}}])


def test_a_trial_is_scored_on_a_task_of_the_user(tmp_path, corpus, monkeypatch):
    pytest.importorskip("lm_eval")
    folder = tmp_path / "explorations" / "tasks"
    folder.mkdir(parents=True)
    rows = [{"text": "the quick", "ends": [" brown fox", " zzz"], "gold": 0}] * 4
    (folder / "own.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "own.yaml").write_text(
        "task: own\ndataset_path: json\ndataset_kwargs: {data_files: {test: own.jsonl}}\ntest_split: test\n"
        "output_type: multiple_choice\ndoc_to_text: '{{text}}'\ndoc_to_choice: '{{ends}}'\ndoc_to_target: gold\n"
        "metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]\n"
    )
    monkeypatch.chdir(tmp_path)
    space = from_mapping({
        "baseline": small(corpus), "cost": "params", "moves": {"model.n_layer": ["+1"]},
        "objective": {"score": "task:own:acc", "limit": 3}, "seeds": {"first": 1, "min": 2, "max": 2},
    })  # fmt: skip
    assert space.score.better == "higher" and space.score.tasks == ("own:acc@3",)
    result = trial(small(corpus), tmp_path / "run", tasks=space.score.tasks)
    assert result.state == "done" and result.scores["own:acc@3"] in (0.0, 1.0)  # the same document three times
    assert space.score.value(result) == result.scores["own:acc@3"]
