"""Figures of the attention weighting: ranges by head, and learned constants by step."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..constants import Constant
from .figures import BLACK, layer_colours, new_figure, save, style
from .weighting import QUANTITIES, HeadRange

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TITLES = {"scores": "scores", "weights": "weights", "row_sums": "sum of a row"}


def write_figures(folder: Path, name: str, ranges: Sequence[HeadRange], constants: Sequence[Constant]) -> list[Path]:
    """NAME_ranges, and NAME_constants where there are any; PNG and PDF. ImportError without matplotlib."""
    with style():
        written = save(_ranges(ranges), folder, f"{name}_ranges")
        if constants:
            written += save(_constants(constants), folder, f"{name}_constants")
        return written


def _ranges(ranges: Sequence[HeadRange]) -> "Figure":
    """From lowest to highest of each head, and on linear axes a standard deviation to both sides of the mean."""
    layers = sorted({r.layer for r in ranges})
    colours, figure = layer_colours(layers), new_figure(4.4)
    heads = list(dict.fromkeys((r.layer, r.head) for r in sorted(ranges, key=lambda r: (r.layer, r.head))))
    spots = {head: i + 0.8 * layers.index(head[0]) for i, head in enumerate(heads)}  # a gap between layers
    axes = figure.subplots(len(QUANTITIES), 1, sharex=True)
    for axis, quantity in zip(axes, QUANTITIES, strict=True):
        is_log = quantity == "weights" and all(r.low > 0 for r in ranges if r.quantity == quantity)
        for r in (r for r in ranges if r.quantity == quantity):
            spot, colour = spots[r.layer, r.head], colours[r.layer]
            axis.vlines(spot, r.low, r.high, color=colour, lw=0.8)
            if not is_log:
                low, high = max(r.low, r.mean - r.std), min(r.high, r.mean + r.std)
                axis.vlines(spot, low, high, color=colour, lw=3, alpha=0.55)
            axis.plot(spot, r.mean, "_", color=BLACK, ms=4, mew=0.8)
        axis.set_ylabel(TITLES[quantity])
        if is_log:
            axis.set_yscale("log")
        axis.grid(axis="x", visible=False)
    middle = [sum(x for h, x in spots.items() if h[0] == i) / sum(h[0] == i for h in spots) for i in layers]
    axes[-1].set_xticks(middle, [str(i) for i in layers])
    axes[-1].set_xlabel("layer; within a layer its heads, from the first to the last")
    kinds = ", ".join(dict.fromkeys(r.kind for r in ranges))
    axes[0].set_title(
        f"{kinds}: lowest to highest, with the mean; bar (on linear axes): one standard deviation to each side", pad=3
    )
    figure.align_ylabels()
    return figure


def _constants(constants: Sequence[Constant]) -> "Figure":
    """A panel a constant, a line a head, a marker at each step that is known."""
    from matplotlib.lines import Line2D
    from matplotlib.ticker import MaxNLocator

    names = list(dict.fromkeys(c.name for c in constants))
    layers = sorted({c.layer for c in constants})
    colours, figure = layer_colours(layers), new_figure(2.4)
    axes = figure.subplots(1, len(names), squeeze=False)[0]
    for axis, name in zip(axes, names, strict=True):
        for layer, head in dict.fromkeys((c.layer, c.head) for c in constants if c.name == name):
            mine = [c for c in constants if (c.name, c.layer, c.head) == (name, layer, head)]
            axis.plot([c.step for c in mine], [c.value for c in mine], "o-", ms=2.2, lw=0.8, color=colours[layer])
        axis.set(xlabel="step", ylabel=name)
        axis.ticklabel_format(axis="y", useOffset=False)
        axis.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
    handles = [Line2D([], [], color=colours[i], marker="o", ms=2.2, lw=1.2, label=f"layer {i}") for i in layers]
    figure.legend(handles=handles, loc="outside upper center", ncols=min(len(handles), 8))
    return figure
