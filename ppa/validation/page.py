"""The sections as a page (docs/validation.md), as lines for the terminal, and as the scores that a report shows."""

from collections.abc import Iterable, Sequence
from typing import Any

from . import Row, Score, Section

_MARKS = {"pass": "pass", "fail": "**MISS**", "shown": ""}


def markdown(sections: Sequence[Section]) -> str:
    """The whole page: what is within its bar and what is not, first; then each section."""
    lines = ["# Validation", "", "Written by `gptcore ppa validate`. " + _counts(sections), ""]
    lines += ["| section | figure | ours | bar | simple model | rows | |", "|---|---|---:|---:|---:|---:|---|"]
    for section in sections:
        for score in section.scores:
            lines.append(_md((section.title, *_score_cells(score), _MARKS[score.verdict])))
        judged = [row for row in section.rows if row.verdict != "shown"]
        if judged:
            missed = sum(row.verdict == "fail" for row in judged)
            name = f"{len(judged)} published figures within their bar or interval"
            cells = (section.title, name, f"{len(judged) - missed} of {len(judged)}", "all", "-", str(len(judged)))
            lines.append(_md((*cells, _MARKS["fail" if missed else "pass"])))
    for section in sections:
        lines += ["", f"## {section.title}", "", f"Source: {section.source}", ""]
        if section.skipped:
            lines += [f"Not compared: {section.skipped}.", ""]
            continue
        lines += [section.text.strip(), ""]
        if section.scores:
            lines += ["| figure | ours | bar | simple model | rows | | |", "|---|---:|---:|---:|---:|---|---|"]
            lines += [_md((*_score_cells(s), _MARKS[s.verdict], s.note)) for s in section.scores] + [""]
        if section.rows:
            lines += ["| | published | ours | error | bar | | |", "|---|---:|---:|---:|---:|---|---|"]
            lines += [_md((*_row_cells(r), _MARKS[r.verdict], r.note)) for r in section.rows]
    return "\n".join(lines).rstrip() + "\n"


def terminal_lines(sections: Iterable[Section]) -> list[str]:
    """A line for each score and judged row."""
    lines = []
    for section in sections:
        lines.append(f"{section.title}{f': not compared, {section.skipped}' if section.skipped else ''}")
        for score in section.scores:
            _, value, bar, *_ = _score_cells(score)
            lines.append(f"  {score.verdict:5}  {value:>10}  bar {bar:>8}  {score.name} ({score.rows} rows)")
        for row in section.rows:
            if row.verdict != "shown":
                name, published, ours, error, *_ = _row_cells(row)
                lines.append(f"  {row.verdict:5}  {error:>10}  published {published:>12}, ours {ours}: {name}")
    return lines


def results(sections: Iterable[Section]) -> dict[str, Any]:
    """What a report shows of the validation: scores, and how many judged rows are within their bar."""
    return {
        "sections": [
            {
                "title": s.title,
                "scores": [
                    {
                        "name": x.name,
                        "value": round(x.value, 6),
                        "bar": x.bar,
                        "rows": x.rows,
                        "unit": x.unit,
                        "verdict": x.verdict,
                    }
                    for x in s.scores
                ],
                "judged": sum(r.verdict != "shown" for r in s.rows),
                "missed": sum(r.verdict == "fail" for r in s.rows),
            }
            for s in sections
            if not s.skipped
        ]
    }


def _counts(sections: Iterable[Section]) -> str:
    verdicts = [v for s in sections for v in (*(x.verdict for x in s.scores), *(x.verdict for x in s.rows))]
    judged = [v for v in verdicts if v != "shown"]
    return (
        f"{len(judged)} figures are judged, {judged.count('fail')} of them miss; "
        f"{len(verdicts) - len(judged)} more are shown without a bar."
    )


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1e5 else f"{value:.4g}"


def _share(value: float | None) -> str:
    if value is None:
        return "-"
    return "0" if value == 0 else f"{100 * value:.3g} %"


def _score_cells(s: Score) -> tuple[str, ...]:
    def show(value: float | None) -> str:
        if s.unit == "share":
            return _share(value)
        return "-" if value is None else f"{value:.3g}"

    return s.name, show(s.value), show(s.bar), show(s.baseline), f"{s.rows:,}"


def _row_cells(r: Row) -> tuple[str, ...]:
    ours = f"{_number(r.ours)} {r.unit}"
    if r.ours_low is not None and r.ours_high is not None:
        ours += f" [{_number(r.ours_low)}, {_number(r.ours_high)}]"
        bar = "inside"
    else:
        bar = _share(r.bar)
    return r.name, f"{_number(r.published)} {r.unit}", ours, f"{100 * r.error:+.3g} %", bar


def _md(cells: Iterable[str]) -> str:
    return "| " + " | ".join(" ".join(cell.split()).replace("|", "\\|") for cell in cells) + " |"
