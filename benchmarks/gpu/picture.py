"""A roofline picture as SVG text: no library, so that a bare machine can draw it."""

import math
from collections.abc import Sequence
from html import escape

WIDTH, HEIGHT, LEFT, TOP, RIGHT, BOTTOM = 860, 520, 70, 40, 190, 50
COLOURS = ("#0b5fff", "#d1480f", "#1b8a3b", "#8a2be2", "#b8860b", "#444444", "#c2185b", "#00838f")
PREFIXES = {-6: "µ", -3: "m", 0: "", 3: "k", 6: "M", 9: "G", 12: "T", 15: "P"}


def roofline(points: Sequence[tuple[str, float, float]], bytes_per_s: float, flops_per_s: float, title: str) -> str:
    """(series, operations a byte, operations a second) on logarithmic axes, below the two ceilings; no zeros."""
    points = [p for p in points if p[1] > 0 and p[2] > 0]
    xs = [x for _, x, _ in points] + [flops_per_s / bytes_per_s]
    ys = [y for _, _, y in points] + [flops_per_s]
    x0, x1 = _decades(xs)
    y0, y1 = _decades(ys)

    def at(x: float, y: float) -> tuple[float, float]:
        u, w = (math.log10(x) - x0) / (x1 - x0), (math.log10(y) - y0) / (y1 - y0)
        return round(LEFT + u * (WIDTH - LEFT - RIGHT), 1), round(HEIGHT - BOTTOM - w * (HEIGHT - TOP - BOTTOM), 1)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" '
        'font-size="12">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
        f'<text x="{LEFT}" y="22" font-size="14">{escape(title)}</text>',
    ]
    for e in range(x0, x1 + 1):
        (x, low), (_, high) = at(10.0**e, 10.0**y0), at(10.0**e, 10.0**y1)
        parts.append(f'<path d="M{x} {low}V{high}" stroke="#ddd"/>')
        parts.append(f'<text x="{x}" y="{low + 16}" text-anchor="middle">{_power(e)}</text>')
    for e in range(y0, y1 + 1):
        (low, y), (high, _) = at(10.0**x0, 10.0**e), at(10.0**x1, 10.0**e)
        parts.append(f'<path d="M{low} {y}H{high}" stroke="#ddd"/>')
        parts.append(f'<text x="{low - 6}" y="{y + 4}" text-anchor="end">{_power(e)}</text>')
    start = max(10.0**x0, 10.0**y0 / bytes_per_s)
    knee = flops_per_s / bytes_per_s
    corners = [at(start, start * bytes_per_s), at(knee, flops_per_s), at(10.0**x1, flops_per_s)]
    line = "L".join(f"{x} {y}" for x, y in corners)
    parts.append(f'<path d="M{line}" fill="none" stroke="black" stroke-width="1.5"/>')
    for i, name in enumerate(dict.fromkeys(name for name, _, _ in points)):
        colour = COLOURS[i % len(COLOURS)]
        style = f'stroke="{colour}" fill="{colour if i < len(COLOURS) else "white"}" fill-opacity="0.7"'
        for _, x, y in (p for p in points if p[0] == name):
            place = at(x, y)
            parts.append(f'<circle cx="{place[0]}" cy="{place[1]}" r="3.5" {style}/>')
        side, row = WIDTH - RIGHT + 16, TOP + 18 * i
        parts.append(f'<circle cx="{side}" cy="{row}" r="4" {style}/>')
        parts.append(f'<text x="{side + 10}" y="{row + 4}">{escape(name)}</text>')
    middle = (WIDTH - RIGHT + LEFT) / 2, HEIGHT / 2
    parts.append(f'<text x="{middle[0]}" y="{HEIGHT - 10}" text-anchor="middle">operations a byte</text>')
    parts.append(f'<text x="16" y="{middle[1]}" transform="rotate(-90 16 {middle[1]})" text-anchor="middle">')
    return "\n".join([*parts, "operations a second</text></svg>"]) + "\n"


def _decades(values: Sequence[float]) -> tuple[int, int]:
    low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
    return low, max(high, low + 1)


def _power(exponent: int) -> str:
    third = exponent // 3 * 3
    return f"{10 ** (exponent - third)}{PREFIXES.get(third, f'e{third}')}"
