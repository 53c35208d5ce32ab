"""Estimates: parts equal the whole, physical bounds, monotone, and what a variant changes."""

import dataclasses
import importlib.util
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small import config

from gptcore.errors import UserError
from gptcore.loader import from_dict
from gptcore.ops import STAGES, Bits
from ppa.cost import Cost
from ppa.count import make_point
from ppa.estimate import estimate, kernel_costs
from ppa.machine import load_machine, names

_spec = importlib.util.spec_from_file_location(
    "contract_configs", Path(__file__).parents[1] / "contract" / "configs.py"
)
assert _spec and _spec.loader
configs = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(configs)

ASICS = ("edge-sky130", "edge-asap7-onchip", "eyeriss-like", "tpuv3-like")


def peak_macs_per_s(machine):
    if machine.kind == "gpu":
        return machine.rates.flop_per_s[4] / 2
    a = machine.array
    return a.rows * a.columns * a.count * machine.technology.clock_hz.value


def bandwidth(machine):
    return machine.rates.bandwidth if machine.kind == "gpu" else machine.dram.bandwidth_bytes_per_s.value


def holds(found, machine):
    """What is true of every estimate."""
    assert sum(q.value for q in found.area_by_component.values()) == pytest.approx(found.area_m2.value)
    assert found.area_m2.low <= found.area_m2.value <= found.area_m2.high
    for s in found.stages.values():
        assert sum(q.value for q in s.energy_by_component.values()) == pytest.approx(s.energy_j.value)
        for q in (s.latency_s, s.energy_j, s.energy_per_token_j, *s.energy_by_component.values()):
            assert 0 <= q.low <= q.value <= q.high
        bound = max(s.macs / peak_macs_per_s(machine), s.dram_bytes / bandwidth(machine))
        assert s.latency_s.low >= bound * (1 - 1e-12)
        assert s.energy_per_token_j.value * s.tokens == pytest.approx(s.energy_j.value)


@pytest.mark.parametrize("name", names())
def test_every_machine(name):
    machine = load_machine(name)
    found = estimate(config(), name, batch_size=2, context=9)
    assert set(found.stages) == set(STAGES)
    holds(found, machine)


def summed(c, machine, stage):
    whole = Cost()
    for _, cost in kernel_costs(c, make_point(c.model), machine, stage):
        whole.add(cost)
    return whole


def check_parts(c, name):
    machine = load_machine(name)
    found = estimate(c, name)
    holds(found, machine)
    for stage in STAGES:
        whole, s = summed(c, machine, stage), found.stages[stage]
        assert s.latency_s.value == pytest.approx(whole.seconds)
        assert s.dram_bytes == pytest.approx(whole.dram_bytes)
        for component, joules in whole.energy_j.items():
            assert s.energy_by_component[component].value == pytest.approx(joules)


@pytest.mark.parametrize("slot, kind", configs.kind_ids())
def test_parts_priced_once_add_up_to_the_whole_for_every_kind(slot, kind):
    c = from_dict({"model": configs.config_for(slot, kind).model_dump(exclude_unset=True)})
    check_parts(c, "edge-asap7")
    check_parts(c, "a100-80")


@pytest.mark.parametrize("i", range(30))
def test_parts_add_up_for_random_mixtures(i):
    model = configs.random_models(i + 1, seed=7)[i]
    check_parts(configs.random_config(model, i), ASICS[i % len(ASICS)])


def test_a_part_that_is_lost_is_seen(monkeypatch):
    import ppa.estimate as module

    real = module.kernels_of
    monkeypatch.setattr(module, "_known", {})
    monkeypatch.setattr(module, "kernels_of", lambda ops: real([op for op in ops if op.name[-3:] != ".av"]))
    c = config(model={"n_embd": 64})
    found = module.estimate(c, "edge-asap7")
    monkeypatch.setattr(module, "kernels_of", real)
    assert found.stages["decode"].latency_s.value != pytest.approx(
        summed(c, load_machine("edge-asap7"), "decode").seconds
    )


GROWTH = {
    "n_embd": [32, 64, 96, 256], "n_layer": [1, 2, 5], "block_size": [8, 64, 500],
}  # fmt: skip


@pytest.mark.parametrize("name", [*ASICS, "a100-80"])
@pytest.mark.parametrize("field", GROWTH)
def test_larger_models_never_cost_less(name, field):
    found = [
        estimate(config(model={"attention": {"kind": "causal", "n_head": 4}, field: size}), name)
        for size in GROWTH[field]
    ]
    rises(found, strictly=not name.startswith("a100"))


def rises(found, strictly=True):
    for small, large in zip(found, found[1:], strict=False):
        assert large.area_m2.value >= small.area_m2.value * (1 - 1e-12)
        for stage in STAGES:
            a, b = small.stages[stage], large.stages[stage]
            assert b.latency_s.value >= a.latency_s.value * (1 - 1e-12)
            assert b.energy_j.value >= a.energy_j.value * (1 - 1e-12)
            assert b.energy_j.value > a.energy_j.value or not strictly


@settings(max_examples=100, deadline=None)
@given(
    name=st.sampled_from(ASICS), batch=st.integers(1, 9), context=st.integers(1, 63), width=st.integers(1, 24),
    more=st.sampled_from(["batch", "context", "width", "bits"]), bits=st.sampled_from([2, 4, 8, 16]),
)  # fmt: skip
def test_monotone_in_batch_context_width_and_bits(name, batch, context, width, more, bits):
    def at(batch, context, width, bits):
        c = config(model={"block_size": 64, "n_embd": 8 * width, "attention": {"kind": "causal", "n_head": 2}})
        return estimate(
            c, name, batch_size=batch, context=context, bits=Bits(bits, bits, bits), stages=("prefill", "decode")
        )

    small = at(batch, context, width, bits)
    step = {"batch": 1, "context": 1, "width": 1}
    values = {"batch": batch, "context": context, "width": width, "bits": bits}
    values[more] += step.get(more, bits)
    large = at(**values)
    assert large.area_m2.value >= small.area_m2.value * (1 - 1e-12)
    a, b = small.stages["decode"], large.stages["decode"]
    assert b.latency_s.value >= a.latency_s.value * (1 - 1e-12) and b.energy_j.value >= a.energy_j.value * (1 - 1e-12)
    if more != "context":
        a, b = small.stages["prefill"], large.stages["prefill"]
        assert b.latency_s.value >= a.latency_s.value * (1 - 1e-12)
        assert b.energy_j.value >= a.energy_j.value * (1 - 1e-12)


def softmax(kind, **model):
    return config(model={"attention": {"kind": "causal", "n_head": 4, "softmax": {"kind": kind}}, **model})


def test_the_softmax_decides_its_unit_and_whether_there_is_a_score_buffer():
    found = {
        kind: estimate(softmax(kind), "edge-sky130").area_by_component for kind in ("softmax", "consmax", "softermax")
    }
    assert "softmax softmax_nobuf" in found["softmax"] and "score buffer" in found["softmax"]
    assert "softmax softermax" in found["softermax"] and "score buffer" in found["softermax"]
    assert "softmax consmax_rom" in found["consmax"] and "score buffer" not in found["consmax"]
    assert found["consmax"]["softmax consmax_rom"].grade == "synthesised"


def test_the_score_buffer_grows_with_the_context_and_only_it_does():
    machine = load_machine("edge-sky130")
    flip_flops = machine.model_copy(update={"vector": machine.vector.model_copy(update={"score_buffer": "flip_flop"})})
    small, large = (estimate(softmax("softmax", block_size=n), flip_flops).area_by_component for n in (256, 512))
    assert large["score buffer"].value == pytest.approx(2 * small["score buffer"].value)
    changed = {name for name in small if large[name].value != pytest.approx(small[name].value)}
    assert changed == {"score buffer", "control"}
    # 16 lanes of two rows of 256 words: what the synthesised unit with such a buffer has on top of the one without
    cells = (200655.99 - 18027.28) * 1e-12
    assert small["score buffer"].value == pytest.approx(16 * 2 * cells / machine.technology.density.value, rel=1e-3)


@pytest.mark.parametrize(
    "bits, mac", [(2, "mac_int4"), (4, "mac_int4"), (8, "mac_int8"), (16, "mac_bf16"), (32, "mac_fp32")]
)
def test_bits_choose_the_multiplier(bits, mac):
    found = estimate(softmax("consmax"), "edge-asap7", bits=Bits(bits, bits, bits)).area_by_component
    assert f"array {mac}" in found
    assert ("quantiser requant_int32_int8" in found) == (bits <= 8)


def test_ternary_weights_have_adders_and_scores_their_own_multipliers():
    found = estimate(softmax("consmax"), "edge-asap7", bits=Bits(weight=2, activation=8, kv=8)).area_by_component
    assert {"array mac_ternary", "array mac_int8"} <= found.keys()


def test_memory_of_weights_is_on_the_chip_or_is_not():
    c = softmax("consmax")
    inside, outside = (estimate(c, name) for name in ("edge-asap7-onchip", "edge-asap7"))
    assert inside.area_by_component["weight memory"].value > 0 and "weight memory" not in outside.area_by_component
    assert inside.stages["decode"].dram_bytes == 0
    held = 2 * sum(t for t in (29 * 32,))  # the table of tokens, at least
    assert outside.stages["decode"].dram_bytes > held


def test_softmax_stalls_the_array_in_decode_and_consmax_does_not():
    """One head, 4096 keys: the sum needs all of e^s, so one pass of three lies between the products."""
    machine = load_machine("edge-sky130")
    one_row = machine.model_copy(update={"vector": machine.vector.model_copy(update={"score_rows": 1})})
    found = {}
    for kind in ("softmax", "consmax"):
        c = config(
            model={
                "block_size": 4096,
                "n_layer": 1,
                "attention": {"kind": "causal", "n_head": 1, "softmax": {"kind": kind}},
            }
        )
        found[kind] = estimate(c, one_row).stages["decode"]
    interval = 3  # cycles at 100 MHz: 1.07 times 20.4 ns of the fast netlist
    assert found["softmax"].stall_s == pytest.approx(4096 * interval / 100e6)
    assert found["consmax"].stall_s == 0
    assert found["softmax"].latency_s.value > found["consmax"].latency_s.value


def test_results_are_frozen_and_errors_are_clear():
    found = estimate(config(), "edge-asap7")
    with pytest.raises(dataclasses.FrozenInstanceError):
        found.hardware = "x"
    with pytest.raises(UserError, match="vocab_size is unknown"):
        estimate(config(model={"vocab_size": None}), "edge-asap7")
    with pytest.raises(UserError, match="did you mean 'edge-asap7'"):
        estimate(config(), "edge-asap")
    with pytest.raises(UserError, match="context 17 exceeds"):
        estimate(config(), "edge-asap7", context=17)
