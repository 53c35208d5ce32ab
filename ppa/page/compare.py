"""Reports against each other: what differs, by what factor, what causes it, and which are beaten in everything.

The interval of a ratio is not that of its two ends. An error of the calibration, of the SRAM table, of the energy of a
DRAM byte is the same error in both designs, so it cancels as far as both hold the same component. On one machine,
therefore, each component stands at one place u of its interval, the same in both designs, and components err
independently:

    ratio(u) = sum_c B_c(u_c) / sum_c A_c(u_c),   X_c(u) = low + u (high - low),   u_c in [0, 1]

The ends of the interval are the extremes of that, found exactly (a quotient of linear functions has them at corners;
Dinkelbach 1967). A component that only one design has errs freely. Latency has no components with intervals: both
designs stand at the same end of theirs. Designs on different machines share nothing, and their ratio has the full
interval.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gptcore.errors import UserError

from .breakdown import by_slot, cells
from .units import figure, ratio_text

Report = Mapping[str, Any]
Interval = dict[str, float]
_TIED = 1e-9  # relative difference below which two values are the same
TOP = 5  # components named as causes
_TOLD = 5e-4  # share of the total from which on a cause is told


@dataclass(frozen=True)
class Column:
    """What is compared. `parts` gives the components, as {name: quantity}, where there are some; they add up."""

    key: str
    title: str
    unit: str
    value: Callable[[Report], Any]
    parts: Callable[[Report], Mapping[str, Any]] | None = None
    judged: bool = False  # counts for who is dominated
    slots: Callable[[Report], Mapping[str, float]] | None = None  # amounts by slot, where there are no components


def _exact(value: float) -> dict[str, Any]:
    return {"value": value, "low": value, "high": value, "grade": ""}


def _energy_parts(stage: str) -> Callable[[Report], Mapping[str, Any]]:
    def parts(report: Report) -> Mapping[str, Any]:
        found = report["estimate"]["stages"][stage]
        return {
            name: {end: q[end] / found["tokens"] for end in ("value", "low", "high")}
            for name, q in found["energy_by_component"].items()
        }

    return parts


def _energy(stage: str, judged: bool = False) -> Column:
    return Column(
        f"energy_{stage}", f"energy/token {stage}", "J", lambda r: r["totals"]["energy_per_token_j"][stage],
        _energy_parts(stage), judged,
    )  # fmt: skip


def _latency(stage: str, judged: bool = False) -> Column:
    return Column(
        f"latency_{stage}", f"latency {stage}", "s", lambda r: r["totals"]["latency_s"][stage], None, judged,
        lambda r: by_slot(cells(r)["latency", stage]),
    )  # fmt: skip


COLUMNS = (
    Column("params", "parameters", "", lambda r: _exact(r["totals"]["params"]), None, True),
    Column(
        "area", "area", "m2", lambda r: r["totals"]["area_m2"], lambda r: r["estimate"]["area_by_component"], True
    ),
    _energy("decode", judged=True), _energy("prefill"), _energy("train"),
    _latency("decode", judged=True), _latency("prefill"), _latency("train"),
)  # fmt: skip
COUNTED = (
    COLUMNS[0],
    Column("weight_bytes", "weights", "B", lambda r: _exact(r["totals"]["weight_bytes"]), None, True),
    Column("kv_bytes", "KV cache", "B", lambda r: _exact(r["totals"]["decode"]["kv_bytes"]), None, True),
    Column("flops_decode", "FLOPs decode", "FLOP", lambda r: _exact(r["totals"]["decode"]["matmul_flops"]), None, True),
    Column("bytes_decode", "bytes decode", "B", lambda r: _exact(r["totals"]["decode"]["bytes"]["fused"]), None, True),
    Column("flops_prefill", "FLOPs prefill", "FLOP", lambda r: _exact(r["totals"]["prefill"]["matmul_flops"])),
    Column("flops_train", "FLOPs train", "FLOP", lambda r: _exact(r["totals"]["train"]["matmul_flops"])),
)


def compare(
    reports: Sequence[Report], *, labels: Sequence[str] | None = None, baseline: int = 0, sort: str | None = None
) -> dict[str, Any]:
    """A document with one row a report: values, ratios to the baseline, causes, settings that differ, who beats it.

    Columns are those of a machine where every report has one, else counts. `sort` names a column (smallest first);
    by default the order is that given. `dominated_by` names a row that is no worse in every judged column and better in
    one, by best values; intervals are not consulted, errors being common. UserError for an unknown column, for fewer
    than two reports, or for reports of an old schema.
    """
    if len(reports) < 2:
        raise UserError("nothing to compare: give at least two configurations, run folders or report.json files")
    for report in reports:
        if "estimate" not in report:
            raise UserError(f"report {report.get('name')!r} has an old schema: write it again with gptcore ppa report")
    columns = COLUMNS if all(report["estimate"] for report in reports) else COUNTED
    names = list(labels) if labels else _labels(reports)
    base = reports[baseline]
    rows = [
        {
            "label": label, "config_hash": report["config_hash"], "hardware": report["hardware"]["name"],
            "baseline": report is base,
            "values": {c.key: dict(c.value(report)) for c in columns},
            "ratios": {c.key: _ratio(c, base, report) for c in columns},
            "causes": {c.key: _causes(c, base, report) for c in columns if c.parts or c.slots},
            "settings": _settings(base, report),
        }
        for label, report in zip(names, reports, strict=True)
    ]  # fmt: skip
    judged = [c.key for c in columns if c.judged]
    for row in rows:
        row["dominated_by"] = next((other["label"] for other in rows if _beats(other, row, judged)), None)
    if sort is not None:
        known = [c.key for c in columns]
        if sort not in known:
            raise UserError(f"no column {sort!r} to sort by (known: {', '.join(known)})")
        rows.sort(key=lambda row: row["values"][sort]["value"])
    return {
        "baseline": names[baseline], "sort": sort, "judged": judged,
        "columns": [{"key": c.key, "title": c.title, "unit": c.unit} for c in columns], "rows": rows,
        "notes": _notes(reports, columns, judged),
    }  # fmt: skip


def _labels(reports: Sequence[Report]) -> list[str]:
    """Names; with the beginning of the hash where a name occurs twice, and the machine where that does too."""
    labels = [str(report["name"] or "model") for report in reports]
    for suffix in (lambda r: r["config_hash"][:8], lambda r: r["hardware"]["name"] or "counts"):
        if len(set(labels)) == len(labels):
            break
        labels = [
            f"{label} {suffix(report)}" if labels.count(label) > 1 else label
            for label, report in zip(labels, reports, strict=True)
        ]
    return labels


def _notes(reports: Sequence[Report], columns: Sequence[Column], judged: Sequence[str]) -> list[str]:
    titles = {c.key: c.title for c in columns}
    named = ", ".join(titles[key] for key in judged)
    notes = [f"dominated: by best values, another row is no worse in {named} and better in one"]
    if columns is COUNTED:
        return [*notes, "counts only: not every report names a machine, so area, energy and latency are not compared"]
    points = {str(report["point"]) for report in reports}
    if len(points) > 1:
        notes.append("the reports differ in batch, length, context or widths: ratios hold that difference too")
    if any(not _same_machine(reports[0], report) for report in reports):
        notes.append("ratios between different machines have the full interval: their errors are not common")
    notes.append("interval of a ratio on one machine: an error of a component that both designs have is common to both")
    return notes


def _same_machine(a: Report, b: Report) -> bool:
    return bool(a["hardware"] == b["hardware"])


def _beats(a: Mapping[str, Any], b: Mapping[str, Any], judged: Sequence[str]) -> bool:
    if a is b:
        return False
    pairs = [(a["values"][key]["value"], b["values"][key]["value"]) for key in judged]
    return all(x <= y * (1 + _TIED) for x, y in pairs) and any(x < y * (1 - _TIED) for x, y in pairs)


def _ratio(column: Column, base: Report, report: Report) -> Interval:
    a, b = column.value(base), column.value(report)
    best = _quotient(b["value"], a["value"])
    if not _same_machine(base, report):
        low, high = _quotient(b["low"], a["high"]), _quotient(b["high"], a["low"])
    elif column.parts:
        low, high = ratio_interval(column.parts(base), column.parts(report))
    else:
        ends = [_quotient(b[end], a[end]) for end in ("low", "value", "high")]
        low, high = min(ends), max(ends)
    return {"value": best, "low": min(low, best), "high": max(high, best)}


def _quotient(b: float, a: float) -> float:
    return b / a if a else 1.0 if not b else float("inf")


def ratio_interval(a: Mapping[str, Any], b: Mapping[str, Any]) -> tuple[float, float]:
    """Extremes of sum(b) / sum(a), every component at one place of its interval in both. See the top of the file."""
    none = {"low": 0.0, "high": 0.0}
    pairs = [(a.get(name, none), b.get(name, none)) for name in sorted({*a, *b})]
    return _extreme(pairs, 1), _extreme(pairs, -1)


def _extreme(pairs: Sequence[tuple[Mapping[str, float], Mapping[str, float]]], sign: int) -> float:
    """Dinkelbach: take for each component the end that lowers sign * (b - r a), with the quotient r so far."""
    ratio = _quotient(sum(b["high"] for _, b in pairs), sum(a["high"] for a, _ in pairs))
    for _ in range(50):
        ends = [min(("low", "high"), key=lambda end: sign * (b[end] - ratio * a[end])) for a, b in pairs]
        found = _quotient(
            sum(b[end] for (_, b), end in zip(pairs, ends, strict=True)),
            sum(a[end] for (a, _), end in zip(pairs, ends, strict=True)),
        )
        if sign * (ratio - found) <= 0:
            break
        ratio = found
    return ratio


def _causes(column: Column, base: Report, report: Report) -> list[dict[str, Any]]:
    """Components (of latency: slots) that differ, the largest change first; `share` is of the baseline's total."""
    a, b = (_amounts(column, r) for r in (base, report))
    whole = sum(a.values())
    changes = []
    for name in sorted({*a, *b}):
        before, after = a.get(name, 0.0), b.get(name, 0.0)
        if abs(after - before) > _TIED * max(before, after):
            changes.append({
                "component": name, "before": before, "after": after, "share": _quotient(after - before, whole),
            })  # fmt: skip
    return sorted(changes, key=lambda c: -abs(c["after"] - c["before"]))


def _amounts(column: Column, report: Report) -> Mapping[str, float]:
    if column.slots:
        return column.slots(report)
    return {name: q["value"] for name, q in column.parts(report).items()} if column.parts else {}


def _settings(base: Report, report: Report) -> list[dict[str, Any]]:
    """What the two configurations set differently, machine and point included."""
    flat = [
        _flat({**r["model"], "hardware": r["hardware"]["name"], "point": {k: v for k, v in r["point"].items()}})
        for r in (base, report)
    ]
    keys = dict.fromkeys([*flat[0], *flat[1]])
    return [
        {"setting": key, "before": flat[0].get(key), "after": flat[1].get(key)}
        for key in keys
        if flat[0].get(key) != flat[1].get(key)
    ]


def _flat(value: Any, path: str = "") -> dict[str, Any]:
    if isinstance(value, Mapping):
        found = {}
        for key, item in value.items():
            found.update(_flat(item, f"{path}.{key}" if path else str(key)))
        return found
    return {path: value}


def told(row: Mapping[str, Any], key: str, most: int = TOP) -> list[Mapping[str, Any]]:
    """The causes of a ratio that are worth a word."""
    return [cause for cause in row["causes"].get(key, []) if abs(cause["share"]) >= _TOLD][:most]


def change_line(comparison: Mapping[str, Any], label: str) -> str:
    """One sentence: area, energy and latency against the baseline, and which components make it."""
    row = next(row for row in comparison["rows"] if row["label"] == label)
    titles = {c["key"]: c["title"] for c in comparison["columns"]}
    keys = [key for key in comparison["judged"] if key != "params"] or comparison["judged"]
    ratios = ", ".join(f"{titles[key]} {ratio_text(row['ratios'][key])}" for key in keys)
    units = {c["key"]: c["unit"] for c in comparison["columns"]}
    made = [
        f"{titles[key]}: {', '.join(_cause(c, units[key]) for c in told(row, key, 2))}"
        for key in keys
        if told(row, key)
    ]
    return f"against {comparison['baseline']}: {ratios}" + (f". What makes it: {'; '.join(made)}" if made else "")


def _cause(change: Mapping[str, Any], unit: str) -> str:
    sign = "+" if change["after"] > change["before"] else "\u2212"
    return f"{change['component']} {sign}{figure(abs(change['after'] - change['before']), unit)}"


def comparison_lines(comparison: Mapping[str, Any]) -> str:
    """The comparison as Markdown: a table of values with ratios, then what differs and what it changes."""
    columns = comparison["columns"]
    lines = [
        f"# Comparison against {_md(comparison['baseline'])}", "",
        "| " + " | ".join(["", *(c["title"] for c in columns), "dominated by"]) + " |",
        "| " + " | ".join(["---", *("---:" for _ in columns), "---"]) + " |",
    ]  # fmt: skip
    for row in comparison["rows"]:
        cells = [
            figure(row["values"][c["key"]]["value"], c["unit"])
            + ("" if row["baseline"] else f" {ratio_text(row['ratios'][c['key']])}")
            for c in columns
        ]
        lines.append("| " + " | ".join([_md(row["label"]), *cells, _md(row["dominated_by"] or "")]) + " |")
    for row in comparison["rows"]:
        if row["baseline"]:
            continue
        lines += ["", f"## {_md(row['label'])}", ""]
        lines += [f"- {s['setting']}: {_md(shown(s['before']))} -> {_md(shown(s['after']))}" for s in row["settings"]]
        for c in columns:
            made = [f"{_cause(x, c['unit'])} ({100 * x['share']:+.1f} %)" for x in told(row, c["key"])]
            if made:
                lines.append(f"- {c['title']} {ratio_text(row['ratios'][c['key']])}: {', '.join(made)}")
    return "\n".join([*lines, "", *(f"- {note}" for note in comparison["notes"]), ""])


def shown(setting: Any) -> str:
    """A setting as text; what is not set has a dash."""
    return "\u2013" if setting is None else str(setting)


def _md(value: Any) -> str:
    return str(value).replace("|", "\\|").replace("<", "&lt;")
