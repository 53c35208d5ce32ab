"""What figures for papers have in common: size of letters, colours, files.

Colours are those of Okabe and Ito (2008) and the map cividis (Nunez et al., 2018), told apart by colour-blind readers.
Files are PNG (300 dpi) and PDF with embedded fonts, the same bytes for the same numbers. matplotlib is imported when a
figure is drawn, never torch.
"""

import io
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..files import write_atomically

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WIDTH_IN, DPI = 7.0, 300  # two columns
BLUE, ORANGE, GREEN, PINK, YELLOW, SKY, BLACK, GREY = (
    "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#8c8c8c",
)  # fmt: skip
MAP = "cividis"
STYLE: Any = {
    "font.size": 7.5, "axes.titlesize": 7.5, "axes.linewidth": 0.6, "xtick.major.width": 0.6, "ytick.major.width": 0.6,
    "legend.fontsize": 6.5, "legend.frameon": False, "pdf.fonttype": 42, "axes.spines.top": False,
    "axes.spines.right": False, "axes.grid": True, "grid.linewidth": 0.4, "grid.color": "#e4e4e4",
    "axes.axisbelow": True,
}  # fmt: skip
# Without the time and the version of the program that drew them.
METADATA: dict[str, dict[str, Any]] = {
    "png": {"Software": None}, "pdf": {"CreationDate": None, "Producer": None, "Creator": None}
}  # fmt: skip


def style() -> Any:
    """The context that figures are made and saved in. ImportError without matplotlib."""
    import matplotlib

    return matplotlib.rc_context(STYLE)


def new_figure(height_in: float, width_in: float = WIDTH_IN) -> "Figure":
    """An empty figure that needs no display; to be made inside `style()`."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width_in, height_in), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def save(figure: "Figure", folder: Path, name: str) -> list[Path]:
    """Writes FOLDER/NAME.png and .pdf, each whole or not at all; their paths.

    Letters that the font does not have, of a run's name in Chinese, are boxes.
    """
    written = []
    for suffix, metadata in METADATA.items():
        data = io.BytesIO()
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", r"Glyph \d+ .* missing from font", UserWarning)
            figure.savefig(data, format=suffix, dpi=DPI, metadata=metadata)
        figure.set_layout_engine("none")  # what the first format has laid out holds for the next
        written.append(folder / f"{name}.{suffix}")
        write_atomically(written[-1], data.getvalue())
    return written


def layer_colours(layers: list[int]) -> dict[int, Any]:
    """A colour for each layer, from dark (first) to bright (last), without the palest ones."""
    import matplotlib

    shades = matplotlib.colormaps[MAP]
    return {layer: shades(0.88 * i / max(len(layers) - 1, 1)) for i, layer in enumerate(layers)}
