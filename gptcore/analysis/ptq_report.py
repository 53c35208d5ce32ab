"""Results of post-training quantisation: JSON, CSV, a plot, and the table of the terminal."""

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ..checkpoint import write_json
from ..files import write_atomically
from .ptq import Row
from .rounding import EVERYTHING

FORMAT = 1


@dataclass
class Results:
    """Rows as they come; the first is the model as trained. `head` says where they come from and what was asked."""

    head: dict[str, Any]
    rows: list[Row] = field(default_factory=list)

    @property
    def reference(self) -> Row:
        return self.rows[0]

    def of_all(self) -> list[Row]:
        """The rows of everything rounded together."""
        return [row for row in self.rows if row.point.target == EVERYTHING]

    def by_cost(self) -> list[Row]:
        """The rows of one matrix rounded, the costliest first."""
        alone = [row for row in self.rows if row.point.target != EVERYTHING]
        return sorted(alone, key=lambda row: -row.loss if math.isfinite(row.loss) else -math.inf)

    def records(self) -> list[dict[str, Any]]:
        """One flat record a row; null for what is not a finite number."""
        return [self._record(row) for row in self.rows]

    def _record(self, row: Row) -> dict[str, Any]:
        worst = row.worst or (None, None)
        numbers = {
            "val_loss": row.loss, "change": row.loss - self.reference.loss, "perplexity": row.perplexity,
            "bits_per_token": row.loss / math.log(2),
        }  # fmt: skip
        return {
            **asdict(row.point), **{key: x if math.isfinite(x) else None for key, x in numbers.items()},
            "weight_bytes": row.weight_bytes, "relative_size": row.weight_bytes / self.reference.weight_bytes,
            "worst_matrix": worst[0], "worst_error": worst[1],
        }  # fmt: skip


def write_results(results: Results, folder: Path, *, complete: bool) -> None:
    """quantize.json and quantize.csv of a run folder, each replaced at once."""
    records = results.records()
    rows = [
        record | {"errors": row.errors} if row.errors else record
        for record, row in zip(records, results.rows, strict=True)
    ]
    write_json(folder / "quantize.json", {"format": FORMAT, "complete": complete, **results.head, "rows": rows})
    text = io.StringIO()
    writer = csv.DictWriter(text, list(records[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    write_atomically(folder / "quantize.csv", text.getvalue().encode())


def print_results(results: Results, console: Any) -> None:
    """Two tables: everything rounded together, and each matrix alone if that was asked for. 80 columns are enough."""
    rows, reference = results.of_all(), results.reference
    settings = {"activation_bits": "acts", "granularity": "range", "method": "method"}
    shown = [name for name in settings if len({getattr(row.point, name) for row in rows[1:]} - {None}) > 1]
    if "activation_bits" not in shown and any(row.point.activation_bits for row in rows):
        shown.insert(0, "activation_bits")
    numbers = ["loss", "change", "ppl", "bytes", "size"]
    if shown not in ([], ["activation_bits"]):  # the files have them all
        numbers.remove("ppl")
    if len(shown) > 1:
        numbers.remove("bytes")
    table = _table()
    table.add_column("weights", justify="right")
    for name in shown:
        table.add_column(settings[name], justify="right" if name == "activation_bits" else "left")
    for title in numbers:
        table.add_column(title, justify="right", no_wrap=True)
    table.add_column("largest error", overflow="ellipsis", no_wrap=True)
    for row in rows:
        cells = [_bits(row.point.weight_bits)]
        for name in shown:
            value = getattr(row.point, name)
            cells.append(_bits(value) if name == "activation_bits" else value or "-")
        cells += [_numbers(row, reference)[title] for title in numbers]
        cells.append("-" if row.worst is None else f"{row.worst[1]:.2g} {row.worst[0]}")
        table.add_row(*cells)
    console.print(table, highlight=False, markup=False)
    ranked = results.by_cost()
    if not ranked:
        return
    first = ranked[0].point
    console.print(f"\nEach matrix alone at {first.weight_bits} bits, {first.granularity}, {first.method}", markup=False)
    table = _table()
    table.add_column("matrix", overflow="fold")
    for title in ("loss", "change", "ppl", "bytes", "size", "error"):
        table.add_column(title, justify="right", no_wrap=True)
    for row in ranked:
        ((name, error),) = row.errors.items()
        table.add_row(name, *_numbers(row, reference).values(), f"{error:.2g}")
    console.print(table, highlight=False, markup=False)


def _table() -> Any:
    from rich.table import Table

    return Table(box=None, header_style="bold", pad_edge=False)


def _bits(bits: int | None) -> str:
    return "none" if bits is None else str(bits)


def _numbers(row: Row, reference: Row) -> dict[str, str]:
    """By the title of its column."""
    change = round(row.loss - reference.loss, 4) + 0.0  # no negative zero
    return {
        "loss": f"{row.loss:.4f}",
        "change": "-" if row is reference else f"{change:+.4f}",
        "ppl": f"{row.perplexity:.3f}" if row.perplexity < 100 else f"{row.perplexity:.4g}",
        "bytes": f"{row.weight_bytes:,}",
        "size": f"{row.weight_bytes / reference.weight_bytes:.1%}",
    }


def plot(results: Results, path: Path) -> None:
    """How the loss rises with fewer bits, a curve for each way of rounding; and what each matrix costs.

    ImportError without matplotlib.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows, ranked = results.of_all(), results.by_cost()
    legend = 2.6 if len(_curves(rows[1:])) > 4 else 0
    figure = Figure(figsize=((11 if ranked else 6.4) + legend, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, 2 if ranked else 1, squeeze=False)[0]
    _plot_bits(axes[0], rows[1:], results.reference)
    if ranked:
        _plot_matrices(axes[1], ranked, results.reference)
    name = f"{Path(results.head['run']).name}, {results.head['checkpoint']}, step {results.head['step']:,}"
    figure.suptitle(f"Post-training quantisation of {name}", fontsize=10)
    data = io.BytesIO()
    figure.savefig(data, format="png", dpi=130)
    write_atomically(path, data.getvalue())


Way = tuple[int | None, str | None, str | None]  # activation bits, granularity, method: what a curve has in common


def _curves(rows: Sequence[Row]) -> dict[Way, list[Row]]:
    """Rows of each curve. Unrounded weights end every curve that they fit."""
    known = [row for row in rows if math.isfinite(row.loss)]
    ways = dict.fromkeys((r.point.activation_bits, r.point.granularity, r.point.method) for r in known)
    chosen = [way for way in ways if way[1] is not None] or list(ways)
    return {
        (bits, granularity, method): [
            row
            for row in known
            if (row.point.activation_bits, row.point.method) == (bits, method)
            and row.point.granularity in (granularity, None)
        ]
        for bits, granularity, method in chosen
    }


def _plot_bits(axis: Any, rows: Sequence[Row], reference: Row) -> None:
    curves = _curves(rows)
    values = [list(dict.fromkeys(column)) for column in zip(*curves, strict=True)]
    highest = 99  # beside any number of bits: not rounded
    widths = sorted({row.point.weight_bits or highest for row in rows})
    for way, curve in curves.items():
        points = sorted((row.point.weight_bits or highest, row.loss - reference.loss) for row in curve)
        words = (f"activations {way[0] or 'as trained'}", f"per {way[1]}", way[2] or "")
        label = ", ".join(word for word, options in zip(words, values, strict=True) if len(options) > 1)
        # A colour for each width of activations, a line for each granularity, a marker for each method.
        colour, line, marker = (options.index(value) for options, value in zip(values, way, strict=True))
        if len(values[0]) == 1:
            colour = list(curves).index(way)
        axis.plot(
            [widths.index(bits) for bits, _ in points], [change for _, change in points], color=f"C{colour % 10}",
            linestyle="-:"[line], marker="os"[marker], markersize=4, linewidth=1.3, label=label or ", ".join(words),
        )  # fmt: skip
    # From a thousandth of a nat to whole ones, and a little below zero: logarithmic but around zero.
    axis.set_yscale("symlog", linthresh=1e-3)
    ticks = [-0.01, -0.001, 0, 0.001, 0.01, 0.1, 1, 10]
    low, high = axis.get_ylim()
    axis.set_yticks([t for t in ticks if low <= t <= high], [f"{t:g}" for t in ticks if low <= t <= high])
    axis.minorticks_off()
    axis.axhline(0, color="0.4", linestyle="--", linewidth=1, label=f"as trained: {reference.loss:.3f}")
    axis.set_xticks(range(len(widths)), ["none" if bits == highest else str(bits) for bits in widths])
    axis.set_xlabel("bits per weight")
    axis.set_ylabel("increase of the validation loss (nats a token)")
    axis.grid(alpha=0.3)
    crowded = len(curves) > 4
    axis.legend(fontsize=8, **({"loc": "upper left", "bbox_to_anchor": (1, 1)} if crowded else {}))


def _plot_matrices(axis: Any, ranked: Sequence[Row], reference: Row, most: int = 20) -> None:
    shown = ranked[:most]
    names = [next(iter(row.errors)) for row in shown]
    axis.barh(range(len(shown)), [row.loss - reference.loss for row in shown], color="tab:blue", height=0.7)
    axis.set_yticks(range(len(shown)), names, fontsize=7)
    axis.invert_yaxis()
    axis.axvline(0, color="0.4", linewidth=0.8)
    rest = f", the costliest {most} of {len(ranked)}" if len(ranked) > most else ""
    axis.set_xlabel(f"increase of the loss (nats a token), one matrix at {ranked[0].point.weight_bits} bits{rest}")
    axis.grid(axis="x", alpha=0.3)
