"""The sections of the page of a study that hold charts, and the path. What comes from a ledger is escaped by `text`."""

from collections.abc import Mapping
from math import fsum

from ppa.page.elements import behind, number, panel, table, text, whole

from ..paired import Interval
from ..view_records import StudyView, cost_names
from .charts import curves_chart, dot, swatch
from .pareto import SHAPES, Plane, icon, ordinal
from .terms import (
    MEASURED,
    called,
    change_cell,
    cost_title,
    cost_words,
    gain_cell,
    percent_change,
    ratio_cell,
    rule_title,
    score_title,
    score_words,
)

_LEGEND = {
    "front": "on the front", "dominated": "dominated: another is as good and cheaper, or better and as cheap",
    "start": "the start", "step": "steps that were taken, in order", "end": "the end, on fresh seeds",
    "control": "ends of random controls, on fresh seeds",
}  # fmt: skip


def pareto_panel(view: StudyView) -> str:
    if not view.charts:
        return ""
    first = next((c.cost for c in view.charts if c.cost == view.settings.get("cost", {}).get("name")), None)
    first = first or view.charts[0].cost
    picks, figures = [], []
    for chart in view.charts:
        title, plane = cost_title(chart.cost)[0], Plane(view, chart)
        checked = ' checked="checked"' if chart.cost == first else ""
        name = text(chart.cost)
        picks.append(f'<label><input type="radio" name="chart" value="{name}"{checked}/> {text(title)}</label>')
        beyond = len(plane.beyond)
        worse = "One that is worse lies" if beyond == 1 else f"{beyond} that are worse lie"
        edge = f" {worse} beyond the edge, where the small triangles are." if beyond else ""
        figures.append(
            f'<div class="figure chart" data-cost="{name}"><h3>{text(score_title(view.score))} over {text(title)}</h3>'
            f'<div class="scroll">{plane.draw()}</div><p class="note">{len(chart.front)} of {len(chart.points)} points '
            f"are not dominated.{edge}{' Dashed lines are constraints.' if plane.bounds else ''}</p>"
            '<output class="readout">Point at a mark, or move to it with the Tab key, to '
            "read what it is.</output></div>"
        )
    kinds = [kind for kind in SHAPES if kind != "control" or view.controls]
    legend = "".join(f"<li>{icon(kind)}{_LEGEND[kind]}</li>" for kind in kinds)
    left = f" {_points(view.left_out)} without a paired gain (failed, pruned) left out." if view.left_out else ""
    warm = " Steps were trained on from grown weights, and so learned more than from scratch." if view.warm else ""
    kept = " Of all that this search measured, the members of its front alone were judged." if view.kept else ""
    lead = (
        "Every point that was judged. Upright lines are intervals of the last paired gain; thin lines across are "
        "those of the cost model, and mostly common to all points, so that the order of costs is surer than they "
        f"look. Lines are cut at the edge.{left}{warm}{kept}"
    )
    choose = f'<fieldset class="pick" aria-label="Cost">{"".join(picks)}</fieldset>' if len(picks) > 1 else ""
    body = f'{choose}<ul class="legend">{legend}</ul>{"".join(figures)}{_table(view)}{_kept(view)}'
    return panel("pareto", "Score and cost", lead, body)


def _points(count: int) -> str:
    return "One point is" if count == 1 else f"{count} points are"


def _table(view: StudyView) -> str:
    """The points of all charts, best first."""
    fronts = {chart.cost: {p.key for p in chart.front} for chart in view.charts}
    ranked = [(p, p.gain) for p in sorted(view.points, key=lambda p: -p.gain.mean if p.gain else 0.0) if p.gain]
    rows = []
    for point, gain in ranked:
        on = [text(cost_title(cost)[0]) for cost, keys in fronts.items() if point.key in keys]
        costs = [text(cost_words(c, point.costs, point.intervals)) if c in point.costs else "\u2013" for c in fronts]
        measured = f"{MEASURED[point.measured]}{f', {gain.seeds} seeds' if gain.seeds else ''}"
        rows.append(
            [
                text(called(point.name)), str(point.round or "\u2013"), text(score_words(view.score, gain)),
                gain_cell(gain), text(measured), *costs, ", ".join(on) or "\u2013",
            ]
        )  # fmt: skip
    heads = ["point", "round", text(score_title(view.score)), "gain over the start", "measured"]
    heads += [*(text(cost_title(cost)[0]) for cost in fronts), "on the front over"]
    kinds = "tnnnt" + "n" * len(fronts) + "t"
    return behind("Table of all points", table(heads, rows, caption="All points that were judged", kinds=kinds))


def _kept(view: StudyView) -> str:
    """The front that a multi-objective search ends with."""
    if not view.kept:
        return ""
    costs = [chart.cost for chart in view.charts]
    rows = [
        [text(called(p.name)), gain_cell(p.gain, text(view.score.unit)) if p.gain else "\u2013"]
        + [text(cost_words(c, p.costs, p.intervals)) if c in p.costs else "\u2013" for c in costs]
        for p in sorted(view.kept, key=lambda p: -p.gain.mean if p.gain else 0.0)
    ]
    heads = ["point", "gain over the start", *(text(cost_title(c)[0]) for c in costs)]
    return "<h3>The front that the search kept</h3>" + table(heads, rows, caption="The front that the search kept")


def path_panel(view: StudyView) -> str:
    """The steps that were taken."""
    if not view.path:
        return panel("path", "The path", "", "<p>No move was taken.</p>")
    names = [chart.cost for chart in view.charts]
    rows, before = [], view.start
    for i, step in enumerate(view.path, 1):
        costs = []
        for cost in names:
            there = cost in step.point.costs
            costs.append(text(cost_words(cost, step.point.costs, {})) if there else "\u2013")
            if there and before is not None and cost in before.costs:
                costs[-1] += (
                    f'<br/><span class="iv">{percent_change(before.costs[cost], step.point.costs[cost])}</span>'
                )
        rows.append(
            [
                f"{i}. {text(called(step.point.name))}", gain_cell(step.gain, text(view.score.unit)),
                str(step.gain.seeds), change_cell(view, step.cost_change), ratio_cell(view, step.ratio), *costs,
            ]
        )  # fmt: skip
        before = step.point
    heads = [
        "step", "gain on fresh seeds", "seeds", f"change of {text(rule_title(view))}", "gain per cost",
        *(f"{text(cost_title(c)[0])} then" for c in names),
    ]  # fmt: skip
    lead = "Each step was selected on the seeds of its round and confirmed on others before it was taken."
    unit = text(view.score.unit)
    total = gain_cell(Interval(fsum(step.gain.mean for step in view.path), None, None, 0), unit)
    if view.end and view.end.fresh:
        whole_way = f"Start against end on {view.end.gain.seeds} fresh seeds: {gain_cell(view.end.gain, unit)}."
    else:
        whole_way = "Start and end have not been compared on fresh seeds."
    sums = f'<p class="next">The steps add up to {total}. {whole_way}</p>'
    return panel("path", "The path", lead, table(heads, rows, caption="Steps that were taken") + sums)


def curves_panel(view: StudyView) -> str:
    if not view.curves:
        return ""
    rows = [
        [
            f"{swatch(i)}{text(called(c.name))}", number(c.mean[-1], shown=f"{c.mean[-1]:.4f}"),
            f"{number(c.low[-1], shown=f'{c.low[-1]:.4f}')} to {number(c.high[-1], shown=f'{c.high[-1]:.4f}')}",
            str(c.seeds), f"{c.steps[-1]:,}", text(c.words),
        ]
        for i, c in enumerate(view.curves)
    ]  # fmt: skip
    heads = ["configuration", "loss at the end", "lowest to highest seed", "seeds", "steps", ""]
    lead = (
        "The end of the search, the winners of the last rounds and the start: mean over all seeds, with a band from "
        "the lowest to the highest. Bands are wide because a seed changes every loss; pairs of equal seeds decide, "
        "and seeds differ between curves."
    )
    body = f'<div class="figure chart">{curves_chart(view.curves)}</div>' + table(
        heads, rows, caption="Losses of finalists", kinds="tnnnnt"
    )
    return panel("curves", "Learning curves of finalists", lead, body)


def controls_panel(view: StudyView) -> str:
    """The search beside random search at equal budget."""
    if view.end is None:
        return ""
    if not view.controls:
        words = "No random control has been run, so nothing here tells that this way of searching is worth its rules."
        return panel("controls", "Against random search", "", f"<p>{words}</p>")
    name = view.settings.get("strategy", {}).get("kind", "search")
    ends = [(name, view.end), *((f"random {ordinal(control)}", control) for control in view.controls)]
    gains = [v for _, e in ends for v in (e.gain.mean, e.gain.low, e.gain.high) if v is not None]
    of_start = view.cost_of(view.start.costs) if view.start else None
    costs = [cost[0] for e in [end for _, end in ends] if (cost := view.cost_of(e.costs))] + [*(of_start or ())][:1]
    span = min(0.0, *gains), max(0.0, *gains)
    rows = []
    for title, end in ends:
        style = "" if end is view.end else "control"
        note = "" if end.moves else '<br/><span class="iv">did not move</span>'
        note = note if end.fresh else '<br/><span class="iv">sum of its steps</span>'
        gain = gain_cell(end.gain, text(view.score.unit))
        gain += note + dot(end.gain.mean, end.gain.low, end.gain.high, span, 0.0, style)
        cost, priced, changed = view.cost_of(end.costs), "\u2013", "\u2013"
        if cost and of_start:
            at = dot(cost[0], None, None, (min(costs), max(costs)), of_start[0], style)
            priced, changed = _cost_of(view, end.costs) + at, percent_change(of_start[0], cost[0])
        used = whole(end.used.trials), whole(end.used.tokens)
        rows.append([text(title), gain, priced, changed, *used, text(end.reason or "under way")])
    heads = ["search", "gain", text(rule_title(view)), "change", "trials", "tokens", "why it ended"]
    drawn = table(heads, rows, caption="Ends of the search and of its random controls", kinds="tnnnnnt")
    lead = (
        "Random walks from the same start, judged by the same rule. A gain is start against end on fresh seeds; dashed "
        "lines are the start."
    )
    body = f'<p class="versus">{text(comparison_words(view))}</p>{drawn}'
    return panel("controls", "Against random search", lead, body)


def _cost_of(view: StudyView, costs: Mapping[str, float]) -> str:
    if view.settings["cost"].get("weights"):
        (weighted,) = view.cost_of(costs) or (0.0,)
        return number(weighted, shown=f"{weighted:.3f}")
    return ", ".join(text(cost_words(name, costs, {})) for name in cost_names(view.settings))


def comparison_words(view: StudyView) -> str:
    """Who is ahead, and of how many. Counted, not claimed."""
    found = view.comparison
    name = view.settings.get("strategy", {}).get("kind", "search")
    if not found.controls:
        return "No random control has ended yet."
    of = f"of {found.controls} random controls"
    words = f"{name[:1].upper()}{name[1:]} ends with a larger gain than {found.ahead} {of}"
    words += f", for {found.clear} of them with no overlap of the intervals" if found.ahead else ""
    words += f"; {found.behind} end{'s' if found.behind == 1 else ''} with a larger one" if found.behind else ""
    words += f". By {rule_title(view)}, {found.controls - found.no_dearer} end cheaper than it"
    words += f"; {found.no_dearer} do not, {found.both} of which also gain less." if found.no_dearer else "."
    if found.summed:
        words += f" Of {found.summed}, the gain is the sum of steps, which is too large on average: no fresh seeds."
    return words
