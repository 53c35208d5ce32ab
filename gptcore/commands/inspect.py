"""What runs and checkpoints are made of: tables, statistics and figures.

  gptcore inspect [ckpts] [DIR]          every run below a folder: status, best loss, size, in what the runs differ
  gptcore inspect activations RUN        range, outliers, bits needed and saturation at every place of every layer
  gptcore inspect weights RUN            the same of the weights
  gptcore inspect softmax RUN            what every head's weighting reads and writes; its learned constants
  gptcore inspect compare A B            settings, results and curves of two runs

All but the first write CSV, JSON and figures into RUN/inspect (--to), and print a summary. `gptcore inspect VIEW
--help` explains one view; docs/inspect.md has the definitions.
"""

import argparse
import csv
import io
import sys
import time
from pathlib import Path
from typing import Any

VIEWS = {
    "ckpts": "table of every run below a folder",
    "activations": "bits, ranges and outliers of activations, by layer and place",
    "weights": "bits, ranges and outliers of weights",
    "softmax": "ranges of attention scores and weights by head, and learned constants over the training",
    "compare": "settings, results and curves of two runs",
}
TARGET_DB = 30.0
LEAST = 20  # columns for the settings besides kinds, or they are left to the CSV file


def add_arguments(parser: argparse.ArgumentParser) -> None:
    views = parser.add_subparsers(dest="view", metavar="VIEW", help="ckpts where nothing is said")
    adders = {
        name: views.add_parser(name, help=text, description=text, allow_abbrev=False) for name, text in VIEWS.items()
    }
    _add_ckpts(adders["ckpts"])
    for name in ("activations", "weights", "softmax"):
        adders[name].add_argument("run_folder", metavar="RUN", help="run folder, or a folder of runs: the newest one")
        adders[name].add_argument("--checkpoint", metavar="FILE", help="of the run (default: the best, else newest)")
        _add_tokens(adders[name])
    for name in ("activations", "weights"):
        _add_formats(adders[name])
    adders["activations"].add_argument(
        "--method", choices=("symmetric", "affine"), default="symmetric", help="codes around zero (default), or affine"
    )
    for name in ("a", "b"):
        adders["compare"].add_argument(name, metavar=name.upper(), help="run folder")
    for name in ("activations", "weights", "softmax", "compare"):
        adders[name].add_argument("--to", metavar="DIR", help="where files go (default: inspect/ in the run folder)")
    parse = parser.parse_args

    def parse_args(argv: Any = None, namespace: Any = None) -> Any:
        """argparse has no default for a sub-command: what names none is `ckpts`, so that its folder may stand alone."""
        words = list(sys.argv[1:] if argv is None else argv)
        named = bool(words) and words[0] in (*VIEWS, "-h", "--help")
        return parse(words if named else ["ckpts", *words], namespace)

    parser.parse_args = parse_args  # type: ignore[method-assign, assignment]


def _add_ckpts(parser: argparse.ArgumentParser) -> None:
    from ..analysis.runs import SORT_KEYS

    add = parser.add_argument
    add("folder", nargs="?", default="out", help="where to look (default: out)")
    add("--sort", choices=sorted(SORT_KEYS), default="loss", help="order of the rows (default: loss)")
    add("--csv", metavar="FILE", help="also write the whole table, every differing setting; - is stdout")
    add(
        "--watch", type=float, nargs="?", const=2.0, metavar="S",
        help="look again every S seconds (default: 2) until interrupted; CSV and table follow the runs",
    )  # fmt: skip


def _add_tokens(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--tokens", type=int, default=8192, metavar="N", help="at least so many, in whole batches (default: 8192)")
    add("--text", metavar="FILE", help="tokens of this UTF-8 file instead of the run's validation split")
    add("--dataset", metavar="NAME", help="where the run's data set is now (default: where it was)")
    add("--device", default="auto", help="cpu, cuda, cuda:N, or auto (default)")


def _add_formats(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "--format", default="q3.4", metavar="LIST",
        help="formats whose saturation is counted: qM.N, uqM.N, fp8_e4m3, fp8_e5m2, fp16, bf16 (default: q3.4)",
    )  # fmt: skip
    add(
        "--sqnr", type=float, default=TARGET_DB, metavar="DB",
        help=f"signal to quantisation noise that the bits must reach (default: {TARGET_DB:g} dB)",
    )  # fmt: skip


def run(args: argparse.Namespace) -> int:
    if args.view == "ckpts":
        return _ckpts(args) if args.watch is None else _watch(args)
    from . import inspect_views

    return getattr(inspect_views, args.view)(args)


def _ckpts(args: argparse.Namespace) -> int:
    from ..analysis.runs import find_runs
    from ..errors import RunError

    runs = find_runs(Path(args.folder))
    if not runs:
        raise RunError(f"no runs below {args.folder}; `gptcore train CONFIG` makes one")
    _show(args, runs, sys.stdout)
    return 0


def _show(args: argparse.Namespace, runs: Any, file: Any) -> None:
    from ..analysis.runs import SORT_KEYS, differing_settings

    runs = sorted(runs, key=SORT_KEYS[args.sort])
    names = differing_settings(runs)
    if args.csv:
        _write_csv(args.csv, runs, names)
    if args.csv != "-":
        _print(runs, names, Path(args.folder), file)


def _watch(args: argparse.Namespace) -> int:
    """Shows the table whenever it has changed, until Ctrl-C. On a terminal it stays in one place."""
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    from ..analysis.runs import find_runs
    from ..errors import UserError

    if args.watch <= 0:
        raise UserError(f"--watch: the seconds between two looks must be positive, not {args.watch:g}")
    console = Console()
    live = Live(console=console, auto_refresh=False, vertical_overflow="crop") if console.is_terminal else None
    known: dict[Path, Any] = {}
    shown = None
    try:
        if live is not None:
            live.start()
        while True:
            known = {run.folder: run for run in find_runs(Path(args.folder), known)}
            if (state := list(known.values())) != shown:
                shown = state
                text = io.StringIO()
                if state:
                    _show(args, state, text)
                elif args.csv != "-":
                    print(f"no runs below {args.folder} yet", file=text)
                if live is not None:
                    live.update(Text(text.getvalue().rstrip("\n"), no_wrap=True, overflow="crop"), refresh=True)
                else:
                    print(text.getvalue(), end="", flush=True)
            time.sleep(args.watch)
    except KeyboardInterrupt:
        return 0
    finally:
        if live is not None:
            live.stop()


def _write_csv(target: str, runs: Any, names: list[str]) -> None:
    from ..errors import UserError

    head = [
        "folder", "status", "best_loss", "best_step", "step", "parameters", "tokens", "identity", "note", *names,
    ]  # fmt: skip
    rows = [
        [r.folder, r.status, r.best_loss, r.best_step, r.step, r.parameters, r.tokens, r.identity, r.note]
        + [r.settings.get(name) for name in names]
        for r in runs
    ]
    if target == "-":
        csv.writer(sys.stdout).writerows([head, *rows])
        sys.stdout.flush()
        return
    try:
        with open(target, "w", newline="") as file:
            csv.writer(file).writerows([head, *rows])
    except OSError as error:
        raise UserError(f"cannot write {target}: {error.strerror}") from error


def _print(runs: Any, names: list[str], root: Path, file: Any) -> None:
    from rich.console import Console

    # A knob that only some kinds have says no more than the kind.
    everywhere = set.intersection(*[set(r.settings) for r in runs if r.settings] or [set()])
    kinds = sorted((name for name in names if name.endswith(".kind")), key=lambda name: name not in everywhere)
    others = [name for name in names if not name.endswith(".kind") and name in everywhere]
    console = Console(file=file, width=None if sys.stdout.isatty() else 160)
    shown, table, least = len(kinds), _table(runs, kinds, root), 0
    while (left := console.width - _width(console, table)) < least and shown:  # the last kinds join the other settings
        shown, least = shown - 1, LEAST
        table = _table(runs, kinds[:shown], root)
    rest = kinds[shown:] + others
    more = [" ".join(f"{_short(n)}={r.settings[n]}" for n in rest if r.settings.get(n) is not None) for r in runs]
    if any(more) and left >= LEAST:
        cut = [text if len(text) <= left - 2 else f"{text[: left - 3]}\u2026" for text in more]
        table = _table(runs, kinds[:shown], root, cut)
    console.print(table, highlight=False, markup=False)
    for r in runs:
        if r.note:
            console.print(f"{r.folder}: {r.note}", highlight=False, markup=False)


def _table(runs: Any, kinds: list[str], root: Path, more: list[str] | None = None) -> Any:
    from rich.table import Table

    from ..units import si

    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("run", overflow="fold")
    table.add_column("status", no_wrap=True)
    for title in ("best loss", "at step", "steps", "params", "tokens"):
        table.add_column(title, justify="right", no_wrap=True)
    for name in kinds:
        table.add_column(_short(name), overflow="fold")
    for title in ["identity"] + ["also differs"] * (more is not None):
        table.add_column(title, no_wrap=True)
    for i, r in enumerate(runs):
        table.add_row(
            str(r.folder.relative_to(root)) if r.folder != root else str(root), r.status,
            f"{r.best_loss:.4f}" if r.best_loss is not None else "-", _text(r.best_step), _text(r.step),
            f"{r.parameters:,}" if r.parameters else "-", si(r.tokens) if r.tokens else "-",
            *(_text(r.settings.get(kind)) for kind in kinds), r.identity[:8], *(more[i : i + 1] if more else []),
        )  # fmt: skip
    return table


def _width(console: Any, table: Any) -> int:
    return console.measure(table, options=console.options.update(width=10_000)).maximum


def _short(name: str) -> str:
    if name.endswith(".kind"):
        return name.removesuffix(".kind").removeprefix("model.").replace("attention.", "")
    return name.rsplit(".", 1)[-1]


def _text(value: Any) -> str:
    return "-" if value is None else str(value)
