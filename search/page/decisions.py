"""The sections of the page of a study that are words: decisions, failures, how to read it, the budget.

What comes from a ledger is escaped by `text`; logs may hold anything.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from ppa.page.elements import behind, number, panel, table, text
from ppa.page.units import digits

from ..decide import Judged
from ..view_records import Failure, Round, Row, StudyView, gain_of
from .terms import called, change_cell, gain_cell, ratio_cell, signed

LOGS_SHOWN = 40
LOG_TAIL = 2000  # characters


def rounds_panel(view: StudyView) -> str:
    """Every decision, in words."""
    if not view.rounds:
        return panel("rounds", "Decisions", "", "<p>No round has been decided yet.</p>")
    body = "".join(_round(view, one, opened=len(view.rounds) == 1) for one in view.rounds)
    lead = (
        "What each round considered, what it took, and why not the others. A gain is over the incumbent of the round."
    )
    return panel("rounds", "Decisions", lead, body)


def _round(view: StudyView, one: Round, *, opened: bool) -> str:
    number_of = f"Round {one.number}" if one.beam_round is None else f"Round {one.beam_round}, decision {one.number}"
    taken = f"took {text(called(one.chosen))}" if one.chosen else "no move"
    counts = [f"{len(one.rows)} judged"]
    counts += [f"{len(found)} {name}" for name, found in (("failed", one.failed), ("pruned", one.pruned)) if found]
    dropped = sum(one.dropped.values())
    counts += [f"{dropped} left out before any training"] if dropped else []
    rows = [_judged(view, row) for row in one.rows]
    for why, found in (("failed", one.failed), ("pruned", one.pruned)):
        rows += [
            [text(called(n)), f'<span class="v-worse">{why}</span>', *[""] * 4, text(printable(w))]
            for n, w in found.items()
        ]
    heads = ["candidate", "verdict", "gain at selection", "seeds", "change of cost", "on fresh seeds", "why"]
    drop = ", ".join(f"{count} {text(reason)}" for reason, count in one.dropped.items())
    drop = f'<p class="note next">Left out before any training: {drop}.</p>' if drop else ""
    return (
        f'<details class="round"{" open=" + chr(34) * 2 if opened else ""}><summary><b>{number_of}: {taken}</b> '
        f'({", ".join(counts)})</summary><p class="note next">{text(called(printable(one.words)))}</p>'
        f"{table(heads, rows, caption=f'Candidates of round {one.number}', kinds='ttnnnnt', style='prose')}{drop}"
        "</details>"
    )


def _judged(view: StudyView, row: Row) -> list[str]:
    j, again, why = row.judged, "\u2013", _why(view, row.judged)
    if row.confirmed is not None:
        held = "holds" if row.holds else "does not hold"
        luck = number(row.luck, shown=signed(row.luck))
        again = f"{gain_cell(gain_of(row.confirmed))}<br/>{held}, {row.confirmed.seeds} seeds; luck {luck}"
        why += f" On fresh seeds: {_why(view, row.confirmed)}"
    verdict = f'<span class="v-{text(j.verdict)}">{text(j.verdict)}</span>'
    return [
        text(called(j.name)), verdict, gain_cell(gain_of(j)), str(j.seeds), change_cell(view, j.cost_change), again, why
    ]  # fmt: skip


def _why(view: StudyView, judged: Judged) -> str:
    """The reason in words; the numbers before it are in the other cells, and the ratio has a unit here."""
    if judged.ratio is not None:
        return f"better, {ratio_cell(view, judged.ratio)}."
    return text(judged.words.partition(": ")[2] or judged.words)


def failures_panel(view: StudyView) -> str:
    if not view.failures:
        return panel("failures", "Failures", "", "<p>No trial failed.</p>")
    rows = [_failure(failure, shown=i < LOGS_SHOWN) for i, failure in enumerate(view.failures)]
    heads = ["configuration", "state", "seed", "attempts", "reason"]
    more = len(view.failures) - LOGS_SHOWN
    lead = f"Logs of the first {LOGS_SHOWN} alone; those of {more} more are in the ledger." if more > 0 else ""
    return panel(
        "failures", "Failures", lead, table(heads, rows, caption="Trials that failed", kinds="ttnnt", style="prose")
    )  # fmt: skip


def _failure(failure: Failure, *, shown: bool) -> list[str]:
    log = failure.log_tail[-LOG_TAIL:].strip()
    tail = behind("End of its log", f"<pre>{text(printable(log))}</pre>") if log and shown else ""
    return [
        f"{text(called(failure.name))}<br/><code>{text(failure.key)}</code>", text(failure.state), str(failure.seed),
        str(failure.attempts), f"{text(printable(failure.reason))}{tail}",
    ]  # fmt: skip


def printable(words: str) -> str:
    """Without the control characters that neither HTML nor XML may hold, such as the escapes of coloured logs."""
    return "".join(c if c.isprintable() or c in "\n\t" else "\ufffd" for c in words)


def about_panel(view: StudyView) -> str:
    """How to read the page, and the settings to the letter."""
    rule = view.settings.get("rule", {})
    at, less = (_confidence(rule.get(name)) for name in ("confidence", "selection_confidence"))
    seeds = view.settings.get("seeds", {})
    fresh = f"{seeds['max']} fresh seeds" if seeds.get("max") else "fresh seeds"
    items = [
        "A gain is paired: incumbent and candidate are trained on the same seeds, that is the same first weights, the "
        "same data in the same order and the same evaluation, so that what a seed does to both cancels. Positive is "
        "better.",
        f"Intervals are Student's t intervals of the mean paired gain over seeds: at {at} on fresh seeds, at {less} at "
        "selection.",
        "Selected is not confirmed: the best of many looks better than it is. So a winner is measured again on "
        f"{fresh} that had no part in its selection, and by these alone it is taken or not. The difference is luck.",
        "The score of a point in the charts is the mean of the start, plus the confirmed gains of the steps up to the "
        "incumbent of its round, plus its own gain against that incumbent; the interval is that of this last gain. "
        "Steps had to pass a test, so that their sum is on average too large; the gain in the headline is start "
        "against end on seeds that decided nothing.",
        "Costs are estimates of the cost model, with its intervals; parameters, FLOPs and bytes are counted"
        + (", the time of a step is measured." if view.start and "step_time_s" in view.start.costs else "."),
        "A candidate is left out before training where it breaks a constraint, is no valid configuration, or is one "
        "that was seen before.",
    ]
    if view.warm:
        items.append(
            "This search started warm: candidates grew from the trained incumbent and were trained on, so that the "
            "gains of steps are not those of training from scratch. Start against end is, and the curves are where "
            "such trials exist."
        )
    listed = "".join(f"<li>{text(item)}</li>" for item in items)
    said = "".join(f"<dt>{text(key)}</dt><dd>{text(value)}</dd>" for key, value in _flat(view.settings))
    space = behind("The space file", f"<pre>{text(printable(view.space))}</pre>") if view.space.strip() else ""
    body = f"<ul>{listed}</ul>{behind('Exact settings', f'<dl>{said}</dl>')}{space}"
    return panel("about", "How to read this page", "", body)


def _confidence(value: float | None) -> str:
    return "the confidence of the rule" if value is None else f"{100 * value:g} %"


def _flat(value: Any, path: str = "") -> list[tuple[str, str]]:
    """(dotted path, value) of nested settings."""
    if isinstance(value, Mapping) and value:
        return [pair for key, inner in value.items() for pair in _flat(inner, f"{path}.{key}" if path else str(key))]
    return [(path, value if isinstance(value, str) else json.dumps(value))]


def budget_rows(view: StudyView) -> Sequence[Sequence[str]]:
    """What was used, of what is allowed: title, used, limit and share as HTML."""
    if view.end is None:
        return []
    used = view.end.used
    spent = {
        "trials": (used.trials, ""), "seconds": (used.seconds, "s"), "tokens": (used.tokens, ""),
        "rounds": (used.rounds, ""), "gpu_hours": (used.trial_seconds / 3600, ""),
    }  # fmt: skip
    rows = []
    for name, (value, unit) in spent.items():
        limit = used.limits.get(name)
        if limit is None and name == "gpu_hours":
            continue
        shown = digits(value) if isinstance(value, float) else f"{value:,}"
        of = f"of {digits(limit) if isinstance(limit, float) else f'{limit:,}'}" if limit else "no limit"
        share = f"{100 * value / limit:.0f}\u202f%" if limit else ""
        rows.append(
            [name.replace("_", " "), number(value, shown=f"{shown}{chr(0x202F) + unit if unit else ''}"), of, share]
        )
    return rows
