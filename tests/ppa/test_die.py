"""Die areas: parts make the total, more of anything is larger, constants come back, and the bars can go red."""

import dataclasses
import json
from pathlib import Path

import pytest

from ppa import die
from ppa.validation import ga100_die

DATA = Path(__file__).parents[3] / "shared" / "validation"
MM2, UM2 = 1e-6, 1e-12


@pytest.fixture
def data():
    if not (DATA / ga100_die.TABLE).is_file():
        pytest.skip(f"{ga100_die.TABLE}, the annotated die photo, is not here")
    return DATA


@pytest.mark.parametrize("name", die.DIES)
def test_parts_add_up_to_the_total(name):
    area = die.area(die.DIES[name])
    assert tuple(area.parts) == die.PARTS
    assert area.total.value == sum(q.value for q in area.parts.values())
    assert all(0 < q.low <= q.value <= q.high for q in area.parts.values())
    assert area.total.low < area.total.value < area.total.high


COUNTS = [f.name for f in dataclasses.fields(die.Die) if f.name not in ("node", "core")]
CORE_COUNTS = [f.name for f in dataclasses.fields(die.Core)]


@pytest.mark.parametrize("name", die.DIES)
def test_more_of_anything_is_larger_and_no_part_shrinks(name):
    base = die.DIES[name]
    bigger = [dataclasses.replace(base, **{count: getattr(base, count) + 1}) for count in COUNTS]
    for count in CORE_COUNTS:
        core = dataclasses.replace(base.core, **{count: getattr(base.core, count) + 1})
        bigger.append(dataclasses.replace(base, core=core))
    before = die.area(base)
    for changed in bigger:
        after = die.area(changed)
        assert after.total.value > before.total.value, changed
        assert all(after.parts[part].value >= before.parts[part].value for part in die.PARTS), changed


def test_a_denser_node_is_smaller_but_its_phys_are_not():
    n7, n5 = (die.area(dataclasses.replace(die.DIES["GA100"], node=node)).parts for node in ("N7", "4N"))
    for part in die.PARTS:
        if part in ("mem_phy", "offchip_phy"):
            assert n5[part] == n7[part]
        else:
            assert n5[part].value < n7[part].value


def test_storage_of_a_core_by_hand():
    """One Mibit more of registers: 2^20 bits of 0.027 um2 over 0.70, 0.0404 mm2 in N7, and 0.77 of that in 4N."""
    core = die.DIES["GA100"].core
    more = dataclasses.replace(core, register_bytes=core.register_bytes + 2**17)
    for node, cell in (("N7", 0.027), ("4N", 0.021)):
        added = die.units_m2(more, die.NODES[node]) - die.units_m2(core, die.NODES[node])
        assert added == pytest.approx(2**20 * cell / 0.70 * UM2, rel=1e-9)


def test_arithmetic_is_that_of_the_calibration():
    operators = json.loads((Path(die.__file__).parent / "calibration" / "asap7.json").read_text())["operators"]
    fast = {name: operators[name]["fast"]["area_um2"] * UM2 for name in ("mac_fp16", "fp32_mul", "fp32_add")}
    core = die.Core(1000, 0, 0, 0, 0, 0)
    assert die.units_m2(core, die.NODES["N7"]) == pytest.approx(1000 * fast["mac_fp16"])
    fp32 = die.units_m2(die.Core(0, 1, 0, 0, 0, 0), die.NODES["N7"])
    fp64 = die.units_m2(die.Core(0, 0, 1, 0, 0, 0), die.NODES["N7"])
    assert fp32 == pytest.approx(fast["fp32_mul"] + fast["fp32_add"])
    assert (53 / 24) * fp32 < fp64 < (53 / 24) ** 2 * fp32


@pytest.mark.parametrize("name", die.PHOTOS)
def test_calibration_reproduces_its_photo(name):
    """A round trip through all eight formulas; cores are off by the one core that the photo's sheet does not count."""
    photo, counts = die.PHOTOS[name], die.DIES[name]
    found = die.area(counts, die.ALDEBARAN if name == "Aldebaran" else die.GA100).parts
    for part in set(die.PARTS) - {"cores", "offchip_ctrl", "other"}:
        assert found[part].value == pytest.approx(photo[part] * MM2), part
    outside = found["offchip_ctrl"].value + found["other"].value
    assert outside == pytest.approx((photo["offchip_ctrl"] + photo["other"]) * MM2)
    assert found["cores"].value == pytest.approx(counts.cores * photo["one_core"] * MM2)
    assert photo["cores"] == pytest.approx((counts.cores - 1) * photo["one_core"])


def test_calibration_recovers_known_constants():
    """Constants made up here, a die of them made by the formulas, the constants found again from its parts."""
    made_up = die.Constants(3.0, 4e-7, 8e-7, 9e-6, 0.4, 3e-7, 2e-7, 7e-6)
    counts = die.DIES["GH100"]
    parts = {part: q.value / MM2 for part, q in die.area(counts, made_up).parts.items()}
    found = die.calibrate(counts, parts | {"one_core": parts["cores"] / counts.cores})
    assert dataclasses.astuple(found) == pytest.approx(dataclasses.astuple(made_up))


def test_constants_in_use_say_where_they_are_from():
    """Five from GA100, two from Aldebaran (the controller of a lane is only there): what the page claims."""
    ours, ga100, other = map(dataclasses.asdict, (die.CONSTANTS, die.GA100, die.ALDEBARAN))
    foreign = {name for name in ours if ours[name] == other[name] != ga100[name]}
    assert foreign == {"controller_per_phy", "lane_m2"}
    assert all(ours[name] == ga100[name] for name in set(ours) - foreign)
    in_sample = [part for part, origin in ga100_die.ORIGIN.items() if origin.startswith("in sample")]
    assert len(in_sample) == 5


def test_interval_is_the_disagreement_of_the_two_photos():
    cores = die.area(die.DIES["GH100"]).parts["cores"]
    factor = die.ALDEBARAN.control_factor / die.GA100.control_factor
    assert cores.high / cores.value == pytest.approx(factor) == pytest.approx(cores.value / cores.low)


def test_bars_on_ga100(data):
    """Measured: parts within 8.6 % (bar 12), sum of parts +0.9 %, die +0.5 % (bar 1)."""
    section = ga100_die.validate(data)
    judged = [row for row in section.rows if row.bar is not None]
    assert len(judged) == 9 and all(row.verdict == "pass" for row in judged)
    assert not any(row.bar for row in section.rows if not row.name.startswith("GA100, "))


def test_photo_in_the_code_is_that_of_the_table(data):
    parts = json.loads((data / ga100_die.TABLE).read_text())["real"]
    assert {part: parts["parts"][part] for part in die.PARTS} | {"one_core": parts["one_sm"]} == die.PHOTOS["GA100"]


def test_page_states_how_far_a_prediction_is(data):
    """No area of GA100 used: cores +14 %, die +13 %. Dies held out: Aldebaran -10, GH100 +15, GV100 +37 %."""
    rows = {row.name: row.error for row in ga100_die.validate(data).rows}
    assert rows["GA100 predicted, cores"] == pytest.approx(0.141, abs=0.01)
    assert rows["GA100 predicted, die"] == pytest.approx(0.129, abs=0.01)
    assert rows["Aldebaran, die"] == pytest.approx(-0.105, abs=0.01)
    assert rows["GH100, die"] == pytest.approx(0.145, abs=0.01)
    assert rows["GV100, die"] == pytest.approx(0.367, abs=0.01)


@pytest.mark.parametrize(
    "fault",
    [{"hbm_stacks": 5}, {"cores": 108}, {"l2_slices": 80}, {"lanes": 48}, {"node": "N6"}],
    ids=lambda fault: "-".join(map(str, *fault.items())),
)
def test_a_seeded_fault_misses_a_bar(data, monkeypatch, fault):
    """Counts of the product (A100) for those of the die, PCIe forgotten, the wrong node: each is seen."""
    monkeypatch.setitem(die.DIES, "GA100", dataclasses.replace(die.DIES["GA100"], **fault))
    assert any(row.verdict == "fail" for row in ga100_die.validate(data).rows)
