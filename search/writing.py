"""What a search leaves in its folder: the page, the winner as a configuration with its cost report, figures, decisions
in words, and the table of trials.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from gptcore.files import write_atomically
from gptcore.yamlfile import dump

from .cost import COSTS
from .export import export
from .human import human

if TYPE_CHECKING:
    from .ledger import Ledger
    from .space import Space
    from .study import Outcome


def write(space: "Space", ledger: "Ledger", outcome: "Outcome", folder: Path) -> list[str]:
    """Everything; the names of what was written. The figures need matplotlib, and are left out without it."""
    from .page.build import build_page
    from .view import study_view

    links = _winner(space, outcome, folder)
    write_atomically(folder / "decisions.md", decisions_page(ledger, space.name, summary(space, outcome)).encode())
    export(ledger, space.name, space.results_file or folder / "results.yaml")
    export(ledger, space.name, folder / "trials.csv")
    view = study_view(ledger, space.name)
    write_atomically(folder / "search.html", build_page(view, links=links).encode())
    names = ["search.html", *links.values(), "decisions.md", "results.yaml", "trials.csv"]
    try:
        from .figures import write_figures

        write_figures(view, folder / "figures")
    except ImportError:
        return names
    return [*names, "figures/"]


def _winner(space: "Space", outcome: "Outcome", folder: Path) -> dict[str, str]:
    """Writes the winner and its report; what a page may link to. A machine that has moved gets a file of its own."""
    from gptcore.config import identity
    from ppa.report import make_report, write_report

    config, machine = outcome.point.config, outcome.point.machine
    links = {"the winner": "winner.yaml", "its cost report": "ppa/report.html"}
    if machine != space.baseline.machine or not config.hardware:
        links["its machine"] = "winner-machine.yaml"
        write_atomically(folder / links["its machine"], dump(machine.model_dump(mode="json")).encode())
        config = config.model_copy(update={"hardware": str(folder / links["its machine"])})
    write_atomically(folder / "winner.yaml", dump(config.model_dump(mode="json")).encode())
    name = f"{space.name}-winner"
    report = make_report(config.with_vocab(space.vocab_size), identity=identity(config), name=name)
    write_report(report, folder / "ppa")
    return links


def summary(space: "Space", outcome: "Outcome") -> str:
    """Where it ended, in a few lines."""
    before, after, unit = space.baseline_costs, outcome.costs, space.score.unit
    lines = [f"{node.round}. {node.name}: {node.confirmation.words}" for node in outcome.steps if node.confirmation]
    known = [name for name in COSTS if getattr(before, name) is not None]
    shown = {name: [human(name, getattr(at, name)) for at in (before, after)] for name in known}
    costs = ", ".join(f"{name} {' -> '.join(dict.fromkeys(values))}" for name, values in shown.items())
    if outcome.gain is not None and outcome.gain.low is not None:
        g = outcome.gain
        ends = f"{g.mean:+.4f} {unit} [{g.low:+.4f}, {g.high:+.4f}]"
        lines.append(
            f"start against end on {g.seeds} fresh seeds: {ends}" if g.seeds else "only the machine has changed"
        )
    if space.strategy.start == "warm":
        lines.append("steps were gained by training on from grown weights; start against end is trained from scratch")
    return "\n".join([*lines, f"ended after round {outcome.rounds}: {outcome.reason}", costs])


def decisions_page(ledger: "Ledger", study: str, words: str) -> str:
    """Every round in words and numbers: what was considered, what was taken, and why not the others."""
    lines = [f"# Decisions of {study}", "", *(f"- {line}" for line in words.splitlines()), ""]
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
        for why, names in (("failed", row.content["failed"]), ("pruned", row.content["pruned"])):
            lines += [f"| {name} | {why} | | | | | {reason} |" for name, reason in names.items()]
        dropped = ", ".join(f"{count} {reason}" for reason, count in row.content["dropped"].items())
        lines += ["", *([f"Left out before any training: {dropped}.", ""] if dropped else [])]
    return "\n".join(lines)
