"""Why one may believe a page, and where not: checks, sums, errors against published numbers, constants, provenance."""

from collections.abc import Iterator, Mapping
from typing import Any

from ..figure import WEIGHTY
from .breakdown import sums
from .elements import GRADE_MEANING, badge, behind, number, panel, spread, table, text, whole
from .sweep import above_roof
from .units import digits

Report = Mapping[str, Any]
_UNITS = (
    ("_j_per_byte", "J/B"), ("_j_per_flop", "J/FLOP"), ("_flop_per_s", "FLOP/s"), ("_bytes_per_s", "B/s"),
    ("_s_per_element", "s/element"), ("_bytes", "B"), ("_hz", "Hz"), ("_m2", "m2"), ("_m", "m"), ("_w", "W"),
    ("_s", "s"), ("flop_per_s", "FLOP/s"),
)  # fmt: skip


def problems(report: Report) -> list[str]:
    """What is wrong with the numbers of a report: failed checks, parts that miss their total, points above the roof."""
    found = [
        f"check {c['name']} failed: declared {c['declared']:,}, measured "
        f"{'nothing' if c['measured'] is None else format(c['measured'], ',')}"
        for c in report["checks"]
        if c["status"] == "fail"
    ]
    found += [
        f"{s.name}: the parts add up to {digits(s.parts, 4)} {s.unit}, stated are {digits(s.stated, 4)} {s.unit}"
        for s in sums(report)
        if not s.holds
    ]
    if report["estimate"] and (beyond := above_roof(report)):
        found.append(f"faster than the machine can be: {beyond[0]} and {len(beyond) - 1} more points of the sweep")
    return found


def alarms(report: Report) -> str:
    """A banner, where anything is wrong."""
    found = problems(report)
    if not found:
        return ""
    items = "".join(f"<li>{text(problem)}</li>" for problem in found)
    return f'<div class="alarm" role="alert"><b>Do not trust this report.</b><ul>{items}</ul></div>\n'


def trust_panel(report: Report, validation: Mapping[str, Any] | None) -> str:
    added = sums(report)
    kept = sum(s.holds for s in added)
    style, roof = "pass" if kept == len(added) else "fail", _roof_line(report) if report["estimate"] else ""
    body = (
        f"<h3>Checks: what the kinds declare, against the module itself</h3>{_checks(report)}"
        f'<p class="next"><span class="{style}">{kept} of {len(added)}</span> totals equal the sum of their parts{roof}'
        f".</p>{behind('Sums', _sums(report))}"
    )
    if report["estimate"]:
        notes = "".join(f"<p>Note: {text(note)}.</p>" for note in report["estimate"]["notes"])
        body += (
            f'<h3 class="next">Errors against published numbers</h3>{_validation(validation)}'
            f'<div class="note next">{notes}</div>{_grades()}{_constants_table(report)}'
        )
    lead = '<span class="fail">Something is wrong, see the top of the page.</span>' if problems(report) else ""
    return panel("trust", "Trust", lead, body)


def _grades() -> str:
    meaning = "".join(f"<dt>{badge(grade)}</dt><dd>{text(told)}</dd>" for grade, told in GRADE_MEANING.items())
    return (
        f'<h3 class="next">Grades</h3><dl>{meaning}</dl><p class="note">A total has the worst grade among the parts '
        f"that make at least {WEIGHTY:.0%} of it.</p>"
    )


def _constants_table(report: Report) -> str:
    rows = [
        [text(path), badge(grade), text(source), value, off]
        for path, value, off, grade, source in _constants(report["hardware"]["description"])
    ]
    heads = ["constant", "grade", "source", "value", "may be off by"]
    body = table(heads, rows, caption="Constants", kinds="ttt", style="prose")
    return behind(f"Constants of the machine ({len(rows)})", body)


def _roof_line(report: Report) -> str:
    beyond, points = len(above_roof(report)), 2 * len(report["estimate"]["sweep"])
    style = "fail" if beyond else "pass"
    return f', and <span class="{style}">{points - beyond} of {points}</span> points of the sweep lie below the roof'


def _verdict(status: str) -> str:
    marks = {"pass": "\u2713 pass", "fail": "\u2717 FAIL"}
    return f'<span class="{text(status)}">{text(marks.get(status, status))}</span>'


def _checks(report: Report) -> str:
    rows = [
        [
            text(c["name"]), _verdict(c["status"]), text(c["note"] or c["measured_by"]), whole(c["declared"]),
            "\u2013" if c["measured"] is None else whole(c["measured"]),
        ]
        for c in report["checks"]
    ]  # fmt: skip
    return table(
        ["check", "", "measured by", "declared", "measured"], rows, caption="Checks", kinds="ttt", style="prose"
    )


def _sums(report: Report) -> str:
    rows = [
        [text(s.name), _verdict("pass" if s.holds else "fail"), number(s.parts, s.unit, 4), number(s.stated, s.unit, 4)]
        for s in sums(report)
    ]
    return table(["total", "", "sum of parts", "stated"], rows, caption="Sums", kinds="tt")


def _validation(validation: Mapping[str, Any] | None) -> str:
    sections = (validation or {}).get("sections") or []
    if not sections:
        return (
            "<p>No validation was given with this report: how far the model is from published hardware is not shown "
            "here. <code>gptcore ppa validate</code> writes it.</p>"
        )
    rows = [
        [
            text(section["title"]), text(score["name"]), _verdict(score["verdict"]), number(score["value"]),
            "\u2013" if score["bar"] is None else number(score["bar"]),
        ]
        for section in sections
        for score in section["scores"]
    ]  # fmt: skip
    return table(
        ["section", "score", "", "error", "bar"],
        rows,
        caption="Errors against published numbers",
        kinds="ttt",
        style="prose",
    )


def _constants(node: Mapping[str, Any], path: str = "", source: str = "", grade: str = "") -> Iterator[tuple[str, ...]]:
    """(path, value, spread, grade, source) of every number of a description, each with the source that holds for it."""
    source, grade = str(node.get("source", source)), str(node.get("grade", grade))
    for key, value in node.items():
        here = f"{path}.{key}" if path else key
        if isinstance(value, Mapping) and "value" in value and "source" in value:
            shown = number(value["value"], _unit(key))
            yield here, shown, spread(value["spread"]), str(value["grade"]), str(value["source"])
        elif isinstance(value, Mapping):
            yield from _constants(value, here, source, grade)
        elif value is not None and grade and key not in ("source", "grade", "kind", "title"):
            plain = isinstance(value, int) and not isinstance(value, bool)
            yield here, number(value, _unit(key)) if plain else text(value), "\u2013", grade, source


def _unit(key: str) -> str:
    return next((unit for suffix, unit in _UNITS if key.endswith(suffix)), "")


def provenance_panel(report: Report) -> str:
    rows = {
        "configuration": report["name"] or "model", "hash": report["config_hash"],
        "hardware": report["hardware"]["statement"], "schema version": report["schema_version"],
        **{f"{name} version": version for name, version in report["versions"].items()},
    }  # fmt: skip
    facts = "".join(f"<dt>{text(key)}</dt><dd>{text(value)}</dd>" for key, value in rows.items())
    conventions = "".join(f"<dt>{text(key)}</dt><dd>{text(told)}</dd>" for key, told in report["conventions"].items())
    body = f"<dl>{facts}</dl>{behind('Conventions', f'<dl>{conventions}</dl>')}"
    return panel("provenance", "Provenance", "", body)
