"""Table of every run below a folder: status, best loss, size, and in what the runs differ.

gptcore inspect [DIR]
"""

import csv
import sys
from pathlib import Path


def add_arguments(parser) -> None:
    from ..analysis.runs import SORT_KEYS

    parser.add_argument("folder", nargs="?", default="out", help="where to look (default: out)")
    parser.add_argument("--sort", choices=sorted(SORT_KEYS), default="loss", help="order of the rows (default: loss)")
    parser.add_argument(
        "--csv", metavar="FILE", help="also write the whole table, every differing setting; - is stdout"
    )


def run(args) -> int:
    from ..analysis.runs import SORT_KEYS, differing_settings, find_runs
    from ..errors import RunError

    runs = sorted(find_runs(Path(args.folder)), key=SORT_KEYS[args.sort])
    if not runs:
        raise RunError(f"no runs below {args.folder}; `gptcore train CONFIG` makes one")
    names = differing_settings(runs)
    if args.csv:
        _write_csv(args.csv, runs, names)
    if args.csv != "-":
        _print(runs, names, Path(args.folder))
    return 0


def _write_csv(target: str, runs, names: list[str]) -> None:
    from ..errors import UserError

    head = ["folder", "status", "best_loss", "best_step", "step", "parameters", "identity", "note", *names]
    rows = [
        [r.folder, r.status, r.best_loss, r.best_step, r.step, r.parameters, r.identity, r.note]
        + [r.settings.get(name) for name in names]
        for r in runs
    ]
    if target == "-":
        csv.writer(sys.stdout).writerows([head, *rows])
        return
    try:
        with open(target, "w", newline="") as file:
            csv.writer(file).writerows([head, *rows])
    except OSError as error:
        raise UserError(f"cannot write {target}: {error.strerror}") from error


def _print(runs, names: list[str], root: Path) -> None:
    from rich.console import Console
    from rich.table import Table

    kinds = [name for name in names if name.endswith(".kind")]
    # A knob that only some kinds have says no more than the kind.
    everywhere = set.intersection(*[set(r.settings) for r in runs if r.settings] or [set()])
    others = [name for name in names if not name.endswith(".kind") and name in everywhere]
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("run", overflow="fold")
    table.add_column("status")
    for title in ("best loss", "at step", "steps", "params"):
        table.add_column(title, justify="right")
    for name in kinds:
        table.add_column(name.removesuffix(".kind").removeprefix("model.").replace("attention.", ""), overflow="fold")
    table.add_column("identity")
    if others:
        table.add_column("also differs", overflow="ellipsis", no_wrap=True)
    for r in runs:
        name = str(r.folder.relative_to(root)) if r.folder != root else str(root)
        cells = [
            name, r.status, f"{r.best_loss:.4f}" if r.best_loss is not None else "-", _text(r.best_step),
            _text(r.step), f"{r.parameters:,}" if r.parameters else "-",
        ]  # fmt: skip
        cells += [_text(r.settings.get(kind)) for kind in kinds] + [r.identity[:8]]
        if others:
            cells.append(
                " ".join(f"{n.rsplit('.', 1)[-1]}={r.settings[n]}" for n in others if r.settings.get(n) is not None)
            )
        table.add_row(*cells)
    console = Console() if sys.stdout.isatty() else Console(width=160)
    console.print(table, highlight=False, markup=False)
    for r in runs:
        if r.note:
            console.print(f"{r.folder}: {r.note}", highlight=False, markup=False)


def _text(value) -> str:
    return "-" if value is None else str(value)
