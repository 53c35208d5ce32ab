"""Axes of inline SVG, learning curves, and dots with whiskers for the cells of a table."""

from collections.abc import Sequence
from math import ceil, floor, isfinite, log10

from ppa.page.elements import text
from ppa.page.units import digits, scale

from ..view_records import Curve
from .terms import called

WIDE, TALL, LEFT, RIGHT, TOP, BOTTOM = 720.0, 430.0, 74.0, 26.0, 34.0, 52.0
LONG = 20.0  # largest over smallest cost from which on an axis is logarithmic


class Axis:
    """From numbers to coordinates; `factor` is the scale that its ticks are written in."""

    def __init__(self, values: Sequence[float], start: float, stop: float, unit: str = "", *, log: bool = False):
        least, most = min(values), max(values)
        self.start, self.stop, self.log = start, stop, log and least > 0 and most / least > LONG
        room = 0.06 * (most - least) or 0.05 * abs(most) or 1.0
        self.low, self.high = (least / 1.2, most * 1.2) if self.log else (least - room, most + room)
        self.factor, self.unit = scale(most, unit) if unit or most >= 1000 else (1.0, "")

    def __call__(self, value: float) -> float:
        if self.log:
            share = log10(max(value, 1e-300) / self.low) / log10(self.high / self.low)
        else:
            share = (value - self.low) / (self.high - self.low)
        return self.start + (self.stop - self.start) * share

    def holds(self, value: float) -> bool:
        return self.low <= value <= self.high

    def ticks(self) -> list[tuple[float, str]]:
        """Round numbers and how they are written."""
        low, high = self.low / self.factor, self.high / self.factor
        if self.log:
            tens = range(floor(log10(low)), ceil(log10(high)) + 1)
            found = [m * 10.0**e for e in tens for m in (1, 2, 5)]
            return [(f * self.factor, digits(f, 3)) for f in found if low <= f <= high]
        rough = (high - low) / 5
        power = 10.0 ** floor(log10(rough))
        step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough)
        places = max(0, -floor(log10(step) + 1e-9))
        count = range(ceil(low / step), floor(high / step) + 1)
        return [(i * step * self.factor, f"{i * step:,.{places}f}".replace("-", "\u2212")) for i in count]


def px(value: float) -> str:
    """A coordinate: two decimals, no needless zeros."""
    return f"{value:.2f}".rstrip("0").rstrip(".") if isfinite(value) else "0"


def grid(x: Axis, y: Axis, across: str, up: str) -> str:
    """Lines, ticks and titles."""
    bottom, right = TALL - BOTTOM, WIDE - RIGHT
    drawn = []
    for value, shown in x.ticks():
        at = px(x(value))
        drawn.append(f'<line class="grid" x1="{at}" y1="{px(TOP)}" x2="{at}" y2="{px(bottom)}"/>')
        drawn.append(f'<text class="x" x="{at}" y="{px(bottom + 19)}" text-anchor="middle">{shown}</text>')
    for value, shown in y.ticks():
        at = px(y(value))
        drawn.append(f'<line class="grid" x1="{px(LEFT)}" y1="{at}" x2="{px(right)}" y2="{at}"/>')
        drawn.append(f'<text class="y" x="{px(LEFT - 8)}" y="{at}" dy="4" text-anchor="end">{shown}</text>')
    middle = px((LEFT + right) / 2)
    title = f"{across}, {x.unit}" if x.unit else across
    drawn.append(f'<text x="{middle}" y="{px(TALL - 8)}" text-anchor="middle">{text(title)}</text>')
    drawn.append(f'<text x="4" y="16">{text(up)}</text>')
    return "".join(drawn)


def clip(identity: str) -> str:
    size = f'x="{px(LEFT)}" y="{px(TOP)}" width="{px(WIDE - RIGHT - LEFT)}" height="{px(TALL - BOTTOM - TOP)}"'
    return f'<clipPath id="{identity}"><rect {size}/></clipPath>'


def curves_chart(curves: Sequence[Curve]) -> str:
    """Mean loss by step, each with a band from its lowest to its highest seed. The first fifth may leave the chart."""
    last = max(curve.steps[-1] for curve in curves)
    late = [v for c in curves for s, *ends in zip(c.steps, c.low, c.high, strict=True) if s >= 0.2 * last for v in ends]
    x = Axis([step for curve in curves for step in curve.steps], LEFT, WIDE - RIGHT)
    y = Axis(late, TALL - BOTTOM, TOP)
    drawn = []
    for i, curve in enumerate(curves):
        up = [(x(s), y(v)) for s, v in zip(curve.steps, curve.high, strict=True)]
        down = [(x(s), y(v)) for s, v in zip(curve.steps, curve.low, strict=True)]
        middle = [(x(s), y(v)) for s, v in zip(curve.steps, curve.mean, strict=True)]
        band, line = (" ".join(f"{px(a)},{px(b)}" for a, b in spots) for spots in (up + down[::-1], middle))
        dots = "".join(f'<circle cx="{px(a)}" cy="{px(b)}" r="2.6"/>' for a, b in middle) if len(middle) < 12 else ""
        drawn.append(
            f'<g class="curve c{i}"><title>{text(called(curve.name))}</title><polygon points="{band}"/>'
            f'<polyline points="{line}"/>{dots}</g>'
        )
    label = "Validation loss by step; the losses at the end are in the table below"
    return (
        f'<svg class="plane search" viewBox="0 0 {px(WIDE)} {px(TALL)}" role="img" aria-label="{label}">'
        f'{clip("clip-curves")}{grid(x, y, "step", "validation loss, nats")}<g clip-path="url(#clip-curves)">'
        f"{''.join(drawn)}</g></svg>"
    )


def swatch(i: int) -> str:
    """The line of a curve, for a legend."""
    line = f'<g class="curve c{i}"><polyline points="0,5 22,5"/></g>'
    return f'<svg class="icon" viewBox="0 0 22 10" aria-hidden="true">{line}</svg>'


def dot(best: float, low: float | None, high: float | None, span: tuple[float, float], start: float, style: str) -> str:
    """A value with its interval on an axis that all rows of a table share, with a dashed line at the start."""

    def at(value: float) -> str:
        share = (value - span[0]) / (span[1] - span[0]) if span[1] > span[0] else 0.5
        return px(3 + 94 * min(max(share, 0.0), 1.0))

    wide = ""
    if low is not None and high is not None:
        wide = f'<line class="span" x1="{at(low)}" y1="5" x2="{at(high)}" y2="5"/>'
    return (
        '<svg class="whisker dots" viewBox="0 0 100 10" preserveAspectRatio="none" aria-hidden="true">'
        f'<line class="axis" x1="2" y1="5" x2="98" y2="5"/><line class="low" x1="{at(start)}" y1="0" x2="{at(start)}" '
        f'y2="10"/>{wide}<line class="best {style}" x1="{at(best)}" y1="1" x2="{at(best)}" y2="9"/></svg>'
    )
