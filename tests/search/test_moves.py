"""Moves: there and back, every form by name, what is dropped and why, and points that are told apart exactly."""

import random
from dataclasses import replace
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gptcore.config import identity
from gptcore.loader import from_dict
from search.moves import Move, Point, Rejected, apply, candidates, placed
from search.point import identity_of, layers_of, machine_key, with_layers
from search.space import from_mapping

MODEL = {
    "n_layer": 4, "n_embd": 48, "block_size": 32, "vocab_size": 65, "attention": {"kind": "causal", "n_head": 4},
}  # fmt: skip
EVERYTHING = {
    "model.n_layer": ["+1", "-1", "x2"],
    "model.n_embd": ["+16", "-16", "x2", "+2"],
    "model.dropout": ["+0.1", "-0.1"],
    "model.attention.n_head": ["x2", "x0.5"],
    "model.attention.softmax": {"choices": ["softmax", "consmax", {"kind": "consmax", "initial_beta": 1.0}]},
    "model.norm": {"choices": ["rmsnorm", "layernorm"]},
    "model.norm_output": {"choices": [None, "rmsnorm"]},
    "model.mlp": {"choices": ["mlp", "swiglu"]},
    "model.position": {"choices": ["learned", "rotary"]},
    "model.bits": {"choices": [8, {"weight": 4}]},
    "hardware.array.rows, hardware.array.columns": ["x2", "x0.5"],
    "hardware.sram.capacity_bytes": ["x2", "x0.001"],
    "hardware.technology.clock_hz": ["x0.5", "x1.1"],
    "hardware.weights": {"choices": ["on_chip"]},
    "layers": {
        "duplicate": True, "remove": True,
        "change": {
            "attention.softmax": {"choices": ["consmax"]}, "attention.n_head": ["x2"], "norm": {"choices": ["rmsnorm"]},
        },
    },
}  # fmt: skip


def space(moves=EVERYTHING, model=MODEL, **more):
    raw = {"baseline": {"model": model}, "hardware": "edge-sky130", "cost": "area_m2", "moves": moves}
    return from_mapping({**raw, **more})


@pytest.fixture(scope="module")
def everything():
    return space()


def only(moves, model=MODEL, point=None):
    s = space(moves, model)
    return candidates(s, point or s.baseline)


def names(found):
    return [c.name for c in found.candidates]


def walk(s, steps, seed):
    """Points along a random path through the space."""
    rng, point = random.Random(seed), s.baseline
    for _ in range(steps):
        yield point
        point = rng.choice(candidates(s, point).candidates).point


def test_every_form_of_move_has_a_name(everything):
    found = names(candidates(everything, everything.baseline))
    assert found[:6] == [
        "n_layer 4 -> 5",
        "n_layer 4 -> 3",
        "n_layer 4 -> 8",
        "n_embd 48 -> 64",
        "n_embd 48 -> 32",
        "n_embd 48 -> 96",
    ]
    for name in (
        "dropout 0 -> 0.1", "attention n_head 4 -> 8", "softmax -> consmax", "softmax -> consmax (initial_beta 1)",
        "norm layernorm -> rmsnorm", "norm_output null -> rmsnorm", "mlp -> swiglu", "bits 16 -> 8",
        "bits weight 16 -> 4", "array rows, array columns 16 -> 32", "sram capacity_bytes 65536 -> 131072",
        "technology clock_hz 100000000 -> 110000000", "weights off_chip -> on_chip", "layer 0: softmax -> consmax",
        "layer 3: attention n_head 4 -> 8", "layer 2: norm layernorm -> rmsnorm",
    ):  # fmt: skip
        assert name in found, name
    assert len(set(found)) == len(found)


def test_candidates_are_deterministic_distinct_and_feasible(everything):
    again = space()
    for a, b in zip(walk(everything, 8, 1), walk(again, 8, 1), strict=True):
        one, other = candidates(everything, a), candidates(again, b)
        assert [(c.name, c.point.key, c.costs) for c in one.candidates] == [
            (c.name, c.point.key, c.costs) for c in other.candidates
        ]
        assert one.dropped_names == other.dropped_names
        keys = [c.point.key for c in one.candidates]
        assert len({*keys, a.key}) == len(keys) + 1 and len(set(names(one))) == len(keys)
        assert len(keys) + sum(one.dropped.values()) == len(list(placed(everything.moves, a)))
        for c in one.candidates:
            assert list(c.point.config.problems()) == [] and c.same_training == (c.point.identity == a.identity)


def test_points_are_configurations_that_load_and_train_as_written(everything):
    """What copies and partial checks made passes the full check, and the quick identity is the identity."""
    for point in walk(everything, 12, 2):
        for c in candidates(everything, point).candidates:
            config = c.point.config
            assert identity_of(config) == identity(config)
            loaded = from_dict(config.model_dump(mode="json"))
            assert loaded == config and identity(loaded) == c.point.identity


STEPS = [
    ("model.n_embd", 48), ("model.n_layer", 4), ("model.attention.n_head", 4), ("model.dropout", 0.3),
    ("train.learning_rate", 1e-3), ("train.beta2", 0.99), ("model.mlp.expansion_factor", 4.0),
    ("hardware.array.rows", 16), ("hardware.dram.bandwidth_bytes_per_s", 6.4e9), ("hardware.control_share", 0.15),
]  # fmt: skip
BASE = space({"model.n_layer": 1}, {**MODEL, "dropout": 0.3}).baseline
decimals = st.decimals(min_value="0.001", max_value="0.2", places=3).map(Fraction)


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(STEPS), st.booleans(), st.integers(1, 40), decimals)
def test_a_step_and_its_inverse_lead_back(which, factor, whole, fraction):
    name, value = which
    amount = Fraction(whole) if factor or isinstance(value, int) else fraction
    there, back = (amount, 1 / amount) if factor else (amount, -amount)
    op = "multiply" if factor else "add"
    path = (tuple(name.split(".")),)
    try:
        away, _ = apply(Move(path, op, there), BASE)
    except Rejected as no:
        assert no.reason in ("invalid value", "impossible combination")
        return
    assert amount == 1 and factor or away.key != BASE.key
    assert apply(Move(path, op, back), away)[0].key == BASE.key


def test_layers_move_there_and_back(everything):
    """A layer that is duplicated and removed; one added to a schedule and taken away."""
    for point in walk(everything, 10, 3):
        n = point.config.model.n_layer
        for layer in range(n):
            more, name = apply(Move((), "duplicate", per_layer=True, layer=layer), point)
            assert more.config.model.n_layer == n + 1 and name == f"layer {layer} duplicated"
            for copy in (layer, layer + 1):
                assert apply(Move((), "remove", per_layer=True, layer=copy), more)[0].key == point.key
        up, _ = apply(Move((("model", "n_layer"),), "add", Fraction(1)), point)
        assert apply(Move((("model", "n_layer"),), "add", Fraction(-1)), up)[0].key == point.key


def test_layers_are_written_as_short_as_can_be():
    one, other = layers_of(from_dict({"model": {**MODEL, "layers": [{"repeat": 3}, {"norm": "rmsnorm"}]}}).model)[2:]
    model = from_dict({"model": MODEL}).model
    written = with_layers(model, [one, one, other, one])
    assert [(layer.norm.kind, layer.repeat) for layer in written.layers] == [
        ("layernorm", 2),
        ("rmsnorm", 1),
        ("layernorm", 1),
    ]
    assert with_layers(written, [one] * 3).layers == []
    # Layers that all have another norm keep a schedule: the norm before the head is that of the model, and stays.
    all_other = with_layers(model, [other] * 4)
    assert [layer.repeat for layer in all_other.layers] == [4] and all_other.output_norm().kind == "layernorm"
    assert with_layers(model.model_copy(update={"norm_output": other.norm}), [other] * 4).layers == []


def test_a_schedule_moves_as_one_where_all_layers_have_the_setting():
    layers = [{"repeat": 2}, {"attention": {"n_head": 2, "softmax": "consmax"}}, {"attention": "identity"}]
    moves = {
        "model.attention.n_head": ["x2"], "model.attention.softmax": {"choices": ["softmax"]},
        "model.norm": {"choices": ["rmsnorm"]}, "model.n_layer": ["+2", "-2"],
    }  # fmt: skip
    found = {c.name: c.point.config.model for c in only(moves, {**MODEL, "layers": layers}).candidates}
    assert list(found) == [
        "attention n_head x2", "softmax softmax/consmax -> softmax", "norm layernorm -> rmsnorm", "n_layer 4 -> 6",
        "n_layer 4 -> 2",
    ]  # fmt: skip
    heads = [getattr(layer.attention, "n_head", None) for layer in layers_of(found["attention n_head x2"])]
    assert heads == [8, 8, 4, None]
    rms = found["norm layernorm -> rmsnorm"]
    assert {layer.norm.kind for layer in rms.layers} == {"rmsnorm"} and rms.output_norm().kind == "rmsnorm"
    assert [layer.attention.kind for layer in layers_of(found["n_layer 4 -> 6"])] == ["causal"] * 3 + ["identity"] * 3
    assert found["n_layer 4 -> 2"].layers == []


def test_a_new_kind_keeps_what_was_set_and_it_knows_too():
    model = {**MODEL, "mlp": {"kind": "mlp", "expansion_factor": 2.0, "activation": "relu"}}
    moves = {"model.mlp": {"choices": ["swiglu", "geglu"]}, "model.attention": {"choices": ["infinite", "mla"]}}
    found = {c.name: c.point.config.model for c in only(moves, model).candidates}
    swiglu = found["mlp -> swiglu"].mlp
    assert swiglu.expansion_factor == 2.0 and swiglu.kind == "swiglu"
    assert found["attention causal -> infinite"].attention.n_head == 4
    # A default of the old kind is none of the new one.
    plain = {c.name: c.point.config.model.mlp for c in only(moves).candidates if "mlp" in c.name}
    assert plain["mlp -> swiglu"] == from_dict({"model": {"mlp": "swiglu"}}).model.mlp


def dropped(found):
    return {d.name: (d.reason, d.words) for d in found.dropped_names}


def test_infeasible_and_repeated_candidates_are_dropped_with_reason_and_count(everything):
    found = candidates(everything, everything.baseline)
    no = dropped(found)
    reason, words = no["n_embd 48 -> 50"]
    assert reason == "impossible combination" and "n_embd 50 is not a multiple of n_head 4" in words
    assert no["dropout -0.1"][0] == "invalid value" and "greater than or equal to 0" in no["dropout -0.1"][1]
    assert no["softmax -> softmax"] == ("unchanged", "nothing changes")
    assert no["sram capacity_bytes x0.001"] == (
        "invalid value",
        "hardware.sram.capacity_bytes 65536 x0.001 is no whole number",
    )
    assert no["layer 0 duplicated"] == ("duplicate", "the same as n_layer 4 -> 5")
    assert found.dropped["duplicate"] == 8 and found.dropped["impossible combination"] == 1
    first, second, *_ = (c.point.key for c in found.candidates)
    again = candidates(everything, everything.baseline, {first, second})
    assert names(again) == names(found)[2:] and again.dropped["seen"] >= 2
    assert dropped(again)["n_layer 4 -> 5"] == ("seen", "considered before")
    # The tiles of a larger array do not fit the SRAM: a check of the whole machine.
    no = dropped(only({"hardware.array.rows": ["x8"], "model.n_layer": ["-3"]}))
    assert no["array rows x8"][0] == "impossible combination" and "does not hold the tiles" in no["array rows x8"][1]
    assert dropped(only({"model.n_layer": ["-4"]}))["n_layer -4"][0] == "invalid value"
    alone = only({"layers": {"remove": True}}, {**MODEL, "n_layer": 1})
    assert dropped(alone)["layer 0 removed"] == ("invalid value", "the last layer cannot be removed")


def test_a_duplicate_that_was_not_noticed_would_be_seen(everything, monkeypatch):
    """The twin of the test above: points told apart by how they are written, not by what they are."""
    monkeypatch.setattr("search.point.identity_of", lambda config: config.model_dump_json())
    written = [  # the same model, once as a schedule
        Point(from_dict({"model": {**MODEL, "layers": layers}}), everything.baseline.machine)
        for layers in ([], [{"repeat": 4}])
    ]
    assert written[0] != written[1]
    monkeypatch.undo()
    assert Point(written[0].config, written[0].machine) == Point(written[1].config, written[1].machine)


def test_a_machine_moves_the_cost_and_shares_the_training():
    found = only({"hardware.array.rows, hardware.array.columns": ["x2"], "hardware.technology.clock_hz": ["x0.5"]})
    base = space({"model.n_layer": 1})
    assert [c.same_training for c in found.candidates] == [True, True]
    for c in found.candidates:
        assert c.point.identity == base.baseline.identity and c.point.key != base.baseline.key
        assert c.point.config is not None and c.costs.params == base.baseline_costs.params
    larger, slower = (c.costs for c in found.candidates)
    assert larger.area_m2 > base.baseline_costs.area_m2 and slower.latency_s > base.baseline_costs.latency_s
    clock = found.candidates[1].point.machine.technology.clock_hz
    assert clock.value == 5e7 and clock.grade == "estimate"  # nobody has measured the moved value


def test_the_key_of_a_machine_is_what_costs_depend_on():
    machine = BASE.machine
    renamed = machine.model_copy(update={"title": "other"})
    assert machine_key(renamed) == machine_key(machine)
    assert machine_key(machine.model_copy(update={"kv": "on_chip"})) != machine_key(machine)
    spread = machine.dram.energy_j_per_byte.model_copy(update={"spread": 9.0})
    dram = machine.dram.model_copy(update={"energy_j_per_byte": spread})
    assert machine_key(machine.model_copy(update={"dram": dram})) != machine_key(machine)


def test_moves_for_the_ledger_are_plain_values(everything):
    first, *_, last = everything.moves
    assert first.as_dict() == {"paths": ["model.n_layer"], "op": "add", "layer": None, "value": "+1"}
    assert replace(last, layer=2).as_dict() == {"paths": ["norm"], "op": "set", "layer": 2, "value": "rmsnorm"}
