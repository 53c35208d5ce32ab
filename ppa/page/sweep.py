"""The roofline of a machine with the sweep over batch and context that the sliders of the page pick from.

The table of the sweep holds every number; a slider copies cells of a row and moves two points to places that are
written in the row. Without a script the table is there to read.
"""

from collections.abc import Mapping
from math import inf
from typing import Any

from .charts import Point, Roofline
from .elements import behind, ends, number, panel, quantity, share, table, text

SWEPT = ("prefill", "decode")
_MEASURES = ("latency", "energy/token", "tokens/s", "FLOP/B", "of the roof", "bound by")
_SLACK = 1e-9


def point_of(entry: Mapping[str, Any], stage: str) -> Point:
    """Where an entry of the sweep lies."""
    found = entry[stage]
    flops, seconds, moved = found["flops"], found["latency_s"], found["dram_bytes"]
    return Point(
        stage,
        flops / moved if moved else inf,
        flops / seconds["value"],
        flops / seconds["high"],
        flops / seconds["low"],
    )


def tokens_of(entry: Mapping[str, Any], stage: str) -> int:
    return entry["batch"] * (entry["context"] if stage == "prefill" else 1)


def above_roof(report: Mapping[str, Any]) -> list[str]:
    """Entries that are faster than the machine can be: none, or the estimate is wrong."""
    peaks = report["estimate"]["peaks"]
    plane = Roofline(peaks["flop_per_s"], peaks["bytes_per_s"], [])
    return [
        f"{stage} at batch {entry['batch']}, context {entry['context']}"
        for entry in report["estimate"]["sweep"]
        for stage in SWEPT
        if (p := point_of(entry, stage)).flop_per_s > plane.roof(p.intensity) * (1 + _SLACK)
    ]


def start(report: Mapping[str, Any]) -> Mapping[str, Any]:
    """The entry where the sliders begin: the batch and context of the report, or the nearest below."""
    point, sweep = report["point"], report["estimate"]["sweep"]
    below = [e for e in sweep if e["batch"] <= point["batch"] and e["context"] <= point["context"]]
    return max(below or sweep[:1], key=lambda e: (e["batch"], e["context"]))


def roofline_panel(report: Mapping[str, Any]) -> str:
    estimate = report["estimate"]
    peaks, sweep, first = estimate["peaks"], estimate["sweep"], start(report)
    plane = Roofline(peaks["flop_per_s"], peaks["bytes_per_s"], [point_of(e, s) for e in sweep for s in SWEPT])
    drawn = plane.draw(
        {stage: point_of(first, stage) for stage in SWEPT},
        "Roofline: FLOP/s attained over FLOPs per byte, prefill and decode; the numbers are in the table below",
    )
    readout = [
        [name, *(f'<span id="{stage}-{i}">{_cells(plane, first, stage)[i]}</span>' for stage in SWEPT)]
        for i, name in enumerate(_MEASURES)
    ]
    edge = " Points at the right edge cause no traffic." if any(p.intensity == inf for p in plane.points) else ""
    sliders = "".join(
        _slider(key, [e[key] for e in sweep], first[key], unit) for key, unit in (("batch", ""), ("context", " tokens"))
    )
    side = (
        f'<div class="sliders">{sliders}</div><div aria-live="polite">'
        f"{table(['', *SWEPT], readout, caption='At the chosen batch and context', style='readout')}</div>"
        f'<noscript><p class="note">At batch {first["batch"]} and context {first["context"]}; every other point is in '
        "the table below.</p></noscript>"
        f'<p class="note">Prefill takes a prompt as long as the context. Faint dots are the whole grid.{edge}</p>'
    )
    body = (
        f'<div class="roofline"><div class="scroll">{drawn}</div><div>{side}</div></div>'
        f"{_resources(report)}{behind('Table of all batches and contexts', _table(plane, sweep))}"
    )
    lead = (
        "How close each stage comes to what the machine can do. Batch and context move the points over a grid that was "
        "computed with the report."
    )
    return panel("roofline", "Roofline", lead, body)


def _slider(key: str, values: list[int], value: int, unit: str) -> str:
    steps = sorted(set(values))
    return (
        f'<label for="{key}"><span>{key}</span><input type="range" id="{key}" min="0" max="{len(steps) - 1}" step="1" '
        f'value="{steps.index(value)}" data-steps="{" ".join(map(str, steps))}" aria-valuetext="{value}" '
        f'autocomplete="off"/><output id="{key}-value" for="{key}">{value}</output></label>'
    )


def _cells(plane: Roofline, entry: Mapping[str, Any], stage: str) -> list[str]:
    """What `_MEASURES` names, as HTML."""
    found, point, tokens = entry[stage], point_of(entry, stage), tokens_of(entry, stage)
    seconds = found["latency_s"]
    rate = {"value": tokens / seconds["value"], "low": tokens / seconds["high"], "high": tokens / seconds["low"]}
    of_roof = point.flop_per_s / plane.roof(point.intensity)
    intensity = "no traffic" if point.intensity == inf else number(point.intensity)
    return [
        quantity(seconds, "s"), quantity(found["energy_per_token_j"], "J"), f"{number(rate['value'])} {ends(rate)}",
        intensity, share(of_roof), text(found["bound"]),
    ]  # fmt: skip


def _table(plane: Roofline, sweep: list[Mapping[str, Any]]) -> str:
    heads = "".join(f'<th scope="col" class="n">{stage} {name}</th>' for stage in SWEPT for name in _MEASURES)
    lines = []
    for entry in sweep:
        places = " ".join(f'data-{stage}="{plane.place(point_of(entry, stage))}"' for stage in SWEPT)
        cells = "".join(
            f'<td class="n" data-to="{stage}-{i}">{cell}</td>'
            for stage in SWEPT
            for i, cell in enumerate(_cells(plane, entry, stage))
        )
        lines.append(
            f'<tr data-at="{entry["batch"]} {entry["context"]}" {places}><th scope="row">{entry["batch"]}</th>'
            f'<td class="n">{entry["context"]}</td>{cells}</tr>'
        )
    return (
        '<div class="wide"><table><caption>Sweep over batch and context</caption><thead><tr><th scope="col">batch</th>'
        f'<th scope="col" class="n">context</th>{heads}</tr></thead>\n<tbody>{chr(10).join(lines)}</tbody></table>'
        "</div>"
    )


def _resources(report: Mapping[str, Any]) -> str:
    """For how long each resource works, against the latency of its stage."""
    stages, latency = report["estimate"]["stages"], report["totals"]["latency_s"]
    names = list(dict.fromkeys(name for found in stages.values() for name in found["busy_s"]))
    rows = []
    for stage, found in stages.items():
        whole = latency[stage]["value"]
        cells = [f"{number(found['busy_s'][n], 's')} ({share(found['busy_s'][n] / whole)})" for n in names]
        rows.append([stage, *cells, number(found["stall_s"], "s"), quantity(latency[stage], "s"), text(found["bound"])])
    heads = ["stage", *map(text, names), "stall", "latency", "bound by"]
    return behind("Resources at work", table(heads, rows, caption="Seconds of work by resource"))
