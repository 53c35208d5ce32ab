"""Grown models: the same function where one is promised, measured here by other tokens than the module's own."""

import random
import sys
from pathlib import Path

import pytest
import torch

from gptcore.config import GPTConfig
from gptcore.errors import UserError
from gptcore.grow import grow
from gptcore.growing import assemble
from gptcore.growing.layers import align
from gptcore.model import GPT

sys.path.insert(0, str(Path(__file__).parent / "contract"))
from configs import config_for, kind_ids, random_models  # noqa: E402

SMALL = {"n_layer": 2, "n_embd": 32, "block_size": 16, "vocab_size": 29, "attention": {"n_head": 4}}


def model_of(*changes):
    values = dict(SMALL)
    for change in changes:
        values |= change
    config = GPTConfig.model_validate(values)
    assert not list(config.problems())
    return config


def trained_like(config, dtype=torch.float32):
    """Weights of realistic size: gains that are not 1, biases that are not 0, learned constants off their start."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = GPT(config).to(dtype)
        with torch.no_grad():
            for p in model.parameters():
                noise = torch.randn_like(p)
                p.copy_(3 * p + 0.02 * noise if p.dim() > 1 else p + 0.2 * noise * p.abs().clamp_min(0.5))
    return model.eval()


def loaded(config, grown, dtype=torch.float32):
    model = GPT(config).to(dtype).eval()
    model.load_state_dict(grown.weights, strict=True)
    return model


def gap(parent, child, dtype=torch.float32, seed=7):
    """(max difference of the logits over the largest, as measured here; what `grow` says)."""
    old = trained_like(parent, dtype)
    grown = grow(old.state_dict(), parent, child, seed=3)
    length = min(parent.block_size, child.block_size)
    tokens = torch.randint(29, (3, length), generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        expected, found = old(tokens)[0], loaded(child, grown, dtype)(tokens)[0]
    return float((found - expected).abs().max() / expected.abs().max().clamp_min(1)), grown


def check_preserved(parent, child):
    """1e-5 in fp32 is what is promised; in fp64 only rounding is left: 1e-12 is thousands of its last digits."""
    difference, grown = gap(parent, child)
    assert difference <= 1e-5 and grown.preserved and grown.difference <= 1e-5, grown.words
    assert gap(parent, child, torch.float64)[0] <= 1e-12
    assert grown.copied == pytest.approx(1)


WIDER, DOUBLE, DEEPER, HEADS = {"n_embd": 48}, {"n_embd": 64}, {"n_layer": 3}, {"attention": {"n_head": 6}}
RMS, DACT = {"norm": {"kind": "rmsnorm"}}, {"norm": {"kind": "dact"}}
PARTIAL, LAYER = {"norm": {"kind": "krmsnorm"}}, {"norm": {"kind": "layernorm"}}
GAINLESS = {"norm": {"kind": "hyperspherenorm"}, "tie_embeddings": False}


def placed(placement, *, block="sequential", residual="add", **knobs):
    return {"block": {"kind": block, "placement": placement, "residual": {"kind": residual, **knobs}}}


def position(kind, **knobs):
    return {"position": {"kind": kind, **knobs}}


def quantized(bits, **knobs):
    linear = {"kind": "quantized", "bits": bits, **knobs}
    return {"attention": {"n_head": 4, "linear": linear}, "mlp": {"kind": "mlp", "linear": linear}}


PRESERVED = [
    *[(norm | position(p), WIDER) for norm in (RMS, LAYER, DACT, PARTIAL, GAINLESS) for p in ("learned", "soap")],
    *[(norm | position(p), WIDER | HEADS) for norm in (RMS, LAYER) for p in ("rotary", "fire", "cyclic")],
    *[(norm | position("rotary"), DOUBLE) for norm in (RMS, LAYER)],
    *[(norm | position("rotary", length=8), WIDER) for norm in (RMS, LAYER)],
    (position("alibi"), DOUBLE | {"attention": {"n_head": 8}}),
    *[({"mlp": {"kind": mlp}}, change) for mlp in ("swiglu", "dual_path", "moe", "kan") for change in (WIDER, DEEPER)],
    *[(norm | placed(place, block=block), change) for norm in (RMS, DACT, GAINLESS)
      for place in ("pre", "peri", "output") for block, change in (("sequential", WIDER), ("parallel", DEEPER))],
    *[(LAYER | placed(place), change) for place in ("peri", "output") for change in (DOUBLE, DEEPER)],
    (RMS | placed("post"), WIDER), (LAYER | placed("post"), DOUBLE),
    *[(RMS | placed("pre", residual=kind, learned=learned), change) for kind in ("add", "lerp", "slerp")
      for learned in ("scalar", "channel") for change in (WIDER, DEEPER)],
    *[(RMS | placed("pre", residual=kind), WIDER) for kind in ("lerp", "slerp", "rezero")],
    (LAYER | placed("pre", learned="channel"), WIDER), (RMS | placed("pre", depth_power=0.5), DEEPER),
    *[(RMS | {"attention": {"kind": kind, "n_head": 4}}, WIDER) for kind in ("mla", "ssm", "infinite")],
    *[({"attention": {"kind": kind, "n_head": 4}}, DEEPER) for kind in ("mla", "ssm", "infinite", "linear")],
    ({"attention": {"n_head": 4, "n_kv_head": 2}}, WIDER | {"attention": {"n_head": 6, "n_kv_head": 2}}),
    ({"attention": {"n_head": 4, "n_kv_head": 1}}, {"attention": {"n_head": 4, "n_kv_head": 2}}),
    ({"attention": {"n_head": 4, "softmax": "consmax"}}, WIDER | {"attention": {"n_head": 6, "softmax": "consmax"}}),
    (RMS | {"embedding": {"scale": "sqrt"}}, WIDER),
    ({"embedding": {"width": 20}}, WIDER | {"embedding": {"width": 24}}),
    (RMS | {"norm_embedding": {"kind": "rmsnorm"}, "bias": False}, WIDER), ({"tie_embeddings": False}, WIDER),
    (RMS | quantized(8, per="channel") | {"embedding": {"bits": 8}}, WIDER), (RMS | quantized(4), WIDER),
    ({"mlp": {"kind": "mlp", "hidden_size": 64}}, {"mlp": {"kind": "mlp", "hidden_size": 80}}),
    ({}, {"block_size": 24}), ({}, {"tie_embeddings": False}), (position("none"), position("learned")),
]  # fmt: skip


@pytest.mark.parametrize(("before", "change"), PRESERVED, ids=lambda value: str(value).replace("'", ""))
def test_function_is_preserved(before, change):
    check_preserved(model_of(before), model_of(before, change))


NOT_PRESERVED = [
    (position("rotary"), WIDER, "other angles"),
    ({}, {"attention": {"n_head": 8}}, "heads of 8 become heads of 4"),
    ({}, {"n_embd": 24}, "heads of 8 become heads of 6"),
    ({}, {"n_layer": 1}, "a layer is gone"),
    (RMS | placed("post"), DEEPER, "changes the stream however it starts"),
    (placed("pre", residual="lerp"), DEEPER, "changes the stream however it starts"),
    (LAYER | placed("peri"), WIDER, "what the new coordinates of the stream must carry"),
    (GAINLESS | {"tie_embeddings": True}, WIDER, "head and embedding at once"),
    ({"attention": {"n_head": 4, "linear": "bitlinear_1p58"}}, WIDER, "mean of the matrix"),
    ({"mlp": {"kind": "mlp", "linear": "weight_norm"}}, WIDER, "length of their own"),
    (LAYER | quantized(4), WIDER, "are rounded"),
    ({}, {"norm": {"kind": "rmsnorm"}}, "norm.kind layernorm -> rmsnorm"),
]


@pytest.mark.parametrize(("before", "change", "words"), NOT_PRESERVED, ids=lambda value: str(value).replace("'", ""))
def test_what_is_not_preserved_is_said(before, change, words):
    parent = model_of(before)
    difference, grown = gap(parent, model_of(before, change))
    assert difference > 1e-5 and not grown.preserved and words in grown.words


def test_a_wider_rotary_head_takes_the_nearest_angles():
    """No exact map exists; the one found is closer than weights at random are by far."""
    parent = model_of(position("rotary"))
    child = model_of(position("rotary"), WIDER)
    _, grown = gap(parent, child)
    fresh = GPT(child).eval()
    tokens = torch.randint(29, (3, 16))
    with torch.no_grad():
        expected = trained_like(parent)(tokens)[0]
        assert (loaded(child, grown)(tokens)[0] - expected).norm() < 0.1 * (fresh(tokens)[0] - expected).norm()


@pytest.mark.parametrize(("slot", "kind"), kind_ids())
def test_every_kind_can_be_moved_to(slot, kind):
    """And from, for the slots whose kinds have parameters of their own; one layer, to be quick."""
    parent, child = model_of({"n_layer": 1}), config_for(slot, kind).model_copy(update={"n_layer": 1})
    structural = slot in ("attention", "mlp", "linear", "position")
    for old, new in ((parent, child), (child, parent))[: 1 + structural]:
        grown = grow(trained_like(old).state_dict(), old, new, seed=1)
        loaded(new, grown)
        assert grown.preserved == (grown.difference <= 1e-5) and 0 < grown.copied <= 1 and grown.words


def test_any_two_models_of_one_vocabulary():
    models = random_models(12, seed=11)
    for parent, child in zip(models, models[5:] + models[:5], strict=True):
        loaded(child, grow(trained_like(parent).state_dict(), parent, child, seed=1))


def test_layers_of_a_schedule():
    """The copy stands after its layer; what is changed stays in its place; what is removed is missing."""
    assert align("ABC", "ABBC") == [0, 1, None, 2]
    assert align("AAA", "AAAA") == [0, 1, 2, None]
    assert align("AAA", "ABA") == [0, 1, 2]
    assert align("ABC", "AC") == [0, 2]
    plain = {"attention": {"n_head": 4}} | RMS
    layers = [plain, plain | {"mlp": {"kind": "swiglu"}}]
    parent = model_of(RMS, {"layers": layers})
    child = model_of(RMS, {"n_layer": 3, "layers": [layers[0], layers[0], layers[1]]})
    check_preserved(parent, child)
    _, grown = gap(parent, child)
    copy, original = (grown.weights[f"transformer.h.{i}.mlp.c_fc.weight"] for i in (1, 0))
    assert torch.equal(copy, original) and not grown.weights["transformer.h.1.mlp.c_proj.weight"].any()


def never_moved(config, weights, steps=3):
    """Share of every parameter that had no gradient in any of the steps."""
    model = GPT(config)
    model.load_state_dict(weights)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    moved = {name: torch.zeros_like(p, dtype=torch.bool) for name, p in model.named_parameters()}
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        tokens = torch.randint(29, (8, config.block_size), generator=generator)
        loss = model(tokens, tokens.roll(-1, 1))[1]
        optimizer.zero_grad()
        loss.backward()
        for name, p in model.named_parameters():
            moved[name] |= p.grad != 0
            assert p.grad.isfinite().all()
        optimizer.step()
    return {name: 1 - float(m.float().mean()) for name, m in moved.items() if not m.all()}


GROWTHS = [
    (RMS, WIDER), (LAYER, WIDER), (RMS | position("rotary"), WIDER | HEADS), (RMS, DEEPER), (LAYER, DEEPER),
    (LAYER | placed("peri"), DOUBLE), (RMS | placed("peri"), DEEPER), (placed("pre", residual="rezero"), DEEPER),
    (RMS | {"mlp": {"kind": "swiglu"}}, WIDER), (placed("pre", residual="rezero", learned="channel"), WIDER),
]  # fmt: skip


@pytest.mark.parametrize(("before", "change"), GROWTHS, ids=lambda value: str(value).replace("'", ""))
def test_everything_new_learns(before, change):
    """A gradient at the latest after two steps have moved its partner."""
    child = model_of(before, change)
    assert not never_moved(child, gap(model_of(before), child)[1].weights)


def test_a_pair_of_zeros_is_found_stuck():
    """The check above can fail: new units with zeros on both sides."""
    child = model_of(RMS, {"mlp": {"kind": "mlp", "hidden_size": 160, "bias_up": False}})
    weights = gap(model_of(RMS, {"mlp": {"kind": "mlp", "bias_up": False}}), child)[1].weights
    weights["transformer.h.0.mlp.c_fc.weight"][128:] = 0
    assert set(never_moved(child, weights)) == {f"transformer.h.0.mlp.{n}.weight" for n in ("c_fc", "c_proj")}


def test_training_goes_on_from_the_parents_loss():
    parent, child = model_of(RMS), model_of(RMS, WIDER, DEEPER)
    old = trained_like(parent)
    new = loaded(child, grow(old.state_dict(), parent, child, seed=1)).train()
    rng = random.Random(0)
    text = torch.tensor([[(5 * t + rng.randrange(3) + s) % 29 for t in range(17)] for s in range(8)])
    tokens, targets = text[:, :-1], text[:, 1:]
    optimizer, losses = torch.optim.AdamW(new.parameters(), lr=1e-3), []
    for _ in range(30):
        loss = new(tokens, targets)[1]
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        assert losses[0] == pytest.approx(old(tokens, targets)[1].item(), rel=1e-5)
    assert losses[-1] < losses[0] - 0.1


def test_a_forgotten_factor_is_measured(monkeypatch):
    """Without the root of the ratio of widths in the gains the outputs differ, and `grow` says so itself."""
    whole = assemble.put_norm
    monkeypatch.setattr(assemble, "put_norm", lambda old, new, axis, gain, want, put: whole(old, new, axis, 1, 1, put))
    difference, grown = gap(model_of(RMS), model_of(RMS, WIDER))
    assert difference > 1e-3 and not grown.preserved


def test_seed_and_vocabulary():
    parent, child = model_of(), model_of(WIDER)
    weights = trained_like(parent).state_dict()
    first, again, other = (grow(weights, parent, child, seed=seed).weights for seed in (1, 1, 2))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)
    with pytest.raises(UserError, match="29 tokens cannot grow|cannot grow from one with 29"):
        grow(weights, parent, model_of({"vocab_size": 30}), seed=1)
