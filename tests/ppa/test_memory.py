"""Memories: interpolation in CACTI's table, how it behaves at and beyond its edges, and published macros."""

import csv
import json
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gptcore.errors import UserError
from ppa import memory, scaling
from ppa.validation import sram as section

DATA = Path(__file__).parents[3] / "shared" / "validation"
POSITIVE = ("area_m2", "read_j", "write_j", "access_s", "leakage_w")
GROWING = ("area_m2", "read_j", "write_j", "leakage_w")

capacities = st.integers(1, 1 << 26)
widths = st.integers(1, 1024)
nodes = st.floats(7e-9, 180e-9)


def test_committed_table_is_the_one_given():
    if not (DATA / "cacti_sram.csv").is_file():
        pytest.skip("cacti_sram.csv is not here")
    with open(DATA / "cacti_sram.csv") as file:
        given_rows = [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]
    assert memory.read_table() == given_rows
    assert len(given_rows) == 165


def test_smooth_lines_of_the_table_come_out_as_they_are():
    """Where CACTI's figures grow with capacity, nothing is changed; 45 nm, 64 bits is such a line."""
    line = [row for row in memory.read_table() if (row["node_nm"], row["access_bits"]) == (45, 64)]
    for row in line:
        ours = memory.sram(int(row["bytes"]), 64, 45e-9)
        assert ours.area_m2 == pytest.approx(row["area_mm2"] * 1e-6, rel=1e-9)
        assert ours.read_j == pytest.approx(row["read_pJ"] * 1e-12, rel=1e-9)
        assert ours.write_j == pytest.approx(row["write_pJ"] * 1e-12, rel=1e-9)
        assert ours.access_s == pytest.approx(row["access_ns"] * 1e-9, rel=1e-9)
        assert ours.grade == "published"


def test_smoothing_moves_few_points_and_by_a_stated_amount():
    """Of CACTI's 165 read energies 6 move, the farthest (128 KiB, 16 bits, 90 nm) by 19.4 %; no area moves."""
    moved, area = [], []
    for row in memory.read_table():
        ours = memory.sram(int(row["bytes"]), int(row["access_bits"]), row["node_nm"] * 1e-9)
        moved.append(abs(ours.read_j * 1e12 / row["read_pJ"] - 1))
        area.append(abs(ours.area_m2 * 1e6 / row["area_mm2"] - 1))
    assert sum(move > 1e-9 for move in moved) == 6 and max(area) < 1e-9
    assert max(moved) == pytest.approx(0.1937, abs=1e-4)


@given(st.lists(st.floats(-5, 5), min_size=1, max_size=8))
def test_isotonic_regression(values):
    """Never falls, keeps the mean, and no monotone neighbour is nearer (moved a little towards the values)."""
    fitted = memory.isotonic(values)
    assert len(fitted) == len(values)
    assert all(b >= a - 1e-12 for a, b in zip(fitted, fitted[1:], strict=False))
    assert math.fsum(fitted) == pytest.approx(math.fsum(values), abs=1e-9)
    distance = math.fsum((a - b) ** 2 for a, b in zip(fitted, values, strict=True))
    for step in (0.01, 0.1, 0.5):
        for cut in range(len(values)):  # all from here on higher, or all up to here lower: still monotone
            for other in (
                fitted[:cut] + [v + step for v in fitted[cut:]],
                [v - step for v in fitted[:cut]] + fitted[cut:],
            ):
                assert math.fsum((a - b) ** 2 for a, b in zip(other, values, strict=True)) >= distance - 1e-9


def test_between_points_it_is_linear_in_logarithms():
    low, high = memory.sram(8192, 64, 45e-9), memory.sram(16384, 64, 45e-9)
    middle = memory.sram(round(8192 * math.sqrt(2)), 64, 45e-9)
    for field in ("area_m2", "read_j", "write_j", "access_s"):
        expected = math.sqrt(getattr(low, field) * getattr(high, field))
        assert getattr(middle, field) == pytest.approx(expected, rel=1e-4)  # the capacity is rounded to a byte
    assert memory.sram(8192, 64, math.sqrt(45e-9 * 65e-9)).area_m2 == pytest.approx(
        math.sqrt(memory.sram(8192, 64, 45e-9).area_m2 * memory.sram(8192, 64, 65e-9).area_m2)
    )


@given(capacities, st.integers(0, 1 << 24), widths, nodes)
def test_never_falls_with_capacity(capacity, more, width, node_m):
    small, large = memory.sram(capacity, width, node_m), memory.sram(capacity + more, width, node_m)
    for field in GROWING:
        assert getattr(large, field) >= getattr(small, field) * (1 - 1e-9)


@pytest.mark.parametrize("node_m", [7e-9, 16e-9, 45e-9, 130e-9])
def test_never_falls_with_the_node(node_m):
    for capacity in (512, 8192, 131072, 1 << 22):
        finer, coarser = memory.sram(capacity, 64, node_m), memory.sram(capacity, 64, 1.3 * node_m)
        for field in ("area_m2", "read_j", "write_j", "access_s"):
            assert getattr(coarser, field) >= getattr(finer, field)


@given(capacities, widths, nodes)
def test_figures_are_positive_and_spreads_at_least_one(capacity, width, node_m):
    for found in (memory.sram(capacity, width, node_m), memory.rom(capacity, width, node_m)):
        assert all(getattr(found, field) > 0 for field in POSITIVE if field != "write_j")
        assert min(found.area_spread, found.energy_spread, found.leakage_spread) >= 1
    assert memory.rom(capacity, width, node_m).area_m2 < memory.sram(capacity, width, node_m).area_m2


@pytest.mark.parametrize("edge_m", [22e-9, 90e-9, 130e-9])
def test_no_step_where_the_table_ends(edge_m):
    below, above = memory.sram(16384, 64, edge_m * (1 - 1e-6)), memory.sram(16384, 64, edge_m * (1 + 1e-6))
    for field in (*POSITIVE, "area_spread", "energy_spread"):
        assert getattr(above, field) == pytest.approx(getattr(below, field), rel=0.01)


def test_outside_of_the_table_is_an_estimate_with_a_wider_spread():
    inside = memory.sram(8192, 64, 45e-9)
    for far in (
        memory.sram(8192, 64, 7e-9),
        memory.sram(8192, 64, 130e-9),
        memory.sram(64, 16, 45e-9),
        memory.sram(1 << 24, 64, 45e-9),
    ):
        assert (inside.grade, far.grade) == ("published", "estimate")
        assert far.energy_spread > inside.energy_spread
    assert memory.sram(64, 16, 45e-9).area_spread > inside.area_spread


def test_banks_and_wide_words():
    one, eight = memory.sram(1 << 20, 64, 45e-9), memory.sram(8 << 20, 64, 45e-9)
    assert eight.area_m2 == pytest.approx(8 * one.area_m2) and eight.read_j == one.read_j
    narrow, wide = memory.sram(65536, 128, 45e-9), memory.sram(4 * 65536, 512, 45e-9)
    assert wide.area_m2 == pytest.approx(4 * narrow.area_m2) and wide.read_j == pytest.approx(4 * narrow.read_j)


def test_macro_fit_is_the_mean_over_families():
    """At 130 nm the geometric mean over families of published over ours is 1, and the farthest macro is at the end."""
    families = {}
    for macro in memory.MACROS:
        ours = memory.sram(macro.capacity_bytes, macro.access_bits, memory.MACRO_M)
        families.setdefault(macro.family, []).append(math.log(macro.area_m2 / ours.area_m2))
    assert math.fsum(sum(logs) / len(logs) for logs in families.values()) == pytest.approx(0, abs=1e-9)
    farthest = max(abs(log) for logs in families.values() for log in logs)
    assert math.exp(farthest) == pytest.approx(memory.sram(2048, 64, memory.MACRO_M).area_spread)


def test_flip_flops_are_the_difference_of_the_two_softmax_units():
    operators = json.loads((memory.FOLDER / "sky130.json").read_text())["operators"]
    with_buffer, without = operators["softmax_buf256"]["relaxed"], operators["softmax_nobuf"]["relaxed"]
    buffer = memory.flip_flops(256 * 16, "sky130")
    assert buffer.area_m2 * 1e12 == pytest.approx(with_buffer["area_um2"] - without["area_um2"])
    assert buffer.energy_j_per_cycle * 1e12 == pytest.approx(
        with_buffer["energy_pj_per_cycle"] - without["energy_pj_per_cycle"]
    )
    assert buffer.grade == "synthesised"
    # the same bits in an SRAM of that node are smaller: that is why the choice is offered
    assert memory.sram(512, 16, 130e-9).area_m2 < buffer.area_m2


def test_wrong_use():
    for wrong in (
        lambda: memory.sram(0, 16, 45e-9),
        lambda: memory.sram(512, 0, 45e-9),
        lambda: memory.sram(512, 16, 45),
    ):
        with pytest.raises(UserError):
            wrong()
    with pytest.raises(UserError, match="sky130"):
        memory.flip_flops(16, "sky13")
    with pytest.raises(UserError):
        scaling.between(45e-9, 1e-9)


@pytest.fixture
def page():
    for name in section.FILES:
        if not (DATA / name).is_file():
            pytest.skip(f"{name} is not here")
    return section.validate(DATA)


def test_validation_section(page):
    scores = {score.name: score for score in page.scores}
    assert scores["points of the committed table that differ"].verdict == "pass"
    means = {name: score.value for name, score in scores.items() if "mean error" in name}
    assert len(means) == 6 and max(means.values()) < 0.2  # measured 2 to 16 %
    assert [row.name for row in page.rows if row.verdict == "fail"] == []
    held_out = [row for row in page.rows if row.note == "held out"]
    assert held_out and all(row.verdict == "pass" for row in held_out)


def test_a_point_that_changed_is_noticed(page, monkeypatch):
    rows = memory.read_table()
    rows[17] = {**rows[17], "area_mm2": rows[17]["area_mm2"] * 1.01}
    monkeypatch.setattr(memory, "read_table", lambda: rows)
    assert section.validate(DATA).scores[0].verdict == "fail"


def test_left_out_points_are_left_out():
    """On a table that is a power law the error is nought; a point that is off shows in its own row, not elsewhere."""
    law = [
        {"node_nm": node, "bytes": size, "access_bits": width, "cycle_ns": 1.0,
         **dict.fromkeys(memory.QUANTITIES, (size * width * node) ** 0.7)}
        for node in (22.0, 45.0, 90.0) for size in (512.0, 1024.0, 2048.0) for width in (16.0, 32.0, 64.0)
    ]  # fmt: skip
    for key, number in (("bytes", 9), ("node_nm", 9), ("access_bits", 9)):
        errors = list(section.left_out(law, key, "read_pJ"))
        assert len(errors) == number and max(errors) < 0.01
    law[4] = {**law[4], "read_pJ": law[4]["read_pJ"] * 1.2}  # 22 nm, 1024 bytes
    errors = list(section.left_out(law, "bytes", "read_pJ"))
    assert sum(error > 0.1 for error in errors) == 1 and max(errors) == pytest.approx(1 - 1 / 1.2, rel=1e-6)
