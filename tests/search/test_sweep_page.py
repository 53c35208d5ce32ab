"""What a sweep has come to: means and intervals against the textbook, its page and figures against its results."""

import dataclasses
import math
import re
import statistics
import xml.etree.ElementTree as ET
from types import SimpleNamespace

import pytest

from search import sweep_results
from search.ledger import Ledger
from search.records import NewTrial
from search.sweep_page import build_page
from search.sweep_results import results, table
from search.sweep_runs import load
from search.trial import TrialResult

T_95 = {1: 12.7062, 2: 4.30265}  # two-sided 95 % quantiles of Student's t by degrees of freedom
LOSSES = {16: (2.50, 2.54, 2.58), 32: (2.2, 2.3, None), 64: (None, None, None)}
TEXT = """
baseline: {{model: {{n_layer: 1, n_embd: 16, block_size: 16, attention: {{kind: causal, n_head: 2}}}},
           data: {{dataset: {corpus}}}, train: {{max_iters: 20, warmup_iters: 0}}}}
grid: {{model.n_embd: [16, 32, 64], train.seed: [1, 2, 3]}}
"""


def end(key, loss):
    if loss is None:
        return TrialResult(key, "diverged", None, reason="loss is <nan>", log_tail="step 3\n</script>nan")
    return TrialResult(key, "done", loss, ((0, 4.0), (10, loss + 0.2), (20, loss)), seconds=2.0, tokens=99, params=512)


@pytest.fixture
def made(tmp_path, corpus):
    """(results, text of the file) of a sweep whose ledger was filled by hand."""
    (tmp_path / "s.yaml").write_text(TEXT.format(corpus=corpus))
    plan = load(tmp_path / "s.yaml")
    with Ledger(tmp_path / "ledger.sqlite") as ledger:
        ledger.lead("s", "hash", plan.file.text)
        for run in plan.runs:
            config = run.config.model_dump(mode="json")
            ledger.add("s", [NewTrial(run.identity, config, str(tmp_path / "runs" / run.folder), name=run.name)])
            ledger.claim("s", 1)
            seed = run.config.train.seed
            ledger.finish("s", end(run.identity.key, LOSSES[run.config.model.n_embd][seed - 1]))
        yield SimpleNamespace(found=results(plan, ledger), text=plan.file.text, folder=tmp_path)


def by_hand(losses):
    done = [loss for loss in losses if loss is not None]
    half = T_95[len(done) - 1] * statistics.stdev(done) / math.sqrt(len(done))
    return statistics.fmean(done), statistics.fmean(done) - half, statistics.fmean(done) + half


def test_seeds_are_grouped_with_mean_and_interval(made):
    groups = {group.name: group for group in made.found.groups}
    assert list(groups) == ["n_embd=32", "n_embd=16", "n_embd=64"]  # the lowest mean first, those without one last
    for width in (16, 32):
        loss = groups[f"n_embd={width}"].loss
        assert (loss.mean, loss.low, loss.high) == pytest.approx(by_hand(LOSSES[width]), rel=1e-5)
    assert groups["n_embd=64"].loss is None and groups["n_embd=64"].states == "3 diverged"
    assert groups["n_embd=32"].states == "2 done, 1 diverged" and groups["n_embd=32"].curve.seeds == 2
    assert groups["n_embd=16"].curve.mean == pytest.approx((4.0, 2.74, 2.54))
    assert len(made.found.bad) == 4 and made.found.finished
    assert "2.2500 [1.6147, 2.8853]" in table(made.found).splitlines()[1]


def test_an_interval_of_the_normal_distribution_would_be_caught(made, monkeypatch):
    monkeypatch.setattr("search.paired.central_quantile", lambda confidence, freedom: 1.96)
    loss = sweep_results._group(list(made.found.groups[0].rows)).loss
    assert loss.low != pytest.approx(by_hand(LOSSES[32])[1], rel=1e-5)


def test_the_page_says_what_the_results_say(made):
    page = build_page(made.found, made.text, made.folder)
    assert page == build_page(made.found, made.text, made.folder)
    body = re.search(r"<body>(.*)<script>", page, re.S).group(1)
    rows = ET.fromstring(f"<body>{body}</body>").findall(".//section[@id='configurations']//tbody/tr")
    shown = [["".join(cell.itertext()) for cell in row] for row in rows]
    assert [row[0] for row in shown] == ["n_embd=32", "n_embd=16", "n_embd=64"]
    assert shown[0][1] == "2.2500 [1.6147, 2.8853]" and shown[1][3] == "+0.2900" and shown[2][1] == "\u2013"
    runs = ET.fromstring(f"<body>{body}</body>").findall(".//section[@id='runs']//tbody/tr")
    tokens = [row[4].text or "".join(row[4].itertext()) for row in runs]
    assert tokens == ["99"] * 5 + ["\u2013"] * 4  # nobody counted those of what failed
    assert "9 runs, 3 configurations, 4 failed" in page
    assert "loss is &lt;nan&gt;" in page and "&lt;/script&gt;nan" in page
    assert "mean of 2 seeds; 1 of its 3 runs failed. The best of many looks better than it is" in page
    assert not re.findall(r"(?:src|href)=\"(?!#|runs/)[^\"]*", page)  # one file: nothing is fetched
    assert page.count("<script>") == page.count("</script>") == 1


def test_figures_show_the_same_numbers(made, tmp_path):
    pytest.importorskip("matplotlib")
    from search.sweep_figures import _bars, _curves, write_figures

    axes = _bars(made.found).axes[0]
    assert [bar.get_width() for bar in axes.patches] == pytest.approx([0.0, 0.29])
    assert [label.get_text() for label in axes.get_yticklabels()] == ["n_embd=32", "n_embd=16"]
    assert [words.get_text() for words in axes.texts] == ["2.2500", "2.5400"]
    lines = _curves(made.found).axes[0].lines
    assert [list(line.get_ydata()) for line in lines] == [
        list(group.curve.mean) for group in made.found.groups if group.curve
    ]
    none = dataclasses.replace(made.found, groups=made.found.groups[2:])  # no run is done
    assert write_figures(none, tmp_path / "none") == [] and not (tmp_path / "none").exists()
    paths = write_figures(made.found, tmp_path / "one")
    again = write_figures(made.found, tmp_path / "two")
    assert [p.name for p in paths] == ["bars.png", "bars.pdf", "curves.png", "curves.pdf"]
    assert [p.read_bytes() for p in paths] == [p.read_bytes() for p in again]


@pytest.mark.parametrize("letters", [4, 60])
def test_no_words_of_the_bars_are_cut_off(made, letters):
    """Long names narrow the axes, below which the title of the losses is wider than they are."""
    matplotlib = pytest.importorskip("matplotlib")
    from gptcore.analysis.figures import STYLE
    from search.sweep_figures import _bars

    with matplotlib.rc_context(STYLE):
        groups = tuple(dataclasses.replace(group, name="n" * letters) for group in made.found.groups)
        figure = _bars(dataclasses.replace(made.found, groups=groups))
        figure.canvas.draw()
        axes = figure.axes[0]
        words = [t for t in (*figure.texts, *axes.texts, *axes.get_yticklabels(), axes.xaxis.label) if t.get_text()]
        boxes = [text.get_window_extent() for text in words]
    assert any("nats" in text.get_text() for text in words)
    assert min(box.x0 for box in boxes) >= 0 and max(box.x1 for box in boxes) <= figure.bbox.x1
