"""Two runs side by side: settings that differ, results, and the curves of both in one figure."""

import csv
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..checkpoint import config_of
from ..config import difference
from ..errors import CheckpointError, UserError
from ..runjson import read_run, write_json
from .figures import BLUE, ORANGE, new_figure, save, style
from .runs import IGNORED
from .statistics_report import write_table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FORMAT = 1
# Key of run.json -> how it is called.
METRICS = {
    "status": "status", "best_loss": "best validation loss (nats)", "best_step": "at step", "step": "steps",
    "last_val_loss": "last validation loss (nats)", "last_train_loss": "last training loss (nats)",
    "parameters": "parameters", "tokens": "tokens trained on", "elapsed_s": "training time (s, wall clock)",
    "device": "device", "torch": "torch", "vocab_size": "vocabulary", "dataset": "data set", "identity": "identity",
}  # fmt: skip


@dataclass(frozen=True)
class Curves:
    """Losses by step, as far as metrics.csv tells."""

    train: list[tuple[int, float]] = field(default_factory=list)
    validation: list[tuple[int, float]] = field(default_factory=list)


@dataclass(frozen=True)
class Comparison:
    """`settings`: dotted path -> both values; `metrics`: name -> both values. `notes` say what keeps them apart."""

    folders: tuple[Path, Path]
    settings: dict[str, tuple[Any, Any]]
    metrics: dict[str, tuple[Any, Any]]
    curves: tuple[Curves, Curves]
    notes: list[str]


def compare(a: Path, b: Path) -> Comparison:
    """CheckpointError or UserError where one of them is no run, or its description or configuration is damaged."""
    runs, configs = [], []
    for folder in (a, b):
        if not folder.is_dir():
            raise UserError(f"no run folder {folder}; `gptcore inspect ckpts` lists runs")
        runs.append(read_run(folder))
        if not (folder / "config.yaml").is_file():
            raise CheckpointError(f"{folder} has no config.yaml: its settings cannot be compared")
        configs.append(config_of(folder))
    settings = {path: pair for path, pair in difference(*configs).items() if path not in IGNORED}
    metrics = {key: (runs[0].get(key), runs[1].get(key)) for key in METRICS if any(key in run for run in runs)}
    notes = []
    if any(runs[0].get(key) != runs[1].get(key) for key in ("vocab_size", "data_files")):
        notes.append(
            "the runs saw other tokens or another text: their losses do not compare; `gptcore eval --text` does"
        )
    if runs[0].get("tokens") != runs[1].get("tokens"):
        notes.append("one was trained on more tokens than the other")
    if not settings:
        notes.append("the configurations are the same")
    elif "train.seed" not in settings:
        notes.append("one run each, with the same seed: how far other seeds would lie apart is not known")
    curves = tuple(read_curves(folder / "metrics.csv") for folder in (a, b))
    for folder, found in zip((a, b), curves, strict=True):
        if not found.train and not found.validation:
            notes.append(f"{folder} has no losses in metrics.csv, so it has no curve")
    return Comparison((a, b), settings, metrics, (curves[0], curves[1]), notes)


def read_curves(path: Path) -> Curves:
    """What can be read of metrics.csv: a run that was killed may have left half a line."""
    curves = Curves()
    try:
        with open(path, encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                for key, points in (("train_loss", curves.train), ("val_loss", curves.validation)):
                    step, loss = row.get("step"), row.get(key)
                    if step and step.isdigit() and loss:
                        points.append((int(step), float(loss)))
    except (OSError, ValueError):
        pass
    return curves


def change(a: Any, b: Any) -> str:
    """b - a of numbers, with its share of a; nothing for words."""
    numbers = [x for x in (a, b) if isinstance(x, (int, float)) and not isinstance(x, bool) and math.isfinite(x)]
    if len(numbers) < 2:
        return ""
    by = numbers[1] - numbers[0]
    text = f"{by:+,}" if isinstance(by, int) else f"{by:+.4f}"
    return text + (f" ({by / numbers[0]:+.2%})" if numbers[0] else "")


def write_comparison(found: Comparison, folder: Path) -> list[Path]:
    """compare-NAME.csv and .json of the second run's name; their paths."""
    name = figure_name(found)
    rows = [
        {"what": what, "name": key, "a": a, "b": b, "change": change(a, b)}
        for what, pairs in (("metric", found.metrics), ("setting", found.settings))
        for key, (a, b) in pairs.items()
    ]
    write_table(folder / f"{name}.csv", rows)
    content = {
        "format": FORMAT, "a": str(found.folders[0]), "b": str(found.folders[1]), "metrics": found.metrics,
        "settings": found.settings, "notes": found.notes,
    }  # fmt: skip
    write_json(folder / f"{name}.json", content)
    return [folder / f"{name}.csv", folder / f"{name}.json"]


def figure_name(found: Comparison) -> str:
    return f"compare-{found.folders[1].resolve().name}"


def write_figure(found: Comparison, folder: Path) -> list[Path]:
    """The curves, PNG and PDF; nothing where no run has any. ImportError without matplotlib."""
    if not any(curves.train or curves.validation for curves in found.curves):
        return []
    with style():
        return save(_draw(found), folder, figure_name(found))


def _draw(found: Comparison) -> "Figure":
    """Validation loss with markers, training loss pale; cut above the first evaluation after the beginning."""
    from matplotlib.ticker import MaxNLocator

    figure = new_figure(2.6, 5.0)
    axes = figure.subplots()
    late: list[float] = []
    looks = ((BLUE, "-", "o"), (ORANGE, "--", "s"))
    for folder, curves, (colour, dash, mark) in zip(found.folders, found.curves, looks, strict=True):
        name, few = folder.resolve().name, len(curves.validation) < 30
        pale: dict[str, Any] = {"lw": 0.7, "alpha": 0.45, "label": f"{name}, training"}
        full: dict[str, Any] = {"lw": 1.2, "marker": mark if few else "", "ms": 2.6, "label": f"{name}, validation"}
        for points, extra in ((curves.train, pale), (curves.validation, full)):
            if points:
                axes.plot(*zip(*points, strict=True), color=colour, ls=dash, **extra)
                last = points[-1][0]
                late += [loss for step, loss in points if step >= 0.05 * last and math.isfinite(loss)]
    if late:
        room = 0.04 * (max(late) - min(late)) or 0.1
        axes.set_ylim(min(late) - room, max(late) + room)
    axes.set(xlabel="step", ylabel="loss (nats a token)")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    figure.legend(loc="outside upper center", ncols=2)
    return figure
