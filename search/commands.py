"""Hardware-aware search: from a baseline, take the move with the best loss improvement per added cost, again and again.

  gptcore search FILE [key=value ...] [--jobs N] [--executor NAME] [--control N] [--extend] [-o DIR]
  gptcore search --orig_settings FILE --param_names NAME ... --increments N ... [--iterations N] [--num_iterations N]
                 [--results_file FILE]

FILE describes the search (search/space.py); budget.trials=60 and the like change it. Each candidate is trained on the
same seeds as the incumbent, judged by the interval of its paired improvement, and the winner is measured again on fresh
seeds before it is taken. Everything is in DIR/ledger.sqlite (default out/search/<name>): the same command resumes after
any interruption, and nothing is trained twice. `gptcore monitor DIR` looks on. At the end DIR holds search.html, the
winner as a configuration with its cost report, figures, the decisions in words and the table of trials.

--control N runs N random searches of as many trials beside it, for comparison, in the same ledger.

The second form is the classic call: a step for each parameter, so many seeds (`--iterations`) and rounds
(`--num_iterations`); the cost is the number of parameters.
"""

import argparse
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from gptcore.errors import UserError

from . import executor_choice

if TYPE_CHECKING:
    from .executors import Executor
    from .ledger import Ledger
    from .live import Screen
    from .space import Space
    from .study import Outcome
    from .trial import State

TAKES_CONFIG = True


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.usage = (
        "gptcore search FILE [key=value ...] [options]\n"
        "       gptcore search --orig_settings FILE --param_names NAME ... --increments N ... [options]"
    )
    parser.add_argument("-o", "--output", metavar="DIR", help="default out/search/<name>")
    parser.add_argument("--extend", action="store_true", help="go on although the file has changed since")
    parser.add_argument("--control", type=int, default=0, metavar="N", help="random searches of the same budget")
    executor_choice.add_arguments(parser)
    classic = parser.add_argument_group("classic call")
    classic.add_argument("--orig_settings", metavar="FILE", help="the baseline")
    classic.add_argument("--param_names", nargs="+", metavar="NAME", help="parameters that take steps")
    classic.add_argument("--increments", nargs="+", metavar="N", help="the step of each")
    classic.add_argument("--iterations", type=int, default=2, metavar="N", help="seeds of every candidate; default 2")
    classic.add_argument("--num_iterations", type=int, metavar="N", help="rounds; default until nothing helps")
    classic.add_argument("--results_file", metavar="FILE", help="YAML log of results; default DIR/results.yaml")


def run(args: argparse.Namespace) -> int:
    from .classic import from_classic
    from .ledger import Ledger
    from .live import Screen
    from .space import load
    from .writing import summary, write

    if args.config is None and not args.orig_settings:
        raise UserError(f"expected a file that describes a search\n{__doc__}")
    if args.control < 0:
        raise UserError(f"--control {args.control}: at least 0")
    retried = executor_choice.retried(args)
    space = from_classic(args) if args.orig_settings else load(args.config, args.overrides)
    text = Path(args.config or args.orig_settings).read_text()
    folder = Path(args.output or f"out/search/{space.name}")
    executor = executor_choice.make_executor(args, folder)
    try:
        with Ledger(folder / "ledger.sqlite") as ledger:
            with Screen(folder / "ledger.sqlite", space.name) as screen:
                outcome = _search(args, retried, space, text, ledger, executor, folder, screen)
            written = write(space, ledger, outcome, folder)
    finally:
        executor.close()
    print(f"\n{summary(space, outcome)}\n\nwritten: {folder}/  ({', '.join(written)})")
    return 0


def _search(
    args: argparse.Namespace, retried: "tuple[State, ...]", space: "Space", text: str, ledger: "Ledger",
    executor: "Executor", folder: Path, screen: "Screen",
) -> "Outcome":  # fmt: skip
    """The search, and then its random controls, each of as many trials as it has used."""
    from .spacefile import Budget, Strategy
    from .study import Search

    ledger.lead(space.name, space.identity, text, extend=args.extend, settings=space.settings())
    if retried:
        screen.line(f"{ledger.retry(space.name, retried)} trials are tried again")
    limits = executor_choice.limits(args)
    ledger.limit(space.name, limits)
    search = Search(space, ledger, executor, folder.resolve(), limits=limits, say=screen.line)
    outcome = search.run()
    if args.control and not search.lab.trials:
        screen.line("nothing was trained, so that there is nothing to control")
    for number in range(1, args.control + 1 if search.lab.trials else 1):
        name = f"{space.name}.random{number}"
        other = replace(
            space, name=name, strategy=Strategy(kind="random", seed=number), budget=Budget(trials=search.lab.trials)
        )
        screen.line(f"control {number} of {args.control}")
        screen.follow(name)
        ledger.lead(name, other.identity, text, extend=args.extend, settings=other.settings())
        Search(other, ledger, executor, folder.resolve(), limits=limits, say=screen.line).run()
        ledger.leave(name)
    return outcome
