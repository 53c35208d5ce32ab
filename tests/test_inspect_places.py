"""Places and bits of `gptcore inspect`: against plain hooks of torch, and against what configurations then round."""

import math

import pytest
import torch

from gptcore.analysis.bit_plan import loss_with, plan_activations, plan_weights, write_plan
from gptcore.analysis.measure import measure_activations, measure_weights
from gptcore.analysis.probe import Place, Probe
from gptcore.analysis.rounding import matrices_of, own_places
from gptcore.checkpoint import load_model
from gptcore.config import canonical
from gptcore.constants import constants_of
from gptcore.loader import load
from gptcore.registry import kinds
from gptcore.yamlfile import dump
from tests.inspected import C, H, T, fresh, make, opened, seen_by_torch


@pytest.fixture(scope="module")
def soft(corpus, tmp_path_factory):
    return make(corpus, tmp_path_factory.mktemp("runs") / "soft", "softmax")


def check_places(measured, expected):
    found = {str(m.place): m.statistics for m in measured}
    assert found.keys() == expected.keys() | {"embedding"}
    eps = 32 * torch.finfo(torch.float32).eps  # attention is fused in one and explicit in the other
    for name, x in expected.items():
        s, x = found[name], x.double()
        assert s.count == x.numel(), name
        for mine, theirs in ((s.low, x.min()), (s.high, x.max()), (s.mean, x.mean()), (s.std, x.std(correction=0))):
            assert mine == pytest.approx(theirs.item(), rel=eps, abs=eps * x.abs().max().item()), name


def test_activations_are_those_that_plain_hooks_see(soft):
    source = opened(soft)
    expected = seen_by_torch(source)
    measured = measure_activations(source, method="symmetric", formats=[])
    check_places(measured, expected)
    swapped = {
        name.replace("h.0", "h.x").replace("h.1", "h.0").replace("h.x", "h.1"): x for name, x in expected.items()
    }
    with pytest.raises(AssertionError):
        check_places(measured, swapped)


def test_looking_changes_nothing(soft):
    model = load_model(soft).model
    x = torch.arange(T)[None] % 5
    before, names = model(x)[0], [name for name, _ in model.named_modules()]
    with Probe(model, lambda *_: None):
        during = model(x)[0]
    assert torch.equal(model(x)[0], before) and [name for name, _ in model.named_modules()] == names
    torch.testing.assert_close(during, before)
    with pytest.raises(ZeroDivisionError), Probe(model, lambda *_: 1 / 0):
        model(x)
    assert torch.equal(model(x)[0], before) and not any(m._forward_hooks for m in model.modules())


@pytest.mark.parametrize(
    "slot, kind", [(slot, kind) for slot in ("attention", "mlp", "linear") for kind in kinds(slot)]
)
def test_the_plans_of_every_kind_load_and_compute(slot, kind, tmp_path):
    """The file says what the plan says, and the trained weights fit into it."""
    headed = slot != "attention" or "n_head" in kinds(slot)[kind].Config.model_fields
    attention = {"kind": kind if slot == "attention" else "causal"} | ({"n_head": H} if headed else {})
    linear = {"linear": kind} if slot == "linear" else {}
    source = fresh(attention=attention | linear, mlp={"kind": kind if slot == "mlp" else "mlp"} | linear)
    (tmp_path / "config.yaml").write_text(dump(source.config.model_dump(mode="json")))
    model, path = source.loaded.config, tmp_path / "plan.yaml"
    activations = measure_activations(source, method="affine", formats=[])
    for plan in (
        plan_activations(model, activations, "affine", 25.0),
        plan_weights(model, measure_weights(source, formats=[]), 25.0),
    ):
        write_plan(path, source.config, plan, tmp_path, ["why"])
        assert canonical(load(path).config.model) == canonical(plan.model)
        assert math.isfinite(loss_with(source, plan.model, source.batches))
    assert canonical(load(path).config.model) != canonical(model)  # at least the table is rounded


def test_every_layer_of_a_shared_attention_is_seen():
    measured = measure_activations(
        fresh(attention={"n_head": H}, share={"attention": 2}), method="symmetric", formats=[]
    )
    q = {m.place.layer: m.statistics for m in measured if m.place.label == "attn.q"}
    assert q.keys() == {0, 1} and q[0] != q[1]


def test_a_window_hides_what_is_before_it():
    measured = measure_activations(fresh(attention={"n_head": H, "window": 4}), method="symmetric", formats=[])
    counts = {m.place.label: m.statistics.count for m in measured if m.place.layer == 0}
    assert counts["attn.scores"] == counts["attn.weights"] == 2 * H * sum(min(t + 1, 4) for t in range(T))
    assert counts["attn.q"] == 2 * T * C


def test_kinds_without_places_show_their_ends_and_are_left_out_of_the_plan():
    source = fresh(attention={"kind": "ssm", "n_head": H}, mlp={"kind": "moe"}, position="none")
    measured = measure_activations(source, method="symmetric", formats=[])
    assert {m.place.label for m in measured} == {
        "embedding", "attn.input", "attn.output", "mlp.input", "mlp.output", "stream", "logits",
    }  # fmt: skip
    plan = plan_activations(source.loaded.config, measured, "symmetric", 30.0)
    assert own_places(plan.model) == {} and "attn.input: ssm has no place for it" in plan.left
    wplan = plan_weights(source.loaded.config, measure_weights(source, formats=[]), 30.0)
    covered = {m.short for m in matrices_of(wplan.model) if m.own_bits}
    assert covered == {"wte"} | {f"h.{i}.attn.{name}" for i in range(2) for name in ("c_attn", "c_proj")}
    assert "h.0.mlp.c_fc: no setting rounds it" in wplan.left


def test_what_a_model_rounds_already_is_measured_before_and_kept():
    source = fresh(attention={"n_head": H, "rounding": {"scores": 3}}, mlp={"linear": {"kind": "quantized", "bits": 5}})
    measured = measure_activations(source, method="symmetric", formats=[])
    scores = next(m for m in measured if m.place == Place(0, "attn.scores"))
    assert scores.own_bits == 3 and scores.statistics.sqnr_group_db[3] < 30  # wide values, not the rounded ones
    plan = plan_activations(source.loaded.config, measured, "symmetric", 30.0)
    assert own_places(plan.model)["h.0.attn scores"] == 3 and own_places(plan.model)["h.0.attn q"] > 3
    kept = {
        m.short: m.own_bits
        for m in matrices_of(plan_weights(plan.model, measure_weights(source, formats=[]), 30).model)
    }
    assert kept["h.0.mlp.c_fc"] == 5 and kept["h.0.attn.c_attn"] > 5


def test_a_place_gets_the_bits_of_the_layer_that_needs_most():
    source = fresh(attention={"n_head": H})
    block = source.loaded.model.transformer.h[0]
    with torch.no_grad():
        block.attn.c_attn.weight[0] *= 300  # what holds nearly all of the power needs few bits
        block.mlp.c_fc.weight[:, 0] *= 300
    measured = measure_activations(source, method="symmetric", formats=[])
    q = [m.statistics.bits_group(30.0) for m in measured if m.place.label == "attn.q"]
    assert own_places(plan_activations(source.loaded.config, measured, "symmetric", 30.0).model)["h.0.attn q"] == max(q)
    weights = measure_weights(source, formats=[])
    up = [m.statistics.bits_group(30.0) for m in weights if m.place.label == "mlp.c_fc"]
    widths = {m.short: m.own_bits for m in matrices_of(plan_weights(source.loaded.config, weights, 30.0).model)}
    assert widths["h.0.mlp.c_fc"] == widths["h.1.mlp.c_fc"] == max(up)
    assert min(q) < max(q) and min(up) < max(up)


def test_constants_are_those_in_force():
    """A kind that learns factors shows what they come to, too."""
    softmax = {"kind": "consmax_v2", "initial_beta": 3.0, "initial_gamma": 50.0}
    model = fresh(attention={"n_head": H, "softmax": softmax}).loaded.model
    with torch.no_grad():
        model.transformer.h[1].attn.softmax.beta_factor[1] = 1.5
    found = {(c.layer, c.head, c.name): c.value for c in constants_of(model, 0)}
    assert found[1, 1, "beta"] == 4.5 and found[1, 1, "beta_factor"] == 1.5
    assert found[0, 1, "beta"] == 3.0 and found[1, 0, "gamma"] == 50.0


def test_a_schedule_of_layers_gets_bits_by_entry():
    source = fresh(layers=[{"attention": {"n_head": H}}, {"attention": {"n_head": 4}, "mlp": {"kind": "swiglu"}}])
    block = source.loaded.model.transformer.h[0]
    with torch.no_grad():
        block.attn.c_attn.weight[0] *= 300  # one channel is all that a range of the token sees: few bits tell it
    measured = measure_activations(source, method="symmetric", formats=[])
    plan = plan_activations(source.loaded.config, measured, "symmetric", 30.0)
    needed = {str(m.place): m.statistics.bits_group(30.0) for m in measured}
    bits = own_places(plan.model)
    assert bits["h.0.attn q"] == needed["h.0.attn.q"] < bits["h.1.attn q"] == needed["h.1.attn.q"]
    assert not list(plan.model.problems())
