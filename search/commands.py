"""Greedy hardware-aware search: from a baseline, take the move with the best loss improvement per added cost, again and
again.

  gptcore search FILE [key=value ...] [--jobs N] [--executor NAME] [--extend] [-o DIR]
  gptcore search --orig_settings FILE --param_names NAME ... --increments N ... [--iterations N] [--num_iterations N]
                 [--results_file FILE]

FILE describes the search (search/space.py); budget.trials=60 and the like change it. Each candidate is trained on the
same seeds as the incumbent, judged by the interval of its paired improvement, and the winner is measured again on fresh
seeds before it is taken. Everything is in DIR/ledger.sqlite (default out/search/<name>): the same command resumes after
any interruption, and nothing is trained twice. At the end DIR holds winner.yaml, its cost report, decisions.md and the
table of trials.

The second form is the classic call: a step for each parameter, so many seeds (`--iterations`) and rounds
(`--num_iterations`); the cost is the number of parameters.
"""

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING

from gptcore.errors import UserError

if TYPE_CHECKING:
    from .greedy import Outcome
    from .ledger import Ledger
    from .space import Space

TAKES_CONFIG = True
RUNS = ("greedy", "random")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.usage = (
        "gptcore search FILE [key=value ...] [options]\n"
        "       gptcore search --orig_settings FILE --param_names NAME ... --increments N ... [options]"
    )
    parser.add_argument("--jobs", type=int, metavar="N", help="trials at a time; default one a core")
    parser.add_argument("--executor", choices=("processes", "inline"), default="processes", help="where trials run")
    parser.add_argument("--seconds_per_trial", type=float, metavar="S", help="limit of one trial; default none")
    parser.add_argument("--memory_per_trial", type=float, metavar="GB", help="limit of one trial (processes)")
    parser.add_argument("--extend", action="store_true", help="go on although the file has changed since")
    parser.add_argument("-o", "--output", metavar="DIR", help="default out/search/<name>")
    classic = parser.add_argument_group("classic call")
    classic.add_argument("--orig_settings", metavar="FILE", help="the baseline")
    classic.add_argument("--param_names", nargs="+", metavar="NAME", help="parameters that take steps")
    classic.add_argument("--increments", nargs="+", metavar="N", help="the step of each")
    classic.add_argument("--iterations", type=int, default=2, metavar="N", help="seeds of every candidate; default 2")
    classic.add_argument("--num_iterations", type=int, metavar="N", help="rounds; default until nothing helps")
    classic.add_argument("--results_file", metavar="FILE", help="YAML log of results; default DIR/results.yaml")


def run(args: argparse.Namespace) -> int:
    from .classic import from_classic
    from .executors import Executor, Inline, Processes
    from .greedy import Search
    from .ledger import Ledger
    from .space import load
    from .trial import Limits

    if args.config is None and not args.orig_settings:
        raise UserError(f"expected a file that describes a search\n{__doc__}")
    if args.jobs is not None and args.jobs < 1:
        raise UserError(f"--jobs {args.jobs}: expected at least 1")
    space = from_classic(args) if args.orig_settings else load(args.config, args.overrides)
    text = Path(args.config or args.orig_settings).read_text()
    if space.strategy.kind not in RUNS or space.strategy.beam > 1:
        found = f"{space.strategy.kind} with beam {space.strategy.beam}"
        raise UserError(f"strategy {found} does not run yet: choose {' or '.join(RUNS)}, with beam 1")
    if space.objective.score != "loss":
        raise UserError(f"objective.score {space.objective.score} does not run yet: use loss")
    folder = Path(args.output or f"out/search/{space.name}")
    memory = int(args.memory_per_trial * 1e9) if args.memory_per_trial else None
    limits = Limits(seconds=args.seconds_per_trial, memory_bytes=memory)
    executor: Executor = Inline() if args.executor == "inline" else Processes(args.jobs or len(os.sched_getaffinity(0)))
    try:
        with Ledger(folder / "ledger.sqlite") as ledger:
            ledger.lead(space.name, space.identity, text, extend=args.extend)
            search = Search(space, ledger, executor, folder.resolve(), limits=limits, say=_say)
            outcome = search.run()
            written = _write(space, ledger, outcome, folder)
    finally:
        executor.close()
    print(f"\n{_summary(space, outcome)}\n\nwritten: {folder}/  ({', '.join(written)})")
    return 0


def _say(line: str) -> None:
    print(line, flush=True)


def _summary(space: "Space", outcome: "Outcome") -> str:
    """Where it ended, in a few lines."""
    before, after = space.baseline_costs, outcome.costs
    lines = [f"{step.round}. {step.name}: {step.confirmation.words}" for step in outcome.steps]
    costs = ", ".join(
        f"{name} {getattr(before, name):.4g} -> {getattr(after, name):.4g}"
        for name in ("params", "area_m2", "energy_per_token_j", "latency_s")
    )
    if outcome.gain is not None and outcome.gain.low is not None:
        g = outcome.gain
        lines.append(f"start against end on {g.seeds} fresh seeds: {g.mean:+.4f} nats [{g.low:+.4f}, {g.high:+.4f}]")
    return "\n".join([*lines, f"ended after round {outcome.rounds}: {outcome.reason}", costs])


def _write(space: "Space", ledger: "Ledger", outcome: "Outcome", folder: Path) -> list[str]:
    """The winner as a configuration, its cost report, the decisions in words and the table of trials; their names."""
    from gptcore.config import identity
    from gptcore.files import write_atomically
    from gptcore.yamlfile import dump
    from ppa.report import make_report, write_report

    from .export import export

    config = outcome.point.config
    write_atomically(folder / "winner.yaml", dump(config.model_dump(mode="json")).encode())
    write_atomically(folder / "decisions.md", decisions_page(ledger, space.name, _summary(space, outcome)).encode())
    export(ledger, space.name, space.results_file or folder / "results.yaml")
    export(ledger, space.name, folder / "trials.csv")
    names = ["winner.yaml", "decisions.md", "results.yaml", "trials.csv"]
    if config.hardware is not None and not _moved(space, outcome):
        name = f"{space.name}-winner"
        report = make_report(config.with_vocab(space.vocab_size), identity=identity(config), name=name)
        write_report(report, folder / "ppa")
        names.append("ppa/report.html")
    return names


def _moved(space: "Space", outcome: "Outcome") -> bool:
    """Whether the machine is another one than that of the configuration: then no name stands for it."""
    from ppa.machine import load_machine

    name = outcome.point.config.hardware
    return name is None or load_machine(name) != outcome.point.machine


def decisions_page(ledger: "Ledger", study: str, summary: str) -> str:
    """Every round in words and numbers: what was considered, what was taken, and why not the others."""
    lines = [f"# Decisions of {study}", "", *(f"- {line}" for line in summary.splitlines()), ""]
    for row in ledger.decisions(study):
        lines += [f"## Round {row.round}: {row.chosen or 'no move'}", "", row.words, ""]
        lines.append("| candidate | verdict | gain | interval | change of cost | seeds | why |")
        lines.append("|---|---|---:|---|---:|---:|---|")
        for judged in row.content["judged"]:
            low, high = judged["low"], judged["high"]
            ends = f"{low:+.4f} to {high:+.4f}" if low is not None else "-"
            change = judged["cost_change"]
            shown = f"{change:+.4g}" if isinstance(change, float) else str(change)
            cells = (judged["name"], judged["verdict"], f"{judged['gain']:+.4f}", ends, shown, str(judged["seeds"]))
            lines.append("| " + " | ".join((*cells, judged["words"])) + " |")
        lines += [f"| {name} | failed | | | | | {why} |" for name, why in row.content["failed"].items()]
        dropped = ", ".join(f"{count} {reason}" for reason, count in row.content["dropped"].items())
        lines += ["", *([f"Left out before any training: {dropped}.", ""] if dropped else [])]
    return "\n".join(lines)
