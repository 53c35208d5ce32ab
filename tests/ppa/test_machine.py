"""Descriptions of machines: strict, sourced, and errors that say where."""

import pytest
import yaml

from gptcore.errors import UserError
from ppa.figure import Figure, Quantity, total
from ppa.machine import FOLDER, load_machine, names

GOOD = (FOLDER / "edge-sky130.yaml").read_text()


@pytest.fixture
def write(tmp_path):
    def write(text):
        path = tmp_path / "chip.yaml"
        path.write_text(text)
        return str(path)

    return write


def figures(model, path=()):
    for name in type(model).model_fields:
        value = getattr(model, name)
        if isinstance(value, Figure):
            yield (*path, name), value
        elif hasattr(type(value), "model_fields"):
            yield from figures(value, (*path, name))


@pytest.mark.parametrize("name", names())
def test_every_figure_has_a_source_and_si_units(name):
    machine = load_machine(name)
    found = dict(figures(machine))
    assert len(found) >= 5
    dimensionless = {"density", "control_share"}
    units = ("_hz", "_m", "_m2", "_bytes", "_s", "_w", "_per_s", "_per_byte", "_per_flop", "_per_clock", "_per_element")
    for path, figure in found.items():
        assert len(figure.source) > 3, path
        shares = ("efficiency", "overhead", "overlap", "slowdown", "spread", "reread", "elements")
        assert path[-1].endswith(units) or path[-1] in dimensionless or path[-1].endswith(shares), path
        if figure.grade == "estimate":
            assert len(figure.source) > 10, path


def test_the_machines_that_people_ask_for():
    assert {
        "edge-sky130", "edge-sg13g2", "edge-asap7", "edge-asap7-onchip", "eyeriss-like", "gemmini-16", "tpuv3-like",
        "a100-40", "a100-80", "h100", "h200", "mi210", "rtx-4090",
    } <= set(names())  # fmt: skip


def test_a_file_is_as_good_as_a_name(write):
    assert load_machine(write(GOOD)) == load_machine("edge-sky130")


@pytest.mark.parametrize(
    "old, new, words",
    [
        ("lanes: 16", "lanes: many", "chip.yaml:18: vector.lanes: Input should be a valid integer, not 'many'"),
        ("lanes: 16", "lanes: 16\n  width: 3", "chip.yaml:19: vector.width: unknown key"),
        ("  rows: 16\n", "", "array.rows: Field required"),
        ("  columns: 16", "  columns: 16\n  columns: 8", "'columns' is given twice"),
        ("  source: our choice\n", "", "technology.source: Field required"),
        ("library: sky130", "library: sky120", "technology.library"),
        ("capacity_bytes: 65536", "capacity_bytes: 4096", "does not hold the tiles of the array"),
        ("kind: asic", "kind: fpga", "fpga"),
    ],
)
def test_mistakes_are_named_with_their_place(write, old, new, words):
    assert old in GOOD
    with pytest.raises(UserError) as error:
        load_machine(write(GOOD.replace(old, new, 1)))
    assert words in str(error.value)


def test_plain_numbers_take_the_source_of_their_section(write):
    raw = yaml.safe_load(GOOD)
    raw["dram"] = {
        "source": "a data sheet", "bandwidth_bytes_per_s": 5, "energy_j_per_byte": 1.0,
        "interface_area_m2": {"value": 1, "grade": "measured", "source": "own ruler"},
    }  # fmt: skip
    dram = load_machine(write(yaml.safe_dump(raw).replace("value: 1\n", "value: 1.0\n"))).dram
    assert dram.bandwidth_bytes_per_s == Figure(value=5.0, source="a data sheet", grade="published")
    assert dram.interface_area_m2.source == "own ruler"


def test_a_total_is_as_good_as_the_worst_of_its_weighty_parts():
    parts = [
        Quantity(90.0, 80.0, 110.0, "synthesised"),
        Quantity(7.0, 1.0, 20.0, "published"),
        Quantity(3, 0, 9, "estimate"),
    ]
    whole = total(parts)
    assert (whole.value, whole.low, whole.high, whole.grade) == (100.0, 81.0, 139.0, "published")
    assert total([]).value == 0
