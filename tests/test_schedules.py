"""Learning rate and rounding strength as functions of the step, against closed forms."""

import math

import pytest

from gptcore.config import TrainConfig
from gptcore.loader import from_dict
from gptcore.schedules import learning_rate, quant_level

BASE = {"learning_rate": 1.0, "min_lr": 0.2, "warmup_iters": 4, "max_iters": 24}


def rates(steps=range(30), **settings) -> list[float]:
    t = TrainConfig(**{**BASE, **settings})
    return [learning_rate(t, step) for step in steps]


@pytest.mark.parametrize("schedule", ["cosine", "linear", "wsd", "constant"])
def test_every_schedule_warms_up_linearly_and_ends_at_its_lowest(schedule):
    found = rates(schedule=schedule)
    assert found[:4] == [0.2, 0.4, 0.6, 0.8] and found[4] == 1.0
    assert set(found[24:]) == ({1.0} if schedule == "constant" else {0.2})
    assert all(a >= b for a, b in zip(found[4:], found[5:], strict=False))


def test_closed_forms():
    assert rates([14], schedule="cosine") == pytest.approx([0.6])  # half way down: the mean of the ends
    assert rates([9], schedule="cosine") == pytest.approx([0.2 + 0.8 * (1 + math.sqrt(0.5)) / 2])
    assert rates(range(4, 25, 5), schedule="linear") == pytest.approx([1.0, 0.8, 0.6, 0.4, 0.2])
    assert set(rates(range(4, 29), schedule="constant")) == {1.0}


@pytest.mark.parametrize(
    "shape, quarters",  # of the way from the peak to the lowest rate that are left
    [("linear", [0.75, 0.5, 0.25]), ("sqrt", [0.5, 1 - math.sqrt(0.5), 1 - math.sqrt(0.75)]),
     ("cosine", [(1 + math.sqrt(0.5)) / 2, 0.5, (1 - math.sqrt(0.5)) / 2])],
)  # fmt: skip
def test_wsd_is_constant_then_decays_in_the_last_part(shape, quarters):
    found = rates(schedule="wsd", wsd_decay_fraction=0.5, wsd_decay_shape=shape)
    assert set(found[4:13]) == {1.0} and found[13] < 1.0
    assert [found[15], found[18], found[21]] == pytest.approx([0.2 + 0.8 * left for left in quarters])


def test_wsd_runs_of_different_lengths_share_all_but_their_ends():
    short, long = (rates(range(100), schedule="wsd", max_iters=n, wsd_decay_fraction=10 / n) for n in (50, 100))
    assert short[:41] == long[:41] and short[45] != long[45]


def test_the_decay_may_end_before_the_run():
    assert rates([12, 20], schedule="linear", lr_decay_iters=20) == pytest.approx([0.6, 0.2])
    assert rates([14, 15], schedule="wsd", lr_decay_iters=20, wsd_decay_fraction=0.25)[0] == 1.0
    assert learning_rate(TrainConfig(warmup_iters=0, max_iters=0), 0) == 1e-4  # no step at all


def test_strength_of_rounding():
    t = TrainConfig(quant_scheduler="linear", start_quant_level=0.2, full_quant_iteration=10, max_iters=100)
    assert [quant_level(t, step) for step in (0, 5, 10, 50)] == pytest.approx([0.2, 0.6, 1.0, 1.0])
    t = TrainConfig(quant_scheduler="linear", max_iters=100)
    assert [quant_level(t, step) for step in (0, 25, 100)] == [0.0, 0.25, 1.0]
    assert {quant_level(TrainConfig(), step) for step in (0, 7)} == {1.0}


@pytest.mark.parametrize(
    "settings, expected",
    [
        ({"schedule": "wsd", "wsd_decay_fraction": 1.5}, "less than or equal to 1"),
        ({"schedule": "wsd", "wsd_decay_fraction": 0.9, "max_iters": 200}, "before the warm-up ends at 100"),
        ({"wsd_decay_shape": "sqrt"}, "has no effect without schedule: wsd"),
        ({"muon_learning_rate": 0.1}, "has no effect without optimizer: muon"),
        ({"start_quant_level": 0.5}, "has no effect without quant_scheduler: linear"),
        ({"distill_weight": 0.1}, "has no effect without distill_from"),
        ({"import_wte_freeze": True}, "has no effect without import_wte_npy"),
        ({"label_smoothing": 1.0}, "less than 1"),
        ({"optimizer": "sgd"}, "'adamw', 'muon', 'lion' or 'adafactor'"),
    ],
)
def test_settings_that_cannot_be(settings, expected):
    with pytest.raises(ValueError, match=expected) as caught:
        from_dict({"train": settings})
    assert len(caught.value.problems) == 1
