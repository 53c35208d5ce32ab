"""The page of a report: every number is that of the document, figures are in proportion, nothing is fetched."""

import copy
import math
import re

import pytest
from browser import CHROMIUM, Browser
from pages import make, numbers_of, parsed, strangers, tree, words
from small import STAGES

from gptcore.errors import UserError
from ppa.page import breakdown, charts
from ppa.page.compare import compare
from ppa.page.report_page import render_page
from ppa.page.units import figure

LIMIT_BYTES = 400_000
VALIDATION = {
    "sections": [
        {"title": "A die", "scores": [
            {"name": "whole", "value": 0.0125, "bar": 0.02, "verdict": "pass"},
            {"name": "worst part", "value": 0.375, "bar": 0.125, "verdict": "fail"},
        ]},
    ],
}  # fmt: skip


@pytest.fixture
def report():
    return copy.deepcopy(make())


@pytest.mark.parametrize("unit", ["s", "J", "B", "FLOP/s", "m2", ""])
def test_units_read_back(unit):
    """Three digits of any size, and one to three of them before the point where a prefix can do that."""
    for exponent in range(-13, 19):
        for mantissa in (1.0, 1.005, 4.567, 9.9949, 9.9951, 9.9999):
            value = mantissa * 10.0**exponent
            shown = figure(value, unit)
            assert parsed(shown, unit) == pytest.approx(value, rel=5.01e-3), shown
            if unit in ("s", "J") or value >= 1 and unit != "m2":
                assert 1 <= float(shown.partition("\u202f")[0].replace(",", "")) < 1000, shown
    assert figure(1.2138e-4, "J") == "121\u202f\u00b5J" and figure(2.1746e-5, "m2") == "21.7\u202fmm\u00b2"
    assert figure(0) == "0" and figure(805312) == "805\u202fk" and figure(0.999951, "s") == "1.00\u202fs"


@pytest.mark.parametrize("hardware", ["edge-sky130", "edge-asap7-onchip", "a100-80", None])
def test_every_number_is_in_the_document(hardware):
    page = render_page(make(hardware), validation=VALIDATION)
    assert len(list(tree(page).iter("data"))) > (500 if hardware else 100)
    assert not strangers(page, make(hardware), more=numbers_of(VALIDATION))


def test_numbers_of_a_baseline(report):
    base = make(softmax="consmax")
    found = compare([base, report])
    causes = [cause for causes in found["rows"][1]["causes"].values() for cause in causes]
    more = [*numbers_of(found), *(abs(cause["after"] - cause["before"]) for cause in causes)]
    page = render_page(report, base)
    assert "Against small" in page and not strangers(page, report, more=more)


def test_a_changed_number_is_found(report):
    page = render_page(report)
    area = report["totals"]["area_m2"]["value"]
    assert strangers(page.replace(f'value="{area!r}"', f'value="{area * 1.01!r}"'), report)
    assert strangers(page.replace(f">{figure(area, 'm2')}<", f">{figure(area * 1.02, 'm2')}<"), report)


def test_cards_hold_the_right_totals(report):
    totals, tokens = report["totals"], {s: report["estimate"]["stages"][s]["tokens"] for s in STAGES}
    wanted = {
        "Energy per token": {s: totals["energy_per_token_j"][s] for s in STAGES},
        "Latency": {s: totals["latency_s"][s] for s in STAGES},
        "Tokens per second": {
            s: {"value": tokens[s] / q["value"], "low": tokens[s] / q["high"], "high": tokens[s] / q["low"]}
            for s, q in totals["latency_s"].items()
        },
    }
    found = {}
    for card in (e for e in tree(render_page(report)).iter("div") if (e.get("class") or "").startswith("card ")):
        for row in card.iter("tr"):
            numbers = [float(e.get("value")) for e in row.iter("data")]
            found.setdefault(words(card.find("h3")), {})[words(row.find("th"))] = numbers
    for title, stages in wanted.items():
        for stage, q in stages.items():
            ends = [q["low"], q["high"]] if q["low"] != q["high"] else []
            assert found[title][stage] == pytest.approx([q["value"], *ends], rel=1e-12)


def test_roofline_points_are_where_the_axes_say(report):
    """Coordinates read back by the labels of the grid, as a person would."""
    (plane,) = (e for e in tree(render_page(report)).iter("svg") if (e.get("aria-label") or "").startswith("Roofline"))
    factors = {"": 1.0, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}
    across, up = [], []
    for label in (e for e in plane.findall("text") if re.fullmatch(r"[\d.]+\u202f?[kMGT]?", words(e))):
        value = float(words(label).strip("\u202fkMGT")) * factors[words(label).lstrip("0123456789.\u202f")]
        axis, at = (across, "x") if label.get("text-anchor") == "middle" else (up, "y")
        axis.append((float(label.get(at)), math.log10(value)))

    def read(axis, at):
        (x0, v0), (x1, v1) = axis[0], axis[-1]
        return 10 ** (v0 + (at - x0) * (v1 - v0) / (x1 - x0))

    dots = [
        (read(across, float(e.get("cx"))), read(up, float(e.get("cy")))) for e in plane.iter("circle") if e.get("cx")
    ]
    entries = [entry[stage] for entry in report["estimate"]["sweep"] for stage in ("prefill", "decode")]
    assert len(dots) == len(entries) == 2 * 35
    for (intensity, rate), entry in zip(dots, entries, strict=True):
        assert intensity == pytest.approx(entry["flops"] / entry["dram_bytes"], rel=2e-3)
        assert rate == pytest.approx(entry["flops"] / entry["latency_s"]["value"], rel=2e-3)


def test_same_bytes():
    for hardware in ("edge-sky130", "a100-80", None):
        report, base = make(hardware), make(hardware, softmax="consmax")
        assert render_page(report, base, VALIDATION) == render_page(
            copy.deepcopy(report), copy.deepcopy(base), VALIDATION
        )


@pytest.mark.parametrize("hardware", ["edge-sky130", "a100-80", None])
def test_small_with_many_layers(hardware):
    """As many rows as 64 layers have, all different; only the sums are not those of such a model."""
    report = copy.deepcopy(make(hardware))
    for rows in (report["ops"], report["estimate"]["kernels"] if hardware else []):
        layer = [row for row in rows if row["layer"] == 0]
        rows += [{**row, "layer": i, "energy_j": 1.1 * i} for i in range(2, 64) for row in layer]
    assert len(render_page(report, make(hardware, softmax="consmax"), VALIDATION).encode()) < LIMIT_BYTES


def test_nothing_is_fetched(report):
    page = render_page(report, make(softmax="consmax"))
    assert not re.search(r"(?:src|srcset|href|action|data)=['\"](?!#)", page.split("</style>")[1])
    assert "url(" not in page and "@import" not in page and "default-src 'none'" in page


def test_hostile_names_stay_text(report):
    evil = "</title><script>alert(1)</script>\"'><img src=x onerror=alert(1)>&"
    report["name"] = report["hardware"]["title"] = report["hardware"]["statement"] = evil
    report["checks"][0]["note"] = report["estimate"]["notes"][0] = report["conventions"]["units"] = evil
    report["estimate"]["stages"]["decode"]["bound"] = evil
    for part in (report["estimate"]["area_by_component"], report["estimate"]["stages"]["train"]["energy_by_component"]):
        part[evil] = part.pop("control")
    base = {**copy.deepcopy(report), "name": evil + "2"}
    page = render_page(
        report,
        base,
        {"sections": [{"title": evil, "scores": [dict(VALIDATION["sections"][0]["scores"][0], name=evil)]}]},
    )
    root = tree(page)
    assert [e.tag for e in root.iter() if e.tag in ("script", "img")] == []
    assert page.count("<script>") == 1 and "<img" not in page
    assert evil in words(root.find("body"))


def test_bars_fill_in_proportion(report):
    """Widths of a stacked bar are the shares of its slots, and add up to the whole bar."""
    root = tree(render_page(report))
    bars = [e for e in root.iter("svg") if e.get("class") == "bar" and " by slot" in e.get("aria-label")]
    assert len(bars) == 9
    cells = breakdown.cells(report)
    for bar, (measure, stage) in zip(bars, cells, strict=True):
        wide = sum(float(rect.get("width")) for rect in bar.iter("rect"))
        assert wide == pytest.approx(1000, abs=0.01 * len(cells[measure, stage]))
        rects = {rect.get("class"): float(rect.get("width")) for rect in bar.iter("rect")}
        for slot, amount in breakdown.by_slot(cells[measure, stage]).items():
            whole = sum(cells[measure, stage].values())
            assert rects[charts.colour(slot)] == pytest.approx(1000 * amount / whole, abs=0.006)


def test_treemap_is_in_proportion(report):
    root = tree(render_page(report))
    (figure_,) = (e for e in root.iter("svg") if "treemap" in e.get("class"))
    wide, tall = map(float, figure_.get("viewBox").split()[2:])
    whole = report["totals"]["area_m2"]["value"]
    tiles = [rect for rect in figure_.iter("rect") if rect.get("data-amount")]
    boxes = [{k: float(tile.get(k)) for k in ("x", "y", "width", "height", "data-amount")} for tile in tiles]
    assert sorted(b["data-amount"] for b in boxes) == sorted(
        q["value"] for q in report["estimate"]["area_by_component"].values()
    )
    for box in boxes:
        share = box["width"] * box["height"] / (wide * tall)
        rounding = 0.01 * (box["width"] + box["height"]) / (wide * tall)
        assert share == pytest.approx(box["data-amount"] / whole, abs=rounding)
    for i, a in enumerate(boxes):  # none on top of another
        for b in boxes[:i]:
            across = min(a["x"] + a["width"], b["x"] + b["width"]) - max(a["x"], b["x"])
            down = min(a["y"] + a["height"], b["y"] + b["height"]) - max(a["y"], b["y"])
            assert min(across, down) < 0.03


def test_accessible(report):
    root = tree(render_page(report))
    parents = {child: parent for parent in root.iter() for child in parent}
    for svg in root.iter("svg"):
        assert svg.get("aria-hidden") == "true" or (svg.get("role") == "img" and svg.get("aria-label"))
    for svg in (e for e in root.iter("svg") if e.get("role") == "img"):  # a table is behind each figure
        section = svg
        while section.tag != "section":
            section = parents[section]
        assert section.find(".//table") is not None
    identities = [e.get("id") for e in root.iter() if e.get("id")]
    assert len(identities) == len(set(identities))
    assert all(e.get("href")[1:] in identities for e in root.iter("a"))
    assert all(
        table.find("caption") is not None
        for table in root.iter("table")
        if "wide" in (parents[table].get("class") or "")
    )


def alarm(page):
    found = [e for e in tree(page).iter("div") if e.get("class") == "alarm"]
    return words(found[0]) if found else ""


def test_faults_turn_red(report):
    assert not alarm(render_page(report))
    failing = copy.deepcopy(report)
    failing["checks"][2].update(status="fail", measured=7)
    assert "prefill_matmul_flops failed" in alarm(render_page(failing))
    lost = copy.deepcopy(report)
    lost["estimate"]["kernels"].pop(5)
    assert "Energy of prefill, by kernel" in alarm(render_page(lost))
    swollen = copy.deepcopy(report)
    swollen["estimate"]["area_by_component"]["sram"]["value"] *= 1.001
    assert "Area, by component" in alarm(render_page(swollen))
    impossible = copy.deepcopy(report)
    impossible["estimate"]["sweep"][3]["decode"]["latency_s"].update(value=1e-12, low=1e-12)
    assert "faster than the machine can be: decode at batch" in alarm(render_page(impossible))


def test_validation_is_shown_or_said_to_be_missing(report):
    assert "No validation was given" in render_page(report)
    page = render_page(report, validation=VALIDATION)
    assert "No validation was given" not in page and "worst part" in page and "\u2717 FAIL" in page


def test_without_hardware_counts_alone():
    page = render_page(make(None))
    assert "No machine is named" in page
    identities = {e.get("id") for e in tree(page).iter("section")}
    assert identities == {"where", "traffic", "primitives", "trust", "provenance"}


def test_old_reports_are_refused(report):
    del report["estimate"]
    with pytest.raises(UserError, match="old schema"):
        render_page(report)


@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium, chromium-browser or google-chrome on the path")
def test_in_a_browser(report, tmp_path):
    path = tmp_path / "report.html"
    path.write_text(render_page(report, make(softmax="consmax"), VALIDATION))
    with Browser(tmp_path) as browser:
        browser.open(path)
        _sliders_work(browser, report)
        assert browser.problems == [] and browser.requests == [path.resolve().as_uri()]
        browser.open(path, width=420)
        assert browser.evaluate("document.documentElement.scrollWidth <= 420")
        browser.evaluate("setTimeout(() => { throw new Error('seeded') }, 0)")
        browser.evaluate("new Promise(done => setTimeout(done, 20))")
        assert browser.problems
        browser.open(path, scripts=False)
        assert browser.evaluate("getComputedStyle(document.querySelector('.sliders')).display") == "none"
        assert browser.evaluate("document.querySelector('noscript').innerText.includes('table below')")
        assert browser.problems == []


def _sliders_work(browser, report):
    """Every place of both sliders, by keyboard: the numbers beside them are those of the entry."""
    sweep = {(e["batch"], e["context"]): e for e in report["estimate"]["sweep"]}
    batches, contexts = (sorted({key[i] for key in sweep}) for i in (0, 1))
    read = "[...document.querySelectorAll('#{}-0 data, #{}-1 data')].map(d => Number(d.value))"
    browser.evaluate("document.getElementById('context').focus()")
    browser.press("Home")
    for context in contexts:
        browser.evaluate("document.getElementById('batch').focus()")
        browser.press("Home")
        for batch in batches[:3]:
            for stage in ("prefill", "decode"):
                at = sweep[batch, context][stage]
                shown = browser.evaluate(read.format(stage, stage))
                told = [at["latency_s"][k] for k in ("value", "low", "high")]
                assert shown[:3] == told and shown[3] == at["energy_per_token_j"]["value"]
            browser.press("ArrowRight")
        assert browser.evaluate("document.getElementById('batch').getAttribute('aria-valuetext')") == str(batches[3])
        browser.evaluate("document.getElementById('context').focus()")
        browser.press("ArrowRight")
    assert browser.evaluate("document.querySelectorAll('tr[aria-current]').length") == 1
