"""The command-line options that say where trials run, and with which limits; one place for search and sweep.

An option that means nothing to the chosen executor is an error: nobody should believe in a limit that no one keeps.
"""

import argparse
import math
import os
from pathlib import Path

from gptcore.errors import UserError

from .executors import Executor, Inline, Processes
from .trial import RETRIED, Limits, State

EXECUTORS = ("processes", "inline", "ray", "slurm")
FOR = {  # the executors to which an option means something; the others are for all
    "jobs": ("processes", "ray", "slurm"),
    "gpus": ("processes",),
    "memory_per_trial": ("processes", "ray", "slurm"),
    "cpus_per_trial": ("ray", "slurm"),
    "gpus_per_trial": ("ray", "slurm"),
    "ray_address": ("ray",),
    "slurm": ("slurm",),
}
SLURM_JOBS = 16


def add_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("where trials run")
    names = "processes: of this machine; inline: in this one; ray, slurm: on more than one machine"
    group.add_argument("--executor", choices=EXECUTORS, default="processes", help=names)
    group.add_argument(
        "--jobs", type=int, metavar="N",
        help=f"trials at a time; default one a core, one a GPU of --gpus, as many as fit (ray), {SLURM_JOBS} (slurm)",
    )  # fmt: skip
    group.add_argument("--gpus", metavar="0,1", help="GPUs that processes take in turn; default all for each")
    for flag, kind, metavar, text in (
        ("seconds", float, "S", "time limit; default none"),
        ("memory", float, "GB", "memory limit (1e9 bytes); default none"),
        ("cpus", int, "N", "CPUs on its node (ray, slurm); default 1"),
        ("gpus", float, "N", "GPUs on its node (ray, slurm); default 0"),
    ):
        group.add_argument(f"--{flag}-per-trial", f"--{flag}_per_trial", type=kind, metavar=metavar, help=text)
    group.add_argument("--retry", metavar="STATES", help=f"start again what ended so: {','.join(RETRIED)}")
    group.add_argument("--attempts", type=int, default=2, metavar="N", help="starts of a trial that fails; default 2")
    group.add_argument(
        "--ray-address", "--ray_address", metavar="HOST:PORT",
        help="cluster of trials on ray, or auto; default one of this machine's own",
    )  # fmt: skip
    group.add_argument("--slurm", action="append", metavar="KEY=VALUE", help="option of sbatch, e.g. partition=gpu")


def limits(args: argparse.Namespace) -> Limits:
    """What each trial may use."""
    for name in ("seconds_per_trial", "memory_per_trial"):
        value = getattr(args, name)
        if value is not None and not (value > 0 and math.isfinite(value)):
            raise UserError(f"{_flag(name)} {value:g}: expected more than 0")
    if args.attempts < 1:
        raise UserError(f"--attempts {args.attempts}: expected at least 1")
    memory = int(args.memory_per_trial * 1e9) if args.memory_per_trial is not None else None
    return Limits(seconds=args.seconds_per_trial, memory_bytes=memory, attempts=args.attempts)


def retried(args: argparse.Namespace) -> tuple[State, ...]:
    """States that --retry names. UserError for one that another attempt cannot change."""
    words = [word.strip() for word in args.retry.split(",")] if args.retry is not None else []
    if wrong := [word for word in words if word not in RETRIED]:
        why = ": it would diverge again" if wrong[0] == "diverged" else ""
        known = ", ".join(RETRIED)
        raise UserError(f"--retry {args.retry}: no state {wrong[0]!r} to try again{why} (possible: {known})")
    return tuple(state for state in RETRIED if state in words)


def make_executor(args: argparse.Namespace, folder: Path) -> Executor:
    """The executor that was asked for, ready. `folder` is that of the study; only Slurm's own files go there."""
    for name, executors in FOR.items():
        if getattr(args, name) is not None and args.executor not in executors:
            words = f"{_flag(name)} means nothing to --executor {args.executor}"
            raise UserError(f"{words}: it is for {' and '.join(executors)}")
    if args.jobs is not None and args.jobs < 1:
        raise UserError(f"--jobs {args.jobs}: expected at least 1")
    within = limits(args)
    if args.executor == "inline":
        return Inline()
    if args.executor == "processes":
        gpus = _gpus(args.gpus)
        return Processes(args.jobs or (len(gpus) if gpus else len(os.sched_getaffinity(0))), gpus)
    cpus, share = args.cpus_per_trial, args.gpus_per_trial or 0
    if cpus is not None and cpus < 1:
        raise UserError(f"--cpus-per-trial {cpus}: expected at least 1")
    if not share >= 0:
        raise UserError(f"--gpus-per-trial {share:g}: expected 0 or more")
    if args.executor == "ray":
        from .ray_executor import RayExecutor

        return RayExecutor(
            args.ray_address, jobs=args.jobs, cpus_per_trial=cpus or 1, gpus_per_trial=share,
            memory_bytes=within.memory_bytes,
        )  # fmt: skip
    from .slurm_executor import SlurmExecutor

    if within.seconds is None:
        raise UserError("--executor slurm needs --seconds-per-trial: Slurm asks of every job how long it takes")
    if share != int(share):
        raise UserError(f"--gpus-per-trial {share:g}: Slurm gives whole GPUs")
    return SlurmExecutor(
        folder / "slurm", jobs=args.jobs or SLURM_JOBS, seconds=within.seconds, memory_bytes=within.memory_bytes,
        cpus_per_trial=cpus or 1, gpus_per_trial=int(share), options=_options(args.slurm or []),
    )  # fmt: skip


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _gpus(text: str | None) -> list[str] | None:
    if text is None:
        return None
    gpus = [word.strip() for word in text.split(",")]
    if "" in gpus or len(set(gpus)) < len(gpus):
        raise UserError(f"--gpus {text}: expected numbers or UUIDs of GPUs, each once, with commas between them")
    return gpus


def _options(pairs: list[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not (key and equals and value) or key.startswith("-"):
            raise UserError(f"--slurm {pair}: expected KEY=VALUE, e.g. partition=gpu")
        if key in found:
            raise UserError(f"--slurm {key} is given twice")
        found[key] = value
    return found
