"""Train a model, print samples of it, and report what it costs.

  gptcore train CONFIG [key.path=value | --flat_name=value ...]

The same command resumes a run that was interrupted or killed. `gptcore config flat` lists the flat names,
`gptcore config show` every setting. Several processes: torchrun --nproc_per_node N -m gptcore train CONFIG ...
"""

import os
import shlex
import shutil
import sys
from pathlib import Path

TAKES_CONFIG = True
FINAL_SAMPLE_TOKENS = 200


def add_arguments(parser) -> None:
    parser.add_argument("--quiet", action="store_true", help="print only the result")


def run(args) -> int:
    from ..cli import cost_report
    from ..config import identity
    from ..loader import load
    from ..runfolder import default_folder, is_finished
    from ..train import RunResult, train

    loaded = load(args.config, args.overrides)
    config, name = loaded.config, loaded.name
    main_process = os.environ.get("RANK", "0") == "0"
    run_identity = identity(config)
    if config.hardware is not None:
        cost_report().describe(config.hardware)  # an unknown machine is an error now, not after the training
    folder = default_folder(config, name, run_identity)
    if is_finished(folder, run_identity) and not _data_changed(config.data.dataset, folder):
        if main_process:
            print(f"{folder} is already trained with exactly these settings; nothing to do.")
            if not (folder / "ppa" / "report.json").exists():
                _finish(folder, config.train.sample_start, run_identity, name, args.quiet)
            print(_next_steps(folder, args))
        return 0
    result: RunResult = train(config, name=name, quiet=args.quiet)
    if not main_process:
        return result.exit_code
    if result.status == "interrupted":
        print(f"saved at step {result.step}. To resume, run the same command again:\n  {_command()}", file=sys.stderr)
        return result.exit_code
    if result.status == "diverged":
        print(f"diverged: {result.reason}\nrun folder: {result.folder}", file=sys.stderr)
        return result.exit_code
    _finish(result.folder, config.train.sample_start, run_identity, name, args.quiet)
    print(_summary(result))
    print(_next_steps(result.folder, args))
    return 0


def _data_changed(dataset: str, folder: Path) -> bool:
    """Whether the data set holds other tokens than those the run was trained on, as far as can be told."""
    from ..checkpoint import read_run
    from ..data import find_dataset, open_dataset
    from ..errors import RunError

    try:
        files = (open_dataset(find_dataset(dataset)).meta or {}).get("files")
    except RunError:
        return False
    return files != read_run(folder).get("data_files")


def _finish(folder: Path, start: str, run_identity: str, name: str, quiet: bool) -> None:
    """Samples and the cost report; what cannot be had of the two is said and does not fail a good run."""
    from ..checkpoint import config_of, read_run
    from ..cli import cost_report
    from ..errors import RunError, UserError
    from ..sample import sample_text

    # Files before text: a reader that goes away, or a full standard output, loses none of them.
    report, content = cost_report(), None
    try:
        config = config_of(folder).with_vocab(read_run(folder)["vocab_size"])
        content = report.make_report(config, identity=run_identity, name=name)
        report.write_report(content, folder / "ppa")
    except (RunError, UserError) as error:
        print(f"no cost report: {error}", file=sys.stderr)
    if not quiet:
        print("\nSamples of the best model")
        try:
            for text in sample_text(
                folder, start=start, num_samples=2, max_new_tokens=FINAL_SAMPLE_TOKENS, temperature=0.8
            ):
                print("-" * 72 + "\n" + text.strip("\n"))
        except (RunError, UserError) as error:
            print(f"no samples: {error}", file=sys.stderr)
        print("-" * 72 + "\n")
    if content is None:
        return
    if not quiet:
        report.print_report(content)
    for failure in report.failed_checks(content):
        print(f"warning: do not trust the cost report, {failure}", file=sys.stderr)


def _program() -> str:
    """How to call this program: by its name, or by its path where that is not on PATH."""
    found = shutil.which("gptcore")
    path = Path(sys.argv[0])
    if found or path.name != "gptcore":
        return "gptcore"
    return os.path.relpath(path)


def _command() -> str:
    command = f"{_program()} {shlex.join(sys.argv[1:])}"
    return (
        f"torchrun --nproc_per_node {os.environ['WORLD_SIZE']} -m {command}" if "WORLD_SIZE" in os.environ else command
    )


def _summary(result) -> str:
    best = f"{result.best_loss:.4f} nats at step {result.best_step}" if result.best_loss is not None else "none"
    reason = f" ({result.reason})" if result.reason else ""
    return f"\n{result.status} at step {result.step}{reason}; best validation loss {best}"


def _next_steps(folder: Path, args) -> str:
    settings = shlex.join(([args.config] if args.config else []) + args.overrides)
    program, shown = _program(), shlex.quote(str(folder))
    swap = "--softmax_variant_attn=consmax      the same with another softmax"
    if "softmax_variant_attn" in settings:
        swap = "--seed=1      the same with another seed"
    return (
        f"  {folder}/   config.yaml, metrics.csv, best.pt, last.pt, ppa/report.html\n"
        "next:\n"
        f'  {program} sample --out_dir {shown} --start "ROMEO:"\n'
        f"  {program} train {settings} {swap}\n"
        f"  {program} inspect {shlex.quote(str(folder.parent))}      compare runs"
    )
