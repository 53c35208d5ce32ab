"""Comparison of reports: ratios whose common errors cancel, causes, who is dominated; as text and as a page."""

import copy
import itertools
import random

import pytest
from browser import CHROMIUM, Browser
from pages import make, numbers_of, tree, words

from gptcore.errors import UserError
from ppa.page.compare import change_line, compare, comparison_lines, ratio_interval
from ppa.page.compare_page import comparison_page


def quantity(value, low, high):
    return {"value": value, "low": low, "high": high, "grade": "estimate"}


@pytest.fixture(scope="module")
def comparison():
    return compare([make(), make(softmax="consmax"), make(softmax="relumax")], labels=["softmax", "consmax", "relumax"])


def corners(a, b):
    """Every combination of ends, the ends of a component common to both sides."""
    names = sorted({*a, *b})
    none = quantity(0.0, 0.0, 0.0)
    for choice in itertools.product(("low", "high"), repeat=len(names)):
        ends = list(zip(names, choice, strict=True))
        yield sum(b.get(n, none)[e] for n, e in ends) / sum(a.get(n, none)[e] for n, e in ends)


@pytest.mark.parametrize("seed", range(30))
def test_ratio_interval_is_that_of_all_corners(seed):
    dice = random.Random(seed)

    def design():
        names = dice.sample("abcdefgh", dice.randint(1, 7))
        sizes = {name: 10 ** dice.uniform(-9, -5) for name in names}
        return {n: quantity(v, v / dice.uniform(1, 4), v * dice.uniform(1, 4)) for n, v in sizes.items()}

    a, b = design(), design()
    found = list(corners(a, b))
    assert ratio_interval(a, b) == pytest.approx((min(found), max(found)), rel=1e-12)
    inside = [  # and anywhere between the corners it is no further out
        sum(q["low"] + at[n] * (q["high"] - q["low"]) for n, q in b.items())
        / sum(q["low"] + at[n] * (q["high"] - q["low"]) for n, q in a.items())
        for at in ({n: dice.random() for n in "abcdefgh"} for _ in range(50))
    ]
    assert min(found) <= min(inside) and max(inside) <= max(found)


def test_common_errors_cancel():
    """By hand: a memory of 1 to 4, and twice of it; then a part of 1 that only one design has."""
    memory, doubled = quantity(2.0, 1.0, 4.0), quantity(4.0, 2.0, 8.0)
    assert ratio_interval({"sram": memory}, {"sram": doubled}) == (2.0, 2.0)
    assert ratio_interval({"sram": memory}, {"sram": memory, "unit": quantity(1, 1, 1)}) == (5 / 4, 2.0)
    assert ratio_interval({"sram": memory}, {"other": memory}) == (1 / 4, 4.0)


def test_against_itself_nothing_changes(comparison):
    row = compare([make(), make()], labels=["a", "b"])["rows"][1]
    assert all(found == {"value": 1.0, "low": 1.0, "high": 1.0} for found in row["ratios"].values())
    assert not any(row["causes"].values()) and not row["settings"] and row["dominated_by"] is None


def test_ratios_and_causes_add_up(comparison):
    base = comparison["rows"][0]
    for row in comparison["rows"][1:]:
        for column in comparison["columns"]:
            key = column["key"]
            before, after = base["values"][key]["value"], row["values"][key]["value"]
            found = row["ratios"][key]
            assert found["value"] == pytest.approx(after / before)
            assert found["low"] <= found["value"] <= found["high"]
            naive = (
                row["values"][key]["low"] / base["values"][key]["high"],
                row["values"][key]["high"] / base["values"][key]["low"],
            )
            assert naive[0] <= found["low"] * (1 + 1e-9) and found["high"] <= naive[1] * (1 + 1e-9)
            if key in row["causes"]:
                changed = sum(c["after"] - c["before"] for c in row["causes"][key])
                assert changed == pytest.approx(after - before, abs=1e-8 * before)
    area = {c["component"]: c for c in comparison["rows"][1]["causes"]["area"]}
    assert area["score buffer"]["after"] == 0 and area["score buffer"]["before"] > 0
    assert {"setting": "attention.softmax.kind", "before": "softmax", "after": "consmax"} in comparison["rows"][1][
        "settings"
    ]


def test_other_machine_shares_no_error():
    a, b = make(), make("a100-80")
    row = compare([a, b], labels=["edge", "gpu"])["rows"][1]
    for key, get in (
        ("area", lambda r: r["totals"]["area_m2"]), ("latency_decode", lambda r: r["totals"]["latency_s"]["decode"]),
    ):  # fmt: skip
        assert row["ratios"][key]["low"] == pytest.approx(get(b)["low"] / get(a)["high"])
        assert row["ratios"][key]["high"] == pytest.approx(get(b)["high"] / get(a)["low"])


def priced(name, params, area, energy, latency):
    """A report with other totals."""
    report = copy.deepcopy(make())
    report["name"] = name
    totals = report["totals"]
    totals["params"], totals["area_m2"]["value"] = params, area
    totals["energy_per_token_j"]["decode"]["value"], totals["latency_s"]["decode"]["value"] = energy, latency
    return report


def test_dominated():
    rows = [(4, 2, 2, 2), (4, 2, 2, 1), (3, 3, 2, 2), (4, 2, 2, 2), (5, 4, 3, 3), (9, 9, 9, 0.5)]
    found = compare([priced(f"r{i}", *row) for i, row in enumerate(rows)], sort="params")
    assert [row["label"] for row in found["rows"]] == ["r2", "r0", "r1", "r3", "r4", "r5"]
    beaten = {row["label"]: row["dominated_by"] for row in found["rows"]}
    assert beaten == {"r0": "r1", "r1": None, "r2": None, "r3": "r1", "r4": "r0", "r5": None}


def test_wrong_use():
    with pytest.raises(UserError, match="at least two"):
        compare([make()])
    with pytest.raises(UserError, match="no column 'size'.*known: params, area"):
        compare([make(), make()], sort="size")
    old = {key: value for key, value in make().items() if key != "estimate"}
    with pytest.raises(UserError, match="old schema"):
        compare([make(), old])


def test_labels_tell_apart():
    labels = [row["label"] for row in compare([make(), make(softmax="consmax"), make("a100-80"), make(None)])["rows"]]
    assert len(set(labels)) == 4 and labels[2].endswith("a100-80") and labels[3].endswith("counts")


def test_counts_where_a_machine_is_missing():
    found = compare([make(), make(None)])
    assert [c["key"] for c in found["columns"]][:3] == ["params", "weight_bytes", "kv_bytes"]
    assert any("counts only" in note for note in found["notes"])


def test_lines(comparison):
    text = comparison_lines(comparison)
    table = [line for line in text.splitlines() if line.startswith("|")]
    assert len(table) == 2 + len(comparison["rows"]) and {line.count("|") for line in table} == {table[0].count("|")}
    assert "- attention.softmax.kind: softmax -> consmax" in text and "score buffer \u2212" in text
    assert change_line(comparison, "consmax").startswith("against softmax: area \u00d70.")


def test_page(comparison):
    page = comparison_page(comparison)
    assert page == comparison_page(copy.deepcopy(comparison)) and len(page.encode()) < 400_000
    known = {float(n) for n in numbers_of(comparison)}
    causes = [cause for row in comparison["rows"] for found in row["causes"].values() for cause in found]
    known |= {abs(cause["after"] - cause["before"]) for cause in causes}
    shown = [float(e.get("value")) for e in tree(page).iter("data")]
    assert len(shown) > 100 and set(shown) <= known
    hostile = compare([make(), make(softmax="consmax")], labels=["a", "<script>alert(1)</script>|"])
    assert comparison_page(hostile).count("<script>") == 1 and "<script>" not in comparison_lines(hostile)


@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium, chromium-browser or google-chrome on the path")
def test_sorting_in_a_browser(comparison, tmp_path):
    path = tmp_path / "comparison.html"
    path.write_text(comparison_page(comparison))
    values = {words(e): i for i, e in enumerate(tree(path.read_text()).iter("button"))}
    with Browser(tmp_path) as browser:
        browser.open(path, width=420)
        assert browser.evaluate("document.documentElement.scrollWidth <= 420")
        rows = "[...document.querySelectorAll('table.ranking tbody tr')]"
        read = rows + ".map(row => Number(row.cells[{}].querySelector('data').value))"
        for title in ("area", "energy/token prefill"):
            press = f"document.querySelectorAll('button.sort')[{values[title]}].click()"
            browser.evaluate(press)
            rising = browser.evaluate(read.format(values[title] + 1))
            browser.evaluate(press)
            assert rising == sorted(rising) and browser.evaluate(read.format(values[title] + 1)) == sorted(rising)[::-1]
        assert browser.problems == [] and browser.requests == [path.resolve().as_uri()]
