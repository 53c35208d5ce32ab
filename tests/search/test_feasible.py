"""What is remembered about impossible combinations is what looking at all of a configuration finds."""

import random

import pytest

import search.feasible
from gptcore.loader import from_dict
from search.feasible import problems
from search.moves import Rejected, apply, placed
from search.space import from_mapping

MODEL = {
    "n_layer": 4,
    "n_embd": 48,
    "block_size": 32,
    "vocab_size": 65,
    "attention": {"n_head": 4},
    "position": "learned",
}
CHANGES = {
    "attention": {"choices": [{"kind": "causal", "n_head": 6, "n_kv_head": 3}, "identity"]},
    "attention.n_head": ["x2", "+1"],
    "mlp": {"choices": ["mlp", "swiglu"]},
}  # fmt: skip
MOVES = {
    "layers": {"duplicate": True, "remove": True, "change": CHANGES},
    "model.n_embd": ["+4", "-16"],
    "model.position": {"choices": ["learned", "rotary", "alibi"]},
    "model.share.mlp": {"choices": [1, 2]},
    "model.softmax_output": {"choices": ["softmax", "relumax"]},
    "train.schedule": {"choices": ["cosine", "wsd"]},
    "train.min_lr": {"choices": [1e-5, 1.0]},
}


def walk(steps, seed):
    """Configurations at the ends of moves, impossible ones among them."""
    space = from_mapping({"baseline": {"model": MODEL}, "hardware": "edge-sky130", "cost": "params", "moves": MOVES})
    rng, point = random.Random(seed), space.baseline
    for _ in range(steps):
        try:
            new, _ = apply(rng.choice(list(placed(space.moves, point))), point)
        except Rejected:
            continue
        yield new.config
        point = new if rng.random() < 0.9 and new.config.model.n_layer < 9 else space.baseline


@pytest.mark.parametrize("seed", range(4))
def test_the_same_problems_in_the_same_words(seed):
    found = [(list(problems(config)), list(config.problems())) for config in walk(250, seed)]
    assert all(a == b for a, b in found)
    assert 0.1 < sum(bool(a) for a, _ in found) / len(found) < 0.95


def test_a_layer_that_goes_unseen_would_be_seen(monkeypatch):
    """The seeded fault: with every layer taken for sound, impossible configurations pass."""
    monkeypatch.setattr(search.feasible, "_is_sound", lambda config, rest, layer: True)
    assert any(list(problems(config)) != list(config.problems()) for config in walk(250, 0))


def test_layers_that_do_not_add_up_are_told():
    config = from_dict({"model": MODEL})
    layers = [layer.model_copy(update={"repeat": 2}) for layer in config.model.layer_configs()]
    wrong = config.model_copy(update={"model": config.model.model_copy(update={"layers": layers})})
    assert [message for _, message in problems(wrong)] == ["repeats add up to 8 layers but n_layer is 4"]
