"""The table of losses: it answers what it holds, refuses what it does not, and is of this code; figures of the
comparison against closed forms."""

import csv
import importlib.util
import random
import sys
from dataclasses import replace
from pathlib import Path

import pytest

import search.tabulated
from gptcore.errors import UserError
from gptcore.loader import from_dict
from search.space import load
from search.tabulated import Tabulated, named
from search.trial import Identity, TrialSpec

ROOT = Path(__file__).parents[2]
_spec = importlib.util.spec_from_file_location("search_table", ROOT / "benchmarks" / "search_table.py")
assert _spec and _spec.loader
bench = importlib.util.module_from_spec(_spec)
sys.modules["search_table"] = bench
_spec.loader.exec_module(bench)


@pytest.fixture(autouse=True)
def unprepared(monkeypatch):
    """Whatever is prepared on this machine."""
    monkeypatch.setattr(search.tabulated, "data_hash", lambda dataset: "unprepared")


def spec_of(config, seed):
    config = config.model_copy(update={"train": config.train.model_copy(update={"seed": seed})})
    return TrialSpec(Identity.of(config).key, config.model_dump(mode="json"), seed, "")


def answer(table, spec):
    table.start(spec)
    assert table.running() == [spec.key]
    (result,) = table.wait(0)
    assert table.running() == [] and result.key == spec.key
    return result


@pytest.fixture
def small(tmp_path):
    """A table of two configurations and three seeds."""
    made = [from_dict({"model": {"n_embd": width, "vocab_size": 65}, "train": {"max_iters": 7}}) for width in (48, 96)]
    rows = [f"{named(made[0])},48,1.5,2.5,", f"{named(made[1])},96,1.25,2.25,3.25"]
    path = tmp_path / "small.csv"
    path.write_text("\n".join(["# words 1234", "identity,n_embd,0,1,2", *rows]) + "\n")
    return path, made


def test_answers_by_configuration_and_seed(small):
    path, (first, second) = small
    table = Tabulated(path)
    assert [answer(table, spec_of(second, seed)).loss for seed in (0, 1, 2, 3, 7)] == [1.25, 2.25, 3.25, 1.25, 2.25]
    done, lost = answer(table, spec_of(first, 1)), answer(table, spec_of(first, 2))
    assert (done.state, done.loss, done.curve) == ("done", 2.5, ((7, 2.5),))
    assert (lost.state, lost.loss) == ("diverged", None)
    turned = Tabulated(path, [2, 0, 1])
    assert [answer(turned, spec_of(second, seed)).loss for seed in (0, 1, 2)] == [3.25, 1.25, 2.25]


def test_refuses_what_it_does_not_hold(small, monkeypatch):
    path, (first, _) = small
    table = Tabulated(path)
    for changes in ({"max_iters": 8}, {"learning_rate": 5e-4}, {"batch_size": 6}):
        other = first.model_copy(update={"train": first.train.model_copy(update=changes)})
        with pytest.raises(UserError, match="has no configuration"):
            table.start(spec_of(other, 0))
    for changes in ({"pause_at": 3}, {"parent": ("key", "folder")}, {"tasks": ("arc",)}):
        with pytest.raises(UserError, match="no rungs, no warm start, no tasks"):
            table.start(replace(spec_of(first, 0), **changes))
    with pytest.raises(UserError, match="permutation"):
        Tabulated(path, [0, 0, 1])
    monkeypatch.setattr(search.tabulated, "data_hash", lambda dataset: "5678")
    with pytest.raises(UserError, match="made on other data than the words"):
        Tabulated(path)
    path.write_text("identity,0\nabc,1.0\n")
    with pytest.raises(UserError, match="no table of losses"):
        Tabulated(path)


def test_the_committed_table_holds_every_point_of_its_space_and_no_other():
    """So a change of the schema, of a default or of the space that makes the table stale is seen here."""
    space, table = load(bench.SPACE), Tabulated(bench.TABLE)
    points = [named(point.config) for _, point in bench.grid(space)]
    assert sorted(points) == sorted(table.losses) and len(set(points)) == len(points) >= 200
    assert 2 * space.seeds.max <= table.seeds  # nothing is confirmed on a seed that selected it


def test_pack_writes_the_seeds_of_which_all_points_are_there(tmp_path):
    space = load(bench.SPACE)
    points = [named(point.config) for _, point in bench.grid(space)]
    rows = [(name, seed, f"{2 + i / 1000 + seed}", 1.0) for seed in range(3) for i, name in enumerate(points)][:-1]
    with open(tmp_path / "trials.csv", "w", newline="") as file:
        csv.writer(file).writerows(rows)
    assert bench.pack(space, tmp_path, tmp_path / "packed.csv") == 2
    packed = Tabulated(tmp_path / "packed.csv")
    assert packed.of(points[5]) == (2.005, 3.005)


def test_hypervolume_is_that_of_a_count_of_cells():
    rng = random.Random(3)
    for _ in range(20):
        points = [(rng.randrange(12), rng.randrange(12)) for _ in range(6)]
        cells = sum(any(x <= i and y <= j for x, y in points) for i in range(10) for j in range(10))
        assert bench.hypervolume(points, (10, 10)) == cells


def test_a_search_on_the_table_is_judged_by_the_truth():
    """Its end is a point of the grid, no better than the best; the same number gives the same search."""
    space = load(bench.SPACE, ["budget.trials=40"])
    truth = bench.Truth.of(space, Tabulated(bench.TABLE))
    assert truth.share(truth.loss) == 1.0
    start = truth.share([named(space.baseline.config)])
    one, again = (bench.search(space, bench.TABLE, truth, 1) for _ in range(2))
    assert one == again and one.excess >= 0 and start <= one.front <= 1 and one.trials <= 40
