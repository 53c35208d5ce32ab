"""The call that people of the classic fork know, as a search space.

    --orig_settings baseline.yaml --param_names n_layer n_head n_embd --increments 1 1 16 --iterations 2
    --num_iterations 5 --results_file out.yaml

Each parameter gets one step, its increment. `iterations` are the seeds of every candidate, `num_iterations` the rounds.
The cost is the number of parameters unless `cost` says otherwise. Names are flat names, or paths such as model.n_embd.
The decision rule is ours: a candidate that is worse and smaller is not an improvement.
"""

from argparse import Namespace
from pathlib import Path
from typing import Any

from gptcore.config import Config
from gptcore.errors import UserError
from gptcore.loader import load
from gptcore.placing import place
from gptcore.yamlfile import Key

from .space import Space, from_mapping

REPORTED = "edge-sky130"  # area, energy and latency are reported for it where nothing names a machine


def from_classic(args: Namespace) -> Space:
    """The space of such a call. UserError where its parts do not fit, SpaceError where a name or a step is wrong.

    Read from `args`: orig_settings, param_names, increments, iterations, num_iterations, results_file; cost, hardware
    and overrides where they are there.
    """
    names, increments = list(args.param_names or ()), list(args.increments or ())
    if not args.orig_settings or not names:
        raise UserError("the classic call needs --orig_settings FILE and --param_names NAME ...")
    if len(names) != len(increments):
        raise UserError(
            f"--param_names has {len(names)} names and --increments {len(increments)} numbers; each name needs one"
        )
    if args.iterations < 2:
        raise UserError(
            f"--iterations {args.iterations}: every candidate is trained with so many seeds, and the interval that "
            "decides needs at least 2"
        )
    overrides = list(getattr(args, "overrides", None) or ())
    config = load(args.orig_settings, overrides).config
    steps: dict[str, list[str]] = {}
    for name, increment in zip(names, increments, strict=True):
        steps.setdefault(_path(name, config), []).append(_step(name, increment))
    raw = {
        "baseline": str(Path(args.orig_settings).resolve()),
        "overrides": overrides,
        "hardware": getattr(args, "hardware", None) or config.hardware or REPORTED,
        "cost": getattr(args, "cost", None) or "params",
        "moves": {Key(path, "--param_names"): wanted for path, wanted in steps.items()},
        "seeds": {"min": args.iterations, "max": args.iterations},
        "budget": {"rounds": args.num_iterations},
        "results_file": str(Path(args.results_file).resolve()) if args.results_file else None,
    }
    return from_mapping(raw, name=Path(args.orig_settings).stem)


def _path(name: str, config: Config) -> str:
    """Where a flat name lives in this configuration: that depends on its kinds."""
    if "." in name:
        return name
    problems: list[str] = []
    tree: Any = place([((Key(name, "--param_names"),), 1)], config.model_dump(mode="json"), problems)
    if problems:
        raise UserError("\n".join(problems))
    path: list[str] = []
    while isinstance(tree, dict) and tree:
        key, tree = next(iter(tree.items()))
        path.append(str(key))
    return ".".join(path)


def _step(name: str, increment: Any) -> str:
    try:
        number = int(increment) if float(increment) == int(float(increment)) else float(increment)
    except (TypeError, ValueError):
        raise UserError(f"--increments: {increment!r} of {name} is no number") from None
    return f"{number:+}"


__all__ = ["from_classic"]
