"""Text from a trained model.

  gptcore sample --out_dir out/my_run --start "ROMEO:" --num_samples 3 --max_new_tokens 200
  gptcore sample --out_dir out/my_run --colorize_output --show_heatmaps --sample_file samples.jsonl
  gptcore sample --out_dir out/my_run --interactive
  gptcore sample --init_from gpt2 --start FILE:prompt.txt --top_p 0.9

--out_dir is a run folder, or a folder of runs, of which the most recently updated one is taken. In --start and --stop,
\\n, \\r, \\t and \\\\ stand for a line feed, a carriage return, a tab and a backslash. Samples and one line about their
speed go to standard output, notes to standard error. Ctrl-C ends a generation and keeps what there is of it; a second
one ends the program.
"""

import argparse
import contextlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from ..showing import MODES

if TYPE_CHECKING:
    from ..checkpoint import LoadedModel
    from ..prompt_loop import Settings
    from ..tokenizer import Tokenizer
    from .sample_output import Output, Source

SEPARATOR = "-" * 72
DTYPES = ("float32", "bfloat16", "float16")
IN_RUN = ""  # --show_heatmaps without a folder: in the folder of the run


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--out_dir", metavar="DIR", help="run folder, or a folder of runs (default: out)")
    add("--init_from", metavar="MODEL", help="instead: gpt2, gpt2-medium, -large, -xl, or a folder of GPT-2 weights")
    add("--checkpoint", metavar="FILE", help="file of the run, such as last.pt (default: the best, else newest)")
    add("--start", metavar="TEXT", help="prompt, or FILE:PATH for the content of a file (default: \\n)")
    add("--num_samples", type=int, default=1, metavar="N", help="samples to draw (default: 1)")
    add("--max_new_tokens", type=int, default=500, metavar="N", help="tokens of each sample (default: 500)")
    add("--temperature", type=float, default=0.8, metavar="X", help="0: always the likeliest token (default: 0.8)")
    add("--top_k", type=int, metavar="K", help="draw from the K likeliest tokens only")
    add("--top_p", type=float, metavar="P", help="draw from the likeliest tokens that together have probability P only")
    add("--seed", type=int, default=1337, metavar="N", help="same seed, same text (default: 1337)")
    add("--stop", action="append", default=[], metavar="TEXT", help="end a sample before this text; may be repeated")
    add("--interactive", action="store_true", help="read prompts line by line; /help there lists the commands")
    add("--colorize_output", action="store_true", help="each token on the colour of the model's confidence in it")
    add(
        "--colorize_mode", choices=MODES,
        help="confidence: logit between the smallest and largest (minmax, default), probability, or rank",
    )  # fmt: skip
    add(
        "--color", choices=("auto", "always", "never"), default="auto",
        help="auto (default): on a terminal, and as NO_COLOR and FORCE_COLOR say",
    )  # fmt: skip
    add(
        "--show_heatmaps", nargs="?", const=IN_RUN, metavar="DIR",
        help="heatmap of the likeliest tokens by step, as PNG, HTML and CSV (default: samples/ in the run folder)",
    )  # fmt: skip
    add("--heatmap_topk", type=int, metavar="K", help="tokens of a step in the heatmap (default: 10)")
    add("--sample_file", metavar="FILE", help="add the samples, with settings and hashes, to this file of JSON lines")
    add("--lm_eval_tasks", metavar="LIST", help="instead of sampling: scores on these tasks, as `gptcore eval --tasks`")
    add("--device", default="auto", help="cpu, cuda, cuda:N, or auto (default)")
    add("--dtype", choices=DTYPES, default="float32", help="of weights and arithmetic (default: float32)")


def run(args: argparse.Namespace) -> int:
    import torch

    from ..distributed import pick_device
    from ..errors import UserError
    from ..evaluate import model_hash
    from ..prompt_loop import Settings, unescape
    from .eval import find, origin_of, score, task_names
    from .sample_output import Output

    _check(args)
    tasks = find(task_names(args.lm_eval_tasks), None)
    if args.lm_eval_tasks is not None and not tasks:
        raise UserError("--lm_eval_tasks names no task")
    start = _start(args.start if args.start is not None else "" if args.interactive else "\\n")
    stops = [unescape(text) for text in args.stop]
    settings = Settings(args.temperature, args.top_k, args.top_p, args.seed, args.max_new_tokens)
    device = pick_device(args.device)
    source = _pretrained(args) if args.init_from not in (None, "resume") else _trained(args)
    if tasks or args.sample_file is not None or args.show_heatmaps is not None:
        source.origin["model_hash"] = model_hash(source.model)  # of the weights as they are stored
    source.model.to(device=device, dtype=getattr(torch, args.dtype))
    if tasks:
        told = {name: value for name, value in source.origin.items() if name not in ("tokenizer", "model_hash")}
        origin = origin_of(source.model, source.tokenizer, **told) | source.origin
        score(source.model, source.tokenizer, tasks, folder=source.folder, origin=origin)
        return 0
    if not start and not args.interactive:
        first = "a line feed" if source.tokenizer.eot is None else "the end-of-text token"
        _note(f"empty prompt: starting from {first}")
    folder = None if args.show_heatmaps is None else Path(args.show_heatmaps or source.samples_folder)
    sample_file = None if args.sample_file is None else Path(args.sample_file)
    with Output(
        source, stops, args.dtype, colour=args.color if args.colorize_output else None, mode=args.colorize_mode,
        folder=folder, candidates=args.heatmap_topk or 10, sample_file=sample_file, note=_note,
    ) as output:  # fmt: skip
        if args.interactive:
            return _interact(output, start, settings)
        return _draw(output, start, settings, args.num_samples)


def _check(args: argparse.Namespace) -> None:
    """UserError for options that do not go together, before a model is loaded."""
    from ..errors import UserError

    if args.num_samples < 1:
        raise UserError(f"--num_samples must be at least 1, not {args.num_samples}")
    if args.interactive and args.num_samples != 1:
        raise UserError("--interactive draws one continuation at a time; leave --num_samples out")
    if args.colorize_mode and not args.colorize_output and args.show_heatmaps is None:
        raise UserError("--colorize_mode says how to colour; add --colorize_output")
    if args.heatmap_topk is not None and args.show_heatmaps is None:
        raise UserError("--heatmap_topk belongs to --show_heatmaps; add it")
    if args.heatmap_topk is not None and args.heatmap_topk < 1:
        raise UserError(f"--heatmap_topk must be at least 1, not {args.heatmap_topk}")
    drawing = ("interactive", "colorize_output", "show_heatmaps", "sample_file", "start", "stop", "top_k", "top_p")
    for option in drawing if args.lm_eval_tasks is not None else ():
        if getattr(args, option) not in (None, False, []):
            raise UserError(f"--lm_eval_tasks draws no text; leave --{option} out")
    if args.lm_eval_tasks is not None and args.num_samples != 1:
        raise UserError("--lm_eval_tasks draws no text; leave --num_samples out")


def _draw(output: "Output", start: str, settings: "Settings", num_samples: int) -> int:
    """Draws all samples, keeps them in files, and then prints them: a reader that goes away loses nothing."""
    from ..prompt_loop import Cancel
    from ..sample import cache_obstacle

    with Cancel() as cancel:
        samples = output.draw(start, settings, num_samples=num_samples, cancelled=lambda: cancel.requested)
    try:
        output.keep(samples, settings)
    finally:  # printed even if the disk is full
        for sample in samples.samples:
            _print(f"{start}{output.continuation(sample, start)}\n{SEPARATOR}")
        model = output.source.model
        obstacle = cache_obstacle(model)
        cache = "key/value cache used" if obstacle is None else f"no key/value cache: {obstacle}"
        rate = f"{samples.tokens_per_s:,.0f} tokens/s on {model.lm_head.weight.device}, {output.dtype}"
        _print(f"{samples.tokens:,} tokens in {samples.elapsed_s:.2f} s, {rate}; {cache}")
    if cancel.requested:
        sys.stdout.flush()
        raise KeyboardInterrupt
    return 0


def _interact(output: "Output", start: str, settings: "Settings") -> int:
    """The prompt loop on standard input. A terminal sees tokens as they come, without colours; else all at once."""
    from ..prompt_loop import HELP, Cancel, converse
    from ..sample import StopStrings
    from ..showing.terminal import Stream

    stops = StopStrings(output.source.tokenizer, output.stops)
    typed = sys.stdin.isatty()
    if typed:
        with contextlib.suppress(ImportError):  # some Pythons are built without it
            import readline  # noqa: F401  lines can be edited and called back
        _note(f"{HELP}\n{settings}\nCtrl-C ends a continuation, Ctrl-D the program")

    def answer(text: str, added: str, settings: "Settings") -> str:
        prompt = text + added
        stream = Stream(output.source.tokenizer, stops, _write)
        live = typed and sys.stdout.isatty() and output.painter is None
        with Cancel() as cancel:
            samples = output.draw(
                prompt, settings, cancelled=lambda: cancel.requested, on_token=stream.add if live else None
            )
        (sample,) = samples.samples
        if live:
            stream.end(sample.text[len(prompt) :])
            _print("")
            output.keep(samples, settings)
        else:
            try:
                output.keep(samples, settings)
            finally:
                end = "" if typed else f"\n{SEPARATOR}"
                _print(f"{'' if typed else added}{output.continuation(sample, prompt)}{end}")
        _note(f"[{samples.tokens:,} tokens, {samples.tokens_per_s:,.0f} tokens/s, ended by {sample.ended}]")
        return sample.text

    wrong = converse(_read_typed if typed else _read_piped, answer, _note, settings, start)
    return 2 if wrong and not typed else 0


def _read_typed() -> str:
    """A line from a terminal; Ctrl-C drops what was typed."""
    while True:
        try:
            if sys.stdout.isatty():
                return input("> ")
            print("> ", end="", file=sys.stderr, flush=True)
            return _read_piped()
        except KeyboardInterrupt:
            _note("\nCtrl-D or /quit ends")
        except EOFError:
            _note("")
            raise


def _read_piped() -> str:
    from ..errors import UserError

    try:
        line = sys.stdin.readline()
    except UnicodeDecodeError as error:
        raise UserError(f"standard input is not UTF-8 text ({error.reason})")
    if not line:
        raise EOFError
    return line.removesuffix("\n").removesuffix("\r")


def _trained(args: argparse.Namespace) -> "Source":
    """The model of a run."""
    from ..checkpoint import load_model
    from ..errors import UserError
    from .eval import identity_of
    from .sample_output import Source

    folder = find_run(Path(args.out_dir or "out"))
    if args.checkpoint is not None and not (folder / args.checkpoint).is_file():
        present = ", ".join(sorted(path.name for path in folder.glob("*.pt"))) or "none"
        raise UserError(f"--checkpoint: no file {args.checkpoint} in {folder} (checkpoints there: {present})")
    loaded = load_model(folder, args.checkpoint)
    _note(f"{loaded.path}, step {loaded.step:,}, {loaded.model.parameter_count():,} parameters")
    tokenizer = tokenizer_of(loaded)
    origin = {
        "run": str(folder), "checkpoint": loaded.path.name, "step": loaded.step, "identity": identity_of(folder),
        "tokenizer": tokenizer.name,
    }  # fmt: skip
    return Source(loaded.model, tokenizer, origin, folder)


def tokenizer_of(loaded: "LoadedModel") -> "Tokenizer":
    """The tokenizer of a checkpoint. CheckpointError where this version cannot use it."""
    from ..errors import CheckpointError, DataError
    from ..tokenizer import from_meta

    try:
        return from_meta(loaded.tokenizer_meta)
    except DataError as error:
        raise CheckpointError(f"{loaded.path}: what it holds of the data set's meta.pkl cannot be used: {error}")


def _pretrained(args: argparse.Namespace) -> "Source":
    """GPT-2 weights, which always come with GPT-2's encoding."""
    from ..errors import UserError
    from ..model import GPT
    from ..pretrained import load_pretrained
    from ..tokenizer import from_meta
    from .sample_output import Source

    for option in ("out_dir", "checkpoint"):
        if getattr(args, option) is not None:
            raise UserError(f"--{option} and --init_from {args.init_from} name two models; give one of them")
    config, weights = load_pretrained(args.init_from)
    model = GPT(config)
    model.load_state_dict(weights)
    _note(f"{args.init_from}, {model.parameter_count():,} parameters")
    tokenizer = from_meta(None)
    origin = {"run": None, "checkpoint": args.init_from, "step": None, "identity": None, "tokenizer": tokenizer.name}
    return Source(model, tokenizer, origin, None)


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
    from ..prompt_loop import unescape

    if not text.startswith("FILE:"):
        if any("\ud800" <= c <= "\udfff" for c in text):  # how Python hands on bytes that it cannot decode
            raise UserError("--start is not UTF-8 text; put it into a file and give FILE:PATH")
        return unescape(text)
    path = Path(text.removeprefix("FILE:"))
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"--start: {path} is not UTF-8 text (byte {error.start}); convert it, or give another file")
    except OSError as error:
        raise UserError(f"--start: cannot read {path}: {error.strerror}")


def _print(text: str) -> None:
    _write(text + "\n")


def _write(text: str) -> None:
    """Prints at once, also what the terminal's encoding does not have, as question marks."""
    encoding = sys.stdout.encoding or "utf-8"
    print(text.encode(encoding, errors="replace").decode(encoding), end="", flush=True)


def _note(text: str) -> None:
    print(text, file=sys.stderr)
