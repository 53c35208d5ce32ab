"""What a configuration costs in hardware.

  gptcore ppa report CONFIG [options] [key.path=value | --flat_name=value ...]
  gptcore ppa compare A B ... [--sort COLUMN] [options]
  gptcore ppa validate --data DIR
  gptcore ppa fit --hardware NAME --measured FILE
  gptcore ppa calibrate --liberty FILE [--ops NAME ...] [--traces RUN] [--jobs N] [--out FILE]

report: CONFIG is a configuration file, or the folder of a run. The report counts parameters, matrix FLOPs, primitive
operations and bytes of prefill, decode and a training step, and checks them against the module itself. It goes to the
terminal and, as report.html, report.json, report.md and ops.csv, into a folder. Exit code 1 if a check fails.

compare: several configurations, run folders or report.json files side by side, against the first; a folder stands for
all configurations in it. Marked: what another one beats or equals in everything.

validate: compares the estimates with published and measured figures, which DIR holds, and writes docs/validation.md and
what reports show of it. A section whose files are not there is left out, and says so.

fit: the constants of a GPU's latency model from measured kernels (CSV: operator, m, k, n, rows, length, seconds), as
sections for its description, with the error on rows that were held out.

calibrate: synthesises the hardware operators of ppa/rtl on a cell library (liberty format, plain or xz) with pyosys
(pip install 'gptcore[synth]'), holds each gate by gate against its model, and writes area, delay and energy to
ppa/calibration/<library>.json. Reports need neither. A run that was stopped goes on where it was.
"""

import argparse
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gptcore.errors import DataError, RunError, UserError

if TYPE_CHECKING:
    from gptcore.config import Config, GPTConfig
    from gptcore.ops import Bits

TAKES_CONFIG = True
_ROLES = ("weight", "activation", "kv")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.usage = (
        "gptcore ppa report CONFIG [options] [key.path=value | --flat_name=value ...]\n"
        "       gptcore ppa compare A B ... [--sort COLUMN] [options]\n"
        "       gptcore ppa validate --data DIR\n"
        "       gptcore ppa fit --hardware NAME --measured FILE\n"
        "       gptcore ppa calibrate --liberty FILE [--ops NAME ...] [--traces RUN] [--jobs N] [--out FILE]"
    )
    parser.add_argument("--hardware", metavar="NAME", help="price for this machine (a file of ppa/hardware)")
    parser.add_argument("--seq_len", type=int, metavar="N", help="tokens of prefill and training; default block_size")
    parser.add_argument("--context", type=int, metavar="N", help="tokens a decode step sees; default block_size")
    parser.add_argument("--batch_size", type=int, default=1, metavar="N", help="sequences; default 1")
    parser.add_argument("--bits", metavar="SPEC", help="widths: 8 for all, or weight=4,kv=8; default model.bits")
    parser.add_argument("-o", "--output", metavar="DIR", help="default out/ppa/<config name>-<identity>")
    parser.add_argument("--baseline", metavar="CONFIG", help="report: what to compare with on the page")
    comparison = parser.add_argument_group("compare")
    comparison.add_argument("--sort", metavar="COLUMN", help="params, area, energy_decode, latency_decode, ...")
    validation = parser.add_argument_group("validate")
    validation.add_argument("--data", metavar="DIR", help="folder of published and measured figures")
    fitting = parser.add_argument_group("fit")
    fitting.add_argument("--measured", metavar="FILE", help="CSV of measured kernels")
    calibration = parser.add_argument_group("calibrate")
    calibration.add_argument("--liberty", metavar="FILE", help="cell library, plain or xz")
    calibration.add_argument("--ops", nargs="+", metavar="NAME", help="operators; default all")
    calibration.add_argument("--traces", metavar="PATH", help="run folder whose activations give a second energy")
    calibration.add_argument("--jobs", type=int, metavar="N", help="operators at a time; default one a core")
    calibration.add_argument("--out", metavar="FILE", help="default ppa/calibration/<library>.json")


def run(args: argparse.Namespace) -> int:
    actions: dict[str | None, Callable[[argparse.Namespace], int]] = {
        "report": _report,
        "compare": _compare,
        "validate": _validate,
        "fit": _fit,
        "calibrate": _calibrate,
    }
    if args.config not in actions:
        raise UserError(f"expected one of {', '.join(map(str, actions))}, not {args.config!r}\n{__doc__}")
    return actions[args.config](args)


def _report(args: argparse.Namespace) -> int:
    from .report import failed_checks, print_report, write_report

    report = _reported(args, args.overrides)
    hardware = args.hardware or report["hardware"]["name"]
    baseline = _reported(args, [args.baseline], hardware) if args.baseline else None
    folder = Path(args.output or f"out/ppa/{report['name']}-{report['config_hash'][:8]}")
    paths = write_report(report, folder, baseline)
    print_report(report)
    print(f"\nwritten: {folder}/  ({', '.join(path.name for path in paths)})")
    failed = failed_checks(report)
    if failed:
        raise RunError(
            f"{len(failed)} check{'s' if len(failed) > 1 else ''} failed: {', '.join(failed)}. The declaration of a "
            "kind and its module disagree, so these counts are wrong; see the checks above"
        )
    return 0


def _reported(args: argparse.Namespace, rest: list[str], hardware: str | None = None) -> dict[str, Any]:
    """The report of a configuration at the point of operation that the options name."""
    from gptcore.config import identity

    from .report import make_report

    config, name, vocab_size = _load(rest)
    return make_report(
        config.with_vocab(vocab_size), batch_size=args.batch_size, seq_len=args.seq_len, context=args.context,
        bits=parse_bits(args.bits, config.model), identity=identity(config), name=name,
        hardware=hardware or args.hardware,
    )  # fmt: skip


def _compare(args: argparse.Namespace) -> int:
    from gptcore.files import write_atomically

    from .page.compare import compare, comparison_lines
    from .page.compare_page import comparison_page

    names: list[str] = []
    settings: list[str] = []
    for word in args.overrides:
        (settings if word.startswith("-") or "=" in word else names).append(word)
    files = [path for name in names for path in _configurations(Path(name))]
    if len(files) < 2:
        raise UserError(f"compare needs two configurations or more, or a folder of them; {len(files)} given")
    reports, machine = [], args.hardware
    for path in files:
        if path.suffix == ".json" and path.name == "report.json":
            reports.append(_read(path))
        else:
            reports.append(_reported(args, [str(path), *settings], machine))
        machine = machine or reports[-1]["hardware"]["name"]  # all on the machine of the first
    comparison = compare(reports, sort=args.sort)
    folder = Path(args.output or "out/ppa/comparison")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / "comparison.html", comparison_page(comparison).encode())
        write_atomically(folder / "comparison.json", (json.dumps(comparison, indent=1) + "\n").encode())
    except OSError as error:
        raise UserError(f"cannot write into {folder}: {error.strerror}; choose another with -o") from error
    print(comparison_lines(comparison))
    print(f"\nwritten: {folder}/  (comparison.html, comparison.json)")
    return 0


def _read(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path} cannot be read as a report: {error}; write it again with gptcore ppa report"
        ) from error


def _configurations(path: Path) -> list[Path]:
    """A file, a run folder, or every configuration of a folder."""
    if not path.is_dir() or (path / "config.yaml").is_file():
        return [path]
    found = sorted(p for p in path.iterdir() if p.suffix in (".yaml", ".yml", ".json") or (p / "config.yaml").is_file())
    if not found:
        raise UserError(f"{path} holds no configuration")
    return found


def _validate(args: argparse.Namespace) -> int:
    from gptcore.files import write_atomically

    from .validation import RESULTS, sections
    from .validation.page import markdown, results, terminal_lines

    if args.overrides:
        raise UserError(f"validate does not take {' '.join(args.overrides)}\n{__doc__}")
    if not args.data or not Path(args.data).is_dir():
        raise UserError(f"validate needs --data DIR, a folder of published figures; {args.data!r} is none")
    found = list(sections(Path(args.data)))
    print("\n".join(terminal_lines(found)))
    page = Path(args.output or "docs/validation.md")
    try:
        page.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(page, markdown(found).encode())
        if args.output is None:
            write_atomically(RESULTS, (json.dumps(results(found), indent=1) + "\n").encode())
    except OSError as error:
        raise UserError(f"cannot write {page}: {error.strerror}; choose another with -o") from error
    print(f"\nwritten: {page}")
    return 0


def _fit(args: argparse.Namespace) -> int:
    from .gpu_fit import fit_command

    if args.overrides:
        raise UserError(f"fit does not take {' '.join(args.overrides)}\n{__doc__}")
    if not args.hardware or not args.measured:
        raise UserError("fit needs --hardware NAME, whose description has the peaks, and --measured FILE")
    print(fit_command(args.hardware, Path(args.measured)))
    return 0


def _calibrate(args: argparse.Namespace) -> int:
    from .synth.calibrate import calibrate

    if args.overrides:
        raise UserError(f"calibrate does not take {' '.join(args.overrides)}\n{__doc__}")
    if not args.liberty:
        raise UserError(
            "calibrate needs --liberty FILE. A free library to try: apt-get install qflow-tech-osu018, then\n"
            "  gptcore ppa calibrate --liberty /usr/share/qflow/tech/osu018/osu018_stdcells.lib"
        )
    if args.jobs is not None and args.jobs < 1:
        raise UserError(f"--jobs {args.jobs}: expected at least 1")
    path = calibrate(
        Path(args.liberty), operators=args.ops, jobs=args.jobs or os.cpu_count() or 1,
        out=Path(args.out) if args.out else None, traces=Path(args.traces) if args.traces else None,
    )  # fmt: skip
    print(f"written: {path}")
    return 0


def _load(rest: list[str]) -> tuple["Config", str, int]:
    """(configuration as written, its name, vocabulary size) of what follows the action on the command line."""
    from gptcore.checkpoint import read_run
    from gptcore.config import identity
    from gptcore.loader import load

    named = rest and not rest[0].startswith("-") and "=" not in rest[0]
    path, overrides = (rest[0], rest[1:]) if named else (None, rest)
    if path is None or not Path(path).is_dir():
        loaded = load(path, overrides)
        return loaded.config, loaded.name, loaded.config.model.vocab_size or _vocab_of_dataset(loaded.config)
    folder = Path(path)
    trained = read_run(folder)
    config = load(folder / "config.yaml", overrides).config
    name = folder.resolve().name.removesuffix(f"-{identity(config)[:8]}")
    same_data = config.data == load(folder / "config.yaml").config.data
    known = trained.get("vocab_size") if same_data else None
    return config, name, config.model.vocab_size or known or _vocab_of_dataset(config)


def _vocab_of_dataset(config: "Config") -> int:
    from gptcore.data import find_dataset, open_dataset

    try:
        return open_dataset(find_dataset(config.data.dataset)).vocab_size
    except (DataError, UserError) as error:
        raise UserError(
            f"model.vocab_size is not set, and the data set {config.data.dataset!r} does not tell it:\n{error}\n"
            "Prepare the data set, or give the size: model.vocab_size=50257"
        ) from error


def parse_bits(text: str | None, model: "GPTConfig") -> "Bits | None":
    """`8` sets all widths; `weight=4,kv=8` some, the others stay those of the model. None: nothing was said."""
    from gptcore.ops import Bits

    if text is None:
        return None
    parts = [part.partition("=") for part in text.split(",")]
    if len(parts) == 1 and not parts[0][1]:
        given = {role: parts[0][0] for role in _ROLES}
    else:
        given = {role.strip(): width for role, _, width in parts}
        if len(given) < len(parts):
            raise UserError(f"--bits {text}: a width is given twice")
    widths = {}
    for role, width in given.items():
        if role not in _ROLES or not width.strip().isdecimal() or not 1 <= int(width) <= 64:
            raise UserError(
                f"--bits {text}: expected a width of 1 to 64, or some of {', '.join(f'{r}=N' for r in _ROLES)} "
                "separated by commas"
            )
        widths[role] = int(width)
    own = {role: getattr(model.bits, role) for role in _ROLES}
    return Bits(**{**own, **widths})
