"""Figures for papers: their data are those of the view, in the units on their axes; the same bytes each time."""

import dataclasses
import os
import struct
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
from made_study import settings, study, with_controls

matplotlib = pytest.importorskip("matplotlib")

from gptcore.analysis.figures import DPI, STYLE, new_figure, save, style  # noqa: E402
from search.figures import WIDTH_IN, draw, write_figures  # noqa: E402
from search.ledger import Ledger  # noqa: E402
from search.view import study_view  # noqa: E402

FACTORS = {
    "area (mm\u00b2)": 1e-6,
    "energy per token (\u00b5J)": 1e-6,
    "latency (\u00b5s)": 1e-6,
    "parameters (k)": 1e3,
}


@pytest.fixture(scope="module")
def ledger(tmp_path_factory):
    path = tmp_path_factory.mktemp("figures") / "ledger.sqlite"
    with Ledger(path) as ledger:
        with_controls(ledger, controls=2)
        study(ledger, "going", rounds=1, conclude=False)
        ledger.lead("new", "hash", "", settings=settings("new"))
    return path


@pytest.fixture(scope="module")
def view(ledger):
    with Ledger(ledger, read_only=True) as opened:
        return study_view(opened, "made")


@pytest.fixture(scope="module")
def drawn(view):
    return draw(view)


def line(axes, label):
    return next(line for line in axes.get_lines() if line.get_label() == label)


def check_front(view, chart, axes):
    factor = FACTORS[axes.get_xlabel()]
    wanted = [(p.costs[chart.cost] / factor, view.score.start - p.gain.mean) for p in chart.front]
    assert line(axes, "front").get_xydata().tolist() == pytest.approx([pytest.approx(xy) for xy in wanted])
    return factor


def test_data_are_those_of_the_view_in_the_units_of_the_axes(view, drawn):
    assert list(drawn) == [f"pareto_{chart.cost}" for chart in view.charts] + ["path", "controls", "curves"]
    for chart in view.charts:
        (axes,) = drawn[f"pareto_{chart.cost}"].axes
        factor = check_front(view, chart, axes)
        assert axes.get_ylabel() == "validation loss, nats"
        end = line(axes, "end, fresh seeds").get_xydata()[0]
        assert end == pytest.approx([view.end.costs[chart.cost] / factor, view.score.start - view.end.gain.mean])
        with pytest.raises(AssertionError):
            check_front(view, chart.__class__(chart.cost, chart.points, chart.front[1:]), axes)


def test_path_controls_and_curves(view, drawn):
    above, below = drawn["path"].axes
    total = view.score.start - sum(step.gain.mean for step in view.path)
    scores = max((one.get_ydata() for one in above.get_lines()), key=len)
    assert len(scores) == len(view.path) + 1 and scores[-1] == pytest.approx(total)
    areas = max((one.get_ydata() for one in below.get_lines()), key=len)
    assert areas[-1] == pytest.approx(view.end.costs["area_m2"] / 1e-6) and below.get_ylabel() == "area (mm\u00b2)"
    left, right = drawn["controls"].axes
    assert [tick.get_text() for tick in left.get_yticklabels()] == ["greedy", "random1", "random2"]
    at = {(round(x, 9), y) for one in left.get_lines() for x, y in one.get_xydata()}
    assert {(round(end.gain.mean, 9), row) for row, end in enumerate([view.end, *view.controls])} <= at
    assert left.get_xlabel() == "gain over the start (nats)" and right.get_xlabel() == "area (mm\u00b2)"
    (axes,) = drawn["curves"].axes
    for curve in view.curves:
        shown = line(axes, curve.name.replace("->", "\u2192"))
        assert shown.get_ydata().tolist() == list(curve.mean) and shown.get_xdata().tolist() == list(curve.steps)


def small_or_outside(drawn):
    """Words that are smaller than 5.5 pt, or that leave the figure."""
    wrong = []
    with matplotlib.rc_context(STYLE):
        for name, figure in drawn.items():
            figure.draw_without_rendering()
            box = figure.bbox.padded(1)
            ticks = [t for axes in figure.axes for axis in (axes.xaxis, axes.yaxis) for t in axis.get_ticklabels()]
            for text in figure.findobj(matplotlib.text.Text):  # tick labels beyond the limits are never drawn
                if text.get_text() and text.get_visible() and text not in ticks:
                    found = text.get_window_extent()
                    inside = box.contains(found.x0, found.y0) and box.contains(found.x1, found.y1)
                    if not inside or text.get_fontsize() < 5.5:
                        wrong.append((name, text.get_text()))
    return wrong


def test_text_is_legible_and_inside(view, drawn):
    assert small_or_outside(drawn) == []
    changed = draw(dataclasses.replace(view, charts=(), controls=(), curves=()))
    changed["path"].axes[0].set_ylabel("a label that is far too long for a figure of one column, and so leaves it " * 2)
    assert small_or_outside(changed)


def some(view):
    """A figure of each kind but one, since a font is cut down anew for each PDF."""
    return dataclasses.replace(view, charts=view.charts[:1], controls=())


def test_same_bytes_in_another_process_without_pyplot(ledger, view, tmp_path):
    before = dict(matplotlib.rcParams)
    written = write_figures(some(view), tmp_path / "a")
    assert dict(matplotlib.rcParams) == before
    names = [f"{name}{suffix}" for name in ("pareto_area_m2", "path", "curves") for suffix in (".png", ".pdf")]
    assert [path.name for path in written] == names
    script = (
        "import dataclasses, sys; from pathlib import Path\nfrom search.ledger import Ledger\n"
        "from search.view import study_view\nfrom search.figures import write_figures\n"
        "with Ledger(sys.argv[1], read_only=True) as ledger:\n    view = study_view(ledger, 'made')\n"
        "write_figures(dataclasses.replace(view, charts=view.charts[:1], controls=()), Path(sys.argv[2]))\n"
        "assert 'matplotlib.pyplot' not in sys.modules and 'torch' not in sys.modules, 'imported'\n"
    )
    environment = os.environ | {"PYTHONHASHSEED": "7", "PYTHONPATH": str(Path(__file__).parents[2])}
    subprocess.run([sys.executable, "-c", script, str(ledger), str(tmp_path / "b")], check=True, env=environment)
    for path in written:
        content = path.read_bytes()
        assert content == (tmp_path / "b" / path.name).read_bytes(), path.name
        assert b"CreationDate" not in content and b"Software" not in content
        if path.suffix == ".png":
            assert struct.unpack(">I", content[16:20])[0] == round(WIDTH_IN * DPI)


def test_under_way_there_is_less_to_draw(ledger):
    with Ledger(ledger, read_only=True) as opened:
        assert set(draw(study_view(opened, "new"))) == set()
        names = set(draw(study_view(opened, "going")))
    assert "controls" not in names and {"path", "curves", "pareto_area_m2"} <= names


def test_a_name_that_the_font_cannot_write_is_no_warning(tmp_path):
    with style():
        figure = new_figure(1.0)
        figure.suptitle("\u5b9e\u9a8c")
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert all(path.stat().st_size > 0 for path in save(figure, tmp_path, "figure"))
