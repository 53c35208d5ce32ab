"""The status of a study from its ledger: counts, rounds, gains and budget against numbers worked out by hand."""

import copy
import dataclasses
import json
import os
import subprocess
import sys

import pytest

from gptcore.errors import RunError, UserError
from search import status as module
from search.differs import differs
from search.greedy import seeds_of
from search.human import clock, human
from search.ledger import Ledger
from search.space import Seeds
from search.status import read_status
from search.study import Search
from search.watch import leader, watch
from tests.search import table_executor
from tests.search.staged import CONFIG, SEEDS, Stage, changed, entry, two_rounds


def look(path, study="s"):
    return watch(path, lambda ledger: read_status(ledger, study))


@pytest.fixture
def ledger(tmp_path):
    return tmp_path / "ledger.sqlite"


def check(found):
    """What two_rounds wrote, by hand."""
    assert found.counts == {"queued": 2, "running": 1, "done": 15, "diverged": 1} and found.round == 2
    assert found.incumbent.name == "softmax -> consmax" and found.incumbent.costs["area_m2"] == 0.8e-6
    losses = [2.40, 2.52, 2.45, 2.4, 2.5, 2.44, 2.46]
    assert found.incumbent.loss == pytest.approx(sum(losses) / 7) and found.incumbent.seeds == 7
    assert [(s.round, s.name, s.gain) for s in found.steps] == [(1, "softmax -> consmax", 0.1)]
    deeper, narrower, wider = found.candidates
    assert (deeper.name, deeper.state, deeper.counts) == ("n_layer 2 -> 3", "running", {"running": 1, "done": 1})
    assert deeper.gain == pytest.approx(2.44 - 2.40) and deeper.pairs == 1 and not deeper.fresh
    assert (narrower.state, narrower.gain) == ("queued", None) and wider.state == "diverged"
    assert found.best.name == "n_layer 2 -> 3" and found.best.loss == 2.40
    use = {u.name: (u.used, u.limit) for u in found.budget}
    assert use["trials"] == (19, 60) and use["seconds"] == (60, None) and use["tokens"] == (1600, None)
    assert found.trials_per_minute == 16 and found.at_most_s == pytest.approx(60 * (60 - 16) / 16)
    assert [e.name for e in found.recent[:2]] == ["n_embd 32 -> 48", "n_layer 2 -> 3"]
    assert [(e.state, e.reason) for e in found.failures] == [("diverged", "the loss is NaN")]


def test_a_study_under_way(ledger):
    stage = two_rounds(ledger)
    found = look(ledger)
    check(found)
    assert found.phase == "running" and found.led_by.startswith(f"process {os.getpid()} ")
    stage.close()
    assert look(ledger).phase == "stopped"


@pytest.mark.parametrize("fault", ["count", "round", "pair"])
def test_a_seeded_fault_turns_the_check_red(ledger, monkeypatch, fault):
    two_rounds(ledger).close()
    if fault == "count":
        counts = module._counts
        monkeypatch.setattr(module, "_counts", lambda trials: counts([t for t in trials if t.state != "diverged"]))
    elif fault == "round":  # fresh seeds taken for a round of their own
        place = module.Picture._place
        monkeypatch.setattr(module.Picture, "_place", lambda self, seed: (2 * place(self, seed)[0], False))
    else:  # losses paired in the order in which they came, not by seed
        monkeypatch.setattr(
            module, "_losses", lambda trials: dict(enumerate(t.loss for t in list(trials)[::-1] if t.state == "done"))
        )
    with pytest.raises(AssertionError):
        check(look(ledger))


def test_seeds_tell_the_round_as_the_search_gives_them_out(ledger):
    with Stage(ledger).ledger:
        seeds = Seeds(**SEEDS)
        picture = watch(ledger, lambda opened: module.Picture(opened, "s"))
        for round_ in (1, 2, 7):
            for fresh in (False, True):
                assert {picture._place(s) for s in seeds_of(seeds, round_, fresh)} == {(round_, fresh)}


def test_fresh_seeds_alone_count_once_there_are_some(ledger):
    stage = Stage(ledger)
    other = changed(model__n_layer=3)
    stage.run(CONFIG, [1, 2, 4], [2.5, 2.5, 2.5])
    stage.run(other, [1, 2, 4], [2.3, 2.3, 2.45], "deeper")
    stage.add(other, [5], "deeper")
    (row,) = look(ledger).candidates
    assert row.state == "confirming" and row.fresh and row.gain == pytest.approx(0.05) and row.pairs == 1
    stage.close()


def test_finished_and_gone_on(ledger):
    stage = two_rounds(ledger, finished=True)
    found = look(ledger)
    assert found.phase == "finished" and found.reason == "no candidate was an improvement" and found.at_most_s is None
    assert found.gain["mean"] == 0.09 and found.incumbent.name == "softmax -> consmax" and found.round == 2
    stage.add(changed(model__n_layer=4), stage.seeds(3)[:1], "n_layer 3 -> 4")  # extended
    found = look(ledger)
    assert found.phase == "running" and found.round == 3 and found.gain is None and not found.reason
    stage.close()


def test_a_real_search_is_told_as_it_was(tmp_path):
    """Against what the search itself returns and records."""
    path, looks = tmp_path / "a.sqlite", []
    found = table_executor.space(budget={"rounds": 2})
    with Ledger(path) as opened:
        opened.lead(found.name, found.identity, "text", settings=found.settings())
        say = lambda line: looks.append(look(path, "search"))  # noqa: E731
        outcome = Search(found, opened, table_executor.Table(), tmp_path, say=say).run()
        rows = opened.decisions(found.name)
    told = look(path, "search")
    assert told.phase == "finished" and told.reason == outcome.reason and told.gain["mean"] == outcome.gain.mean
    steps = [(node.round, node.name, node.confirmation.judged.gain) for node in outcome.steps]
    assert [(s.round, s.name, s.gain) for s in told.steps] == steps and steps
    assert told.incumbent.costs["params"] == outcome.costs.params and told.round == rows[-1].round
    judged = {j["name"]: j for j in (*rows[-1].content["judged"], *rows[-1].content["confirmations"])}
    assert {row.name for row in told.candidates} == judged.keys()
    for row in told.candidates:  # the last entry of a name is its confirmation, on fresh seeds
        assert row.gain == pytest.approx(judged[row.name]["gain"]) and row.costs["params"] > 0
    assert {one.phase for one in looks} == {"running"} and looks[-1].final and not looks[0].final
    assert [one.round for one in looks] == sorted(one.round for one in looks)


def test_empty_and_no_such_study(ledger):
    with Stage(ledger).ledger:
        found = look(ledger)
        assert found.counts == {} and found.round == 1 and found.incumbent.loss is None and found.best is None
        assert found.at_most_s is None and found.trials_per_minute is None and found.candidates == ()
        with pytest.raises(UserError, match=r"no study 'x' .*there: s"):
            look(ledger, "x")
    with pytest.raises(UserError, match="no ledger"):
        look(ledger.parent / "none.sqlite")


def test_a_sweep_has_trials_and_no_round(ledger):
    stage = Stage(ledger, "sweep", search=False)
    stage.run(CONFIG, [1], 2.5)
    stage.run(changed(model__n_layer=3), [1], 2.4)
    stage.run(changed(model__n_layer=4), [1], 0, state="oom", reason="out of memory")
    found = look(ledger, "sweep")
    assert found.round is None and found.incumbent is None and found.candidates == () and found.steps == ()
    assert found.best.name == "n_layer=3" and [e.name for e in found.failures] == ["n_layer=4"]
    stage.close()


def test_a_move_of_the_machine_keeps_its_own_costs(ledger):
    """It has the trials of the incumbent, but other costs."""
    stage = Stage(ledger)
    stage.run(CONFIG, [1, 2], 2.5)
    smaller = {**entry(CONFIG, "rows 16 -> 8", 0.5e-6), "key": entry(CONFIG)["key"].replace("-m0", "-m1")}
    stage.decide(1, entry(CONFIG), [smaller])
    assert look(ledger).incumbent.costs["area_m2"] == 1e-6
    stage.decide(2, entry(CONFIG), [smaller], "rows 16 -> 8")
    stage.run(CONFIG, stage.seeds(3)[:1], 2.5)
    assert look(ledger).incumbent.costs["area_m2"] == 0.5e-6
    stage.close()


def test_trials_of_another_study_are_used_but_take_no_time(ledger):
    first = Stage(ledger, "first")
    first.run(CONFIG, [1, 2], 2.5)
    second = Stage(ledger, "second")
    second.run(changed(model__n_layer=3), [1], 2.4)
    second.add(CONFIG, [1, 2])
    second.ledger.spend("second", 30)
    found = look(ledger, "second")
    assert found.trials_per_minute == 2 and found.at_most_s == pytest.approx((60 - 3) * 30)
    first.close(), second.close()


def test_a_copy_without_the_index_of_its_log(ledger, tmp_path):
    stage = two_rounds(ledger)
    copied = tmp_path / "copy.sqlite"
    for end in ("", "-wal"):
        (tmp_path / f"copy.sqlite{end}").write_bytes((tmp_path / f"ledger.sqlite{end}").read_bytes())
    with pytest.raises(RunError, match="copy all"):
        look(copied)
    stage.close()


def test_leader_of_another_machine_is_unknown(ledger):
    two_rounds(ledger).close()
    (ledger.parent / f"{ledger.name}.s.lock").write_text("process 1 on elsewhere")
    assert leader(ledger, "s") == (None, "process 1 on elsewhere") and look(ledger).phase == "unknown"
    assert leader(ledger, "other") == (False, "")


def test_no_torch_and_plain_data(ledger):
    two_rounds(ledger).close()
    code = (
        "import sys, json, dataclasses; from search.watch import watch; from search.status import read_status; "
        f"found = watch({str(ledger)!r}, lambda l: read_status(l, 's')); import search.monitor, search.live; "
        "json.dumps(dataclasses.asdict(found)); sys.exit('torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    assert json.loads(json.dumps(dataclasses.asdict(look(ledger))))["incumbent"]["seeds"] == 7


def test_differs():
    consmax = changed(model__attention__softmax={"kind": "consmax", "beta": 2.0})
    assert differs(consmax, CONFIG) == "softmax=consmax" and differs(CONFIG, CONFIG) == ""
    assert differs(changed(model__n_layer=3), CONFIG) == "n_layer=3"
    seeded = copy.deepcopy(CONFIG)
    seeded["train"]["seed"] = 9
    assert differs(seeded, CONFIG) == ""
    layer = {k: CONFIG["model"][k] for k in ("attention", "mlp", "norm", "block")}
    one = changed(model__layers=[{"repeat": 1, **layer}, {"repeat": 1, **layer, "norm": {"kind": "rmsnorm"}}])
    assert differs(one, CONFIG) == "norm[1]=rmsnorm"
    same = changed(model__layers=[{"repeat": 2, **layer}])
    assert differs(same, CONFIG) == ""
    many = changed(model__n_layer=3, model__n_embd=48, model__block_size=8, train__max_iters=5)
    assert differs(many, CONFIG, most=2).endswith(", +2 more")


@pytest.mark.parametrize(
    "name, value, shown",
    [
        ("area_m2", 3.45e-7, "0.345 mm2"), ("area_m2", 2e-10, "200 um2"), ("params", 12345, "12,345"),
        ("params", 1.25e7, "12.50 M"), ("energy_per_token_j", 1.234e-8, "12.34 nJ"), ("latency_s", 0.0012, "1.200 ms"),
        ("flops", 999999.0, "1.000 MFLOP"), ("bytes", 0, "0 B"), ("latency_s", None, "-"), ("bytes", 2.5e3, "2.500 kB"),
    ],
)  # fmt: skip
def test_human(name, value, shown):
    assert human(name, value) == shown
    assert (clock(59.6), clock(3900), clock(125), clock(None)) == ("1 min 00 s", "1 h 05 min", "2 min 05 s", "-")
