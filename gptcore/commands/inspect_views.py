"""The views of `gptcore inspect` that look into runs: each measures, writes its files, then prints a summary."""

import argparse
import math
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..analysis import compare as comparing
from ..analysis import statistics_figures, weighting, weighting_figures
from ..analysis.bit_plan import BitPlan, loss_with, plan_activations, plan_weights, write_plan
from ..analysis.formats import NumberFormat, parse_format
from ..analysis.measure import Measured, Source, measure_activations, measure_weights, open_source, open_weights
from ..analysis.ptq import mean_loss
from ..analysis.statistics_report import print_statistics, write_statistics, write_table
from ..distributed import pick_device
from ..errors import DataError, RunError, UserError
from .sample import find_run

WIDTH = 150  # of tables that nobody sees on a terminal


def activations(args: argparse.Namespace) -> int:
    formats = _formats(args)
    source, folder = _open(args)
    measured = measure_activations(source, method=args.method, formats=formats)
    plan = plan_activations(source.loaded.config, measured, args.method, args.sqnr)
    with _writing(folder):
        written, remarks = _write_statistics(args, source, folder, measured, formats, "token", plan)
    print_statistics(measured, "token", args.sqnr, _console())
    print(f"\n{_seen(source)}; method {args.method}; of several layers the widest range and the worst of the rest")
    return _end(written, remarks)


def weights(args: argparse.Namespace) -> int:
    formats, notes = _formats(args), []
    try:
        source, folder = _open(args)
    except DataError as error:
        if args.text is not None or args.dataset is not None:
            raise
        notes.append(f"no loss of the plan, as there are no tokens: {str(error).splitlines()[0]}")
        source, folder = _open(args, without_tokens=True)
    measured = measure_weights(source, formats=formats)
    plan = plan_weights(source.loaded.config, measured, args.sqnr)
    with _writing(folder):
        written, remarks = _write_statistics(args, source, folder, measured, formats, "channel", plan)
    print_statistics(measured, "channel", args.sqnr, _console())
    print("\nsymmetric ranges; of several layers the widest range and the worst of the rest; vectors have no channels")
    return _end(written, notes + remarks)


def softmax(args: argparse.Namespace) -> int:
    from dataclasses import asdict

    source, folder = _open(args)
    ranges = weighting.head_ranges(source)
    constants, notes = weighting.trajectories(source.folder, source.config, source.loaded.config)
    with _writing(folder):
        written = [folder / "softmax_ranges.csv"]
        write_table(written[0], [asdict(found) for found in ranges])
        if constants:
            written.append(folder / "softmax_constants.csv")
            write_table(written[-1], [asdict(found) for found in constants])
        written += _drawn(lambda: weighting_figures.write_figures(folder, "softmax", ranges, constants))
    _print_ranges(ranges)
    if constants:
        _print_constants(constants)
    print(f"\n{_seen(source)}; pairs that the mask leaves, all heads of a layer together")
    return _end(written, [f"note: {note}" for note in notes])


def compare(args: argparse.Namespace) -> int:
    found = comparing.compare(Path(args.a), Path(args.b))
    folder = _folder(args, found.folders[0])
    with _writing(folder):
        written = comparing.write_comparison(found, folder)
        written += _drawn(lambda: comparing.write_figure(found, folder))
    console, names = _console(), [str(folder) for folder in found.folders]
    rows = [
        [comparing.METRICS[key], _text(a), _text(b), comparing.change(a, b) if key != "best_step" else ""]
        for key, (a, b) in found.metrics.items()
    ]
    _table(console, ["", *names, "change"], rows, left=1)
    if found.settings:
        print()
        _table(
            console,
            ["setting", *names],
            [[path, _text(a), _text(b)] for path, (a, b) in found.settings.items()],
            left=3,
        )
    return _end(written, [f"note: {note}" for note in found.notes])


def _open(args: argparse.Namespace, *, without_tokens: bool = False) -> tuple[Source, Path]:
    """The run, and the folder for its results, which can be written."""
    if args.tokens < 1:
        raise UserError(f"--tokens must be at least 1, not {args.tokens}")
    run = find_run(Path(args.run_folder))
    if without_tokens:
        source = open_weights(run, args.checkpoint)
    else:
        source = open_source(
            run, checkpoint=args.checkpoint, dataset=args.dataset, tokens=args.tokens,
            device=str(pick_device(args.device)), text=Path(args.text) if args.text is not None else None,
        )  # fmt: skip
    folder = _folder(args, run)
    _note(f"{source.loaded.path}, step {source.loaded.step:,}, {source.loaded.model.parameter_count():,} parameters")
    return source, folder


def _folder(args: argparse.Namespace, run: Path) -> Path:
    folder = Path(args.to) if args.to is not None else run / "inspect"
    with _writing(folder):  # now, rather than after minutes of measuring
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    return folder


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise RunError(f"cannot write into {folder}: {error.strerror or error}; name another folder by --to") from error


def _write_statistics(
    args: argparse.Namespace, source: Source, folder: Path, measured: Sequence[Measured],
    formats: Sequence[NumberFormat], group: str, plan: BitPlan,
) -> tuple[list[Path], list[str]]:  # fmt: skip
    """Everything of a view; (what was written, what to say about it)."""
    name, model = args.view, source.loaded.config
    head = {**source.described, "target_sqnr_db": args.sqnr, "method": getattr(args, "method", "symmetric")}
    written = write_statistics(folder, name, measured, head, group, args.sqnr)
    written += _drawn(lambda: statistics_figures.write_figures(folder, name, measured, formats, group, args.sqnr))
    remarks = [f"not in the plan: {why}" for why in plan.left]
    problems = [f"{'.'.join(map(str, path))}: {message}" for path, message in plan.model.problems()]
    if plan.model == model or problems:
        return written, [*remarks, *(f"no plan: {problem}" for problem in problems or ["nothing is left to round"])]
    said = [f"{name} of {source.loaded.path}, step {source.loaded.step:,}: fewest bits with {args.sqnr:g} dB SQNR each"]
    if source.batches:
        before = mean_loss(source.loaded.model, source.batches, source.config.train.dtype)
        after = loss_with(source, plan.model, source.batches)
        said.append(f"loss without training (nats a token): {before:.4f} as trained, {after:.4f} with these bits")
        said.append(f"on {_seen(source)}")
    path = folder / f"{name}_quant.yaml"
    write_plan(path, source.config, plan, source.folder, said)
    return [*written, path], [*remarks, *said[1:2], f"to train with these bits: gptcore train {path}"]


def _drawn(draw: Any) -> list[Path]:
    try:
        return draw()
    except ImportError:
        _note("no figures: matplotlib is not installed (pip install matplotlib)")
        return []


def _formats(args: argparse.Namespace) -> list[NumberFormat]:
    if not (math.isfinite(args.sqnr) and args.sqnr > 0):
        raise UserError(f"--sqnr must be a positive number of dB, not {args.sqnr:g}")
    return [parse_format(name.strip()) for name in dict.fromkeys(args.format.split(","))]


def _seen(source: Source) -> str:
    b = source.described["batches"]
    return f"{source.tokens:,} tokens of " + (b.get("text") or f"{b['dataset']} ({b['split']})")


def _print_ranges(ranges: Sequence[weighting.HeadRange]) -> None:
    rows = []
    for layer, kind in dict.fromkeys((r.layer, r.kind) for r in ranges):
        cells = [str(layer), kind]
        for quantity in weighting.QUANTITIES:
            mine = [r for r in ranges if (r.layer, r.quantity) == (layer, quantity)]
            cells += [f"{min(r.low for r in mine):.4g}", f"{max(r.high for r in mine):.4g}"]
            cells.append(f"{sum(r.mean for r in mine) / len(mine):.3g}")
        rows.append(cells)
    titles = [f"{name} {end}" for name in ("scores", "weights", "row sum") for end in ("low", "high", "mean")]
    _table(_console(), ["layer", "kind", *titles], rows, left=2)


def _print_constants(constants: Sequence[weighting.Constant]) -> None:
    steps = list(dict.fromkeys(c.step for c in constants))
    print(f"\nlearned constants at steps {', '.join(f'{step:,}' for step in steps)}: lowest and highest head")
    rows = [
        [name, str(layer), f"{a:.5g} .. {b:.5g}", f"{c:.5g} .. {d:.5g}"]
        for name, layer, a, b, c, d in weighting.drift(constants)
    ]
    _table(_console(), ["constant", "layer", "first", "last"], rows, left=1)


def _table(console: Any, titles: Sequence[str], rows: Sequence[Sequence[str]], *, left: int) -> None:
    from rich.table import Table

    table = Table(box=None, header_style="bold", pad_edge=False)
    for i, title in enumerate(titles):
        table.add_column(title, justify="left" if i < left else "right", overflow="fold")
    for row in rows:
        table.add_row(*row)
    console.print(table, highlight=False, markup=False)


def _console() -> Any:
    from rich.console import Console

    return Console() if sys.stdout.isatty() else Console(width=WIDTH)


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.5g}" if abs(value) < 1e5 else f"{value:,.0f}"
    return "-" if value is None else f"{value:,}" if type(value) is int else str(value)


def _end(written: Sequence[Path], remarks: Sequence[str]) -> int:
    for remark in remarks:
        print(remark)
    stems: dict[str, list[str]] = {}
    for path in written:
        stems.setdefault(path.stem, []).append(path.suffix)
    print(f"written: {', '.join(stem + ' '.join(ends) for stem, ends in stems.items())} in {written[0].parent}")
    return 0


def _note(text: str) -> None:
    print(text, file=sys.stderr)
