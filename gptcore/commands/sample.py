"""Text from a trained model.

  gptcore sample --out_dir out/my_run --start "ROMEO:" --num_samples 3 --max_new_tokens 200
  gptcore sample --init_from gpt2 --start FILE:prompt.txt --top_p 0.9

--out_dir is a run folder, or a folder of runs, of which the most recently updated one is taken. In --start and --stop,
\\n, \\r, \\t and \\\\ stand for a line feed, a carriage return, a tab and a backslash. Samples and one line about their
speed go to standard output, notes to standard error.
"""

import argparse
import re
import sys
from pathlib import Path

SEPARATOR = "-" * 72
DTYPES = ("float32", "bfloat16", "float16")
_ESCAPES = {"n": "\n", "r": "\r", "t": "\t", "\\": "\\"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--out_dir", metavar="DIR", help="run folder, or a folder of runs (default: out)")
    add("--init_from", metavar="MODEL", help="instead: gpt2, gpt2-medium, -large, -xl, or a folder of GPT-2 weights")
    add("--checkpoint", metavar="FILE", help="file of the run, such as last.pt (default: the best, else newest)")
    add("--start", default="\\n", metavar="TEXT", help="prompt, or FILE:PATH for the content of a file (default: \\n)")
    add("--num_samples", type=int, default=1, metavar="N", help="samples to draw (default: 1)")
    add("--max_new_tokens", type=int, default=500, metavar="N", help="tokens of each sample (default: 500)")
    add("--temperature", type=float, default=0.8, metavar="X", help="0: always the likeliest token (default: 0.8)")
    add("--top_k", type=int, metavar="K", help="draw from the K likeliest tokens only")
    add("--top_p", type=float, metavar="P", help="draw from the likeliest tokens that together have probability P only")
    add("--seed", type=int, default=1337, metavar="N", help="same seed, same text (default: 1337)")
    add("--stop", action="append", default=[], metavar="TEXT", help="end a sample before this text; may be repeated")
    add("--lm_eval_tasks", metavar="LIST", help="instead of sampling: scores on these tasks, as `gptcore eval --tasks`")
    add("--device", default="auto", help="cpu, cuda, cuda:N, or auto (default)")
    add("--dtype", choices=DTYPES, default="float32", help="of weights and arithmetic (default: float32)")


def run(args: argparse.Namespace) -> int:
    import torch

    from ..distributed import pick_device
    from ..errors import UserError
    from ..sample import cache_obstacle, continue_text
    from .eval import find, score, task_names

    if args.num_samples < 1:
        raise UserError(f"--num_samples must be at least 1, not {args.num_samples}")
    tasks = find(task_names(args.lm_eval_tasks), None)
    if args.lm_eval_tasks is not None and not tasks:
        raise UserError("--lm_eval_tasks names no task")
    start, stops = _start(args.start), [_unescape(text) for text in args.stop]
    device = pick_device(args.device)
    model, tokenizer = _pretrained(args) if args.init_from not in (None, "resume") else _trained(args)
    model.to(device=device, dtype=getattr(torch, args.dtype))
    if args.lm_eval_tasks is not None:
        score(model, tokenizer, tasks, folder=None, origin={})
        return 0
    if not start:
        _note(f"empty prompt: starting from {'a line feed' if tokenizer.eot is None else 'the end-of-text token'}")
    samples = continue_text(
        model, tokenizer, start, num_samples=args.num_samples, max_new_tokens=args.max_new_tokens, stop=stops,
        temperature=args.temperature, top_k=args.top_k, top_p=args.top_p, seed=args.seed,
    )  # fmt: skip
    for text in samples.texts:
        _print(f"{text}\n{SEPARATOR}")
    obstacle = cache_obstacle(model)
    cache = "key/value cache used" if obstacle is None else f"no key/value cache: {obstacle}"
    rate = f"{samples.tokens / samples.elapsed_s:,.0f} tokens/s"
    _print(f"{samples.tokens:,} tokens in {samples.elapsed_s:.2f} s, {rate} on {device}, {args.dtype}; {cache}")
    return 0


def _trained(args: argparse.Namespace):
    """(model, tokenizer) of a run."""
    from ..checkpoint import load_model
    from ..errors import UserError
    from ..tokenizer import from_meta

    folder = find_run(Path(args.out_dir or "out"))
    if args.checkpoint is not None and not (folder / args.checkpoint).is_file():
        present = ", ".join(sorted(path.name for path in folder.glob("*.pt"))) or "none"
        raise UserError(f"--checkpoint: no file {args.checkpoint} in {folder} (checkpoints there: {present})")
    loaded = load_model(folder, args.checkpoint)
    _note(f"{loaded.path}, step {loaded.step:,}, {loaded.model.parameter_count():,} parameters")
    return loaded.model, from_meta(loaded.tokenizer_meta)


def _pretrained(args: argparse.Namespace):
    """(model, tokenizer) of GPT-2 weights, which always come with GPT-2's encoding."""
    from ..errors import UserError
    from ..model import GPT
    from ..pretrained import load_pretrained
    from ..tokenizer import from_meta

    for option in ("out_dir", "checkpoint"):
        if getattr(args, option) is not None:
            raise UserError(f"--{option} and --init_from {args.init_from} name two models; give one of them")
    config, weights = load_pretrained(args.init_from)
    model = GPT(config)
    model.load_state_dict(weights)
    _note(f"{args.init_from}, {model.parameter_count():,} parameters")
    return model, from_meta(None)


def find_run(folder: Path) -> Path:
    """`folder` itself if it is a run, else the most recently updated run with a checkpoint below it.

    Errors: UserError where there is no run, CheckpointError where no run has a checkpoint yet.
    """
    from ..errors import CheckpointError, UserError

    if not folder.is_dir():
        raise UserError(f"no folder {folder}; --out_dir names the folder of a run, `gptcore inspect` lists runs")
    if (folder / "run.json").exists() or any(folder.glob("*.pt")):
        return folder
    runs = [path.parent for path in folder.rglob("run.json")]
    if not runs:
        hint = "; it looks like Hugging Face weights: use --init_from" if (folder / "config.json").exists() else ""
        raise UserError(f"{folder} is not a run (no run.json), and there is none below it{hint}")
    ready = [run for run in runs if any(run.glob("*.pt"))]
    if not ready:
        raise CheckpointError(f"none of the {len(runs)} runs below {folder} has a checkpoint yet")
    newest = max(ready, key=lambda run: (run / "run.json").stat().st_mtime_ns)
    _note(f"{folder} is a folder of runs; taking the most recently updated of {len(ready)}: {newest}")
    return newest


def _start(text: str) -> str:
    from ..errors import UserError

    if not text.startswith("FILE:"):
        return _unescape(text)
    path = Path(text.removeprefix("FILE:"))
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"--start: {path} is not UTF-8 text (byte {error.start}); convert it, or give another file")
    except OSError as error:
        raise UserError(f"--start: cannot read {path}: {error.strerror}")


def _unescape(text: str) -> str:
    return re.sub(r"\\([nrt\\])", lambda match: _ESCAPES[match[1]], text)


def _print(text: str) -> None:
    """Prints also what the terminal's encoding does not have, as question marks."""
    encoding = sys.stdout.encoding or "utf-8"
    print(text.encode(encoding, errors="replace").decode(encoding))


def _note(text: str) -> None:
    print(text, file=sys.stderr)
