"""What a view makes of a ledger, against brute force and against the losses of the trials themselves."""

import dataclasses
import hashlib
import random
import sqlite3
from statistics import fmean

import pytest
from made_study import START, config_hash, costs_of, place, settings, study, with_controls
from table_executor import Table, space

from gptcore.errors import UserError
from search.ledger import Ledger
from search.records import NewTrial
from search.study import Search
from search.trial import Identity, TrialResult
from search.view import front, study_view


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A ledger with a greedy study, its controls, and one kind that diverges."""
    path = tmp_path_factory.mktemp("view") / "ledger.sqlite"
    with Ledger(path) as ledger:
        with_controls(ledger, broken=("relumax",))
    return path


def view_of(path, name="made"):
    with Ledger(path, read_only=True) as ledger:
        return study_view(ledger, name)


def made_of(tmp_path, **changes):
    with Ledger(tmp_path / "ledger.sqlite") as ledger:
        study(ledger, "one", **changes)
        return study_view(ledger, "one")


def losses(path, at, seeds):
    """Those that the trials of a configuration have, straight from the file."""
    rows = "SELECT seed, min(loss) FROM trials WHERE config_hash = ? GROUP BY seed"
    found = dict(sqlite3.connect(path).execute(rows, [config_hash(at)]))
    return [found[seed] for seed in seeds]


def brute_front(points):
    def beats(a, b):
        return a != b and a[0] <= b[0] and a[1] <= b[1]

    return {p for p in points if not any(beats(q, p) for q in points)}


@pytest.mark.parametrize("seed", range(30))
def test_front_against_brute_force(seed):
    rng = random.Random(seed)
    points = [(rng.randint(0, 9), rng.randint(0, 9)) for _ in range(rng.randint(1, 40))]
    found = front(points)
    assert {points[i] for i in found} == brute_front(points)
    assert sorted(found) == sorted(i for i, p in enumerate(points) if p in brute_front(points))  # all that are equal
    turned = front([(-cost, bad) for cost, bad in points])  # a fault: the dearest instead of the cheapest
    if len(brute_front(points)) > 1:
        assert {points[i] for i in turned} != brute_front(points)


def by_hand(path):
    """The gain over the start of `n_embd 64 -> 80` as round 3 judged it: two confirmed steps, and its own."""
    one, two = START | {"kind": "consmax"}, START | {"kind": "consmax", "n_layer": 3}
    last = two | {"n_embd": 80}

    def gain(before, after, seeds):
        return fmean(a - b for a, b in zip(losses(path, before, seeds), losses(path, after, seeds), strict=True))

    steps = gain(START, one, range(150, 154)) + gain(one, two, range(250, 254))
    return last, steps + gain(two, last, range(300, 303))


def test_chain_is_that_of_the_losses(made, tmp_path):
    view = view_of(made)
    assert [step.point.name for step in view.path][:2] == ["softmax -> consmax", "n_layer 2 -> 3"]
    at, wanted = by_hand(made)
    (point,) = [p for p in view.points if p.key == place(at)["key"]]
    assert point.round == 3 and point.measured == "selection" and point.gain.seeds == 3
    assert point.gain.mean == pytest.approx(wanted, abs=1e-12) and point.gain.low < wanted < point.gain.high
    start = fmean(losses(made, START, [*range(100, 103), *range(150, 154), *range(900, 904)]))
    assert view.score.start != start  # random controls share trials with the study, but those are not its own
    own = [t.loss for t in trials_of(made, "made") if t.config_hash == config_hash(START)]
    assert view.score.start == pytest.approx(fmean(own), abs=1e-12)
    assert view.score.at(point.gain.mean) == pytest.approx(fmean(own) - wanted, abs=1e-12)
    spoilt = tmp_path / "spoilt.sqlite"  # a loss that is not the one that was judged must show
    with sqlite3.connect(made) as source, sqlite3.connect(spoilt) as copy:
        source.backup(copy)
        copy.execute("UPDATE trials SET loss = loss + 0.01 WHERE seed = 300 AND config_hash = ?", [config_hash(at)])
    assert by_hand(spoilt)[1] != pytest.approx(point.gain.mean, abs=1e-6)


def trials_of(path, name):
    with Ledger(path, read_only=True) as ledger:
        return ledger.trials(name)


def test_interval_is_that_of_the_last_link(made):
    view = view_of(made)
    second = view.path[1]
    chained = next(p for p in view.points if p.key == second.point.key).gain
    first = view.path[0].gain.mean
    assert (chained.low, chained.high) == (first + second.gain.low, first + second.gain.high)
    assert second.cost_change > 0 and second.ratio == pytest.approx(second.gain.mean / second.cost_change)
    assert view.path[0].cost_change < 0 and view.path[0].ratio is None


def test_charts_hold_what_differs_and_the_front(made):
    view = view_of(made)
    assert [chart.cost for chart in view.charts] == ["area_m2", "energy_per_token_j", "latency_s", "params"]
    for chart in view.charts:
        pairs = {p.key: (p.costs[chart.cost], -p.gain.mean) for p in chart.points}
        assert {pairs[p.key] for p in chart.front} == brute_front(set(pairs.values()))
        assert [p.costs[chart.cost] for p in chart.front] == sorted(p.costs[chart.cost] for p in chart.front)
    assert view.left_out == sum(p.gain is None for p in view.points) > 0
    assert all("relumax" in p.name for p in view.points if p.gain is None)


def test_end_budget_and_failures(made):
    view = view_of(made)
    assert view.finished and view.end.fresh and view.end.moves == len(view.path) == 4
    at = START | {"kind": "consmax", "n_layer": 5}
    pairs = zip(losses(made, START, range(900, 904)), losses(made, at, range(900, 904)), strict=True)
    assert view.end.gain.mean == pytest.approx(fmean(a - b for a, b in pairs)) and view.end.costs == costs_of(at)
    used, trials = view.end.used, trials_of(made, "made")
    assert sum(used.states.values()) == used.trials == len(trials) and used.tokens == 1000 * used.states["done"]
    assert used.seconds == 240 and used.limits == {"trials": 200, "seconds": 3600, "rounds": 5}
    assert {f.state for f in view.failures} == {"diverged"} and len(view.failures) == used.states["diverged"]
    assert view.failures[0].reason == "loss is <nan>" and view.failures[0].name == "softmax -> relumax"


def test_curves_are_those_of_the_ledger(made):
    view = view_of(made)
    assert view.curves[0].name == view.path[-1].point.name and view.curves[-1].name == "start"
    start = [t for t in trials_of(made, "made") if t.config_hash == config_hash(START)]
    with Ledger(made, read_only=True) as ledger:
        at_50 = [dict(ledger.curve("made", t.key))[50] for t in start]
    curve, i = view.curves[-1], view.curves[-1].steps.index(50)
    assert (curve.mean[i], curve.low[i], curve.high[i]) == (pytest.approx(fmean(at_50)), min(at_50), max(at_50))
    assert curve.seeds == len(start)


def test_comparison_is_counted(made):
    view = view_of(made)
    found, mine, cost = view.comparison, view.end.gain, view.end.costs["area_m2"]
    assert [c.study for c in view.controls] == [f"made.random{i}" for i in range(1, 6)] and found.controls == 5
    assert found.ahead == sum(c.gain.mean < mine.mean for c in view.controls)
    assert found.behind == sum(c.gain.mean > mine.mean for c in view.controls)
    assert found.clear == sum(c.gain.high < mine.low for c in view.controls)
    assert found.summed == 0
    assert found.no_dearer == sum(c.costs["area_m2"] >= cost for c in view.controls)
    of_control = view_of(made, "made.random2")  # seen from a control that is beaten: it must be able to say so
    assert of_control.controls == () and of_control.comparison.ahead == 0


def test_under_way_and_before_the_first_decision(tmp_path):
    view = made_of(tmp_path, rounds=2, conclude=False)
    assert not view.finished and len(view.path) == 2 and not view.end.fresh
    assert view.end.gain.mean == pytest.approx(sum(s.gain.mean for s in view.path)) and view.end.gain.low is None
    with Ledger(tmp_path / "empty.sqlite") as ledger:
        ledger.lead("new", "hash", "text", settings=settings("new"))
        ledger.lead("bare", "hash", "text")
        new, bare = study_view(ledger, "new"), study_view(ledger, "bare")
        with pytest.raises(UserError, match="no study"):
            study_view(ledger, "none")
    assert new.end.moves == 0 and new.end.costs == costs_of(START) and not new.charts and new.score.start is None
    assert bare.end is None and bare.start is None and bare.comparison.controls == 0


def test_moves_of_the_machine_alone(tmp_path):
    view = made_of(tmp_path, rounds=2, moves={"rows": (2, 0.5)})
    assert view.path and all(p.gain.mean == 0 for p in view.points) and view.end.gain.mean == 0
    assert [c.cost for c in view.charts] == ["area_m2", "latency_s"]  # the others do not differ
    assert [c.name for c in view.curves] == ["start"]


def test_costs_in_turn_and_a_score_that_rises(tmp_path):
    turn = {"lexicographic": ["params", "area_m2"]}
    score = {"score": "task:quiz", "better": "higher", "unit": "quiz"}
    view = made_of(tmp_path, cost=turn, **score, budget={"trials": None, "gpu_hours": 2.0})
    assert view.score.rises and view.score.upward and 0 < view.score.start < 1
    assert all(isinstance(row.judged.cost_change, tuple) for one in view.rounds for row in one.rows)
    assert view.cost_of(view.end.costs) == (view.end.costs["params"], view.end.costs["area_m2"])
    assert view.score.at(0.1) == pytest.approx(view.score.start + 0.1) and view.path[0].gain.mean > 0
    mixed = dataclasses.replace(view, settings={"cost": {"weights": {"params": 3.0, "area_m2": 1.0}}})
    start, end = view.start.costs, view.end.costs
    weighed = 0.75 * end["params"] / start["params"] + 0.25 * end["area_m2"] / start["area_m2"]
    assert mixed.cost_of(start) == (1.0,) and mixed.cost_of(end) == (pytest.approx(weighed),)
    best = max(view.points, key=lambda p: p.gain.mean)
    assert best in view.charts[0].front


def test_an_extended_study_is_under_way_again(tmp_path):
    with Ledger(tmp_path / "ledger.sqlite") as ledger:
        study(ledger, "one", rounds=1)
        assert study_view(ledger, "one").finished
        trial = NewTrial(Identity("next", 7, 100), {}, "folder")
        ledger.add("one", [trial])
        assert not study_view(ledger, "one").finished
        ledger.claim("one")
        ledger.finish("one", TrialResult(trial.identity.key, "done", 2.0))
        assert study_view(ledger, "one").finished
        content = ledger.decisions("one")[0].content
        ledger.decide("one", 2, chosen=None, words="", content=content | {"confirmations": []})
        view = study_view(ledger, "one")
    assert not view.finished and view.end.used.rounds == 2 and len(view.path) == 1


def test_the_front_that_a_search_keeps(tmp_path):
    """Members that were judged are shown as judged, the others with the gain that they were kept for."""
    other = START | {"n_embd": 96}
    with Ledger(tmp_path / "ledger.sqlite") as ledger:
        study(ledger, "one", rounds=1)
        outcome = ledger.outcome("one")
        front_ = [outcome["path"][0], place(other) | {"name": "n_embd 64 -> 96", "gain": 0.0625}]
        ledger.conclude("one", outcome | {"front": front_})
        view = study_view(ledger, "one")
    judged, kept = view.kept
    assert judged == view.path[0].point and judged.measured == "confirmed"
    assert kept.gain.mean == 0.0625 and kept.gain.low is None and kept.costs == costs_of(other)


STRATEGIES = [
    {"kind": "greedy"}, {"kind": "greedy", "beam": 2}, {"kind": "greedy", "start": "warm"},
    {"kind": "greedy", "rungs": [5]}, {"kind": "grid", "reach": 1},
]  # fmt: skip


@pytest.mark.parametrize("strategy", STRATEGIES, ids=lambda s: "-".join(map(str, s.values())))
def test_what_the_coordinator_writes_is_read(tmp_path, strategy):
    """On the real coordinator: the view says of the search what the search says of itself."""
    found = space(strategy=strategy, budget={"rounds": 2})
    with Ledger(tmp_path / "ledger.sqlite") as ledger:
        ledger.lead(found.name, found.identity, "text", settings=found.settings())
        outcome = Search(found, ledger, Table(broken=("relumax",)), tmp_path).run()
        view = study_view(ledger, found.name)
    assert [step.point.name for step in view.path] == [node.name for node in outcome.steps] and view.path
    assert [step.gain.mean for step in view.path] == [node.confirmation.judged.gain for node in outcome.steps]
    assert view.start.key == found.baseline.key and view.score.unit == "nats" and view.finished
    assert view.end.gain == outcome.gain and view.end.costs["params"] == outcome.costs.params
    assert view.points and view.charts and view.score.start is not None and view.curves
    assert any(one.pruned for one in view.rounds) == ("rungs" in strategy)


def test_grown_trials_are_not_the_start(tmp_path):
    """A baseline that was trained on from its own weights has another loss than the baseline."""
    with Ledger(tmp_path / "ledger.sqlite") as ledger:
        ledger.lead("warm", "hash", "text", settings=settings("warm", strategy="greedy"))
        for seed, parent, loss in ((1, None, 2.5), (2, ("key", "folder"), 1.5)):
            trial = NewTrial(Identity(config_hash(START), seed, 100), {}, "folder", parent=parent)
            ledger.add("warm", [trial])
            ledger.claim("warm")
            ledger.finish("warm", TrialResult(trial.identity.key, "done", loss, ((100, loss),)))
        view = study_view(ledger, "warm")
    assert view.score.start == 2.5 and view.score.seeds == 1 and view.curves[0].mean == (2.5,)


def test_nothing_is_written(made):
    before = hashlib.sha256(made.read_bytes()).hexdigest()
    view_of(made)
    assert hashlib.sha256(made.read_bytes()).hexdigest() == before
