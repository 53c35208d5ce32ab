"""The score of every point over a cost, as inline SVG: front, greedy path, ends of the search and its controls.

Every mark says in words what it is (<title>). Shape tells kinds of marks apart, colour only helps.
"""

from math import hypot

from ppa.page.elements import text
from ppa.page.units import figure

from ..paired import Interval
from ..view_records import Chart, End, Point, StudyView
from .charts import BOTTOM, LEFT, RIGHT, TALL, TOP, WIDE, Axis, clip, grid, px
from .terms import cost_title, cost_words, gain_words, point_words, score_title

CROWDED = 60  # points from which on those that are dominated have their cost interval in words alone
_STAR = "M0 -16L3.8 -5.2 15.2 -4.9 6.1 2 9.4 12.9 0 6.4 -9.4 12.9 -6.1 2 -15.2 -4.9 -3.8 -5.2z"
SHAPES = {
    "dominated": '<circle r="3.2"/>', "front": '<circle r="5"/>', "start": '<path d="M-6.5 -6.5H6.5V6.5H-6.5z"/>',
    "step": '<circle r="9"/>', "end": f'<path d="{_STAR}"/>', "control": '<path d="M0 -7L6 0L0 7L-6 0z"/>',
}  # fmt: skip


class Plane:
    """One chart: score over a cost, both with their intervals."""

    def __init__(self, view: StudyView, chart: Chart):
        self.view, self.chart, self.cost = view, chart, chart.cost
        self.path, self.ends = view.way(self.cost), view.ends(self.cost)
        least = view.least_gain(chart)
        self.beyond = [p for p in chart.points if p.gain and p.gain.mean < least]
        gains = [p.gain.mean for p in chart.points if p.gain and p.gain.mean >= least]
        gains += [end.gain.mean for end in self.ends]
        values = [p.costs[self.cost] for p in chart.points] + [end.costs[self.cost] for end in self.ends]
        self.x = Axis(values, LEFT, WIDE - RIGHT, cost_title(self.cost)[1], log=True)
        self.y = Axis([view.score.at(gain) for gain in gains], TALL - BOTTOM, TOP)

    def at(self, point: Point) -> tuple[float, float]:
        """Where a point is drawn; the worst at the edge."""
        assert point.gain is not None
        y = self.y(self.view.score.at(point.gain.mean))
        return self.x(point.costs[self.cost]), min(max(y, TOP), TALL - BOTTOM)

    def draw(self) -> str:
        title = cost_title(self.cost)[0]
        label = f"{score_title(self.view.score)} over {title}; the numbers are in the table below"
        clip_id, clipped = f"clip-{self.cost}", f'clip-path="url(#clip-{self.cost})"'
        key = {p.key for p in (*self.chart.front, *self.path)}
        rest = [p for p in self.chart.points if p.key not in key]
        inside = [p for p in rest if p not in self.beyond]
        known = {p.key for p in self.path}
        fronts = [p for p in self.chart.front if p.key not in known]
        ends = "".join(self._end(end) for end in reversed(self.ends))  # the end behind the number of the last step
        return (
            f'<svg class="plane search" viewBox="0 0 {px(WIDE)} {px(TALL)}" role="img" aria-label="{text(label)}">'
            f"{clip(clip_id)}{grid(self.x, self.y, title, score_title(self.view.score))}"
            f"<g {clipped}>{self._bounds()}{''.join(map(self._whiskers, inside + fronts + self.path))}"
            f"{''.join(map(self._end_whiskers, self.ends))}{self._staircase()}</g>"
            f"{''.join(self._mark(p, 'dominated') for p in inside)}{''.join(map(self._edge, self.beyond))}"
            f"{''.join(self._mark(p, 'front') for p in fronts)}{self._arrows()}{ends}{self._steps()}</svg>"
        )

    def _cross(self, style: str, x: float, y: float, gain: Interval, width: tuple[float, float] | None) -> str:
        """Whiskers of a mark: thin ones across for a cost, upright ones for a gain."""
        drawn = ""
        if width is not None and width[0] != width[1]:
            drawn += f"M{px(self.x(width[0]))} {px(y)}H{px(self.x(width[1]))}"
        if gain.low is not None and gain.high is not None and gain.low != gain.high:
            ends = (self.y(self.view.score.at(end)) for end in (gain.low, gain.high))
            drawn += f"M{px(x)} {'V'.join(map(px, ends))}"
        return f'<path class="whisk {style}" d="{drawn}"/>' if drawn else ""

    def _whiskers(self, point: Point) -> str:
        assert point.gain is not None
        x, y = self.at(point)
        style = "w-step" if point in self.path else "w-front" if point in self.chart.front else "w-dominated"
        crowded = style == "w-dominated" and len(self.chart.points) > CROWDED
        return self._cross(style, x, y, point.gain, None if crowded else point.intervals.get(self.cost))

    def _end_whiskers(self, end: End) -> str:
        x, y = self.x(end.costs[self.cost]), self.y(self.view.score.at(end.gain.mean))
        style = "w-end" if end is self.view.end else "w-control"
        return self._cross(style, x, y, end.gain, end.intervals.get(self.cost))

    @property
    def bounds(self) -> dict[str, float]:
        """Constraints of the study that lie within the chart."""
        found = self.view.settings.get("constraints", {}).get(self.cost) or {}
        return {end: value for end, value in found.items() if value is not None and self.x.holds(value)}

    def _bounds(self) -> str:
        title, unit = cost_title(self.cost)
        return "".join(
            f'<path class="bound" d="M{px(self.x(value))} {px(TOP)}V{px(TALL - BOTTOM)}"><title>constraint: '
            f"{text(title)} at {'most' if end == 'max' else 'least'} {figure(value, unit)}</title></path>"
            for end, value in self.bounds.items()
        )

    def _staircase(self) -> str:
        """The edge of what is attained: along it nothing is better and as cheap."""
        spots = [self.at(point) for point in self.chart.front]
        if not spots:
            return ""
        drawn = f"M{px(spots[0][0])} {px(spots[0][1])}" + "".join(f"H{px(x)}V{px(y)}" for x, y in spots[1:])
        return f'<path class="staircase" d="{drawn}"/>'

    def _mark(self, point: Point, kind: str, inner: str = "") -> str:
        x, y = self.at(point)
        words = text(point_words(self.view, point, self.cost))
        reach = f' tabindex="0" role="img" aria-label="{words}"' if kind != "dominated" else ""
        return (
            f'<g class="m m-{kind}" transform="translate({px(x)} {px(y)})"{reach}><title>{words}</title>'
            f"{SHAPES[kind]}{inner}</g>"
        )

    def _edge(self, point: Point) -> str:
        """A point that is worse than the chart is tall."""
        x, y = self.at(point)
        away = -1 if y <= TOP else 1
        return (
            f'<g class="m m-dominated" transform="translate({px(x)} {px(y)})"><title>beyond the edge: '
            f'{text(point_words(self.view, point, self.cost))}</title><path d="M-4 0L4 0L0 {6 * away}z"/></g>'
        )

    def _arrows(self) -> str:
        drawn = []
        for before, after in zip(self.path, self.path[1:], strict=False):
            (x0, y0), (x1, y1) = self.at(before), self.at(after)
            length = hypot(x1 - x0, y1 - y0)
            if length < 26:
                continue
            u, v = (x1 - x0) / length, (y1 - y0) / length
            tip, foot = (x1 - 11 * u, y1 - 11 * v), (x0 + 10 * u, y0 + 10 * v)
            back = (tip[0] - 8 * u, tip[1] - 8 * v)
            head = " ".join(
                f"{px(a)},{px(b)}"
                for a, b in (tip, (back[0] - 4 * v, back[1] + 4 * u), (back[0] + 4 * v, back[1] - 4 * u))
            )
            drawn.append(
                f'<line class="way" x1="{px(foot[0])}" y1="{px(foot[1])}" x2="{px(back[0])}" y2="{px(back[1])}"/>'
                f'<polygon class="head" points="{head}"/>'
            )
        return "".join(drawn)

    def _steps(self) -> str:
        """The start and the steps, numbered."""
        return "".join(
            self._mark(point, "start")
            if point.measured == "start"
            else self._mark(point, "step", f'<text dy="4" text-anchor="middle">{i}</text>')
            for i, point in enumerate(self.path, 0 if self.path and self.path[0].measured == "start" else 1)
        )

    def _end(self, end: End) -> str:
        kind, name = ("end", "the end") if end is self.view.end else ("control", f"random control {ordinal(end)}")
        x, y = self.x(end.costs[self.cost]), self.y(self.view.score.at(end.gain.mean))
        y = min(max(y, TOP), TALL - BOTTOM)
        title, shown = cost_title(self.cost)[0], cost_words(self.cost, end.costs, end.intervals)
        gain = gain_words(end.gain, self.view.score.unit)
        words = text(f"{name}, on {end.gain.seeds} fresh seeds \u00b7 {title} {shown} \u00b7 gain {gain}")
        reach = f'tabindex="0" role="img" aria-label="{words}"'
        return (
            f'<g class="m m-{kind}" transform="translate({px(x)} {px(y)})" {reach}><title>{words}</title>'
            f"{SHAPES[kind]}</g>"
        )


def ordinal(end: End) -> str:
    """The number of a random control."""
    return end.study.rpartition(".random")[2]


def icon(kind: str) -> str:
    """A mark for a legend."""
    mark = f'<g class="m m-{kind}">{SHAPES[kind]}</g>'
    return f'<svg class="icon search" viewBox="-14 -14 28 28" aria-hidden="true">{mark}</svg>'
