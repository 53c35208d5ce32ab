"""Train a model, print samples of it, and report what it costs.

  gptcore train CONFIG [key.path=value | --flat_name=value ...]

The same command resumes a run that was interrupted or killed. `gptcore config flat` lists the flat names,
`gptcore config show` every setting. Several processes: torchrun --nproc_per_node N -m gptcore train CONFIG ...
"""

import os
import sys
from pathlib import Path

TAKES_CONFIG = True
FINAL_SAMPLE_TOKENS = 200


def add_arguments(parser) -> None:
    parser.add_argument("--quiet", action="store_true", help="print only the result")


def run(args) -> int:
    from ..config import identity
    from ..loader import load
    from ..runfolder import default_folder, is_finished
    from ..train import RunResult, train

    loaded = load(args.config, args.overrides)
    config, name = loaded.config, loaded.name
    main_process = os.environ.get("RANK", "0") == "0"
    folder = default_folder(config, name, identity(config))
    if is_finished(folder, identity(config)):
        if main_process:
            print(
                f"{folder} is already trained with exactly these settings; nothing to do.\n{_next_steps(folder, args)}"
            )
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
    _finish(result.folder, config.train.sample_start, identity(config), name, args.quiet)
    print(_summary(result))
    print(_next_steps(result.folder, args))
    return 0


def _finish(folder: Path, start: str, run_identity: str, name: str, quiet: bool) -> None:
    """Samples and the cost report; what cannot be had of the two is said and does not fail a good run."""
    import importlib

    from ..checkpoint import config_of
    from ..errors import RunError, UserError
    from ..sample import sample_text

    report = importlib.import_module("ppa.report")  # a package above this one: see gptcore.cli
    content = report.make_report(config_of(folder), identity=run_identity, name=name)
    report.write_report(content, folder / "ppa")
    if quiet:
        return
    print("\nSamples of the best model")
    try:
        for text in sample_text(
            folder, start=start, num_samples=2, max_new_tokens=FINAL_SAMPLE_TOKENS, temperature=0.8
        ):
            print("-" * 72 + "\n" + text.strip("\n"))
    except (RunError, UserError) as error:
        print(f"no samples: {error}", file=sys.stderr)
    print("-" * 72 + "\n")
    report.print_report(content)


def _command() -> str:
    import shlex

    return "gptcore " + shlex.join(sys.argv[1:])


def _summary(result) -> str:
    best = f"{result.best_loss:.4f} nats at step {result.best_step}" if result.best_loss is not None else "none"
    reason = f" ({result.reason})" if result.reason else ""
    return f"\n{result.status} at step {result.step}{reason}; best validation loss {best}"


def _next_steps(folder: Path, args) -> str:
    config = args.config or ""
    return (
        f"  {folder}/   config.yaml, metrics.csv, best.pt, last.pt, ppa/report.md\n"
        "next:\n"
        f'  gptcore sample --out_dir {folder} --start "ROMEO:"\n'
        f"  gptcore train {config} --softmax_variant_attn=consmax      the same model with another softmax\n"
        f"  gptcore inspect {folder.parent}                            compare runs"
    )
