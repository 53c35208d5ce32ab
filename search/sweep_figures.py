"""The figures of a sweep for papers: PNG and PDF, one column wide, the same bytes for the same results.

    write_figures(results, folder) -> paths

bars     by configuration, how far its mean loss is above the lowest one, so that bars begin at a true zero; whiskers
         are 95 % intervals of each mean
curves   learning curves of the best configurations, as on the page

What there is nothing to show of is left out. Colours and dashes are those of search.figures.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from gptcore.analysis.figures import BLACK, BLUE, GREEN, ORANGE, PINK, SKY, YELLOW, new_figure, save, style

from .figures import DASHES
from .sweep_results import Results

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WIDTH_IN = 5.0
BARS, CURVES, LETTERS = 40, 7, 44


def write_figures(found: Results, folder: Path) -> list[Path]:
    """Writes all there are; their paths. ImportError without matplotlib."""
    with style():
        drawn = {"bars": _bars(found), "curves": _curves(found)}
        if any(drawn.values()):
            folder.mkdir(parents=True, exist_ok=True)
        return [path for name, figure in drawn.items() if figure for path in save(figure, folder, name)]


def _bars(found: Results) -> "Figure | None":
    known = [(group.name, group.loss) for group in found.groups if group.loss is not None]
    if not known:
        return None
    shown, best = known[:BARS], known[0][1].mean
    figure = new_figure(0.75 + 0.17 * len(shown), WIDTH_IN)
    axes = figure.subplots()
    for row, (_, loss) in enumerate(shown):
        axes.barh(row, loss.mean - best, color=SKY, height=0.62)
        end = loss.mean - best
        if loss.low is not None and loss.high is not None:
            wide = [[loss.mean - loss.low], [loss.high - loss.mean]]
            axes.errorbar(end, row, xerr=wide, color=BLACK, elinewidth=0.8, capsize=1.8, fmt="none")
            end = loss.high - best
        axes.annotate(f"{loss.mean:.4f}", (end, row), (4, 0), textcoords="offset points", va="center", fontsize=6)
    axes.axvline(0, color=BLACK, lw=0.6)
    axes.set_yticks(range(len(shown)), [_short(name) for name, _ in shown])
    axes.set_ylim(len(shown) - 0.4, -0.6)
    axes.margins(x=0.14)
    axes.tick_params(left=False)
    axes.grid(axis="y", visible=False)
    more = f" (best {len(shown)} of {len(known)})" if len(known) > len(shown) else ""
    # Of the figure: the layout makes no room for what is wider than the axes, and long names narrow them.
    figure.supxlabel(f"validation loss above the lowest mean, nats{more}; the loss beside each bar", fontsize="medium")
    return figure


def _curves(found: Results) -> "Figure | None":
    curves = [group.curve for group in found.groups if group.curve is not None and len(group.curve.steps) > 1]
    if not curves:
        return None
    shown = curves[:CURVES]
    from matplotlib.ticker import MaxNLocator

    figure = new_figure(3.0, WIDTH_IN)
    axes, late, last = figure.subplots(), [], max(curve.steps[-1] for curve in shown)
    for curve, colour, dash in zip(shown, (BLUE, ORANGE, GREEN, PINK, YELLOW, SKY, BLACK), DASHES, strict=False):
        axes.fill_between(curve.steps, curve.low, curve.high, color=colour, alpha=0.12, lw=0)
        mark = "o" if len(curve.steps) < 12 else ""
        axes.plot(curve.steps, curve.mean, marker=mark, ms=2, lw=1.1, color=colour, ls=dash, label=_short(curve.name))
        late += [
            v for s, *ends in zip(curve.steps, curve.low, curve.high, strict=True) if s >= 0.2 * last for v in ends
        ]
    room = 0.04 * (max(late) - min(late)) or 0.1
    axes.set(xlabel="step", ylabel="validation loss, nats", ylim=(min(late) - room, max(late) + room))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    title = f"best {len(shown)} of {len(curves)} configurations" if len(curves) > len(shown) else None
    figure.legend(loc="outside upper center", ncols=2, title=title, title_fontsize=6.5)
    return figure


def _short(name: str) -> str:
    return name if len(name) <= LETTERS else f"{name[: LETTERS - 1]}\u2026"
