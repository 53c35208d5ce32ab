"""The candidates of a whole generation as one heatmap: a figure (PNG), and its numbers (CSV).

A column is a step. Its upper cell is the token that was drawn, below stand the likeliest candidates by rank, each on
the colour of its probability for the model (temperature 1, whole vocabulary); the drawn one has a frame. The colour
follows the square root of the probability, so that 1 % can be told from nothing. Steps are wrapped like text.
"""

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from ..candidates import Candidate
from ..errors import DataError
from ..sample import Sample
from ..tokenizer import Tokenizer
from . import DRAWN, colour, hexed, ink, label

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST_STEPS = 600  # of the figure; drawing takes 1 s for 1,250 cells. The page and the CSV have all.
LONGEST = 9  # characters of a label
MARKS = (0.0, 0.01, 0.1, 0.25, 0.5, 0.75, 1.0)  # probabilities of the legend
COLUMNS = ("step", "rank", "token", "text", "probability", "sampling_probability", "drawn")
# Sizes in inches at 130 dots an inch.
DPI, WIDTH, ROW, FONT_PT = 130, 10.0, 0.19, 6.5
FAMILY = "DejaVu Sans Mono"  # comes with matplotlib, and is 0.602 of its size wide
_CHARACTER = 0.602 * FONT_PT / 72


@dataclass(frozen=True)
class Cell:
    """A token at a step, `name` as it is shown."""

    token: int
    name: str
    probability: float
    drawn: bool


@dataclass(frozen=True)
class Heatmap:
    """Steps by column: the drawn token, then its candidates. The longest name has `widest` characters."""

    columns: tuple[tuple[Cell, ...], ...]
    rows: int
    widest: int

    def bands(self, width: int) -> list[tuple[int, tuple[tuple[Cell, ...], ...]]]:
        """Wrapped at `width` columns: (number of its first step, columns) of each band."""
        return [(at + 1, self.columns[at : at + width]) for at in range(0, len(self.columns), width)]


def heatmap(sample: Sample, tokenizer: Tokenizer) -> Heatmap:
    """The grid of a recorded generation."""

    def cell(token: int, probability: float, drawn: int) -> Cell:
        return Cell(token, label(tokenizer, token, LONGEST), probability, token == drawn)

    columns = tuple(
        (cell(s.token, s.probability, s.token), *(cell(c.token, c.probability, s.token) for c in s.candidates))
        for s in sample.steps
    )
    widest = max((len(cell.name) for column in columns for cell in column), default=1)
    return Heatmap(columns, max(map(len, columns), default=1), widest)


def table(sample: Sample, tokenizer: Tokenizer) -> str:
    """All candidates as CSV, a row each; a drawn token that is none of them has a row with its rank, too."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(COLUMNS)
    for number, step in enumerate(sample.steps, 1):
        rows = [(rank, c, c.token == step.token) for rank, c in enumerate(step.candidates, 1)]
        if not any(drawn for *_, drawn in rows):
            rows.append((step.rank, Candidate(step.token, step.probability, step.sampling), True))
        for rank, c, drawn in rows:
            text = _text(tokenizer, c.token)
            writer.writerow((number, rank, c.token, text, f"{c.probability:.6g}", f"{c.sampling:.6g}", int(drawn)))
    return file.getvalue()


def _text(tokenizer: Tokenizer, token: int) -> str:
    try:
        return tokenizer.decode([token])
    except DataError:  # an id of the model that the tokenizer does not use
        return ""


def shade(probability: float) -> tuple[int, int, int]:
    """The colour of a probability, here and on the page."""
    return colour(math.sqrt(probability))


def draw(grid: Heatmap, title: str) -> bytes:
    """The figure as PNG, the same bytes for the same numbers. ImportError without matplotlib."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    head, foot, left, right, gap = 0.75, 0.15, 0.8, 0.2, 0.3
    per_band = int((WIDTH - left - right) / max(0.2, (grid.widest + 1) * _CHARACTER))
    bands = replace(grid, columns=grid.columns[:MOST_STEPS]).bands(per_band)
    if len(grid.columns) > MOST_STEPS:
        title += f"; the first {MOST_STEPS} of {len(grid.columns):,} steps, all are on the page and in the CSV"
    height = head + foot + len(bands) * (grid.rows * ROW + gap)
    cell = (WIDTH - left - right) / per_band
    with matplotlib.rc_context({"font.family": FAMILY, "font.size": FONT_PT, "axes.linewidth": 0.5}):
        figure = Figure(figsize=(WIDTH, height))
        FigureCanvasAgg(figure)
        names = _Names()
        _put(figure, 0.15, height - 0.22, names.plain(title), fontsize=8)
        _put(figure, left, 0.12, "step (tokens drawn after the prompt)", fontsize=8)
        _put(figure, 0.15, (height - head + foot) / 2, "candidates by rank", fontsize=8, rotation=90, va="center")
        _legend(figure, height)
        top = height - head
        for first, columns in bands:
            top -= grid.rows * ROW
            place = (left / WIDTH, top / height, cell * len(columns) / WIDTH, grid.rows * ROW / height)
            _band(figure.add_axes(place), first, columns, grid.rows, names)
            top -= gap
        data = io.BytesIO()
        figure.savefig(data, format="png", dpi=DPI, metadata={"Software": None})
    return data.getvalue()


def _put(figure: "Figure", x: float, y: float, text: str, **how: Any) -> None:
    """Text at a place in inches, taken as it is."""
    width, height = figure.get_size_inches()
    figure.text(x / width, y / height, text, parse_math=False, **how)


def _legend(figure: "Figure", height: float) -> None:
    from matplotlib.patches import Rectangle

    width, wide, tall, y = 3.2, WIDTH, 0.12, height - 0.5
    axes = figure.add_axes(((wide - width - 0.3) / wide, y / height, width / wide, tall / height))
    axes.imshow([[colour(x / 255) for x in range(256)]], aspect="auto", extent=(0, 1, 0, 1))
    axes.set_xticks([math.sqrt(mark) for mark in MARKS], [f"{mark:g}" for mark in MARKS])
    axes.set_yticks([])
    axes.tick_params(length=2, pad=1)
    axes.set_ylabel("probability", rotation=0, ha="right", va="center", fontsize=8)
    axes = figure.add_axes((0.15 / wide, y / height, 0.3 / wide, 0.15 / height))
    axes.axis("off")
    axes.add_patch(Rectangle((0.05, 0.1), 0.9, 0.8, fill=False, edgecolor=DRAWN, linewidth=1.3))
    _put(figure, 0.5, y + 0.03, "the token that was drawn", fontsize=8)


def _band(axes: Any, first: int, columns: Sequence[tuple[Cell, ...]], rows: int, names: "_Names") -> None:
    from matplotlib.patches import Rectangle

    white = (255, 255, 255)
    image = [[shade(c[row].probability) if row < len(c) else white for c in columns] for row in range(rows)]
    axes.imshow(image, aspect="auto", interpolation="nearest")
    for x, column in enumerate(columns):
        for y, cell in enumerate(column):
            rgb = hexed(ink(shade(cell.probability)))
            axes.text(x, y, names.of(cell.name), color=rgb, ha="center", va="center_baseline", parse_math=False)
            if y and cell.drawn:
                box = Rectangle((x - 0.46, y - 0.44), 0.92, 0.88, fill=False, edgecolor=DRAWN, linewidth=1.3)
                axes.add_patch(box)
    axes.axhline(0.5, color="white", linewidth=2.5, zorder=0.5)
    axes.set_yticks(range(rows), ["drawn", *map(str, range(1, rows))])
    numbered = [x for x in range(len(columns)) if (first + x) % 5 == 0 or (first == 1 and x == 0)]
    axes.set_xticks(numbered, [str(first + x) for x in numbered])
    axes.tick_params(length=2, pad=1)


class _Names:
    """Labels in characters that the font has; the others as escapes."""

    def __init__(self) -> None:
        from matplotlib.font_manager import findfont
        from matplotlib.ft2font import FT2Font

        self.known = FT2Font(findfont(FAMILY)).get_charmap()

    def plain(self, text: str) -> str:
        return "".join(c if ord(c) in self.known else c.encode("unicode_escape").decode() for c in text)

    def of(self, name: str) -> str:
        """As long as a label may be."""
        plain = self.plain(name)
        return plain if len(plain) <= LONGEST else plain[: LONGEST - 1] + "\u2026"
