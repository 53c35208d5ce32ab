"""Figures of measured statistics: histograms of magnitudes by place, and the bits that each place needs by layer."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .figures import MAP, ORANGE, PINK, layer_colours, new_figure, save, style
from .formats import NumberFormat
from .measure import Measured
from .tensor_statistics import LOWEST, PER_OCTAVE, WIDTHS, TensorStatistics

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLUMNS = 4
FLOOR, RARE = 1e-6, 1e-4  # of the shares that are shown; magnitudes that no place has so often are cut off


def write_figures(
    folder: Path, name: str, measured: Sequence[Measured], formats: Sequence[NumberFormat], group: str, target_db: float
) -> list[Path]:
    """NAME_histograms and NAME_bits, PNG and PDF. ImportError without matplotlib."""
    with style():
        written = save(_histograms(measured, formats), folder, f"{name}_histograms")
        return written + save(_bits(measured, group, target_db), folder, f"{name}_bits")


def _histograms(measured: Sequence[Measured], formats: Sequence[NumberFormat]) -> "Figure":
    """A panel a place, a line a layer: share of the values in an octave of |x|; values of zero are in no octave."""
    labels = list(dict.fromkeys(m.place.label for m in measured))
    layers = sorted({m.place.layer for m in measured if m.place.layer is not None})
    colours = layer_colours(layers)
    rows = math.ceil(len(labels) / COLUMNS)
    figure = new_figure(1.25 * rows + 0.5)
    axes = figure.subplots(rows, COLUMNS, sharex=True, sharey=True, squeeze=False).flatten()
    used = [
        i for m in measured for i, n in enumerate(m.statistics.counts) if n / m.statistics.count * PER_OCTAVE > FLOOR
    ]
    first, last = (LOWEST + min(used) // PER_OCTAVE, LOWEST + max(used) // PER_OCTAVE + 1) if used else (-1, 1)
    formats = [form for form in formats if math.log2(form.high) < last + 1]  # others end beyond the figure
    edges = [LOWEST + i / PER_OCTAVE for i in range(len(measured[0].statistics.counts) + 1)]
    for axis, label in zip(axes, labels, strict=False):
        for m in measured:
            if m.place.label == label:
                shares = [n / m.statistics.count * PER_OCTAVE or math.nan for n in m.statistics.counts]
                colour = colours.get(m.place.layer, PINK) if m.place.layer is not None else PINK
                axis.stairs(shares, edges, color=colour, lw=0.8, baseline=None)
        for form, dash in zip(formats, ("--", ":", "-."), strict=False):
            axis.axvline(math.log2(form.high), color=ORANGE, lw=0.7, ls=dash)
        axis.set_title(label, pad=2)
    for axis in axes[len(labels) :]:
        axis.axis("off")
    for axis in axes[max(len(labels) - COLUMNS, 0) : len(labels)]:  # the lowest panel of each column
        axis.tick_params(labelbottom=True)
    axes[0].set(xlim=(max(first, -24), last + 1), ylim=(FLOOR, 1.3 * PER_OCTAVE), yscale="log")
    for axis in axes:
        axis.yaxis.minorticks_off()
    figure.supxlabel("log2 |x|", fontsize=7.5)
    figure.supylabel("share of values per octave", fontsize=7.5)
    _layer_legend(figure, layers, colours, formats)
    return figure


def _layer_legend(
    figure: "Figure", layers: list[int], colours: dict[int, Any], formats: Sequence[NumberFormat]
) -> None:
    from matplotlib.lines import Line2D

    shown = layers if len(layers) <= 8 else layers[:: math.ceil(len(layers) / 8)]
    handles = [Line2D([], [], color=colours[i], lw=1.2, label=f"layer {i}") for i in shown]
    handles.append(Line2D([], [], color=PINK, lw=1.2, label="outside of the layers"))
    for form, dash in zip(formats, ("--", ":", "-."), strict=False):
        handles.append(Line2D([], [], color=ORANGE, lw=0.7, ls=dash, label=f"largest {form.name}"))
    figure.legend(
        handles=handles, loc="outside upper center", ncols=math.ceil(len(handles) / math.ceil(len(handles) / 7))
    )


def _bits(measured: Sequence[Measured], group: str, target_db: float) -> "Figure":
    """Bits needed by place and layer, with a range for each group and with one for the tensor."""
    shown = [m for m in measured if m.statistics.sqnr_group_db]
    labels = list(dict.fromkeys(m.place.label for m in shown))
    inside = sorted({m.place.layer for m in shown if m.place.layer is not None})
    layers = [*inside, *([None] if any(m.place.layer is None for m in shown) else [])]
    figure = new_figure(0.17 * len(labels) + 0.95)
    ways: tuple[tuple[str, Callable[[TensorStatistics], int | None]], ...] = (
        (f"a range for each {group}", lambda s: s.bits_group(target_db)),
        ("one range for the tensor", lambda s: s.bits_tensor(target_db)),
    )
    axes, most = figure.subplots(1, 2, sharey=True), WIDTHS[-1] + 1
    known = [way(m.statistics) or most for m in shown for _, way in ways]
    low, high = min(known), max(*known, min(known) + 4)
    image: Any = None
    for axis, (title, way) in zip(axes, ways, strict=True):
        cells = [[math.nan] * len(layers) for _ in labels]
        for m in shown:
            cells[labels.index(m.place.label)][layers.index(m.place.layer)] = way(m.statistics) or most
        image = axis.imshow(cells, cmap=MAP, vmin=low, vmax=high, aspect="auto")
        for row, values in enumerate(cells):
            for column, cell in enumerate(values):
                if not math.isnan(cell):
                    text = f">{WIDTHS[-1]}" if cell == most else f"{cell:.0f}"
                    colour = "white" if cell < (low + high) / 2 else "black"
                    axis.text(column, row, text, ha="center", va="center", fontsize=6, color=colour)
        axis.set_xticks(range(len(layers)), ["-" if i is None else str(i) for i in layers])
        axis.set_yticks(range(len(labels)), labels)
        axis.set(xlabel="layer" + (" (-: outside of the layers)" if None in layers else ""), title=title)
        axis.grid(visible=False)
        axis.tick_params(length=0)
    bar = figure.colorbar(image, ax=list(axes), shrink=0.9, pad=0.01, aspect=30, ticks=range(low, high + 1))
    bar.set_label(f"bits for {target_db:g} dB SQNR")
    return figure
