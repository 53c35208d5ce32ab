"""The page of a study: its numbers are those of the view, marks lie where the axes say, nothing is fetched, and what
comes from a ledger cannot become a part of the page."""

import dataclasses
import importlib.util
import math
import re
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from pathlib import Path

import pytest
from made_study import START, place, settings, study, with_controls

from ppa.page.units import figure
from search.ledger import Ledger
from search.page.build import build_page
from search.page.panels import comparison_words
from search.page.terms import gain_words, point_words, signed
from search.paired import Interval
from search.view import study_view

EVIL = '<script>alert("1")</script>\'"&<b'
VOID = {"meta", "br", "input"}


@pytest.fixture(scope="module")
def views(tmp_path_factory):
    """By name: a whole study, one under way, one not begun, and one whose words are an attack."""
    with Ledger(tmp_path_factory.mktemp("page") / "ledger.sqlite") as ledger:
        with_controls(ledger, controls=3, broken=("relumax",))
        study(ledger, "going", rounds=2, conclude=False)
        study(ledger, "evil", rounds=2, broken=("relumax",), text=EVIL, machine=EVIL)
        ledger.lead("new", "hash", "cost: params", settings=settings("new"))
        ledger.lead("bare", "hash", "")
        return {s.name: study_view(ledger, s.name) for s in ledger.studies() if ".random" not in s.name}


def tree(page):
    """The page as XML; style and script are no XML."""
    return ET.fromstring(re.sub(r"<(style|script)>.*?</\1>", "", page.removeprefix("<!DOCTYPE html>\n"), flags=re.S))


def words(element):
    return "".join(element.itertext())


class Balance(HTMLParser):
    """HTML as a browser reads it: every element that opens is closed, in order."""

    def __init__(self, page):
        super().__init__()
        self.open, self.seen = [], []
        self.feed(page)
        self.close()
        assert not self.open, self.open

    def handle_starttag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


@pytest.mark.parametrize("name", ["made", "going", "evil", "new", "bare"])
def test_page_is_whole_and_alone(views, name):
    page = build_page(views[name], {"the winner": "winner.yaml"})
    seen = Balance(page).seen
    tree(page)
    assert page == build_page(views[name], {"the winner": "winner.yaml"})
    kinds = [tag for tag, _ in seen]
    assert kinds.count("script") == 1 and not {"link", "img", "iframe", "object"} & set(kinds)
    wanted = [v for _, attrs in seen for k, v in attrs.items() if k in ("href", "src", "xlink:href", "action")]
    assert {v for v in wanted if not v.startswith("#")} == {"winner.yaml"}
    assert not re.search(r"https?:|@import|url\((?!#)", page)
    assert not [k for _, attrs in seen for k in attrs if k.startswith("on")]


def test_words_of_a_ledger_stay_words(views):
    page = build_page(views["evil"])
    text = words(tree(page))
    assert "alert(" in page and EVIL not in page
    assert text.count(EVIL) > 20 and views["evil"].rounds[0].words.replace("->", "\u2192") in text
    with pytest.raises((AssertionError, ET.ParseError)):  # had one of them got through
        tree(page.replace("&lt;script&gt;", "<script>", 1))
        Balance(page.replace("&lt;b", "<b", 1))


@pytest.mark.parametrize("target", ["https://a.b/c", "/etc/passwd", "../x", "javascript:alert(1)", "//a.b/c"])
def test_links_stay_in_the_folder(views, target):
    with pytest.raises(ValueError, match="folder of the page"):
        build_page(views["made"], {"x": target})


def axis(labels, at, factor=1.0):
    """From coordinates back to values, by the ticks, as a person reads them."""
    spots = [(float(e.get(at)), float(words(e).replace(",", "").replace("\u2212", "-")) * factor) for e in labels]
    (a, v), (b, w) = spots[0], spots[-1]
    return lambda c: v + (c - a) * (w - v) / (b - a)


def marks(svg, unit_factor):
    """By its words, where each mark lies, in nats and SI units."""
    across = axis([e for e in svg.findall("text") if e.get("class") == "x"], "x", unit_factor)
    up = axis([e for e in svg.findall("text") if e.get("class") == "y"], "y")
    found = {}
    for mark in (e for e in svg.iter("g") if (e.get("class") or "").startswith("m m-")):
        x, y = map(float, re.findall(r"[-\d.]+", mark.get("transform")))
        found[words(mark.find("title"))] = across(x), up(y)
    return found


FACTORS = {"area_m2": 1e-6, "energy_per_token_j": 1e-6, "latency_s": 1e-6, "params": 1e3}


def check_marks(view, page):
    charts = {e.get("data-cost"): e.find(".//svg") for e in tree(page).iter("div") if e.get("data-cost")}
    assert list(charts) == [chart.cost for chart in view.charts]
    for chart in view.charts:
        found, inside = marks(charts[chart.cost], FACTORS[chart.cost]), 0
        for point in chart.points:
            x, y = found.get(point_words(view, point, chart.cost), (None, None))
            if x is None:
                assert f"beyond the edge: {point_words(view, point, chart.cost)}" in found
                continue
            inside += 1
            assert x == pytest.approx(point.costs[chart.cost], rel=1e-3)
            assert y == pytest.approx(view.score.start - point.gain.mean, abs=1e-3)
        assert inside >= len({p.key for p in chart.front})


def test_marks_lie_where_the_axes_say(views):
    view = views["made"]
    page = build_page(view)
    check_marks(view, page)
    at = re.search(r'<g class="m m-front" transform="translate\(([\d.]+) ', page)[1]
    with pytest.raises(AssertionError):
        check_marks(view, page.replace(f"translate({at} ", f"translate({float(at) + 5:g} "))
    ends = [e for e in tree(page).iter("g") if e.get("class") in ("m m-end", "m m-control")]
    moved = [c for c in (view.end, *view.controls) if c.moves]
    assert len(ends) == len(view.charts) * (len(moved)) + 2  # and two in the legend


def strangers(page):
    """Numbers whose text is another number than their value, and how many numbers there are."""
    wrong, seen = [], 0
    for element in tree(page).iter("data"):
        value, shown = float(element.get("value")), words(element).replace("\u2212", "-").replace(",", "")
        read = float(re.match(r"[-+]?<?([\d.]+(e[-+]?\d+)?)", shown)[1]) * (-1 if shown.startswith("-") else 1)
        seen += 1
        if shown.endswith("%") or not value or not read:
            close = math.isclose((100 if shown.endswith("%") else 1) * value, read, abs_tol=0.0501)
            close = close or shown[1:].startswith("<0.1") and abs(value) < 0.001
        else:
            off = math.log10(read / value)  # a prefix shifts by whole powers of ten
            close = abs(off - round(off)) < math.log10(1.006)
        if not close:
            wrong.append((value, shown))
    return wrong, seen


def test_numbers_read_as_their_values(views):
    page = build_page(views["made"])
    wrong, seen = strangers(page)
    assert seen > 150 and not wrong
    gain = views["made"].path[1].gain.mean
    assert strangers(page.replace(f">{signed(gain)}", f">{signed(gain * 1.02)}"))[0]


def test_headline_and_path(views):
    view = views["made"]
    page = tree(build_page(view))
    verdict = next(words(e) for e in page.iter("p") if e.get("class") == "verdict")
    assert f"{view.score.start:.4f} to {view.score.start - view.end.gain.mean:.4f}" in verdict
    assert gain_words(view.end.gain).split(" ")[0] in verdict and "4 fresh seeds" in verdict and "Area: +" in verdict
    rows = next(e for e in page.iter("section") if e.get("id") == "path").findall(".//tbody/tr")
    assert len(rows) == len(view.path)
    for row, step in zip(rows, view.path, strict=True):
        told = [float(e.get("value")) for e in row.iter("data")]
        assert told[:3] == [step.gain.mean, step.gain.low, step.gain.high] and told[3] == step.cost_change
    assert figure(view.path[0].point.costs["params"]) in words(rows[0])
    going = words(tree(build_page(views["going"])))
    assert "under way" in going and "have not been compared on fresh seeds" in going and "It ended" not in going
    assert "No round has been decided yet" in words(tree(build_page(views["new"])))


def test_all_points_are_in_a_table_best_first(views):
    view = views["made"]
    section = next(e for e in tree(build_page(view)).iter("section") if e.get("id") == "pareto")
    rows = section.findall("details")[0].findall(".//tbody/tr")
    wanted = sorted((p for p in view.points if p.gain), key=lambda p: -p.gain.mean)
    assert [words(row[0]) for row in rows] == [p.name.replace("->", "\u2192") for p in wanted]
    gains = [float(row[3].find("data").get("value")) for row in rows]
    assert gains == [p.gain.mean for p in wanted]
    for row, point in zip(rows, wanted, strict=True):
        assert figure(point.costs["latency_s"], "s") in words(row)
        assert ("area" in words(row[-1])) == (point.key in {p.key for p in view.charts[0].front})


def test_decisions_say_why_not(views):
    view = views["made"]
    section = next(e for e in tree(build_page(view)).iter("section") if e.get("id") == "rounds")
    for details, one in zip(section.findall("details"), view.rounds, strict=True):
        told = words(details)
        assert all(row.judged.name.replace("->", "\u2192") in told for row in one.rows)
        assert "2 duplicate" in told and "diverged, loss is <nan>" in told and "1 failed" in told
        verdicts = [words(row[1]) for row in details.findall(".//tbody/tr")]
        assert verdicts == [row.judged.verdict for row in one.rows] + ["failed"] * len(one.failed)


def test_sentence_on_the_controls_is_counted(views):
    """It says what the numbers say, also where the search loses."""
    view = views["made"]
    assert comparison_words(view).startswith("Greedy ends with a larger gain than 3 of 3 random controls")
    best = max(view.controls, key=lambda c: c.gain.mean)
    worse = dataclasses.replace(view.end, gain=Interval(best.gain.mean - 0.001, None, None, 4))
    lost = comparison_words(dataclasses.replace(view, end=worse))
    ahead = sum(c.gain.mean < worse.gain.mean for c in view.controls)
    behind = sum(c.gain.mean > worse.gain.mean for c in view.controls)
    assert behind and f"than {ahead} of 3" in lost and f"; {behind} end" in lost
    free = dataclasses.replace(view.end, costs=place(START)["costs"] | {"area_m2": 1e-9})
    assert "3 do not, 3 of which also gain less" in comparison_words(dataclasses.replace(view, end=free))


def test_small_gains_keep_their_digits():
    assert signed(0.05194) == "+0.0519" and signed(-0.000123) == "\u22120.000123" and signed(0.0) == "0.0000"
    assert gain_words(Interval(0.0001, -0.002, 0.0022, 3), "nats") == "+0.000100 [\u22120.002000, +0.002200]\u202fnats"


def browser():
    """That of the tests of the cost report, in a folder beside this one."""
    path = Path(__file__).parents[1] / "ppa" / "browser.py"
    spec = importlib.util.spec_from_file_location("page_browser", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.skipif(browser().CHROMIUM is None, reason="no browser")
def test_in_a_browser(views, tmp_path):
    path = tmp_path / "search.html"
    path.write_text(build_page(views["evil"]))
    shown = "[...document.querySelectorAll('.chart[data-cost]')].filter(e => e.offsetHeight).map(e => e.dataset.cost)"
    with browser().Browser(tmp_path) as page:
        page.open(path)
        assert page.evaluate(shown) == ["area_m2"]
        page.evaluate("document.querySelector('input[value=params]').click()")
        assert page.evaluate(shown) == ["params"]
        mark = "document.querySelector('.chart[data-cost=params] .m-step')"
        page.evaluate(f"{mark}.focus()")
        said = page.evaluate(f"{mark}.closest('.chart').querySelector('.readout').textContent")
        assert said.startswith("round 1:") and said == page.evaluate(f"{mark}.querySelector('title').textContent")
        assert page.problems == [] and page.requests == [path.resolve().as_uri()]
        page.open(path, width=480, scripts=False)
        assert len(page.evaluate(shown)) == len(views["evil"].charts)  # all of them without scripts
        assert page.evaluate("document.documentElement.scrollWidth") <= 480
