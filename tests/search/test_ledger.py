"""What the ledger remembers: trials once each, results across studies, order without a clock, tables to take away."""

import csv
import sys
from dataclasses import replace

import pytest

from gptcore.errors import UserError
from gptcore.loader import from_dict
from gptcore.yamlfile import parse
from search.export import export
from search.ledger import Ledger
from search.records import NewTrial
from search.trial import STATES, Identity, Limits, TrialResult, TrialSpec


def new(number, **settings):
    return NewTrial(Identity(f"{number:064d}"[::-1], 1, 10), {"number": number}, f"out/{number}", **settings)


def key(number):
    return new(number).identity.key


def done(number, loss=1.0, **settings):
    return TrialResult(key(number), "done", loss, ((0, 4.0), (10, loss)), seconds=2.0, **settings)


@pytest.fixture
def ledger(tmp_path):
    with Ledger(tmp_path / "deep" / "ledger.db") as opened:
        opened.lead("a", "hash", "moves: {}")
        yield opened


def states(ledger, study="a"):
    return {t.config["number"]: t.state for t in ledger.trials(study)}


# -- identity ----------------------------------------------------------------------------------------------------------


def test_a_key_changes_with_what_changes_the_result_and_with_nothing_else():
    def of(**train):
        return Identity.of(from_dict({"train": train}))

    plain = of(seed=1, max_iters=20)
    assert of(seed=1, max_iters=20, device="cpu", out_dir="x", log_interval=3).key == plain.key
    assert of(seed=2, max_iters=20).config_hash == plain.config_hash == of(seed=1, max_iters=40).config_hash
    others = [of(seed=2, max_iters=20), of(seed=1, max_iters=40), of(seed=1, max_iters=20, learning_rate=2e-3)]
    assert len({plain.key, *(other.key for other in others)}) == 4
    assert others[2].config_hash != plain.config_hash
    assert (plain.seed, plain.steps) == (1, 20)


def test_specs_and_results_survive_json():
    spec = TrialSpec("k", {"model": {"n_layer": 1}}, 3, "out", Limits(2.5, 10**9, 3))
    assert TrialSpec.from_json(spec.to_json()) == spec


# -- trials ------------------------------------------------------------------------------------------------------------


def test_the_life_of_a_trial(ledger):
    limits = Limits(seconds=5.0, memory_bytes=10**9)
    assert ledger.add("a", [new(1, limits=limits), new(2)]).queued == [key(1), key(2)]
    assert ledger.claim("a", 1) == [TrialSpec(key(1), {"number": 1}, 1, "out/1", limits)]
    assert states(ledger) == {1: "running", 2: "queued"}
    assert ledger.finish("a", done(1, 1.5, tokens=7, params=3)) == "done"
    trial = ledger.trial("a", key(1))
    assert (trial.state, trial.loss, trial.seconds, trial.tokens, trial.params) == ("done", 1.5, 2.0, 7, 3)
    assert (trial.attempts, trial.interrupted, trial.ended, trial.source) == (1, 0, 1, None)
    assert ledger.curve("a", key(1)) == ((0, 4.0), (10, 1.5))
    assert ledger.counts("a") == {"queued": 1, "done": 1}
    assert ledger.trial("a", "none") is None


def test_what_a_study_knows_is_not_entered_again(ledger):
    ledger.add("a", [new(1), new(2, state="infeasible", reason="area 3 mm2 exceeds 2")])
    ledger.claim("a")
    ledger.finish("a", replace(done(1), state="failed", loss=None))
    ledger.claim("a")
    ledger.finish("a", replace(done(1), state="failed", loss=None))
    added = ledger.add("a", [new(1), new(2), new(3)])
    assert (added.known, added.queued) == ([key(1), key(2)], [key(3)])
    assert states(ledger) == {1: "failed", 2: "infeasible", 3: "queued"}
    assert ledger.trial("a", key(2)).reason == "area 3 mm2 exceeds 2"


def test_claim_takes_the_oldest_or_those_asked_for(ledger):
    ledger.add("a", [new(number) for number in range(5)])
    assert [spec.key for spec in ledger.claim("a", 2)] == [key(0), key(1)]
    assert [spec.key for spec in ledger.claim("a", 9, keys=[key(4), key(0)])] == [key(4)]
    assert [spec.key for spec in ledger.claim("a", 9)] == [key(2), key(3)]
    assert ledger.claim("a", 9) == []


def test_a_failure_is_tried_again_as_often_as_the_limits_say_and_its_words_are_kept(ledger):
    ledger.add("a", [new(1, limits=Limits(attempts=3)), new(2)])
    failure = TrialResult(key(1), "failed", None, reason="exit code 1", log_tail="Traceback", seconds=2.0)
    after = []
    for _ in range(3):
        assert ledger.claim("a", keys=[key(1)])
        after.append(ledger.finish("a", failure))
    assert after == ["queued", "queued", "failed"]
    trial = ledger.trial("a", key(1))
    assert (trial.attempts, trial.seconds, trial.reason, trial.log_tail) == (3, 6.0, "exit code 1", "Traceback")
    for state in ("diverged", "oom", "timeout"):  # would end the same way
        ledger.retry("a", STATES[3:])
        ledger.claim("a", keys=[key(1)])
        assert ledger.finish("a", replace(failure, state=state)) == state


def test_retry_queues_what_ended_so_once_more(ledger):
    ledger.add("a", [new(number) for number in range(3)])
    for spec in ledger.claim("a", 3):
        state = {key(0): "done", key(1): "oom", key(2): "timeout"}[spec.key]
        ledger.finish("a", TrialResult(spec.key, state, 1.0 if state == "done" else None))
    assert ledger.retry("a", ["oom"]) == 1
    assert states(ledger) == {0: "done", 1: "queued", 2: "timeout"}


def test_what_waits_runs_under_new_limits(ledger):
    ledger.add("a", [new(number) for number in range(2)])
    (first,) = ledger.claim("a", 1)
    ledger.finish("a", TrialResult(first.key, "oom", None))
    ledger.retry("a", ["oom"])
    ledger.limit("a", Limits(seconds=5.0, attempts=7))
    assert [spec.limits for spec in ledger.claim("a", 2)] == [Limits(seconds=5.0, attempts=7)] * 2


def test_an_end_is_recorded_once(ledger):
    ledger.add("a", [new(1)])
    ledger.claim("a")
    ledger.finish("a", done(1))
    with pytest.raises(AssertionError, match="has ended before"):
        ledger.finish("a", done(1, 0.5))
    with pytest.raises(AssertionError):
        ledger.finish("a", done(1, float("nan")))
    assert ledger.trial("a", key(1)).loss == 1.0


# -- studies -----------------------------------------------------------------------------------------------------------


def test_results_are_taken_over_from_other_studies_of_the_file(ledger):
    ledger.add("a", [new(number) for number in range(4)])
    for spec, state in zip(ledger.claim("a", 4), ("done", "diverged", "oom", "pruned"), strict=True):
        loss, curve = (1.25, ((0, 4.0), (10, 1.25))) if state == "done" else (None, ())
        ledger.finish("a", TrialResult(spec.key, state, loss, curve, "why", seconds=3.0))
    ledger.lead("b", "other", "")
    added = ledger.add("b", [new(number) for number in range(5)])
    assert (added.reused, added.queued) == ([key(0), key(1)], [key(2), key(3), key(4)])  # limits differ from study
    taken = ledger.trial("b", key(0))
    assert (taken.state, taken.loss, taken.source, taken.attempts) == ("done", 1.25, "a", 0)
    assert ledger.curve("b", key(0)) == ((0, 4.0), (10, 1.25))
    assert ledger.find(key(0)).source is None and ledger.find(key(2)) is None
    ledger.lead("c", "other", "")
    ledger.add("c", [new(0)])
    assert ledger.trial("c", key(0)).source == "a"  # and not b, which has it from there


def test_a_resumed_study_takes_over_what_another_has_finished_meanwhile(ledger, tmp_path):
    ledger.add("a", [new(1)])
    with Ledger(ledger.path) as second:
        second.lead("b", "other", "")
        second.add("b", [new(1), new(2)])
        second.claim("b", 1)  # and dies: its lock goes with it
    ledger.claim("a")
    ledger.finish("a", done(1))
    ledger.lead("b", "other", "")
    assert states(ledger, "b") == {1: "done", 2: "queued"}


def test_a_study_of_another_space_is_refused_unless_it_is_extended(tmp_path):
    for space, extend, fits in (("1", False, True), ("2", False, False), ("2", True, True), ("2", False, True)):
        with Ledger(tmp_path / "ledger.db") as ledger:
            if fits:
                study = ledger.lead("a", space, f"space {space}", extend=extend)
                assert (study.space_hash, study.space) == (space, f"space {space}")
            else:
                with pytest.raises(UserError, match="'a'.*another space file"):
                    ledger.lead("a", space, "", extend=extend)
                with Ledger(ledger.path) as other:  # refused, it does not hold the lock
                    other.lead("a", "1", "space 1")


def test_names_and_unknown_studies(ledger):
    with pytest.raises(UserError, match="no study 'x'.*there: a"):
        ledger.trials("x")
    with pytest.raises(UserError, match="study name '../x'"):
        ledger.lead("../x", "", "")
    with pytest.raises(UserError, match="no ledger"):
        Ledger(ledger.path.with_name("none.db"), read_only=True)


def test_time_spent_adds_up(ledger):
    ledger.spend("a", 1.5)
    ledger.spend("a", 2.0)
    assert ledger.study("a").elapsed_s == 3.5


# -- costs and decisions -----------------------------------------------------------------------------------------------


def test_costs_belong_to_a_machine_and_an_estimator_version(ledger):
    ledger.put_costs("m", "1", {"c": {"area_m2": 1e-6}})
    ledger.put_costs("m", "2", {"c": {"area_m2": 2e-6}, "d": {"area_m2": 3e-6}})
    assert ledger.costs("m", "1") == {"c": {"area_m2": 1e-6}}
    assert set(ledger.costs("m", "2")) == {"c", "d"} and ledger.costs("n", "1") == {}


def test_decisions_are_made_once_and_read_in_order(ledger):
    ledger.decide("a", 1, chosen=None, words="none is better", content={"judged": []})
    ledger.decide("a", 0, chosen="n_layer +1", words="dominates", content={"judged": [{"name": "n_layer +1"}]})
    assert [(d.round, d.chosen) for d in ledger.decisions("a")] == [(0, "n_layer +1"), (1, None)]
    assert ledger.decisions("a")[0].content == {"judged": [{"name": "n_layer +1"}]}
    with pytest.raises(Exception, match="UNIQUE"):
        ledger.decide("a", 0, chosen="another", words="", content={})


# -- export ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def varied(ledger):
    """Three trials of which width and norm differ, depth does not, and one setting is absent in one of them."""
    for number, (width, norm) in enumerate([(16, "rmsnorm"), (32, "rmsnorm"), (16, "layernorm")]):
        config = {"model": {"n_layer": 2, "n_embd": width, "norm": {"kind": norm}}}
        if number == 2:
            config["train"] = {"compile": True}
        ledger.add("a", [replace(new(number), config=config)])
    ledger.claim("a", 2)
    ledger.finish("a", done(0, 1.2345678901234567))
    ledger.finish("a", TrialResult(key(1), "oom", None, reason='says "no", twice'))
    ledger.decide("a", 0, chosen=None, words="noise", content={})
    return ledger


def test_csv(varied, tmp_path):
    assert export(varied, "a", tmp_path / "new" / "t.csv") == 3
    with open(tmp_path / "new" / "t.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["state"] for row in rows] == ["done", "oom", "queued"]
    assert float(rows[0]["loss"]) == 1.2345678901234567 and rows[1]["loss"] == ""
    assert rows[1]["reason"] == 'says "no", twice'
    assert [row["model.n_embd"] for row in rows] == ["16", "32", "16"]
    assert [row["train.compile"] for row in rows] == ["", "", "true"]
    assert "model.norm.kind" in rows[0] and "model.n_layer" not in rows[0]


def test_yaml(varied, tmp_path):
    export(varied, "a", tmp_path / "t.yaml")
    problems = []
    content = parse((tmp_path / "t.yaml").read_text(), "t.yaml", problems)
    assert not problems and content["study"] == "a" and content["space"] == "moves: {}"
    assert [row["loss"] for row in content["trials"]] == [1.2345678901234567, None, None]
    assert content["decisions"] == [{"round": 0, "chosen": None, "words": "noise", "content": {}}]


def test_parquet(varied, tmp_path):
    pandas = pytest.importorskip("pandas")
    pytest.importorskip("pyarrow")
    export(varied, "a", tmp_path / "t.parquet")
    frame = pandas.read_parquet(tmp_path / "t.parquet")
    assert list(frame["model.n_embd"]) == [16, 32, 16] and frame["loss"][0] == 1.2345678901234567


def test_what_cannot_be_exported_is_said(varied, tmp_path, monkeypatch):
    with pytest.raises(UserError, match=".csv, .yaml or .parquet"):
        export(varied, "a", tmp_path / "t.xls")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UserError, match="Parquet needs pyarrow: pip install pyarrow"):
        export(varied, "a", tmp_path / "t.parquet")
    assert not (tmp_path / "t.parquet").exists()


def test_the_number_of_an_end_is_given_once(tmp_path):
    """One who has read up to a number must not miss what ends after it, whatever goes on meanwhile."""
    with Ledger(tmp_path / "l.sqlite") as ledger:
        ledger.lead("a", "hash", "")
        ledger.add("a", [NewTrial(Identity(f"{i:064d}"[::-1], 1, 10), {}, "f", Limits()) for i in range(2)])
        first, second = ledger.claim("a", 2)
        ledger.finish("a", TrialResult(first.key, "done", 1.0))
        ledger.finish("a", TrialResult(second.key, "pruned", None, ((5, 2.0),)))
        (seen,) = [t.ended for t in ledger.ends("a", 1)]
        ledger.go_on("a", [second.key], None)
        (again,) = ledger.claim("a", 1)
        assert again.pause_at is None and ledger.ends("a", seen) == []
        ledger.finish("a", TrialResult(second.key, "timeout", None))
        (late,) = ledger.ends("a", seen)
        assert late.key == second.key and late.ended == seen + 1
        ledger.retry("a", ["timeout"])
        ledger.finish("a", TrialResult(ledger.claim("a", 1)[0].key, "done", 1.0))
        assert [t.ended for t in ledger.ends("a", seen + 1)] == [seen + 2]
