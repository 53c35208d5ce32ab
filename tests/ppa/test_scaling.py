"""Scaling between nodes: the measured anchors, the shape between them, and how far it may be off."""

import json
import math
from pathlib import Path

import numpy as np
import pytest

from gptcore.errors import UserError
from ppa import scaling

REFERENCE = Path(__file__).parents[3] / "shared" / "validation" / "published_operator_tables.json"
KEYS = {"area": "area_um2", "energy": "energy_pj_per_cycle", "delay": "delay_ps", "leakage": "leakage_w"}
NODES_M = [nm * 1e-9 for nm in (180, 150, 130, 110, 90, 65, 45, 40, 32, 28, 22, 20, 16, 14, 12, 10, 8, 7, 6, 5)]


def operators(library):
    return json.loads((scaling.FOLDER / f"{library}.json").read_text())["operators"]


def logs(old, new, key):
    old, new = operators(old), operators(new)
    return np.array([math.log(new[name]["relaxed"][key] / old[name]["relaxed"][key]) for name in old])


@pytest.mark.parametrize("quantity", KEYS)
@pytest.mark.parametrize("old", ["sky130", "sg13g2"])
def test_both_ends_are_what_the_calibrations_say(quantity, old):
    found = logs(old, "asap7", KEYS[quantity])
    down = getattr(scaling.carried(old, 7e-9), quantity)
    assert down.value == pytest.approx(np.exp(found.mean()), rel=1e-12)
    assert down.spread == pytest.approx(np.exp(found.std(ddof=1)), rel=1e-12)
    up = getattr(scaling.between(7e-9, 130e-9, anchor=old), quantity)
    assert up.value == pytest.approx(np.exp(-found.mean()), rel=1e-12)
    assert up.spread == pytest.approx(down.spread, rel=1e-12)


def test_the_same_node_changes_nothing():
    for node in NODES_M:
        for quantity in KEYS:
            assert getattr(scaling.between(node, node), quantity) == scaling.Factor(1.0, 1.0)


@pytest.mark.parametrize("quantity", KEYS)
def test_two_steps_are_one(quantity):
    """Values exactly; the spread of the whole is no larger than that of its steps one after the other."""
    for first in NODES_M[::3]:
        for second in NODES_M[1::3]:
            for third in NODES_M[2::3]:
                a, b = (
                    getattr(scaling.between(*pair), quantity) for pair in ((first, second), (second, third))
                )  # fmt: skip
                whole = getattr(scaling.between(first, third), quantity)
                assert whole.value == pytest.approx(a.value * b.value, rel=1e-9)
                assert whole.spread <= a.spread * b.spread * (1 + 1e-9)


@pytest.mark.parametrize("anchor", ["sky130", "sg13g2"])
@pytest.mark.parametrize("quantity", ["area", "energy", "delay"])
def test_smaller_is_smaller_cheaper_faster(quantity, anchor):
    nodes = np.geomspace(180e-9, 5e-9, 300)
    values = [getattr(scaling.between(130e-9, float(node), anchor=anchor), quantity).value for node in nodes]
    assert all(later < earlier for earlier, later in zip(values, values[1:], strict=False))


@pytest.mark.parametrize("quantity", KEYS)
def test_the_spread_holds_a_plain_power_law(quantity):
    """The interpolation that one would take without Stillmaker and Baas, from either anchor."""
    slope = logs("sky130", "asap7", KEYS[quantity]).mean() / math.log(130 / 7)
    for start in (130e-9, 7e-9):
        for node in NODES_M:
            factor = getattr(scaling.between(start, node), quantity)
            assert factor.low * (1 - 1e-9) <= (start / node) ** slope <= factor.high * (1 + 1e-9)


@pytest.mark.parametrize("quantity", KEYS)
def test_the_spread_grows_away_from_the_anchors(quantity):
    """To the middle in the logarithm, 30 nm: beyond that the other anchor holds it. Leakage has no shape to blur it."""

    def spread(nm):
        return getattr(scaling.between(130e-9, nm * 1e-9), quantity).spread

    assert 1 < spread(129) < spread(110) < spread(90)
    assert spread(7) < spread(8) < spread(10)
    assert spread(30) > 1.3 * spread(7)
    assert spread(7) < spread(6) < spread(5)
    if quantity == "leakage":
        assert spread(90) < spread(65) < spread(45) < spread(30) > spread(20) > spread(10)


def test_the_middle_is_as_wide_as_two_libraries_of_one_node_differ():
    apart = logs("sky130", "sg13g2", "area_um2")
    one = math.hypot(apart.mean() / math.sqrt(2), apart.std(ddof=1))
    middle = math.log(scaling.between(130e-9, math.sqrt(130e-9 * 7e-9)).leakage.spread)
    wide = logs("sky130", "sg13g2", "leakage_w")
    scatter = logs("sky130", "asap7", "leakage_w").std(ddof=1)
    expected = wide.mean() ** 2 / 2 + wide.var(ddof=1) + scatter**2 / 2
    assert middle == pytest.approx(math.sqrt(expected), rel=1e-9)
    assert math.log(scaling.between(130e-9, 30e-9).area.spread) > one


def test_the_tables_are_those_of_the_paper():
    if not REFERENCE.is_file():
        pytest.skip("the published tables are not here")
    paper = json.loads(REFERENCE.read_text())["stillmaker_baas_2017"]
    areas = dict(zip(paper["nodes_nm"], paper["area_factor_from_row_to_column"][0], strict=True))
    total = scaling.between(130e-9, 7e-9).area.value
    for nm, area in areas.items():
        stretched = math.log(scaling.between(130e-9, nm * 1e-9).area.value) / math.log(total)
        assert stretched == pytest.approx(math.log(area) / math.log(areas[7]), abs=1e-9)
    for nm, terms in paper["energy_factor_abc_of_aV2_bV_c"].items():
        if nm not in ("45", "32"):  # there the file has the devices of low power, between others of high performance
            assert scaling._ENERGY[int(nm)] == tuple(terms)


def test_a_node_outside_is_refused():
    for node in (200e-9, 3e-9, 65, 0.0):
        with pytest.raises(UserError, match="5 to 180 nm"):
            scaling.between(130e-9, node)
    with pytest.raises(UserError, match="sky130, sg13g2, asap7"):
        scaling.library_node_m("nangate45")


@pytest.mark.parametrize("quantity", KEYS)
def test_operators_are_carried_to_within_the_spread_and_not_if_carried_twice(quantity):
    """Two standard deviations hold nearly all 54 operators; the same factor applied twice holds none."""
    found = logs("sky130", "asap7", KEYS[quantity])
    factor = getattr(scaling.between(130e-9, 7e-9), quantity)

    def inside(times):
        return np.sum(abs(found - times * math.log(factor.value)) < 2 * math.log(factor.spread))

    assert inside(1) >= 0.9 * len(found)
    assert inside(2) == 0
    assert inside(0) == 0
