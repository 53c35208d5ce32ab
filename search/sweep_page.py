"""A sweep as a page: one HTML file with its configurations, learning curves, runs and failures. No network, no time
stamps: the same bytes for the same results. It looks like the page of a search, whose pieces it is made of.
"""

import math
import shlex
from pathlib import Path

from ppa.page.elements import behind, document, number, panel, table, text, whole

from .human import count
from .page.build import SCRIPT, STYLE
from .page.charts import curves_chart, dot, swatch
from .page.decisions import LOG_TAIL, LOGS_SHOWN, printable
from .sweep_results import Group, Results, Row, loss_words
from .trial import FAILED

CURVES = 7  # as many as there are line styles
DASH = "\u2013"


def build_page(found: Results, file_text: str, folder: Path) -> str:
    """`folder` is that of the page: run folders below it become links."""
    panels = {
        "Configurations": _groups(found), "Learning curves": _curves(found), "Runs": _runs(found, folder),
        "Failures": _failures(found), "About": _about(found, file_text, folder),
    }  # fmt: skip
    anchors = "".join(f'<a href="#{_id(name)}">{name}</a>' for name, drawn in panels.items() if drawn)
    body = (
        f'{_header(found)}<nav aria-label="Sections">{anchors}</nav></header>\n<main>\n{"".join(panels.values())}'
        "</main>\n<footer>Losses are the best validation losses in nats a token. Numbers in brackets are 95 % "
        "intervals of the mean over seeds (Student's t).</footer>"
    )
    page = document(f"Sweep {found.name}", body).replace("</style>", f"{STYLE}</style>", 1)
    before, end, after = page.rpartition("</script>")
    return f"{before}{SCRIPT}{end}{after}"


def _id(name: str) -> str:
    return name.lower().replace(" ", "-")


def _header(found: Results) -> str:
    best = next((group for group in found.groups if group.loss is not None), None)
    verdict = "No run is done." if best is None else (
        f"Lowest loss <b>{_loss(best)}</b> of <i>{text(best.name)}</i>"
        f"{_seeds(best)}." + (" The best of many looks better than it is." if len(found.groups) > 1 else "")
    )  # fmt: skip
    state = "" if found.finished else ' <span class="under-way">under way</span>'
    counts = [count(len(found.rows), "run"), count(len(found.groups), "configuration"), f"{len(found.bad)} failed"]
    trained = math.fsum(row.trial.seconds for row in found.rows)
    return (
        f'<header><h1><b>Sweep {text(found.name)}</b></h1>\n<p class="verdict">{verdict}{state}</p>\n'
        f'<p class="facts">{", ".join(counts)}; runs took {trained:,.0f} s together</p>\n'
    )


def _seeds(group: Group) -> str:
    done, bad = group.loss.seeds if group.loss else 0, sum(row.trial.state in FAILED for row in group.rows)
    mean = f", mean of {done} seeds" if done > 1 else ""
    return mean + (f"; {bad} of its {len(group.rows)} runs failed" if bad else "")


def _loss(group: Group) -> str:
    if group.loss is None:
        return DASH
    mean, rest = number(group.loss.mean, shown=f"{group.loss.mean:.4f}"), loss_words(group.loss).partition(" ")[2]
    return f'{mean} <span class="iv">{rest}</span>' if rest else mean


def _groups(found: Results) -> str:
    known = [group for group in found.groups if group.loss is not None]
    ends = [v for g in known if g.loss for v in (g.loss.mean, g.loss.low, g.loss.high) if v is not None]
    span = (min(ends), max(ends)) if ends else (0.0, 1.0)
    best = known[0].loss.mean if known and known[0].loss else 0.0
    rows = []
    for group in found.groups:
        loss = group.loss
        drawn = dot(loss.mean, loss.low, loss.high, span, best, "") if loss else ""
        more = number(loss.mean - best, shown=f"+{loss.mean - best:.4f}") if loss else DASH
        params = whole(group.params) if group.params else DASH
        rows.append([text(group.name), _loss(group), drawn, more, params, text(group.states)])
    lead = "The lowest loss first. The dashed line is the lowest mean; bars are intervals of each mean by itself."
    if not any(loss.seeds > 1 for loss in (group.loss for group in known) if loss):
        lead = "The lowest loss first. One seed each: there are no intervals, and small differences mean nothing."
    heads = ["configuration", "loss, nats", "", "above the best", "parameters", "runs"]
    return panel("configurations", "Configurations", lead, table(heads, rows, caption="Losses", kinds="tntnnt"))


def _curves(found: Results) -> str:
    curves = [group.curve for group in found.groups if group.curve is not None and len(group.curve.steps) > 1]
    if not curves:
        return ""
    shown = curves[:CURVES]
    rows = [
        [f"{swatch(i)}{text(c.name)}", number(c.mean[-1], shown=f"{c.mean[-1]:.4f}"), str(c.seeds), f"{c.steps[-1]:,}"]
        for i, c in enumerate(shown)
    ]
    which = f"The best {len(shown)} of {len(curves)} configurations" if len(curves) > len(shown) else "All of them"
    bands = any(curve.seeds > 1 for curve in shown)
    lead = f"{which}{': mean over seeds, with a band from the lowest to the highest seed' if bands else ''}."
    heads = ["configuration", "loss at the end", "seeds", "steps"]
    body = f'<div class="figure chart">{curves_chart(shown)}</div>' + table(heads, rows, caption="Curves", kinds="tnnn")
    return panel("learning-curves", "Learning curves", lead, body)


def _runs(found: Results, folder: Path) -> str:
    rows = []
    for row in found.rows:
        trial = row.trial
        loss = DASH if trial.loss is None else number(trial.loss, shown=f"{trial.loss:.4f}")
        seconds = number(trial.seconds, shown=f"{trial.seconds:.1f}")
        tokens = whole(trial.tokens) if trial.tokens else DASH  # of a run that was stopped from outside: not known
        state = f'<span class="v-worse">{trial.state}</span>' if trial.state in FAILED else trial.state
        source = f" of {text(trial.source)}" if trial.source else ""
        rows.append([_linked(row, folder), f"{state}{source}", loss, str(trial.seed), tokens, seconds])
    heads = ["run", "state", "loss, nats", "seed", "tokens", "seconds"]
    lead = "In the order of the file. A name leads to the run folder, with its configuration, metrics and checkpoints."
    return panel("runs", "Runs", lead, table(heads, rows, caption="Runs", kinds="ttnnnn"))


def _linked(row: Row, folder: Path) -> str:
    place, name = Path(row.trial.folder), text(row.run.name)
    if not place.is_relative_to(folder) or not place.is_dir():
        return name
    return f'<a href="{text(place.relative_to(folder).as_posix())}/">{name}</a>'


def _failures(found: Results) -> str:
    if not found.bad:
        return panel("failures", "Failures", "", "<p>No run failed.</p>")
    rows = []
    for i, row in enumerate(found.bad):
        log = row.trial.log_tail[-LOG_TAIL:].strip()
        tail = behind("End of its log", f"<pre>{text(printable(log))}</pre>") if log and i < LOGS_SHOWN else ""
        reason = f"{text(printable(row.trial.reason))}{tail}"
        rows.append([text(row.run.name), row.trial.state, str(row.trial.attempts), reason])
    heads = ["run", "state", "attempts", "reason"]
    body = table(heads, rows, caption="Runs that failed", kinds="ttnt", style="prose")
    lead = "--retry failed,oom,timeout tries such runs again. What diverged would diverge again."
    return panel("failures", "Failures", lead, body)


def _about(found: Results, file_text: str, folder: Path) -> str:
    done = next((row for group in found.groups for row in group.rows if row.trial.state == "done"), None)
    items = [
        "A run is what its resolved configuration is: the same command goes on after an interruption and starts only "
        "what is new.",
    ]
    if done is not None and Path(done.trial.folder).is_relative_to(folder):
        place = shlex.quote(Path(done.trial.folder).relative_to(folder).as_posix())
        items.append(
            f"In this folder, <code>gptcore sample --out_dir {text(place)}</code>, <code>gptcore eval --out_dir "
            f"{text(place)}</code> and <code>gptcore inspect runs</code> go on from here."
        )
    if found.others:
        others = count(found.others, "run")
        items.append(f"{others} of earlier versions of the file: in the ledger, and not on this page.")
    listed = "".join(f"<li>{item}</li>" for item in items)
    return panel("about", "About", "", f"<ul>{listed}</ul>{behind('The file', f'<pre>{text(file_text)}</pre>')}")


__all__ = ["build_page"]
