"""Sequences of unequal lengths side by side: what each would say alone, or not at all."""

import random

import pytest
import torch

from gptcore import batch_decode, ragged
from gptcore.batch_decode import generate_together
from gptcore.config import GPTConfig
from gptcore.model import GPT
from gptcore.ragged import Ragged, can_be_ragged
from gptcore.registry import kinds
from gptcore.sample import Sampling, generate

V = 23
RNG = random.Random(3)
PROMPTS = [[RNG.randrange(V) for _ in range(n)] for n in (3, 9, 1, 3, 14, 8)]
# Sums of some ten terms of about 1, in another order, through two layers.
TOLERANCE = 64 * torch.finfo(torch.float32).eps


def make(**changes) -> GPT:
    attention = {"n_head": 4, **changes.pop("attention", {})}
    settings = {"n_layer": 2, "n_embd": 32, "block_size": 48, "vocab_size": V, "attention": attention, **changes}
    torch.manual_seed(0)
    model = GPT(GPTConfig.model_validate(settings)).eval()
    with torch.no_grad():  # predictions far from uniform
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * (0.3 if parameter.dim() > 1 else 0.03))
    return model


def softmax(kind, **knobs) -> dict:
    return {"attention": {"softmax": {"kind": kind, **knobs}}}


SUITABLE = {
    "learned": {}, "rotary": {"position": "rotary"}, "no position": {"position": "none"},
    "both": {"position": "combined"}, "shared heads": {"attention": {"n_kv_head": 2}},
    "uneven": {"attention": {"n_kv_head": 3, "groups": "uneven"}}, "window": {"attention": {"window": 4}},
    "capped": {"attention": {"softcap": 5.0}, "position": "rotary"},
    "normalised queries": {"attention": {"qk_norm": "rmsnorm", "qk_scale": "learned"}, "position": "rotary"},
    "extra term": softmax("softmax", lobo="learned"), "consmax": softmax("consmax", initial_gamma=8.0),
    "softermax": softmax("softermax"), "sigsoftmax": softmax("sigsoftmax"),
    "relumax": softmax("relumax", div_by_seq_len=False) | {"position": "rotary"},
    "parallel": {"block": "parallel", "mlp": "swiglu", "norm": "rmsnorm"},
    "several": {"layers": [softmax("consmax", initial_gamma=8.0), {"attention": {"window": 3}}]},
    "shared layers": {"share": {"attention": 2, "mlp": 2}},
    "rounded": {"attention": {"rounding": {"q": 6, "k": 6, "v": 6}}, "mlp": {"rounding": {"input": 8}}},
}  # fmt: skip
UNSUITABLE = {
    "bias by distance": {"position": "alibi"}, "counts keys": softmax("relumax"), "sigmoid": softmax("sigmoidmax"),
    "rounded scores": {"attention": {"rounding": {"scores": 8}}}, "state": {"attention": {"kind": "linear"}},
    "latent": {"attention": {"kind": "mla"}}, "one layer": {"layers": [{}, {"attention": {"kind": "linear"}}]},
}  # fmt: skip


def in_order(prompts):
    return sorted(prompts, key=lambda prompt: -len(prompt))


@torch.inference_mode()
def differences(model, prompts) -> float:
    """Largest distance of the logits from those of each sequence alone, over some steps, the last ones of a part."""
    prompts = [list(prompt) for prompt in in_order(prompts)]
    side, worst, rows = Ragged(model, prompts, 8), 0.0, list(range(len(prompts)))
    for step in range(8):
        alone = torch.cat([model(torch.tensor([prompts[row]]))[0][:, -1] for row in rows])
        worst = max(worst, ((alone - side.logits_BV).abs().max() / alone.abs().max()).item())
        if step == 4:
            rows = rows[1::2]
            side.keep([1, 3, 5])
        for row in rows:
            prompts[row].append((7 * row + step) % V)
        side.step([prompts[row][-1] for row in rows])
    return worst


@pytest.mark.parametrize("name", SUITABLE)
def test_each_sequence_gets_what_it_gets_alone(name):
    model = make(**SUITABLE[name])
    assert can_be_ragged(model)
    assert differences(model, PROMPTS) < TOLERANCE


@pytest.mark.parametrize("name", UNSUITABLE)
def test_what_does_not_suit_is_told(name):
    assert not can_be_ragged(make(**UNSUITABLE[name]))


@pytest.mark.parametrize("kind", sorted(kinds("softmax")))
def test_no_weighting_is_taken_that_does_not_suit(kind):
    """Whatever the kind: refused, or right."""
    model = make(**softmax(kind))
    assert not can_be_ragged(model) or differences(model, PROMPTS) < TOLERANCE


@pytest.mark.parametrize("fault", ["positions", "mask", "values", "probe"])
def test_seeded_faults(fault, monkeypatch):
    model = make(**(softmax("consmax", initial_gamma=8.0) if fault == "values" else {"position": "rotary"}))
    if fault == "positions":
        monkeypatch.setattr(Ragged, "apart", lambda self, function, start, *tensors: [function(*tensors, start)])
    if fault == "mask":
        monkeypatch.setattr(ragged, "_bias", lambda fill, S, like: torch.zeros(len(fill), 1, 1, S))
    if fault == "values":  # what was read behind a prompt stays in front of it
        put = torch.Tensor.__setitem__

        def put_tensors(self, at, value):
            if not isinstance(value, float):
                put(self, at, value)

        monkeypatch.setattr(torch.Tensor, "__setitem__", put_tensors)
    if fault == "probe":
        model = make(**softmax("relumax"))
        monkeypatch.setattr(ragged, "_ignores_what_is_masked", lambda attn: True)
        assert can_be_ragged(model)
    assert differences(model, PROMPTS) > 100 * TOLERANCE


@pytest.mark.parametrize("sampling", [Sampling(0.0), Sampling(1.0, top_k=9)])
@pytest.mark.parametrize("batch_size", [1, 4, 32])
def test_texts_are_those_of_each_alone(sampling, batch_size, monkeypatch):
    model, ran = make(position="rotary"), []
    monkeypatch.setattr(batch_decode, "Ragged", lambda *args: ran.append(len(args[1])) or Ragged(*args))
    rest = {"max_new_tokens": 9, "seed": 5, "eot": 4, "vocab_size": V - 2, "stop": lambda new: len(new) > new[0] % 9}
    expected = generate(model, PROMPTS, temperature=sampling.temperature, top_k=sampling.top_k, **rest)
    assert len({len(tokens) for tokens in expected}) > 2  # they end at different times
    assert generate_together(model, PROMPTS, sampling=sampling, batch_size=batch_size, **rest) == expected
    assert ran == {1: [], 4: [4, 2], 32: [6]}[batch_size]


def test_positions_come_back(monkeypatch):
    model = make()
    position = model.position
    side = Ragged(model, in_order(PROMPTS), 2)
    monkeypatch.setattr(type(position), "embed", lambda self, x, start: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        side.step([0] * 6)
    assert model.position is position
