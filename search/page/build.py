"""A study as a page: one HTML file that answers first and shows its working below. No network, no time stamps.

    build_page(view, links={...}) -> text of the file; the same for the same view, byte by byte

It looks like the page of a cost report (ppa.page), whose pieces it is made of. A study under way has a page, too.
"""

from collections.abc import Mapping
from pathlib import Path

from ppa.page.elements import document, number, table, text
from ppa.page.units import digits

from ..view_records import StudyView
from .decisions import about_panel, budget_rows, failures_panel, rounds_panel
from .panels import comparison_words, controls_panel, curves_panel, pareto_panel, path_panel
from .terms import called, cost_title, cost_words, gain_cell, percent_change, rule_title, score_title, score_words

_HERE = Path(__file__).parent
STYLE = (_HERE / "page.css").read_text(encoding="utf-8")
SCRIPT = (_HERE / "page.js").read_text(encoding="utf-8")


def build_page(view: StudyView, links: Mapping[str, str] | None = None) -> str:
    """The page of a study. `links` holds files beside the page, by what they are called: {"the winner": "winner.yaml"}.

    ValueError: a link that leads out of the folder of the page.
    """
    panels = {
        "pareto": pareto_panel(view), "path": path_panel(view), "controls": controls_panel(view),
        "curves": curves_panel(view), "rounds": rounds_panel(view), "failures": failures_panel(view),
        "about": about_panel(view),
    }  # fmt: skip
    names = {
        "pareto": "Score and cost", "path": "Path", "controls": "Random controls", "curves": "Learning curves",
        "rounds": "Decisions", "failures": "Failures", "about": "How to read this",
    }  # fmt: skip
    anchors = "".join(f'<a href="#{place}">{names[place]}</a>' for place, drawn in panels.items() if drawn)
    body = (
        f'{_header(view, links or {})}<nav aria-label="Sections">{anchors}</nav></header>\n<main>\n{_cards(view)}'
        f"{''.join(panels.values())}</main>\n<footer>Numbers in brackets are intervals: the truth is expected inside. "
        "Prefixes are decimal. Everything here is from the ledger of the search.</footer>"
    )
    # The frame has one style and one script; text is escaped, so that nothing else ends like them.
    page = document(f"Search {view.name}", body).replace("</style>", f"{STYLE}</style>", 1)
    before, end, after = page.rpartition("</script>")
    return f"{before}{SCRIPT}{end}{after}"


def _header(view: StudyView, links: Mapping[str, str]) -> str:
    kind = view.settings.get("strategy", {}).get("kind", "")
    state = "" if view.finished else ' <span class="under-way">under way</span>'
    facts = [
        f"machine: {view.settings['machine']}" if view.settings.get("machine") else "",
        f"cost: {rule_title(view)}" if view.settings.get("cost") else "",
        f"stage: {view.settings['stage']}" if view.settings.get("stage") else "",
    ]
    end = view.end
    reason = f"It ended after round {end.used.rounds}: {text(end.reason)}." if end and end.reason else ""
    return (
        f"<header><h1><b>Search {text(view.name)}</b> {text(kind)}</h1>\n"
        f'<p class="verdict">{_verdict(view)}{state}</p>\n'
        + (f'<p class="versus">{reason}</p>\n' if reason else "")
        + f'<p class="facts">{text("; ".join(fact for fact in facts if fact))}</p>\n{_links(links)}'
    )


def _links(links: Mapping[str, str]) -> str:
    for target in links.values():
        if ":" in target or target.startswith("/") or ".." in target.split("/"):
            raise ValueError(f"link {target!r}: name a file in the folder of the page")
    listed = " \u00b7 ".join(f'<a href="{text(target)}">{text(name)}</a>' for name, target in links.items())
    return f'<p class="facts">{listed}</p>\n' if links else ""


def _verdict(view: StudyView) -> str:
    """What came of it, in a sentence or three."""
    end, start, score = view.end, view.start, view.score
    if end is None or start is None or start.gain is None:
        return "Nothing has been decided yet, and nothing says where the search begins."
    if not end.moves:
        done = "No move was worth taking" if view.finished else "No move has been taken yet"
        at = f": it stays at <b>{text(score_words(score, start.gain))}</b> {text(score.unit)}" if score.start else ""
        return f"{done}{at}."
    moves = "One move" if end.moves == 1 else f"{end.moves} moves"
    steps = ", ".join(f"<i>{text(called(step.point.name))}</i>" for step in view.path)
    brings = ""
    if score.start is not None:
        to = number(score.at(end.gain.mean), shown=f"{score.at(end.gain.mean):.4f}")
        brings = f" from {number(score.start, shown=f'{score.start:.4f}')} to <b>{to}</b> {text(score.unit)}"
    what, _, _ = score_title(score).partition(",") if score.start is not None else ("score", "", "")
    gain = f"gain <b>{gain_cell(end.gain, text(score.unit))}</b>"
    if end.fresh:
        gain += f" on {end.gain.seeds} fresh seeds"
    else:
        gain += ", the sum of the steps; start and end have not been compared on fresh seeds"
    cost = view.settings.get("cost", {}).get("name")
    priced = ""
    if cost in start.costs and cost in end.costs:
        title = cost_title(cost)[0]
        change = percent_change(start.costs[cost], end.costs[cost])
        priced = f" {_capital(title)}: <b>{change}</b>."
    listed = f'</p>\n<p class="lead">{steps}.' if end.moves <= 12 else ""
    if end.fresh and not end.gain.seeds:
        return f"{moves} of the machine alone; what is trained has not changed.{priced}{listed}"
    return f"{moves} bring{'s' if end.moves == 1 else ''} the {text(what)}{brings}: {gain}.{priced}{listed}"


def _cards(view: StudyView) -> str:
    """Costs before and after, and the budget."""
    if view.end is None or view.start is None:
        return ""
    start, end, cards = view.start, view.end, []
    for cost in ("area_m2", "energy_per_token_j", "latency_s", "params", "step_time_s"):
        if cost not in start.costs or cost not in end.costs:
            continue
        title, unit = cost_title(cost)
        before, after = start.costs[cost], end.costs[cost]
        note = f"before: {cost_words(cost, start.costs, start.intervals)}"
        cards.append(
            f'<div class="card"><h3>{_capital(title)} <span>{percent_change(before, after)}</span></h3>'
            f'<p class="big">{number(after, unit)}</p><p class="note">{text(_ends(cost, view))}</p>'
            f'<p class="note">{text(note)}</p></div>\n'
        )
    states = ", ".join(f"{count:,} {state}" for state, count in end.used.states.items())
    reused = f" {end.used.reused:,} of them were taken over from other studies." if end.used.reused else ""
    spent = table(["", "used", "limit", "share"], budget_rows(view), caption="Budget", kinds="tnnn")
    hours = f"Trials ran for {digits(end.used.trial_seconds)} s together."
    cards.append(
        f'<div class="card two"><h3>Budget</h3>{spent}<p class="note">Trials: '
        f"{text(states or 'none')}.{reused} {hours}</p></div>\n"
    )
    if view.controls:
        against = text(comparison_words(view))
        cards.append(f'<div class="card two"><h3>Against random search</h3><p class="next">{against}</p></div>\n')
    return f'<div class="cards">{"".join(cards)}</div>\n'


def _ends(cost: str, view: StudyView) -> str:
    """The interval of a cost at the end."""
    assert view.end is not None
    _, _, ends = cost_words(cost, view.end.costs, view.end.intervals).partition(" [")
    return f"[{ends}" if ends else "counted"


def _capital(title: str) -> str:
    return text(title[0].upper() + title[1:])
