"""Costs of a point are those of the full count and the estimate; rules put them together; constraints hold."""

import math

import pytest

import ppa.estimate
from gptcore.loader import from_dict
from ppa.count import count as full_count
from ppa.count import make_point
from ppa.estimate import estimate
from ppa.machine import load_machine
from search.cost import COSTS, Costs, change, combined, costs, violations
from search.moves import candidates
from search.space import Bound, CostRule, from_mapping

MODEL = {"n_layer": 3, "n_embd": 48, "block_size": 32, "vocab_size": 65, "attention": {"kind": "causal", "n_head": 4}}
CASES = {
    "plain": {},
    "untied": {"tie_embeddings": False, "bias": False},
    "kinds": {"norm": "rmsnorm", "mlp": "swiglu", "position": "rotary", "attention": {"n_head": 4, "n_kv_head": 2}},
    "schedule": {
        "layers": [{"repeat": 2}, {"attention": {"n_head": 2, "softmax": "consmax"}, "mlp": {"kind": "geglu"}}]
    },
    "bits": {"bits": {"weight": 4, "activation": 8, "kv": 8}, "mlp": {"linear": {"kind": "quantized", "bits": 4}}},
    "shared": {"share": {"attention": 3, "mlp": 2}},
    "depth": {"block": {"kind": "sequential", "residual": {"kind": "add", "depth_power": 1.0, "learned": "channel"}}},
    "dropout": {"dropout": 0.1, "norm_embedding": "rmsnorm", "embedding": {"width": 16}},
    "eight-bit norms": {"norm": "rmsnorm_int", "norm_embedding": "rmsnorm_int"},
    "experts": {"mlp": {"kind": "moe"}},
    "no attention": {"attention": "identity"},
}


def config(case, **train):
    return from_dict({"model": {**MODEL, **CASES[case]}, "train": train})


def count(made, stage):
    return estimate(made, "edge-sky130", stages=(stage,)).stages[stage].counts


@pytest.mark.parametrize("stage", ["decode", "prefill", "train"])
@pytest.mark.parametrize("case", CASES)
def test_counts_are_those_of_the_full_count(case, stage):
    """Integer-equal, twice: counted, and remembered after another model with the same layers was counted."""
    for n_layer in (3, 6, 3):
        layers = CASES[case].get("layers", [])
        more = {"layers": [*layers[:-1], {**layers[-1], "repeat": n_layer - 2}]} if layers else {}
        made = from_dict({"model": {**MODEL, **CASES[case], "n_layer": n_layer, **more}})
        expected, found = full_count(made, make_point(made.model)), count(made, stage)
        totals = expected.totals[stage]
        assert (found.params, found.flops, found.bytes) == (
            expected.params, totals["matmul_flops"], totals["bytes"]["fused"]
        )  # fmt: skip


def test_a_remembered_part_that_is_wrong_would_be_seen(monkeypatch):
    """The twin of the test above: what forgets a layer fails it; optimizer and widths are part of what is counted."""
    made, wide = config("plain"), config("bits")
    assert count(made, "decode") != count(wide, "decode")
    muon = config("plain", optimizer="muon")
    assert count(made, "train").bytes != count(muon, "train").bytes
    monkeypatch.setattr(ppa.estimate, "uniform_layer", lambda model, repeat: model.layer_configs()[0])
    assert count(made, "decode").params != full_count(made, make_point(made.model)).params


def space(cost="area_m2", **more):
    raw = {
        "baseline": {"model": {**MODEL, **CASES["kinds"]}}, "hardware": "edge-sky130", "cost": cost,
        "moves": {"model.n_embd": ["+16", "-16"], "hardware.array.rows, hardware.array.columns": ["x2"]},
    }  # fmt: skip
    return from_mapping({**raw, **more})


@pytest.mark.parametrize("stage", ["decode", "prefill", "train"])
def test_costs_are_those_of_the_estimate(stage):
    s = space(stage=stage)
    found = costs(s.baseline, s)
    whole = estimate(s.baseline.config, load_machine("edge-sky130"))
    part = whole.stages[stage]
    for name, quantity in (
        ("area_m2", whole.area_m2), ("energy_per_token_j", part.energy_per_token_j), ("latency_s", part.latency_s)
    ):  # fmt: skip
        assert getattr(found, name) == quantity.value and found.interval(name) == (quantity.low, quantity.high)
        assert found.interval(name)[0] < getattr(found, name) < found.interval(name)[1]
    assert found.interval("flops") == (found.flops, found.flops)
    assert found.flops == 2 * part.macs if stage == "decode" else found.flops > 2 * part.macs  # masked pairs included
    assert (*found.as_dict(), "step_time_s") == COSTS and s.baseline_costs == found  # that one is measured


def test_the_area_is_that_of_the_units_of_all_stages():
    """Decoding with linear attention asks for fewer units than a prompt does; the chip has them all."""
    s = from_mapping(
        {
            "baseline": {"model": {**MODEL, "attention": {"kind": "linear", "n_head": 4}}},
            "hardware": "edge-sky130",
            "cost": "area_m2",
            "moves": {"model.n_layer": 1},
        }
    )
    machine, config = load_machine("edge-sky130"), s.baseline.config
    assert s.baseline_costs.area_m2 == estimate(config, machine).area_m2.value
    assert s.baseline_costs.area_m2 > estimate(config, machine, stages=("decode",)).area_m2.value


def test_the_vocabulary_of_the_data_set_is_counted_and_not_trained_into_the_configuration(corpus):
    model = {key: value for key, value in MODEL.items() if key != "vocab_size"}
    raw = {"baseline": {"model": model, "data": {"dataset": corpus}}, "hardware": "h100", "cost": "params"}
    s = from_mapping({**raw, "moves": {"model.n_layer": 1}})
    assert s.baseline.config.model.vocab_size is None and 5 < s.vocab_size < 40
    larger = from_mapping({**raw, "moves": {"model.n_layer": 1}}, ["model.vocab_size=65"])
    assert larger.baseline_costs.params - s.baseline_costs.params == (65 - s.vocab_size) * 48


def made(**values):
    return Costs(**{**dict.fromkeys(COSTS, 1.0), **values})


def test_rules_put_costs_together():
    base, other = made(params=100.0, area_m2=4.0), made(params=50.0, area_m2=6.0)
    assert (
        combined(other, base, CostRule(name="area_m2")) == 6
        and change(other, base, base, CostRule(name="area_m2")) == 2
    )
    weights = CostRule(weights={"params": 1.0, "area_m2": 3.0})
    assert combined(base, base, weights) == 1 and math.isclose(combined(other, base, weights), 0.25 * 0.5 + 0.75 * 1.5)
    assert math.isclose(change(other, base, base, weights), 0.25)
    turn = CostRule(lexicographic=["latency_s", "area_m2", "params"])
    assert combined(other, base, turn) == (1, 6, 50)
    assert (
        change(other, base, base, turn) == 0.5 and change(base, other, base, turn) == -0.5
    )  # relative to the baseline
    assert change(made(params=50.0, area_m2=4.0), base, base, turn) == -0.5
    assert change(base, base, base, turn) == 0


def test_an_order_of_additions_is_no_change():
    one, other = made(area_m2=(0.1 + 0.2) + 0.3), made(area_m2=0.1 + (0.2 + 0.3))
    assert one.area_m2 != other.area_m2
    for rule in (CostRule(name="area_m2"), CostRule(weights={"area_m2": 1.0}), CostRule(lexicographic=["area_m2"])):
        assert change(one, other, other, rule) == 0
        assert change(made(area_m2=one.area_m2 * (1 + 1e-9)), other, other, rule) > 0


def test_rules_of_a_file():
    s = space({"weights": {"area_m2": 1, "energy_per_token_j": 0.5}})
    assert s.cost.names == ("area_m2", "energy_per_token_j")
    assert combined(s.baseline_costs, s.baseline_costs, s.cost) == 1
    for wrong in (
        {},
        {"name": "params", "lexicographic": ["params"]},
        {"weights": {"params": 0}},
        {"lexicographic": []},
    ):
        with pytest.raises(ValueError, match="cost"):
            space(wrong)


def test_constraints_in_words_and_in_force():
    found = made(params=2e6, latency_s=1e-3)
    bounds = {"params": Bound(max=1e6), "latency_s": Bound(min=1e-2), "area_m2": Bound(max=1.0)}
    assert violations(found, bounds) == ["params 2e+06 is above 1e+06", "latency_s 0.001 is below 0.01"]
    assert violations(found, {"params": Bound(min=2e6, max=2e6)}) == []
    limit = 1.05 * space().baseline_costs.params
    s = space(constraints={"params": {"max": limit}})
    kept = candidates(s, s.baseline)
    assert kept.dropped == {"constraint": 1} and kept.dropped_names[0].name == "n_embd 48 -> 64"
    assert f"is above {limit:.4g}" in kept.dropped_names[0].words
    assert [c.name for c in kept.candidates] == ["n_embd 48 -> 32", "array rows, array columns 16 -> 32"]
