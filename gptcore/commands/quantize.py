"""What a trained run loses when its weights, and its activations, are rounded to few bits without more training.

  gptcore quantize --out_dir out/my_run
  gptcore quantize --out_dir out/my_run --weight_bits 8,4 --activation_bits none,8 --granularity tensor,channel
  gptcore quantize --out_dir out/my_run --weight_bits 4 --save out/my_run_w4

Every combination is evaluated on the validation batches of the run's own evaluations. Matrices are rounded: weights of
linear layers and experts, the token table (with a tied head once), tables of positions. Vectors and norms stay, and so
does what the model rounds by itself. Activations are rounded token by token at the places of attention and mlp. Sizes
count codes and their scales; what stays has the width model.bits.weight. Results go into the run folder after each
combination: quantize.json, quantize.csv and quantize.png.
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

LOWEST, HIGHEST = 2, 16


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--out_dir", metavar="DIR", help="run folder, or a folder of runs (default: out)")
    add("--checkpoint", metavar="FILE", help="file of the run, such as last.pt (default: the best, else newest)")
    add("--weight_bits", default="8,6,5,4,3,2", metavar="LIST", help="2 to 16, or none (default: 8,6,5,4,3,2)")
    add("--activation_bits", default="none", metavar="LIST", help="2 to 16, or none: as trained (default: none)")
    add(
        "--granularity",
        default="channel",
        metavar="LIST",
        help="one range a tensor, or a channel (default)",
    )
    add("--method", default="symmetric", metavar="LIST", help="codes: symmetric around zero (default), or affine")
    add("--what", default="all", metavar="LIST", help="all (default), or some of attention, mlp, embedding, other")
    add("--per_layer", metavar="BITS", help="also round every matrix alone to so many bits, and rank them")
    add("--eval_iters", type=int, metavar="N", help="validation batches (default: as in training)")
    add("--dataset", metavar="NAME", help="where the run's data set is now (default: where it was)")
    add("--save", metavar="DIR", help="write the rounded model as a run; needs exactly one combination")
    add("--device", default="auto", help="cpu, cuda, cuda:N, or auto (default)")


def run(args: argparse.Namespace) -> int:
    from ..analysis.ptq import Sweep
    from ..analysis.ptq_report import Results, write_results
    from ..analysis.ptq_run import check_target, open_run, save_run
    from ..distributed import pick_device
    from ..errors import RunError, UserError
    from ..hostmemory import keep_freed_memory
    from .sample import find_run

    plan = _plan(args)
    if args.eval_iters is not None and args.eval_iters < 1:
        raise UserError(f"--eval_iters must be at least 1, not {args.eval_iters}")
    if args.save is not None:
        if len(plan.points()) != 2:  # the model as trained, and one more
            count = len(plan.points()) - 1
            raise UserError(f"--save needs exactly one combination, such as --weight_bits 4; these are {count}")
        check_target(Path(args.save))
    device = pick_device(args.device)
    if device.type == "cpu":
        keep_freed_memory()
    subject = open_run(
        find_run(Path(args.out_dir or "out")), checkpoint=args.checkpoint, dataset=args.dataset,
        eval_iters=args.eval_iters, device=str(device),
    )  # fmt: skip
    sweep = Sweep(subject.loaded, plan, subject.batches, subject.config.train.dtype)
    options = {name: getattr(args, name) for name in (
        "weight_bits", "activation_bits", "granularity", "method", "what", "per_layer", "eval_iters", "dataset",
    )}  # fmt: skip
    matrices = [
        {"name": m.name, "part": m.part, "shape": m.shape, "own_bits": m.own_bits, "rounded": m in sweep.targets}
        for m in sweep.matrices
    ]
    results = Results(subject.provenance() | {"options": options, "notes": sweep.notes(), "matrices": matrices})
    _note(f"{subject.loaded.path}, step {subject.loaded.step:,}, {subject.loaded.model.parameter_count():,} parameters")
    total, target = len(sweep.points()), Path(args.save) if args.save is not None else None
    try:
        (subject.folder / "quantize.png").unlink(missing_ok=True)  # of an earlier sweep
        try:
            for row in sweep.rows():
                results.rows.append(row)
                write_results(results, subject.folder, complete=len(results.rows) == total)
                _progress(len(results.rows), total, row.loss)
                if target is not None and len(results.rows) == 2:
                    save_run(subject, sweep.model, row, _described(row, plan.parts), target)
        finally:
            if results.rows:
                _show(results, subject, sweep.notes(), total)
    except BrokenPipeError:
        raise
    except OSError as error:
        raise RunError(f"cannot write {error.filename or 'results'}: {error.strerror or error}") from error
    if target is not None:
        print(f"rounded model: {target}, for example: gptcore sample --out_dir {target}")
    return 0


def _plan(args: argparse.Namespace) -> Any:
    from ..analysis.ptq import Plan
    from ..analysis.rounding import PARTS
    from ..errors import UserError

    def choices(name: str, known: tuple[str, ...]) -> list[Any]:
        def one(text: str) -> str:
            if text not in known:
                raise UserError(f"--{name}: {text!r} is none of {', '.join(known)}")
            return text

        return _list(getattr(args, name), one)

    parts = choices("what", ("all", *PARTS))
    return Plan(
        weight_bits=_list(args.weight_bits, lambda text: _bits("weight_bits", text)),
        activation_bits=_list(args.activation_bits, lambda text: _bits("activation_bits", text)),
        granularities=choices("granularity", ("tensor", "channel")),
        methods=choices("method", ("symmetric", "affine")),
        parts=PARTS if "all" in parts else parts,
        per_layer=None if args.per_layer is None else _bits("per_layer", args.per_layer, nothing=False),
    )


def _list(text: str, one: Callable[[str], Any]) -> list[Any]:
    return list(dict.fromkeys(one(item.strip()) for item in text.split(",")))


def _bits(option: str, text: str, *, nothing: bool = True) -> int | None:
    from ..errors import UserError

    if text == "none" and nothing:
        return None
    if not (text.isascii() and text.isdigit() and LOWEST <= int(text) <= HIGHEST):
        raise UserError(f"--{option}: {text!r} is no number of {LOWEST} to {HIGHEST}{', or none' if nothing else ''}")
    return int(text)


def _described(row, parts) -> dict[str, Any]:
    """What was done to the weights of a saved run."""
    point = row.point
    return {
        "weight_bits": point.weight_bits, "activation_bits": point.activation_bits, "granularity": point.granularity,
        "method": point.method, "parts": list(parts), "matrices": list(row.errors),
    }  # fmt: skip


def _show(results, subject, notes: list[str], total: int) -> None:
    """Table, notes, plot; also of an interrupted sweep."""
    from rich.console import Console

    from ..analysis.ptq_report import plot, print_results

    console = Console() if sys.stdout.isatty() else Console(width=160)
    print_results(results, console)
    loss, recorded = results.reference.loss, subject.recorded
    width = subject.config.model.bits.weight
    print(f"\nloss in nats a token over {subject.eval_iters} validation batches; first row: as trained", end="")
    if recorded is not None:
        print(", as recorded in training" if abs(loss - recorded) < 1e-3 else f", but training recorded {recorded:.4f}")
    else:
        print()
    print(f"bytes: matrices packed, with their scales; all else at {width} bits. size: of the model at {width} bits")
    print("largest error: |W' - W| / |W| of the matrix that suffers most")
    for note in notes:
        print(f"note: {note}")
    written = "quantize.json, quantize.csv"
    try:
        if len(results.rows) > 1:
            plot(results, subject.folder / "quantize.png")
            written += ", quantize.png"
    except ImportError:
        _note("no plot: matplotlib is not installed (pip install matplotlib)")
    print(f"written: {written} in {subject.folder}")
    if len(results.rows) < total:
        _note(f"{len(results.rows)} of {total} evaluations were done")


def _progress(done: int, total: int, loss: float) -> None:
    if sys.stderr.isatty():
        print(f"\r{done} of {total}, loss {loss:.4f} ", end="\n" if done == total else "", file=sys.stderr, flush=True)


def _note(text: str) -> None:
    print(text, file=sys.stderr)
