"""The figures of a study for papers: PNG and PDF, one column wide, the same bytes for the same study.

    write_figures(view, folder) -> paths

pareto_<cost>   the score of every point over a cost, with the front, the path and the ends of the random controls
path            score and cost by step
controls        gain and cost of the search beside its random controls
curves          learning curves of the finalists

What there is nothing to show of is left out. Shapes and dashes tell the same as colours. Intervals
as on the page of the study.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gptcore.analysis.figures import BLACK, BLUE, GREEN, GREY, ORANGE, PINK, SKY, YELLOW, new_figure, save, style
from ppa.page.units import scale

from .page.charts import LONG
from .page.terms import called, cost_title, rule_title, score_title
from .paired import Interval
from .view_records import Chart, Point, StudyView, cost_names

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH_IN = 3.4  # one column
DASHES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (1, 1.5)), (0, (6, 2, 1, 2)), (0, (3, 1.5)), (0, (1, 3)), "-")


def write_figures(view: StudyView, folder: Path) -> list[Path]:
    """Writes all there are; their paths. ImportError without matplotlib."""
    folder.mkdir(parents=True, exist_ok=True)
    with style():
        return [path for name, figure in draw(view).items() for path in save(figure, folder, name)]


def draw(view: StudyView) -> dict[str, "Figure"]:
    """The figures by name; they are to be rendered in `style()`, too."""
    with style():
        figures = {f"pareto_{chart.cost}": _pareto(view, chart) for chart in view.charts}
        if view.path and any(len(view.way(cost)) > len(view.path) for cost in cost_names(view.settings)[:1]):
            figures["path"] = _path(view)
        if view.end and view.controls and view.cost_of(view.end.costs):
            figures["controls"] = _controls(view)
        if view.curves:
            figures["curves"] = _curves(view)
        return figures


def _figure(height_in: float, rows: int = 1, columns: int = 1, **sharing: Any) -> tuple["Figure", Any]:
    figure = new_figure(height_in, WIDTH_IN)
    return figure, figure.subplots(rows, columns, **sharing)


def _scaled(cost: str, largest: float) -> tuple[float, str]:
    """(factor, axis label) of a cost."""
    title, unit = cost_title(cost)
    factor, name = scale(largest, unit)
    return factor, f"{title} ({name})" if name else title


def _ends(view: StudyView, gain: Interval) -> list[list[float]] | None:
    """Lengths of the whiskers of a score, below and above."""
    if gain.low is None or gain.high is None:
        return None
    best = view.score.at(gain.mean)
    low, high = sorted((view.score.at(gain.low), view.score.at(gain.high)))
    return [[max(best - low, 0.0)], [max(high - best, 0.0)]]


def _pareto(view: StudyView, chart: Chart) -> "Figure":
    figure, axes = _figure(2.5)
    cost, at, least = chart.cost, view.score.at, view.least_gain(chart)
    factor, label = _scaled(cost, max(p.costs[cost] for p in chart.points))
    front, path = {p.key for p in chart.front}, view.way(cost)

    def place(point: Point) -> tuple[float, float]:
        assert point.gain is not None
        return point.costs[cost] / factor, at(point.gain.mean)

    others = [p for p in chart.points if p.key not in front and p.gain]
    near = [place(p) for p in others if p.gain and p.gain.mean >= least]
    if near:
        far = f" (+{len(others) - len(near)} far off)" if len(near) < len(others) else ""
        axes.plot(*zip(*near, strict=True), "o", ms=2.6, mfc="none", mec=GREY, mew=0.6, label=f"dominated{far}")
    spots = list(map(place, chart.front))
    axes.step(*zip(*spots, strict=True), where="post", color=BLUE, lw=0.9, zorder=2)
    axes.plot(*zip(*spots, strict=True), "o", ms=3.6, color=BLUE, label="front", zorder=3)
    _mark_path(axes, list(map(place, path)), numbers_from=0 if view.start in path else 1)
    _mark_ends(view, axes, cost, factor)
    costs = [p.costs[cost] for p in chart.points]
    if min(costs) > 0 and max(costs) > LONG * min(costs):
        axes.set_xscale("log")
    limits = axes.get_xlim(), axes.get_ylim()  # those of the points: whiskers are cut
    for point in {p.key: p for p in (*chart.front, *path)}.values():
        assert point.gain is not None
        width = [[end] for end in _cost_ends(point, cost, factor)]
        colour = ORANGE if point in path else BLUE
        lines = {"ecolor": colour, "elinewidth": 0.4, "alpha": 0.55, "fmt": "none", "zorder": 1}
        axes.errorbar(*place(point), _ends(view, point.gain), width, **lines)
    axes.set(xlabel=label, ylabel=score_title(view.score), xlim=limits[0], ylim=limits[1])
    figure.legend(
        *axes.get_legend_handles_labels(),
        loc="outside upper center",
        ncols=3,
        columnspacing=1,
        handletextpad=0.3,
        markerscale=0.8,
    )
    return figure


def _mark_path(axes: "Axes", spots: Sequence[tuple[float, float]], *, numbers_from: int) -> None:
    """Numbered steps and arrows between them; number 0 is the start."""
    arrow = {"arrowstyle": "-|>", "color": ORANGE, "lw": 1.0, "shrinkA": 3, "shrinkB": 4, "mutation_scale": 7}
    for before, after in zip(spots, spots[1:], strict=False):
        axes.annotate("", after, before, arrowprops=arrow, zorder=5)
    words: Any = {"ha": "center", "va": "center_baseline", "color": "white", "fontsize": 5.5, "weight": "bold"}
    for i, spot in enumerate(spots, numbers_from):
        if i == 0:
            axes.plot(*spot, "s", ms=4.6, color=BLACK, label="start", zorder=6)
            continue
        axes.plot(*spot, "o", ms=7, color=ORANGE, mec="white", mew=0.5, label="steps" if i == 1 else None, zorder=6)
        axes.annotate(str(i), spot, zorder=7, **words)


def _mark_ends(view: StudyView, axes: "Axes", cost: str, factor: float) -> None:
    marks = (
        ("random, fresh seeds", [end for end in view.ends(cost) if end is not view.end], "D", 4.0, PINK),
        ("end, fresh seeds", [end for end in view.ends(cost) if end is view.end], "*", 15.0, BLACK),
    )
    for label, ends, mark, size, colour in marks:
        if ends:
            style: Any = {"ms": size, "mfc": "none" if mark == "D" else colour, "mec": colour, "ls": ""}
            costs, scores = [e.costs[cost] / factor for e in ends], [view.score.at(e.gain.mean) for e in ends]
            axes.plot(costs, scores, mark, label=label, zorder=4 if mark == "*" else 8, **style)


def _path(view: StudyView) -> "Figure":
    """Score and cost by step, the chained gains with the interval of each."""
    assert view.start is not None and view.start.gain is not None
    figure, (above, below) = _figure(3.2, 2, sharex=True)
    points = [view.start, *(step.point for step in view.path)]
    steps, total = [0.0], 0.0
    for i, step in enumerate(view.path, 1):
        before, total = total, total + step.gain.mean
        steps.append(total)
        if step.gain.low is not None and step.gain.high is not None:
            gain = Interval(total, before + step.gain.low, before + step.gain.high, step.gain.seeds)
            above.errorbar(
                i, view.score.at(total), _ends(view, gain), ecolor=ORANGE, elinewidth=0.9, capsize=2, fmt="none"
            )
    above.plot(range(len(steps)), [view.score.at(gain) for gain in steps], "o-", ms=3.4, lw=1, color=ORANGE)
    if view.end and view.end.fresh and view.end.moves:
        spot = len(steps) - 1 + 0.12, view.score.at(view.end.gain.mean)
        above.errorbar(*spot, _ends(view, view.end.gain), fmt="*", ms=6, color=BLACK, elinewidth=0.9, capsize=2)
        above.annotate("fresh seeds", spot, (4, 5), textcoords="offset points", fontsize=6, ha="right")
    cost = cost_names(view.settings)[0]
    factor, label = _scaled(cost, max(p.costs[cost] for p in points))
    lengths = list(zip(*(_cost_ends(p, cost, factor) for p in points), strict=True))
    below.errorbar(
        range(len(points)), [p.costs[cost] / factor for p in points], lengths, fmt="none", ecolor=BLUE, elinewidth=0.5
    )
    below.plot(range(len(points)), [p.costs[cost] / factor for p in points], "s-", ms=3.2, lw=1, color=BLUE)
    above.set(ylabel=score_title(view.score))
    below.set(ylabel=label)
    names = ["start", *(_short(called(step.point.name)) for step in view.path)]
    below.set_xticks(range(len(names)), names, rotation=35, ha="right", rotation_mode="anchor", fontsize=6)
    figure.align_ylabels()
    return figure


def _cost_ends(point: Point, cost: str, factor: float) -> tuple[float, float]:
    value = point.costs[cost]
    low, high = point.intervals.get(cost, (value, value))
    return (value - low) / factor, (high - value) / factor


def _controls(view: StudyView) -> "Figure":
    """Gain with its interval, and the cost that decides, a row a search."""
    assert view.end is not None
    ends = [view.end, *view.controls]
    figure, (left, right) = _figure(0.7 + 0.19 * len(ends), 1, 2, sharey=True)
    names = [
        view.settings.get("strategy", {}).get("kind", "search"),
        *(e.study.rpartition(".")[2] for e in view.controls),
    ]
    costs = [view.cost_of(end.costs) for end in ends]
    single = view.settings["cost"].get("name") or (view.settings["cost"].get("lexicographic") or [None])[0]
    found = [cost[0] for cost in costs if cost]
    factor, label = _scaled(single, max(found)) if single else (1.0, f"{rule_title(view)}, start = 1")
    for row, (end, cost) in enumerate(zip(ends, costs, strict=True)):
        style = {"fmt": "D", "ms": 3.4, "color": PINK} if row else {"fmt": "*", "ms": 7, "color": BLUE}
        gain = end.gain
        wide = None if gain.low is None or gain.high is None else [[gain.mean - gain.low], [gain.high - gain.mean]]
        left.errorbar(gain.mean, row, xerr=wide, elinewidth=1, capsize=2, **style)
        if cost:
            right.errorbar(cost[0] / factor, row, **style)
    left.axvline(0, color=GREY, lw=0.6)
    start = view.cost_of(view.start.costs) if view.start else None
    if start:
        right.axvline(start[0] / factor, color=GREY, lw=0.6)
    left.set_yticks(range(len(names)), names)
    left.set_ylim(len(names) - 0.5, -0.5)
    left.set(xlabel=f"gain over the start ({view.score.unit})")
    right.set(xlabel=label)
    right.tick_params(left=False)
    return figure


def _curves(view: StudyView) -> "Figure":
    """Mean by step, with a band from the lowest to the highest seed; cut above the loss at a fifth of the steps."""
    figure, axes = _figure(2.5)
    last = max(curve.steps[-1] for curve in view.curves)
    late: list[float] = []
    for curve, colour, dash in zip(view.curves, (BLUE, ORANGE, GREEN, PINK, YELLOW, SKY, BLACK), DASHES, strict=False):
        axes.fill_between(curve.steps, curve.low, curve.high, color=colour, alpha=0.12, lw=0)
        mark = "o" if len(curve.steps) < 12 else ""
        name = _short(called(curve.name), 34)
        axes.plot(curve.steps, curve.mean, marker=mark, ms=2, lw=1.1, color=colour, ls=dash, label=name)
        late += [
            v for s, *ends in zip(curve.steps, curve.low, curve.high, strict=True) if s >= 0.2 * last for v in ends
        ]
    room = 0.04 * (max(late) - min(late)) or 0.1
    axes.set(xlabel="step", ylabel="validation loss, nats", ylim=(min(late) - room, max(late) + room))
    axes.legend(loc="upper right")
    return figure


def _short(name: str, most: int = 26) -> str:
    return name if len(name) <= most else f"{name[: most - 1]}\u2026"
