"""The panels of a page that say where area, energy, seconds and bytes go, and what changed against a baseline."""

from collections.abc import Iterator, Mapping
from typing import Any

from ..count import BYTE_CLASSES
from . import breakdown, charts
from .breakdown import AROUND, CHIP, SHARED, STAGES, Measure
from .charts import Part, Tile, colour
from .compare import shown, told
from .elements import badge, behind, factor, number, panel, quantity, share, table, text

Report = Mapping[str, Any]
_NAMES = {SHARED: "control, leakage"}
_GROUPS = {
    "sram": "memories", "weight memory": "memories", "kv memory": "memories", "score buffer": "buffers",
    "dram interface": "interface", "control": "control", "die": "die",
}  # fmt: skip


def versus_panel(versus: Mapping[str, Any]) -> str:
    row = next(row for row in versus["rows"] if row["label"] == "this")
    base = next(row for row in versus["rows"] if row["baseline"])
    lines = []
    for column in versus["columns"]:
        key, unit = column["key"], column["unit"]
        causes = [
            f"{text(c['component'])} {'+' if c['after'] > c['before'] else chr(0x2212)}"
            f"{number(abs(c['after'] - c['before']), unit)}"
            for c in told(row, key, 3)
        ]
        lines.append(
            (
                text(column["title"]), factor(row["ratios"][key]), number(row["values"][key]["value"], unit),
                number(base["values"][key]["value"], unit), ", ".join(causes),
            )
        )  # fmt: skip
    settings = [(text(s["setting"]), text(shown(s["before"])), text(shown(s["after"]))) for s in row["settings"]]
    body = table(
        ["", "ratio", "this", text(versus["baseline"]), "what makes it"],
        lines,
        caption="Against the baseline",
        kinds="tnnnt",
    )
    if settings:
        body += behind(
            f"{len(settings)} settings that differ",
            table(["setting", "baseline", "this"], settings, caption="Settings that differ", kinds="ttt"),
        )
    lead = (
        "Intervals of ratios are narrower than those of values: an error of a component that both designs have is the "
        "same error in both."
    )
    return panel("versus", f"Against {versus['baseline']}", lead, body)


def where_panel(report: Report) -> str:
    cells = breakdown.cells(report)
    measures = breakdown.measures(report)
    present = {slot for amounts in cells.values() for _, slot in amounts}
    order = [s for s in charts.SLOTS if s in present] + sorted(present - set(charts.SLOTS))
    legend = "".join(f'<li><i class="{colour(s)}"></i>{text(_NAMES.get(s, s))}</li>' for s in order)
    slot_figures, layer_figures = [], []
    for measure in measures:
        bars = []
        for stage in STAGES:
            amounts = breakdown.by_slot(cells[measure.key, stage])
            total = breakdown.stated(report, measure, stage)
            parts = [Part(_NAMES.get(s, s), colour(s), amounts[s]) for s in order if s in amounts]
            drawn = charts.stacked(
                parts, max(total, sum(amounts.values())), measure.unit, f"{measure.title} of {stage} by slot"
            )
            bars.append(f'<div class="row"><span>{stage}</span>{drawn}<span>{number(total, measure.unit)}</span></div>')
        slot_figures.append(
            f'<div class="figure"><h3>{text(measure.title)}</h3>{"".join(bars)}'
            f'<p class="note">{text(measure.note)}</p></div>'
        )
        layer_figures += [_layers(measure, stage, cells[measure.key, stage], order) for stage in STAGES]
    heads = [f"{m.title}, {s}" for m in measures for s in STAGES]
    slot_rows = list(_slot_rows(cells, measures, order))
    body = (
        f'<ul class="legend">{legend}</ul><div class="three">{"".join(slot_figures)}</div>'
        + behind("Table by slot", table(["slot", *heads], slot_rows, caption="Amounts by slot"))
        + f'<h3 class="next">By layer</h3><div class="three">{"".join(layer_figures)}</div>'
        + behind("Table by layer", table(["layer", *heads], _layer_rows(cells, measures), caption="Amounts by layer"))
        + (behind("Energy by component", _energy_table(report)) if report["estimate"] else "")
    )
    return panel("where", "Where it goes", "A prompt, one token for each sequence, one training step.", body)


def _slot_rows(
    cells: Mapping[tuple[str, str], Any], measures: tuple[Measure, ...], order: list[str]
) -> Iterator[list[str]]:
    sums = {key: breakdown.by_slot(amounts) for key, amounts in cells.items()}
    for slot in order:
        row = [f'<span class="key {colour(slot)}"></span>{text(_NAMES.get(slot, slot))}']
        for measure in measures:
            row += [_amount(sums[measure.key, s].get(slot, 0), measure.unit) for s in STAGES]
        yield row
    total = ["total"]
    for measure in measures:
        total += [number(sum(sums[measure.key, s].values()), measure.unit) for s in STAGES]
    yield total


def _amount(value: float, unit: str) -> str:
    return number(value, unit) if value else "\u2013"


def _layer_rows(cells: Mapping[tuple[str, str], Any], measures: tuple[Measure, ...]) -> list[list[str]]:
    sums = {
        key: {p: sum(slots.values()) for p, slots in breakdown.by_place(amounts).items()}
        for key, amounts in cells.items()
    }
    places: set[breakdown.Place] = {p for found in sums.values() for p in found}
    layers = sorted(p for p in places if isinstance(p, int))
    ranked: list[breakdown.Place] = [*layers, *(p for p in (AROUND, CHIP) if p in places)]
    return [
        [_place_name(place), *(_amount(sums[m.key, s].get(place, 0), m.unit) for m in measures for s in STAGES)]
        for place in ranked
    ]  # fmt: skip


def _place_name(place: breakdown.Place) -> str:
    return {AROUND: "around the layers", CHIP: "control, leakage"}.get(str(place), str(place))


def _layers(measure: Measure, stage: str, amounts: breakdown.Cells, order: list[str]) -> str:
    places = breakdown.by_place(amounts)
    drawn = [[Part(_NAMES.get(s, s), colour(s), slots[s]) for s in order if s in slots] for slots in places.values()]
    keys = list(places)
    layers = [p for p in keys if isinstance(p, int)]
    gaps = [i for i, place in enumerate(keys) if not isinstance(place, int)]
    label = f"{measure.title} of {stage} by layer"
    ends_at = f"<span>layer 0 to {layers[-1]}</span>" if layers else "<span></span>"
    rest = " + ".join(_place_name(p) for p in keys if not isinstance(p, int))
    highest = max((sum(slots.values()) for slots in places.values()), default=0)
    return (
        f'<div class="figure"><h3>{text(measure.title)}, {stage} '
        f'<span class="iv">highest {number(highest, measure.unit)}</span></h3>{charts.columns(drawn, gaps, label)}'
        f'<div class="under">{ends_at}<span>{text(rest)}</span></div></div>'
    )


def _energy_table(report: Report) -> str:
    stages = report["estimate"]["stages"]
    names = sorted({name for stage in STAGES for name in stages[stage]["energy_by_component"]})
    rows = [
        [text(name), *(_optional(stages[s]["energy_by_component"].get(name), "J") for s in STAGES)] for name in names
    ]  # fmt: skip
    return table(["component", *STAGES], rows, caption="Energy by component")


def _optional(found: Mapping[str, Any] | None, unit: str) -> str:
    return "\u2013" if found is None else f"{quantity(found, unit)} {badge(found['grade'])}"


def traffic_panel(report: Report) -> str:
    totals = report["totals"]
    used = [c for c in BYTE_CLASSES if any(totals[s]["bytes"][c] for s in STAGES)]
    bars = []
    for stage in STAGES:
        moved = totals[stage]["bytes"]
        for way, classes in (("fused", [c for c in used if c != "intermediates"]), ("unfused", used)):
            parts = [Part(c, f"b-{c}", moved[c]) for c in classes if moved[c]]
            drawn = charts.stacked(parts, moved["unfused"], "B", f"Bytes of {stage}, {way}, by class")
            name = stage if way == "fused" else ""
            bars.append(
                f'<div class="row traffic"><span>{name}</span><span class="note">{way}</span>{drawn}'
                f"<span>{number(moved[way], 'B')}</span></div>"
            )
    legend = "".join(f'<li><i class="b-{c}"></i>{c}</li>' for c in used)
    rows = [[c, *(number(totals[s]["bytes"][c], "B") for s in STAGES)] for c in used]
    rows += [[way, *(number(totals[s]["bytes"][way], "B") for s in STAGES)] for way in ("fused", "unfused")]
    body = f'<ul class="legend">{legend}</ul>{"".join(bars)}' + behind(
        "Table", table(["class", *STAGES], rows, caption="Bytes by class")
    )
    lead = (
        "Every operand moved once, before any cache or tiling. Fused kernels keep intermediates, such as attention "
        "scores, to themselves."
    )
    return panel("traffic", "Memory traffic by class", lead, body)


def primitives_panel(report: Report) -> str:
    counts = {s: report["totals"][s]["op_counts"] for s in STAGES}
    used = [p for p in counts["prefill"] if any(counts[s][p] for s in STAGES)]
    longest = max((counts[s][p] for s in STAGES for p in used), default=1)
    used.sort(key=lambda p: (-max(counts[s][p] for s in STAGES), p))
    rows = []
    for p in used:
        cells = []
        for s in STAGES:
            cells += [
                charts.log_bar(counts[s][p], longest, f"st-{s}"),
                _amount(counts[s][p], ""),
            ]
        rows.append([p, *cells])
    heads = [head for s in STAGES for head in ("", s)]
    lead = (
        "Operations outside matrix products, over all elements. Bars are logarithmic, a grid line every factor of 1000."
    )
    return panel(
        "primitives",
        "Primitive operations",
        lead,
        table(["", *heads], rows, caption="Primitive operations", style="histogram"),
    )


def area_panel(report: Report) -> str:
    parts = report["estimate"]["area_by_component"]
    slots = breakdown.slots_of(report)
    groups: dict[str, list[Tile]] = {}
    for name, q in parts.items():
        group = group_of(name, slots)
        slot = breakdown.serves(name, slots)
        groups.setdefault(group, []).append(Tile(name, colour(slot) if slot else f"a-{group}", q["value"]))
    total = report["totals"]["area_m2"]
    ranked = sorted(parts.items(), key=lambda item: (-item[1]["value"], item[0]))
    rows = [
        [
            text(name), text(group_of(name, slots)), badge(q["grade"]), quantity(q, "m2"),
            share(q["value"] / total["value"]),
        ]
        for name, q in ranked
    ]  # fmt: skip
    rows.append(["total", "", badge(total["grade"]), quantity(total, "m2"), share(1.0)])
    drawn = charts.treemap(groups, "m2", "Area by component", tall=400.0 if len(parts) > 1 else 90.0)
    body = f'<div class="scroll">{drawn}</div>' + behind(
        "Table", table(["component", "group", "grade", "area", "share"], rows, caption="Area by component", kinds="ttt")
    )
    lead = (
        f"{quantity(total, 'm2')} in all. Sizes are in proportion; places are not a floorplan. Colours of units are "
        "those of the slots that they serve."
        if len(parts) > 1
        else f"{quantity(total, 'm2')}, whatever the model."
    )
    return panel("area", "Area", lead, body)


def group_of(component: str, slots: frozenset[str]) -> str:
    """The part of the chip that a component belongs to."""
    if component in _GROUPS:
        return _GROUPS[component]
    first = component.partition(" ")[0]
    if first == "array":
        return "array"
    return "units" if first in slots or first == "quantiser" else "other"
