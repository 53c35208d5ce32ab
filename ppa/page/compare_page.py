"""A comparison as a page: a table that sorts, planes of ratios to the baseline, and what makes each row different."""

from collections.abc import Mapping, Sequence
from math import floor, isfinite, log10
from typing import Any

from .compare import shown, told
from .elements import badge, behind, document, ends, factor, number, panel, share, table, text

_PLANES = (("area", "energy_decode"), ("latency_decode", "energy_decode"))
_COUNTED = (("weight_bytes", "flops_decode"), ("kv_bytes", "bytes_decode"))
_LABELLED = 12  # rows whose points have names; more would hide each other
_OPEN = 3  # rows up to which everything is shown at once
_NEAR = (60.0, 14.0)  # points closer than this share a label


def comparison_page(comparison: Mapping[str, Any]) -> str:
    """One offline HTML file, the same for the same comparison, byte by byte."""
    rows, columns = comparison["rows"], comparison["columns"]
    kept = sum(row["dominated_by"] is None for row in rows)
    keys = {c["key"] for c in columns}
    planes = "".join(
        f'<div class="figure">{_plane(comparison, x, y)}</div>'
        for x, y in (_PLANES if "area" in keys else _COUNTED)
    )  # fmt: skip
    notes = "".join(f"<li>{text(note)}</li>" for note in comparison["notes"])
    body = (
        f"<header><h1><b>Comparison</b> against {text(comparison['baseline'])}</h1>\n"
        f'<p class="verdict"><b>{kept} of {len(rows)}</b> configurations are not beaten in everything by another.</p>\n'
        f'<p class="versus">{_best(comparison)}</p></header>\n<main>'
        + panel("table", "All of them", _sorted_by(comparison), _table(comparison))
        + panel(
            "planes", "Against the baseline", "Ratios; bars are their intervals.", f'<div class="two-up">{planes}</div>'
        )
        + panel("causes", "What makes the difference", "", "".join(_causes(comparison, row) for row in rows))
        + panel("notes", "Notes", "", f"<ul>{notes}</ul>")
        + "</main>"
    )
    return document(f"Comparison against {comparison['baseline']}", body)


def _best(comparison: Mapping[str, Any]) -> str:
    """The row with the least of each judged column."""
    titles = {c["key"]: c["title"] for c in comparison["columns"]}
    least = []
    for key in comparison["judged"]:
        row = min(comparison["rows"], key=lambda r: r["values"][key]["value"])
        if not row["baseline"]:
            least.append(f"Least {text(titles[key])}: {text(row['label'])} ({factor(row['ratios'][key])})")
    return ".<br/>".join(least) + "." if least else "None has less of anything than the baseline."


def _sorted_by(comparison: Mapping[str, Any]) -> str:
    titles = {c["key"]: c["title"] for c in comparison["columns"]}
    order = f"sorted by {titles[comparison['sort']]}" if comparison["sort"] else "in the order given"
    return text(f"{order}; ratios are to {comparison['baseline']}; grey rows are dominated.".capitalize())


def _table(comparison: Mapping[str, Any]) -> str:
    heads = "".join(
        f'<th scope="col" class="n"><button class="sort" type="button">{text(c["title"])}</button></th>'
        for c in comparison["columns"]
    )
    lines = []
    for row in comparison["rows"]:
        cells = "".join(f'<td class="n">{_cell(row, c)}</td>' for c in comparison["columns"])
        beaten = row["dominated_by"]
        style, standing = (' class="dominated"', f"dominated by {beaten}") if beaten else ("", "")
        standing = "baseline" if row["baseline"] else standing
        name = f'{text(row["label"])}<br/><span class="iv">{text(standing)}</span>'
        lines.append(f'<tr{style}><th scope="row">{name}</th>{cells}</tr>')
    return (
        '<div class="wide"><table class="ranking"><caption>Values and ratios to the baseline</caption><thead><tr>'
        f'<th scope="col">configuration</th>{heads}</tr></thead>\n<tbody>{chr(10).join(lines)}</tbody></table></div>'
    )


def _cell(row: Mapping[str, Any], column: Mapping[str, Any]) -> str:
    value, found = row["values"][column["key"]], row["ratios"][column["key"]]
    best = number(value["value"], column["unit"])
    return best if row["baseline"] else f"{best}<br/>{factor(found)}"


def _causes(comparison: Mapping[str, Any], row: Mapping[str, Any]) -> str:
    """Behind the name of a row: values with their intervals, what makes the ratios, settings that differ."""
    if row["baseline"]:
        return ""
    lines = []
    for column in comparison["columns"]:
        found = row["ratios"][column["key"]]
        made = ", ".join(
            f"{text(c['component'])} {'+' if c['after'] > c['before'] else chr(0x2212)}"
            f"{number(abs(c['after'] - c['before']), column['unit'])} ({share(c['share'])})"
            for c in told(row, column["key"])
        )
        value, unit = row["values"][column["key"]], column["unit"]
        grade = badge(value["grade"]) if value["grade"] else ""
        lines.append(
            [text(column["title"]), f"{number(value['value'], unit)} {ends(value, unit)}", factor(found), made, grade]
        )
    settings = [[text(s["setting"]), text(shown(s["before"])), text(shown(s["after"]))] for s in row["settings"]]
    inner = table(["", "value", "ratio", "what makes it", "grade"], lines, caption=row["label"], kinds="tnntt")
    if settings:
        inner += table(
            ["setting", text(comparison["baseline"]), text(row["label"])], settings, caption="Settings", kinds="ttt"
        )
    return behind(row["label"], inner, opened=len(comparison["rows"]) <= _OPEN)


def _plane(comparison: Mapping[str, Any], across: str, up: str) -> str:
    """Two ratios of every row, with the intervals of both, on logarithmic axes that cross at the baseline."""
    rows = [
        row
        for row in comparison["rows"]
        if all(isfinite(row["ratios"][key]["high"]) and row["ratios"][key]["low"] > 0 for key in (across, up))
    ]
    titles = {c["key"]: c["title"] for c in comparison["columns"]}
    x, y = (_Axis([r["ratios"][key] for r in rows], *span) for key, span in ((across, (64, 560)), (up, (330, 16))))
    drawn: list[str] = []
    names: dict[tuple[float, float], list[str]] = {}  # by the place of the first of those that lie together
    for value in x.ticks:
        at = f"{x(value):.1f}"
        drawn.append(f'<line class="grid" x1="{at}" y1="16" x2="{at}" y2="330"/>')
        drawn.append(f'<text x="{at}" y="348" text-anchor="middle">{value:g}</text>')
    for value in y.ticks:
        at = f"{y(value):.1f}"
        drawn.append(f'<line class="grid" x1="64" y1="{at}" x2="560" y2="{at}"/>')
        drawn.append(f'<text x="56" y="{at}" dy="4" text-anchor="end">{value:g}</text>')
    drawn.append(f'<line class="low" x1="{x(1):.1f}" y1="16" x2="{x(1):.1f}" y2="330"/>')
    drawn.append(f'<line class="low" x1="64" y1="{y(1):.1f}" x2="560" y2="{y(1):.1f}"/>')
    drawn.append(f'<text class="title" x="312" y="372" text-anchor="middle">{text(titles[across])}, ratio</text>')
    drawn.append(
        '<text class="title" x="14" y="173" text-anchor="middle" transform="rotate(-90 14 173)">'
        f"{text(titles[up])}, ratio</text>"
    )
    for row in rows:
        h, v = row["ratios"][across], row["ratios"][up]
        style = "st-train" if row["dominated_by"] else "st-decode" if row["baseline"] else "st-prefill"
        cx, cy = x(h["value"]), y(v["value"])
        drawn.append(
            f'<g class="mark {style}" transform="translate({cx:.1f} {cy:.1f})"><title>{text(row["label"])}</title>'
            f'<line class="thin" x1="{x(h["low"]) - cx:.1f}" y1="0" x2="{x(h["high"]) - cx:.1f}" y2="0"/>'
            f'<line class="thin" x1="0" y1="{y(v["low"]) - cy:.1f}" x2="0" y2="{y(v["high"]) - cy:.1f}"/>'
            '<circle r="5.5"/></g>'
        )
        near = next((at for at in names if abs(at[0] - cx) < _NEAR[0] and abs(at[1] - cy) < _NEAR[1]), (cx, cy))
        names.setdefault(near, []).append(row["label"])
    for (cx, cy), labels in names.items() if len(rows) <= _LABELLED else ():
        side, anchor = (-11, "end") if cx > 350 else (11, "start")
        drawn.append(
            f'<g class="mark"><text class="label" x="{cx + side:.1f}" y="{cy - 8:.1f}" text-anchor="{anchor}">'
            f"{text(_together(labels))}</text></g>"
        )
    label = f"{titles[up]} over {titles[across]}, ratios to the baseline; the numbers are in the table above"
    return f'<svg class="plane" viewBox="0 0 580 380" role="img" aria-label="{text(label)}">{"".join(drawn)}</svg>'


def _together(labels: Sequence[str]) -> str:
    return f"{labels[0]} +{len(labels) - 1}" if len(labels) > 1 else labels[0]


class _Axis:
    """A logarithmic axis around 1 that holds all intervals, from one coordinate to another."""

    def __init__(self, found: Sequence[Mapping[str, float]], start: float, stop: float):
        least = min([1.0, *(f["low"] for f in found)])
        most = max([1.0, *(f["high"] for f in found)])
        room = max((most / least) ** 0.08, 1.01)
        self.low, self.high, self.start, self.stop = least / room, most * room, start, stop
        self.ticks = self._ticks()

    def __call__(self, value: float) -> float:
        return self.start + (self.stop - self.start) * log10(value / self.low) / log10(self.high / self.low)

    def _ticks(self) -> list[float]:
        """Round numbers: 1, 2, 5 of each decade on a long axis, even steps on a short one."""
        if self.high / self.low > 8:
            found = [m * 10.0**e for e in range(floor(log10(self.low)), floor(log10(self.high)) + 1) for m in (1, 2, 5)]
        else:
            rough = (self.high - self.low) / 5
            power = 10.0 ** floor(log10(rough))
            step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough)
            found = [step * i for i in range(int(self.low / step), int(self.high / step) + 2)]
        return [value for value in found if self.low <= value <= self.high]
