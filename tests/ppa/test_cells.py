"""Operators at a clock, and units made of them: against the calibration itself, and composed against designed."""

import json
import math
from pathlib import Path

import pytest
from small import config

from gptcore.errors import RunError
from gptcore.ops import Bits
from ppa import cells
from ppa.cells import PRIMITIVE_OPERATORS, Cells, library
from ppa.count import declare_stage, make_point
from ppa.machine import load_machine
from ppa.work import kernels_of

TECHNOLOGY = load_machine("edge-sky130").technology
ROWS = json.loads((Path(cells.__file__).parent / "calibration" / "sky130.json").read_text())["operators"]


def at(clock_hz, name="sky130", **update):
    clock = TECHNOLOGY.clock_hz.model_copy(update={"value": clock_hz})
    return Cells(TECHNOLOGY.model_copy(update={"library": name, "clock_hz": clock, **update}))


def test_figures_are_those_of_the_calibration():
    found, row = at(1e6).operator("mac_int8"), ROWS["mac_int8"]["relaxed"]
    assert found.area_m2 == pytest.approx(row["area_um2"] * 1e-12 / 0.7)
    random, traced = row["energy_pj_per_cycle"] * 1e-12, row["energy_pj_per_cycle_trace"] * 1e-12
    assert found.energy_j == pytest.approx(traced * row["glitch_factor"])
    assert found.energy_j * found.low == pytest.approx(min(random, traced))
    assert found.energy_j * found.high == pytest.approx(max(random, traced) * row["glitch_factor"] * cells.WIRES)
    assert found.leakage_w == row["leakage_w"] and found.interval == 1


def test_the_fast_netlist_is_taken_where_it_saves_cycles():
    row = ROWS["mac_int8"]
    between = 1 / (1.07 * (row["relaxed"]["delay_ps"] + row["fast"]["delay_ps"]) / 2 * 1e-12)
    slow, fast = at(1e6).operator("mac_int8"), at(between).operator("mac_int8")
    assert fast.interval == 1 and fast.area_m2 / slow.area_m2 == pytest.approx(
        row["fast"]["area_um2"] / row["relaxed"]["area_um2"]
    )
    beyond = 1 / (1.07 * row["fast"]["delay_ps"] * 1.5e-12)
    assert at(beyond).operator("mac_int8").interval == 1
    assert at(1 / (1.07 * row["fast"]["delay_ps"] * 0.6e-12)).operator("mac_int8").interval == 2


def test_a_pipelined_multiplier_takes_one_a_cycle_and_pays_for_registers():
    found = at(1e9)
    single, pipelined = found.operator("mac_bf16"), found.pipelined("mac_bf16")
    assert single.interval > 3 and pipelined.interval == 1
    added = (single.interval - 1) * cells.PIPELINE_BITS * found.register().area_m2
    assert pipelined.area_m2 == pytest.approx(single.area_m2 + added)


def test_another_node_scales_every_figure_and_grades_it_an_estimate():
    node = TECHNOLOGY.clock_hz.model_copy(update={"value": 65e-9})
    home, away = at(1e6), at(1e6, node_m=node)
    scale = away.scale
    a, b = home.operator("int8_add"), away.operator("int8_add")
    assert b.area_m2 / a.area_m2 == pytest.approx(scale.area.value)
    assert b.energy_j / a.energy_j == pytest.approx(scale.energy.value)
    assert b.area_spread > a.area_spread and b.low < a.low and b.high > a.high
    assert (home.grade, away.grade) == ("synthesised", "estimate")


def test_every_primitive_has_operators_in_every_library():
    from gptcore.ops import PRIMITIVES

    assert set(PRIMITIVE_OPERATORS) == set(PRIMITIVES)
    for name in ("sky130", "sg13g2", "asap7"):
        for sizes in PRIMITIVE_OPERATORS.values():
            assert len(sizes) == 3 and all(operator in library(name) for size in sizes for operator in size)


def test_an_operator_that_is_not_calibrated_says_what_to_do():
    with pytest.raises(RunError, match="calibrate --liberty FILE --ops int8_cube"):
        at(1e6).operator("int8_cube")


def test_units_by_kind_and_width():
    found = at(1e6)
    mul = (("mul", 1),)
    assert found.unit("activation", "gelu", 8, 0, mul).name == "gelu_lut256"
    assert found.unit("activation", "gelu", 16, 0, mul).name == "gelu_pwl16"
    table = found.unit("activation", "mish", 8, 0, (("exp", 1), ("log", 1), ("tanh", 1), ("mul", 1)))
    assert table.name == "mish, by table" and table.grade == "estimate"
    assert found.unit("residual", "add", 16, 0, (("add", 1),)).name == "bf16_add"
    composed = found.unit("norm", "odd", 16, 2, (("add", 2), ("mul", 2)))
    assert composed.composed and composed.passes == 3 and dict(composed.made_of) == {"bf16_add": 2, "bf16_mul": 2}
    assert found.unit("softmax", "softmax", 32, 2, (("add", 1),)).area_m2 >= found.operator("softmax_nobuf").area_m2


def declared():
    """(slot, kind, bits, unit, stream) of every designed unit, with the stream that its kind declares."""
    for (slot, kind), points in cells._designed().items():
        for bits, operator, _ in points:
            where = {
                "softmax": {"attention": {"kind": "causal", "n_head": 4, "softmax": {"kind": kind}}},
                "norm": {"norm": {"kind": kind}},
                "activation": {"mlp": {"kind": "mlp", "activation": {"kind": kind}}},
                "position": {"position": {"kind": kind}},
            }[slot]
            c = config(model={**where, "n_embd": 64, "n_layer": 1})
            ops = declare_stage(c, make_point(c.model, bits=Bits(bits, bits, bits)), "prefill").ops
            for stream in (s for kernel in kernels_of(ops) for s in kernel.streams):
                if (stream.slot, stream.kind) == (slot, kind):
                    yield slot, kind, bits, operator, stream
                    break


def ratios():
    """Composed over designed, area and energy, where a unit is more than one operator and no plain table."""
    area, energy = [], []
    for name in ("sky130", "asap7"):
        found = at(1e7, name)
        for slot, kind, bits, operator, stream in declared():
            as_table = slot == "activation" and bits == 8 and "lut" in operator
            if as_table or len(stream.primitives) == 1 or "lut" in dict(stream.primitives):
                continue
            designed = found.unit(slot, kind, bits, stream.reductions, stream.primitives)
            composed = found._composed(slot, kind, bits, stream.reductions, stream.primitives)
            area.append(composed.area_m2 * cells.COMPOSED_AREA[0] / designed.area_m2)
            each = found.primitives_j(bits, stream.counts) / stream.elements * composed.passes
            energy.append(each * cells.COMPOSED_ENERGY[0] / (designed.energy_j * designed.passes))
    return area, energy


def test_what_composition_costs_is_what_was_measured():
    for measured, (mean, spread) in zip(ratios(), (cells.COMPOSED_AREA, cells.COMPOSED_ENERGY), strict=True):
        logs = [math.log(r) for r in measured]
        centre = sum(logs) / len(logs)
        deviation = math.sqrt(sum((v - centre) ** 2 for v in logs) / (len(logs) - 1))
        assert len(logs) > 20
        assert math.exp(centre) == pytest.approx(mean, rel=0.02) and math.exp(deviation) == pytest.approx(
            spread, rel=0.02
        )
