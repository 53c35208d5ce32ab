"""Figures as inline SVG: stacked bars, columns by layer, roofline, treemap, whiskers. Numbers in, text out.

Bars and columns hold no text and stretch with the page; their labels are HTML beside them. Colours are classes of
ppa/page.css, one a slot or class of bytes, so that they mean the same everywhere and follow light and dark.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import ceil, floor, inf, isfinite, log10

from .elements import text
from .units import figure, percent

SLOTS = (
    "attention", "softmax", "linear", "mlp", "activation", "norm", "position", "residual", "embedding", "head", "loss",
    "optimizer", "block", "shared",
)  # fmt: skip
WHISKER_SPAN = 6.0  # a whisker shows value / this to value * this
_WIDTH = 1000.0  # of figures that stretch


def colour(name: str) -> str:
    """The class that gives a slot its colour."""
    return f"s-{name}" if name in SLOTS else "s-extra"


def _n(value: float) -> str:
    """A coordinate: two decimals, no needless zeros."""
    return f"{value:.2f}".rstrip("0").rstrip(".") if isfinite(value) else "0"


@dataclass(frozen=True)
class Part:
    """A piece of a bar: what it is, the class of its colour, how much."""

    name: str
    style: str
    amount: float


def stacked(parts: Sequence[Part], whole: float, unit: str, label: str) -> str:
    """A horizontal bar whose full width is `whole`."""
    at, drawn = 0.0, []
    for part in parts:
        wide = _WIDTH * part.amount / whole if whole else 0.0
        told = f"{part.name}: {figure(part.amount, unit)}, {percent(part.amount / whole if whole else 0)}"
        drawn.append(
            f'<rect class="{part.style}" x="{_n(at)}" y="0" width="{_n(wide)}" height="20">'
            f"<title>{text(told)}</title></rect>"
        )
        at += wide
    return (
        f'<svg class="bar" viewBox="0 0 1000 20" preserveAspectRatio="none" role="img" aria-label="{text(label)}">'
        f"{''.join(drawn)}</svg>"
    )


def columns(places: Sequence[Sequence[Part]], gaps: Iterable[int], label: str, height: float = 100.0) -> str:
    """Vertical stacked bars side by side, scaled to the highest; a space before those in `gaps`. One path a colour."""
    highest = max((sum(part.amount for part in place) for place in places), default=0.0) or 1.0
    gaps = frozenset(gaps)
    step = _WIDTH / (len(places) + 0.6 * len(gaps)) if places else _WIDTH
    wide, at = step * (0.86 if len(places) < 30 else 0.9), 0.0
    paths: dict[tuple[str, str], list[str]] = {}
    for i, place in enumerate(places):
        at += 0.6 * step if i in gaps else 0.0
        top = height
        for part in place:
            tall = height * part.amount / highest
            top -= tall
            if tall >= 0.05:
                paths.setdefault((part.name, part.style), []).append(
                    f"M{_n(at)} {_n(top)}h{_n(wide)}v{_n(tall)}h-{_n(wide)}z"
                )
        at += step
    drawn = "".join(
        f'<path class="{style}" d="{"".join(d)}"><title>{text(name)}</title></path>'
        for (name, style), d in paths.items()
    )  # fmt: skip
    return (
        f'<svg class="columns" viewBox="0 0 1000 {_n(height)}" preserveAspectRatio="none" role="img" '
        f'aria-label="{text(label)}">{drawn}</svg>'
    )


def whisker(quantity: Mapping[str, float]) -> str:
    """An interval on a logarithmic axis from 1/6 to 6 times the value, the same for all, so that widths compare."""

    def at(value: float) -> float:
        share = log10(value / quantity["value"]) / log10(WHISKER_SPAN) if value > 0 and quantity["value"] > 0 else 0.0
        return 50 + 48 * max(-1.0, min(1.0, share))

    low, high, best = at(quantity["low"]), at(quantity["high"]), at(quantity["value"])
    return (
        '<svg class="whisker" viewBox="0 0 100 10" preserveAspectRatio="none" aria-hidden="true">'
        '<line class="axis" x1="2" y1="5" x2="98" y2="5"/>'
        f'<rect class="span" x="{_n(low)}" y="3" width="{_n(max(high - low, 0.8))}" height="4"/>'
        f'<line class="best" x1="{_n(best)}" y1="0" x2="{_n(best)}" y2="10"/></svg>'
    )


def log_bar(value: float, longest: float, style: str) -> str:
    """A bar on a logarithmic axis that begins at 1."""
    decades = log10(max(longest, 10))
    wide = max(_WIDTH * log10(max(value, 1)) / decades, 4.0) if value else 0.0
    marks = [_n(_WIDTH * e / decades) for e in range(3, floor(decades) + 1, 3)]
    grid = "".join(f'<line class="grid" x1="{x}" y1="0" x2="{x}" y2="10"/>' for x in marks)
    return (
        '<svg class="bar slim" viewBox="0 0 1000 10" preserveAspectRatio="none" aria-hidden="true">'
        f'<rect class="{style}" x="0" y="1" width="{_n(wide)}" height="8"/>{grid}</svg>'
    )


@dataclass(frozen=True)
class Point:
    """Of a roofline: FLOPs per byte (inf without traffic), FLOP/s attained with the ends of its interval."""

    stage: str
    intensity: float
    flop_per_s: float
    low: float
    high: float


class Roofline:
    """The plane of a roofline: both axes logarithmic, in whole decades around the roof and all points."""

    WIDE, TALL = 720.0, 400.0
    LEFT, RIGHT, TOP, BOTTOM = 66.0, 40.0, 30.0, 54.0

    def __init__(self, flop_per_s: float, bytes_per_s: float, points: Sequence[Point]):
        self.peak, self.bandwidth, self.points = flop_per_s, bytes_per_s, points
        ridge = flop_per_s / bytes_per_s
        across = [p.intensity for p in points if isfinite(p.intensity) and p.intensity > 0] + [ridge]
        up = [end for p in points for end in (p.low, p.flop_per_s) if end > 0] + [flop_per_s]
        self.x0, self.x1 = floor(log10(min(across) / 1.5)), ceil(log10(max(across) * 3))
        self.y0, self.y1 = floor(log10(min(up))), ceil(log10(max(up) * 1.5))

    def x(self, intensity: float) -> float:
        share = 1.0 if intensity == inf else (log10(max(intensity, 1e-30)) - self.x0) / (self.x1 - self.x0)
        return self.LEFT + (self.WIDE - self.LEFT - self.RIGHT) * max(0.0, min(1.0, share))

    def y(self, flop_per_s: float) -> float:
        share = (log10(max(flop_per_s, 1e-30)) - self.y0) / (self.y1 - self.y0)
        return self.TALL - self.BOTTOM - (self.TALL - self.TOP - self.BOTTOM) * max(0.0, min(1.0, share))

    def place(self, point: Point) -> str:
        """Where a point is drawn: x, y, and the ends of its interval below and above."""
        y = self.y(point.flop_per_s)
        spots = (self.x(point.intensity), y, self.y(point.low) - y, self.y(point.high) - y)
        return " ".join(_n(spot) for spot in spots)

    def roof(self, intensity: float) -> float:
        return min(self.peak, self.bandwidth * intensity)

    def draw(self, shown: Mapping[str, Point], label: str) -> str:
        """Axes, roof, all points faintly, and one of each stage that a script may move."""
        dots = "".join(
            f'<circle class="dot st-{p.stage}" cx="{_n(self.x(p.intensity))}" cy="{_n(self.y(p.flop_per_s))}" r="2.2"/>'
            for p in self.points
        )
        marks = "".join(self._mark(stage, point) for stage, point in shown.items())
        return (
            f'<svg class="plane" viewBox="0 0 {_n(self.WIDE)} {_n(self.TALL)}" role="img" aria-label="{text(label)}">'
            f"{self._axes()}{self._roof()}{dots}{marks}</svg>"
        )

    def _axes(self) -> str:
        left, right, top, bottom = self.LEFT, self.WIDE - self.RIGHT, self.TOP, self.TALL - self.BOTTOM
        drawn = []
        for e in range(self.x0, self.x1 + 1):
            x = _n(self.x(10.0**e))
            drawn.append(f'<line class="grid" x1="{x}" y1="{_n(top)}" x2="{x}" y2="{_n(bottom)}"/>')
            drawn.append(f'<text x="{x}" y="{_n(bottom + 20)}" text-anchor="middle">{text(_decade(e))}</text>')
        for e in range(self.y0, self.y1 + 1):
            y = _n(self.y(10.0**e))
            drawn.append(f'<line class="grid" x1="{_n(left)}" y1="{y}" x2="{_n(right)}" y2="{y}"/>')
            drawn.append(f'<text x="{_n(left - 8)}" y="{y}" dy="4" text-anchor="end">{text(_decade(e))}</text>')
        middle = _n((left + right) / 2)
        drawn.append(
            f'<text class="title" x="{middle}" y="{_n(self.TALL - 8)}" text-anchor="middle">'
            "arithmetic intensity, FLOP/B</text>"
        )
        drawn.append('<text class="title" x="4" y="14">attained, FLOP/s</text>')
        return "".join(drawn)

    def _roof(self) -> str:
        ridge, least = self.peak / self.bandwidth, 10.0**self.x0
        start = max(least, 10.0**self.y0 / self.bandwidth)
        spots = [(start, self.bandwidth * start), (ridge, self.peak), (10.0**self.x1, self.peak)]
        line = " ".join(f"{_n(self.x(i))},{_n(self.y(f))}" for i, f in spots)
        right, peak = self.WIDE - self.RIGHT - 6, self.y(self.peak)
        slope = (start * ridge * ridge) ** (1 / 3)  # beyond the middle of the slope, with room above for its name
        middle = self.x(slope)
        return (
            f'<polyline class="roof" points="{line}"/>'
            f'<text x="{_n(right)}" y="{_n(peak - 7)}" text-anchor="end">peak {figure(self.peak, "FLOP/s")}</text>'
            f'<text x="{_n(middle - 10)}" y="{_n(self.y(self.bandwidth * slope) - 4)}" text-anchor="end">'
            f"memory {figure(self.bandwidth, 'B/s')}</text>"
        )

    def _mark(self, stage: str, point: Point) -> str:
        x, y, low, high = self.place(point).split(" ")
        shape = '<circle r="7"/>' if stage == "prefill" else '<path d="M0 -9L9 0L0 9L-9 0z"/>'
        return (
            f'<g id="point-{stage}" class="mark st-{stage}" transform="translate({x} {y})">'
            f'<line x1="0" y1="{low}" x2="0" y2="{high}"/>{shape}<text y="-14" text-anchor="middle">{stage}</text></g>'
        )


def _decade(exponent: int) -> str:
    return figure(10.0**exponent) if exponent >= 0 else f"{10.0**exponent:.{-exponent}f}"


@dataclass(frozen=True)
class Box:
    x: float
    y: float
    wide: float
    tall: float


def squarify(amounts: Sequence[float], box: Box) -> list[Box]:
    """Boxes in proportion to `amounts` (descending, positive) that fill `box`, as square as rows allow.

    Bruls, Huizing, van Wijk, "Squarified Treemaps", 2000.
    """
    left, found = list(amounts), []
    while left:
        whole, short = sum(left), min(box.wide, box.tall)
        per_unit = box.wide * box.tall / whole if whole else 0.0
        count, worst = 1, inf
        for n in range(1, len(left) + 1):
            side = per_unit * sum(left[:n]) / short if short else 0.0
            ratios = [
                max(side * side / (a * per_unit), a * per_unit / (side * side)) if side else inf for a in left[:n]
            ]
            if n > 1 and max(ratios) > worst:
                break
            count, worst = n, max(ratios)
        row, left = left[:count], left[count:]
        side, at = (per_unit * sum(row) / short if short else 0.0), 0.0
        for amount in row:
            along = amount * per_unit / side if side else 0.0
            if box.wide >= box.tall:
                found.append(Box(box.x, box.y + at, side, along))
            else:
                found.append(Box(box.x + at, box.y, along, side))
            at += along
        if box.wide >= box.tall:
            box = Box(box.x + side, box.y, box.wide - side, box.tall)
        else:
            box = Box(box.x, box.y + side, box.wide, box.tall - side)
    return found


@dataclass(frozen=True)
class Tile:
    """Of a treemap."""

    name: str
    style: str
    amount: float


def treemap(
    groups: Mapping[str, Sequence[Tile]], unit: str, label: str, wide: float = 960.0, tall: float = 400.0
) -> str:
    """Groups, largest first, each divided among its tiles. Areas on the page are in proportion to the amounts."""
    ranked = sorted(groups.items(), key=lambda item: (-sum(t.amount for t in item[1]), item[0]))
    ranked = [(name, [t for t in tiles if t.amount > 0]) for name, tiles in ranked]
    ranked = [(name, tiles) for name, tiles in ranked if tiles]
    sizes = [sum(t.amount for t in tiles) for _, tiles in ranked]
    tiles_drawn, frames = [], []
    for (name, tiles), frame in zip(ranked, squarify(sizes, Box(0, 0, wide, tall)), strict=True):
        tiles = sorted(tiles, key=lambda t: (-t.amount, t.name))
        for tile, box in zip(tiles, squarify([t.amount for t in tiles], frame), strict=True):
            tiles_drawn.append(_tile(name, tile, box, unit, tile.amount / sum(sizes)))
        frames.append(
            f'<rect class="frame" x="{_n(frame.x)}" y="{_n(frame.y)}" width="{_n(frame.wide)}" '
            f'height="{_n(frame.tall)}"/>'
        )
    return (
        f'<svg class="plane treemap" viewBox="0 0 {_n(wide)} {_n(tall)}" role="img" aria-label="{text(label)}">'
        f"{''.join(tiles_drawn)}{''.join(frames)}</svg>"
    )


def _tile(group: str, tile: Tile, box: Box, unit: str, share: float) -> str:
    amount = f"{figure(tile.amount, unit)} \u00b7 {percent(share)}"
    told = tile.name if tile.name.startswith(group) or group in ("units", "die") else f"{group}: {tile.name}"
    words = []
    room = int((box.wide - 14) / 7.6)  # characters of a bold 12 px font
    if room >= 5 and box.tall >= 22:
        name = tile.name if len(tile.name) <= room else tile.name[: room - 1] + "\u2026"
        words.append(f'<text class="name" x="{_n(box.x + 8)}" y="{_n(box.y + 17)}">{text(name)}</text>')
        if box.tall >= 38 and room >= len(amount):
            words.append(f'<text x="{_n(box.x + 8)}" y="{_n(box.y + 33)}">{text(amount)}</text>')
    return (
        f'<g><title>{text(f"{told}: {amount}")}</title><rect class="tile {tile.style}" data-amount="{tile.amount!r}" '
        f'x="{_n(box.x)}" y="{_n(box.y)}" width="{_n(box.wide)}" height="{_n(box.tall)}"/>{"".join(words)}</g>'
    )
