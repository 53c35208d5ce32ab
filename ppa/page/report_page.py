"""The report as a page: one HTML file that answers first and shows its working below. No network, no time stamps.

    render_page(report) -> text of the file; the same for the same report, byte by byte

Everything shown is in report.json, or a quotient of two numbers there (tokens over seconds). Every number carries its
value (`<data value>`). Rows of kernels and operations are added up by slot and layer first, so that the size of the
file does not grow with the model. Without a machine the page shows counts alone.
"""

from collections.abc import Mapping
from typing import Any

from gptcore.errors import UserError

from . import charts
from .breakdown import STAGES
from .compare import change_line, compare
from .elements import badge, document, ends, number, share, text, whisker_row, whole
from .panels import area_panel, primitives_panel, traffic_panel, versus_panel, where_panel
from .sweep import roofline_panel
from .trust import alarms, provenance_panel, trust_panel

Report = Mapping[str, Any]
_WORK = {"prefill": "a prompt", "decode": "a token", "train": "a step"}


def render_page(report: Report, baseline: Report | None = None, validation: Mapping[str, Any] | None = None) -> str:
    """The page of a report. `baseline` is the report that it is measured against; `validation` holds the errors of the
    model against published numbers: {"sections": [{"title", "scores": [{"name", "value", "bar", "verdict"}]}]}.
    """
    for given in (report, *([baseline] if baseline else [])):
        if "estimate" not in given:
            raise UserError(f"report {given.get('name')!r} has an old schema: write it again with gptcore ppa report")
    versus = None
    if baseline is not None:
        versus = compare([baseline, report], labels=[_title(baseline), "this"])
    priced = bool(report["estimate"])
    panels = [
        *([versus_panel(versus)] if versus else []),
        where_panel(report),
        *([roofline_panel(report)] if priced else []),
        traffic_panel(report),
        primitives_panel(report),
        *([area_panel(report)] if priced else []),
        trust_panel(report, validation),
        provenance_panel(report),
    ]
    body = (
        f"{_header(report, versus)}<main>\n{_cards(report)}{''.join(panels)}</main>\n<footer>Numbers in brackets are "
        "intervals: the truth is expected inside. Prefixes are decimal. Each number carries its value as it is in "
        "report.json, in SI units.</footer>"
    )
    return document(f"Cost of {_title(report)}", body)


def _title(report: Report) -> str:
    return f"{report['name'] or 'model'} ({report['config_hash'][:8]})"


def _header(report: Report, versus: Mapping[str, Any] | None) -> str:
    point, bits = report["point"], report["point"]["bits"]
    facts = (
        f"batch {point['batch']}, prompt {point['seq_len']}, context {point['context']} tokens; bits: "
        f"weight {bits['weight']}, activation {bits['activation']}, KV {bits['kv']}; "
        f"training in {point['train_bits']['dtype']}"
    )
    change = change_line(versus, "this") if versus else ""
    alarm = alarms(report)
    links = [
        ("versus", "Baseline") if versus else None, ("where", "Where it goes"),
        ("roofline", "Roofline") if report["estimate"] else None, ("traffic", "Traffic"),
        ("primitives", "Operations"), ("area", "Area") if report["estimate"] else None, ("trust", "Trust"),
        ("provenance", "Provenance"),
    ]  # fmt: skip
    anchors = "".join(f'<a href="#{place}">{name}</a>' for place, name in filter(None, links))
    return (
        f"<header><h1><b>{text(report['name'] or 'model')}</b> {text(report['config_hash'][:8])}</h1>\n"
        f'<p class="verdict">{_verdict(report)}</p>\n'
        + (f'<p class="versus">{text(change[0].upper() + change[1:])}.</p>\n' if change else "")
        + f'<p class="facts">{text(facts)}</p>\n{alarm}'
        + f'<nav aria-label="Sections">{anchors}</nav></header>\n'
    )


def _verdict(report: Report) -> str:
    """What the model costs, in a sentence."""
    totals, name = report["totals"], text(report["hardware"].get("title") or "")
    if not report["estimate"]:
        decode, batch = totals["decode"], report["point"]["batch"]
        return (
            f"<b>{number(totals['params'])}</b> parameters; a decoded token takes "
            f"<b>{number(decode['matmul_flops'] / batch, 'FLOP')}</b> and moves "
            f"<b>{number(decode['bytes']['fused'] / batch, 'B')}</b>. No machine is named, so there is no "
            "area, energy or latency."
        )
    energy, latency = totals["energy_per_token_j"]["decode"], totals["latency_s"]["decode"]
    decode = report["estimate"]["stages"]["decode"]
    rate = _rate(latency, decode["tokens"])
    many = f" for {decode['tokens']} sequences" if decode["tokens"] > 1 else ""
    area = totals["area_m2"]
    grades = " ".join(
        f'<span class="graded">{what} {badge(q["grade"])}</span>'
        for what, q in (("energy", energy), ("latency", latency), ("area", area))
    )
    return (
        f"On <i>{name}</i> a decoded token takes {_told(energy, 'J')} and {_told(latency, 's')}{many}, bound by "
        f"{text(decode['bound'])}: {_told(rate, '', ' tokens/s')}. The silicon has {_told(area, 'm2')}.</p>\n"
        f'<p class="note">{grades}'
    )


def _told(found: Mapping[str, Any], unit: str, name: str = "") -> str:
    shown = f"<b>{number(found['value'], unit)}{name}</b> {ends(found, unit)}".rstrip()
    return f'<span class="told">{shown}</span>'


def _rate(latency: Mapping[str, Any], tokens: int) -> dict[str, Any]:
    return {
        "value": tokens / latency["value"], "low": tokens / latency["high"], "high": tokens / latency["low"],
        "grade": latency["grade"],
    }  # fmt: skip


def _cards(report: Report) -> str:
    totals, point, found = report["totals"], report["point"], report["estimate"]
    bits = point["bits"]
    cards = [
        _card("Parameters", "counted", whole(totals["params"]), f"{bits['weight']} bits each"),
        _card("Weights", "counted", number(totals["weight_bytes"], "B"), "as stored for inference"),
        _card(
            "KV cache", "counted", number(totals["decode"]["kv_bytes"], "B"),
            f"batch {point['batch']}, context {point['context']}",
        ),
    ]  # fmt: skip
    if found:
        area = totals["area_m2"]
        shown = f"{number(area['value'], 'm2')} {ends(area, 'm2')}"
        cards.append(_card("Area", area["grade"], shown, charts.whisker(area), html=True))
        stages = found["stages"]
        rates = {s: _rate(totals["latency_s"][s], stages[s]["tokens"]) for s in STAGES}
        cards += [
            _stage_card("Energy per token", {s: (totals["energy_per_token_j"][s], "J") for s in STAGES}),
            _stage_card("Latency", {s: (totals["latency_s"][s], "s") for s in STAGES}),
            _stage_card("Tokens per second", {s: (rates[s], "") for s in STAGES}),
            _bound_card(stages, totals["latency_s"]),
        ]
    else:
        cards += [
            _count_card("Matrix FLOPs", {s: number(totals[s]["matmul_flops"], "FLOP") for s in STAGES}),
            _count_card("Bytes moved, fused", {s: number(totals[s]["bytes"]["fused"], "B") for s in STAGES}),
            _count_card("Primitive operations", {s: number(sum(totals[s]["op_counts"].values())) for s in STAGES}),
        ]
    return f'<div class="cards{"" if found else " counts"}">{"".join(cards)}</div>\n'


def _card(title: str, grade: str, value: str, note: str, *, html: bool = False) -> str:
    under = note if html else f'<p class="note">{text(note)}</p>'
    return f'<div class="card"><h3>{text(title)} {badge(grade)}</h3><p class="big">{value}</p>{under}</div>\n'


def _stage_card(title: str, rows: Mapping[str, tuple[Mapping[str, Any], str]]) -> str:
    lines = "".join(whisker_row(s, q, unit, charts.whisker(q), _WORK[s]) for s, (q, unit) in rows.items())
    return f'<div class="card two"><h3>{text(title)}</h3><table>{lines}</table></div>\n'


def _count_card(title: str, rows: Mapping[str, str]) -> str:
    lines = "".join(
        f'<tr><th scope="row">{s}</th><td class="v">{value}</td><td class="i note">{_WORK[s]}</td></tr>'
        for s, value in rows.items()
    )
    return f'<div class="card"><h3>{text(title)} {badge("counted")}</h3><table>{lines}</table></div>\n'


def _bound_card(stages: Mapping[str, Any], latency: Mapping[str, Any]) -> str:
    """What each stage waits for, and for how much of its time the resources work."""
    lines = []
    for stage in STAGES:
        busy = stages[stage]["busy_s"]
        busy_for = " \u00b7 ".join(
            f"{text(name)} {share(seconds / latency[stage]['value'])}" for name, seconds in busy.items()
        )
        lines.append(
            f'<tr><th scope="row">{stage}</th><td class="v">{text(stages[stage]["bound"])}</td>'
            f'<td class="note">{busy_for}</td></tr>'
        )
    title = '<h3>Bound by <span class="note">and how long each resource works</span></h3>'
    return f'<div class="card two bound">{title}<table>{"".join(lines)}</table></div>\n'
