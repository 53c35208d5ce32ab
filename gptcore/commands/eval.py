"""Scores of a trained model: evaluation tasks, and bits per byte of a text.

  gptcore eval --out_dir out/my_run --tasks shakespeare_line,shakespeare_speech
  gptcore eval --out_dir out/my_run --tasks local_arc_easy --task_path my_data --limit 200
  gptcore eval --out_dir out/my_run --text my_file.txt

--tasks names tasks of --task_path, of explorations/tasks, or of the lm-evaluation-harness; the data of the latter must
be in the local cache of the Hugging Face library, as nothing is downloaded unless HF_HUB_OFFLINE=0 is set. --text
needs no task: it gives bits per byte, which compares models whatever their tokenizers. Results go to standard output
and, with everything needed to tell where they come from, to one file each in eval/ of the run folder.
"""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

FORMAT = 1
DERIVED = ("bits_per_byte", "stderr", "bits_per_character", "loss", "perplexity")  # of a text


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--out_dir", metavar="DIR", help="run folder, or a folder of runs (default: out)")
    add("--checkpoint", metavar="FILE", help="file of the run, such as last.pt (default: the best, else newest)")
    add("--tasks", metavar="LIST", help="names of tasks, comma-separated")
    add("--task_path", "--task-path", metavar="PATH", help="folder with more task files or their data, or a task file")
    add("--text", metavar="FILE", help="bits per byte of this UTF-8 file")
    add("--limit", type=int, metavar="N", help="only the first N documents of each task")
    add("--num_fewshot", type=int, metavar="N", help="examples in each prompt (default: as the task says, else 0)")
    add("--batch_size", type=int, default=32, metavar="N", help="sequences in a batch (default: 32)")
    add(
        "--unknown", choices=("error", "drop"), default="error",
        help="characters that the tokenizer lacks: an error (default), or drop and count them",
    )  # fmt: skip
    add("--device", default="auto", help="cpu, cuda, cuda:N, or auto (default)")


def run(args: argparse.Namespace) -> int:
    from ..checkpoint import load_model
    from ..distributed import pick_device
    from ..errors import UserError
    from .sample import find_run, tokenizer_of

    names = task_names(args.tasks)
    if not names and args.text is None:
        raise UserError("nothing to evaluate: name --tasks, or a file by --text")
    for option in ("limit", "num_fewshot", "task_path"):
        if not names and getattr(args, option) is not None:
            raise UserError(f"--{option} belongs to --tasks; add it, or leave --{option} out")
    for option in ("limit", "batch_size"):
        if getattr(args, option) is not None and getattr(args, option) < 1:
            raise UserError(f"--{option} must be at least 1, not {getattr(args, option)}")
    if args.num_fewshot is not None and args.num_fewshot < 0:
        raise UserError(f"--num_fewshot must not be negative, but is {args.num_fewshot}")
    tasks = find(names, args.task_path)
    text = _text(args.text)
    folder = find_run(Path(args.out_dir or "out"))
    if args.checkpoint is not None and not (folder / args.checkpoint).is_file():
        present = ", ".join(sorted(path.name for path in folder.glob("*.pt"))) or "none"
        raise UserError(f"--checkpoint: no file {args.checkpoint} in {folder} (checkpoints there: {present})")
    loaded = load_model(folder, args.checkpoint, str(pick_device(args.device)))
    tokenizer = tokenizer_of(loaded)
    _note(f"{loaded.path}, step {loaded.step:,}, {loaded.model.parameter_count():,} parameters")
    origin = origin_of(
        loaded.model, tokenizer, run=str(folder), checkpoint=loaded.path.name, step=loaded.step,
        identity=identity_of(folder),
    )  # fmt: skip
    origin |= {"unknown": args.unknown, "batch_size": args.batch_size}
    if text is not None:
        _score_text(loaded.model, tokenizer, text, args, folder, origin)
    if tasks:
        score(
            loaded.model, tokenizer, tasks, folder=folder, origin=origin, limit=args.limit,
            num_fewshot=args.num_fewshot, batch_size=args.batch_size, drop_unknown=args.unknown == "drop",
        )  # fmt: skip
    return 0


def task_names(text: str | None) -> list[str]:
    return [name for name in (part.strip() for part in (text or "").split(",")) if name]


def find(names: Sequence[str], task_path: str | None) -> list[Any]:
    """The task files of `names`; what can be wrong with them and their documents shows before a model is loaded."""
    from importlib.util import find_spec

    from ..errors import UserError
    from ..tasks import documents, find_tasks

    if not names:
        return []
    found = find_tasks(names, Path(task_path) if task_path is not None else None)
    tasks = list({task.name: task for task in found}.values())
    for task in tasks:
        documents(task)
    if find_spec("lm_eval") is None:
        raise UserError("tasks need the lm-evaluation-harness: pip install 'gptcore[eval]'")
    return tasks


def score(
    model, tokenizer, tasks: Sequence[Any], *, folder: Path | None, origin: dict[str, Any], limit: int | None = None,
    num_fewshot: int | None = None, batch_size: int = 32, drop_unknown: bool = False,
) -> None:  # fmt: skip
    """Runs tasks one after the other; prints a table, and writes one file a task where there is a run folder."""
    from ..evaluate import write_result
    from ..task_run import run_task

    rows = [["task", "metric", "value", "stderr", "better", "chance", "documents", "shots"]]
    notes, written = [], []
    try:
        for task in tasks:
            result = run_task(
                model, tokenizer, task, limit=limit, num_fewshot=num_fewshot, batch_size=batch_size,
                drop_unknown=drop_unknown, progress=_progress(task.name),
            )  # fmt: skip
            for i, m in enumerate(result.metrics):
                guess = result.chance if m.metric in ("acc", "acc_norm") else None
                documents = f"{result.samples:,}" + (
                    f" of {result.documents:,}" if result.samples < result.documents else ""
                )
                rows.append([
                    "" if i else task.name, m.metric if m.filter == "none" else f"{m.metric} ({m.filter})",
                    _number(m.value), "-" if m.stderr is None else _number(m.stderr),
                    {True: "higher", False: "lower", None: "-"}[m.higher_is_better],
                    "-" if guess is None else f"{guess:.4f}", documents, str(result.num_fewshot),
                ])  # fmt: skip
            if result.dropped:
                notes.append(f"{task.name}: {result.dropped:,} characters were dropped that the tokenizer lacks")
            if num_fewshot is not None and result.num_fewshot != num_fewshot:
                notes.append(f"{task.name}: the task forbids examples in its prompts, so there are none")
            if folder is not None:
                content = origin | {"limit": limit, "task_file": str(task.path), "result": asdict(result)}
                few = None if num_fewshot is None else f"{num_fewshot}shot"
                name = _named(task.name, origin, few, None if limit is None else f"first{limit}")
                written.append(write_result(folder, name, content))
    finally:
        if len(rows) > 1:
            print(_columns(rows))
            for note in notes:
                print(f"note: {note}")
            if written:
                print(f"written: {', '.join(map(str, written))}")


def _score_text(model, tokenizer, text: str, args: argparse.Namespace, folder: Path, origin: dict[str, Any]) -> None:
    import hashlib

    from ..evaluate import score_text, write_result

    path, drop = Path(args.text), args.unknown == "drop"
    began = time.perf_counter()
    found = score_text(
        model, tokenizer, text, batch_size=args.batch_size, drop_unknown=drop, progress=_progress(path.name),
        name=str(path),
    )  # fmt: skip
    elapsed_s = time.perf_counter() - began
    digest = hashlib.sha256(text.encode()).hexdigest()
    spread = "" if found.stderr is None else f" (standard error {found.stderr:.4f})"
    print(f"{path}: {found.bits_per_byte:.4f} bits per byte{spread}")
    print(f"  {found.bytes:,} bytes, {found.characters:,} characters ({found.bits_per_character:.4f} bits each)")
    print(f"  {found.tokens:,} tokens ({found.loss:.4f} nats each, perplexity {found.perplexity:.4g})")
    if found.dropped:
        print(f"note: {found.dropped:,} characters were dropped that the tokenizer lacks; their bytes are not counted")
    content = origin | {
        "text": str(path), "sha256": digest, "elapsed_s": elapsed_s,
        "result": asdict(found) | {name: getattr(found, name) for name in DERIVED},
    }  # fmt: skip
    name = _named(f"text-{path.stem}", origin)
    try:  # another text of the same name keeps its result
        if json.loads((folder / "eval" / f"{name}.json").read_text()).get("sha256") not in (None, digest):
            name += f"-{digest[:8]}"
    except (OSError, ValueError, AttributeError):
        pass
    print(f"written: {write_result(folder, name, content)}")


def _named(what: str, origin: dict[str, Any], *settings: str | None) -> str:
    """The name of a result: one of a part of the documents, or of another checkpoint, replaces no whole one."""
    checkpoint = Path(origin["checkpoint"]).stem
    return "-".join(filter(None, [what, None if checkpoint == "best" else checkpoint, *settings]))


def identity_of(folder: Path) -> str | None:
    from ..checkpoint import read_run
    from ..errors import CheckpointError

    try:
        return read_run(folder).get("identity")
    except CheckpointError:  # the checkpoint alone is enough
        return None


def origin_of(
    model, tokenizer, *, run: str | None, checkpoint: str, step: int | None, identity: str | None
) -> dict[str, Any]:
    """What the numbers are of and what made them."""
    from importlib.metadata import PackageNotFoundError, version

    from ..evaluate import model_hash, start_token

    versions: dict[str, str | None] = {}
    for name in ("gptcore", "torch", "lm_eval", "datasets", "tiktoken"):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = None
    weight = model.lm_head.weight
    return {
        "format": FORMAT, "run": run, "checkpoint": checkpoint, "step": step, "identity": identity,
        "model_hash": model_hash(model), "block_size": model.config.block_size, "tokenizer": tokenizer.name,
        "start": start_token(tokenizer)[1], "device": str(weight.device),
        "dtype": str(weight.dtype).removeprefix("torch."), "versions": versions,
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }  # fmt: skip


def _text(path: str | None) -> str | None:
    from ..evaluate import read_text

    return None if path is None else read_text(Path(path))


def _columns(rows: Sequence[Sequence[str]]) -> str:
    """Rows below each other: words to the left, numbers to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = (
        "  ".join(
            cell.ljust(w) if i < 2 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    )
    return "\n".join(line.rstrip() for line in lines)


def _number(value: float) -> str:
    return f"{value:.4f}" if abs(value) < 1e5 else f"{value:.4g}"


def _progress(name: str):
    """A line on the terminal that counts; nothing where nobody looks."""
    if not sys.stderr.isatty():
        return None

    def show(done: int, total: int) -> None:
        print(f"\r{name}: {done:,} of {total:,} ", end="\n" if done == total else "", file=sys.stderr, flush=True)

    return show


def _note(text: str) -> None:
    print(text, file=sys.stderr)
