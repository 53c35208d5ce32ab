"""Views of a report: terminal tables, Markdown, a few lines of summary. Everything is derived from the document."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from rich import box
from rich.console import Console, OverflowMethod
from rich.table import Table
from rich.text import Text

from gptcore.units import si

from .count import BYTE_CLASSES, add_up

_STAGES = ("prefill", "decode", "train")
TOP_OPERATIONS = 10


def percent(share: float) -> str:
    """A share (0..1) in percent with one decimal; '-' for nothing, '<0.1' for next to nothing."""
    if not share:
        return "-"
    return f"{100 * share:.1f}" if share >= 0.0005 else "<0.1"


@dataclass(frozen=True)
class Grid:
    """A table before it has a look. The first `names` columns are text, the others numbers; a header may have lines."""

    title: str
    columns: tuple[str, ...]
    rows: list[tuple[str, ...]]
    names: int = 1
    note: str = ""


def grids(report: Mapping[str, Any]) -> list[Grid]:
    """The tables of a report, in reading order."""
    machine = [_machine(report), _components(report)] if report["estimate"] else []
    return [*machine, _by_stage(report), _primitives(report), _by_slot(report), _largest(report), _checks(report)]


def headline(report: Mapping[str, Any]) -> list[str]:
    """What was priced: sizes, point, widths, machine."""
    totals, point = report["totals"], report["point"]
    bits, training = point["bits"], point["train_bits"]
    return [
        f"{totals['params']:,} parameters, {si(totals['weight_bytes'], 'B')} of weights, "
        f"KV cache {si(totals['decode']['kv_bytes'], 'B')} at context {point['context']}",
        f"batch {point['batch']}, seq_len {point['seq_len']}, context {point['context']}",
        f"bits: weight {bits['weight']}, activation {bits['activation']}, kv {bits['kv']}; "
        f"train: weight {training['weight']}, activation {training['activation']}",
        report["hardware"]["statement"],
    ]


def summary_lines(report: Mapping[str, Any]) -> list[str]:
    """The report in a few lines of text, for the end of a training run."""
    totals = report["totals"]
    work = {"prefill": "a prompt", "decode": "a token", "train": "a step"}
    lines = headline(report)[:3]
    for stage in _STAGES:
        t = totals[stage]
        lines.append(
            f"{stage} ({work[stage]}): {si(t['matmul_flops'], 'FLOP')}, {si(sum(t['op_counts'].values()))} primitive "
            f"ops, {si(t['bytes']['fused'], 'B')} moved ({si(t['bytes']['unfused'], 'B')} unfused)"
        )
    failed = [check["name"] for check in report["checks"] if check["status"] == "fail"]
    verdict = f"FAILED: {', '.join(failed)}" if failed else "declared counts equal the measured ones"
    return [*lines, f"checks: {verdict}"]


def area(value: float) -> str:
    """Square millimetres, as chips are measured."""
    return f"{value * 1e6:.4g} mm2"


def interval(q: Mapping[str, Any], show: Callable[[float], str]) -> str:
    """A result with its interval: '1.41 ms [1.39, 1.66]'."""
    unit = show(q["value"]).rpartition(" ")[2]
    low, high = (show(q[end]) for end in ("low", "high"))
    if low.endswith(" " + unit) and high.endswith(" " + unit):
        low, high = low.removesuffix(" " + unit), high.removesuffix(" " + unit)
    return f"{show(q['value'])} [{low}, {high}]"


def _machine(report: Mapping[str, Any]) -> Grid:
    totals, stages = report["totals"], report["estimate"]["stages"]

    def row(label: str, cell: Callable[[str], str]) -> tuple[str, ...]:
        return (label, *(cell(stage) for stage in _STAGES))

    def quantity(key: str, end: str, unit: str) -> Callable[[str], str]:
        return lambda stage: si(totals[key][stage][end], unit)

    def grade(key: str) -> Callable[[str], str]:
        return lambda stage: totals[key][stage]["grade"]

    rows = []
    for label, key, unit in (("latency", "latency_s", "s"), ("energy per token", "energy_per_token_j", "J")):
        shown = ((label, "value"), ("  from", "low"), ("  to", "high"))
        rows += [*(row(name, quantity(key, end, unit)) for name, end in shown), row("  grade", grade(key))]
    rows.append(row("tokens per second", lambda s: si(stages[s]["tokens"] / totals["latency_s"][s]["value"])))
    rows.append(row("busiest", lambda stage: stages[stage]["bound"]))
    whole = totals["area_m2"]
    title = f"On {report['hardware']['name']}: area {interval(whole, area)}, {whole['grade']}"
    return Grid(title, ("", *_STAGES), rows, note="; ".join(report["estimate"]["notes"]))


def _components(report: Mapping[str, Any]) -> Grid:
    estimate = report["estimate"]
    energy = {stage: estimate["stages"][stage]["energy_by_component"] for stage in ("prefill", "decode")}
    names = list(dict.fromkeys([*estimate["area_by_component"], *energy["prefill"], *energy["decode"]]))
    rows = []
    for name in names:
        part = estimate["area_by_component"].get(name)
        cells = [area(part["value"]) if part else "-"]
        for stage, parts in energy.items():
            tokens = estimate["stages"][stage]["tokens"]
            cells.append(si(parts[name]["value"] / tokens, "J") if name in parts else "-")
        grade = (part or energy["decode"].get(name) or energy["prefill"][name])["grade"]
        rows.append((name, grade, *cells))
    columns = ("component", "grade", "area", "prefill\nJ/token", "decode\nJ/token")
    return Grid("Where area and energy go", columns, rows, names=2)


def _by_stage(report: Mapping[str, Any]) -> Grid:
    stages = [report["totals"][stage] for stage in _STAGES]

    def row(label: str, value: Callable[[Mapping[str, Any]], float], unit: str) -> tuple[str, ...]:
        return (label, *(si(value(t), unit) if value(t) else "-" for t in stages))

    rows = [
        row("matrix FLOPs", lambda t: t["matmul_flops"], "FLOP"),
        row("  without masked pairs", lambda t: t["matmul_flops_causal"], "FLOP"),
        row("MACs", lambda t: t["macs"], "MAC"),
        row("primitive ops", lambda t: sum(t["op_counts"].values()), "op"),
        row("  without masked elements", lambda t: sum(t["op_counts_causal"].values()), "op"),
        row("bytes, fused", lambda t: t["bytes"]["fused"], "B"),
        row("bytes, unfused", lambda t: t["bytes"]["unfused"], "B"),
        *(row(f"  {key}", lambda t, key=key: t["bytes"][key], "B") for key in BYTE_CLASSES),  # type: ignore[misc]
        row("FLOPs per byte, fused", lambda t: t["matmul_flops"] / t["bytes"]["fused"], ""),
    ]
    return Grid("Totals by stage", ("", *_STAGES), rows)


def _primitives(report: Mapping[str, Any]) -> Grid:
    counts = [report["totals"][stage]["op_counts"] for stage in _STAGES]
    used = [p for p in counts[0] if any(c[p] for c in counts)]
    rows: list[tuple[str, ...]] = [(p, *(si(c[p]) if c[p] else "-" for c in counts)) for p in used]
    return Grid("Primitive operations by stage", ("", *_STAGES), rows, note="over all elements, masked ones included")


_MEASURES = ("FLOPs", "bytes", "ops")


def _measures(rows: Iterable[Mapping[str, Any]]) -> tuple[int, int, int]:
    total = add_up(rows)
    return total["matmul_flops"], total["bytes"]["fused"], sum(total["op_counts"].values())


def _shares(rows: list[Mapping[str, Any]], key: Callable[[Mapping[str, Any]], Any], stages: tuple[str, ...]) -> dict:
    """key -> stage -> shares (0..1) of its FLOPs, fused bytes and primitive operations; in the order of `rows`."""
    groups: dict[Any, dict[str, list]] = {}
    for row in rows:
        groups.setdefault(key(row), {stage: [] for stage in _STAGES})[row["stage"]].append(row)
    whole = {stage: _measures(row for row in rows if row["stage"] == stage) for stage in stages}
    return {
        group: {
            stage: tuple(part / (all_ or 1) for part, all_ in zip(_measures(members[stage]), whole[stage], strict=True))
            for stage in stages
        }
        for group, members in groups.items()
    }


def _share_cells(shares: Mapping[str, tuple[float, ...]]) -> tuple[str, ...]:
    return tuple(percent(share) for stage in shares.values() for share in stage)


def _headers(stages: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(f"{stage}\n{measure}" for stage in stages for measure in _MEASURES)


def _by_slot(report: Mapping[str, Any]) -> Grid:
    shares = _shares(report["ops"], lambda row: (row["slot"], row["kind"]), _STAGES)
    rows = [(*group, *_share_cells(by_stage)) for group, by_stage in shares.items()]
    note = "% of each column; bytes fused; ops: primitive. A slot within another (softmax in attention) has its own row"
    return Grid("Shares by slot", ("slot", "kind", *_headers(_STAGES)), rows, names=2, note=note)


def _operation(row: Mapping[str, Any]) -> str:
    """The name without its layer: `transformer.h.3.mlp.c_fc.matmul` is `mlp.c_fc.matmul`."""
    return row["name"].removeprefix(f"transformer.h.{row['layer']}.").removeprefix("transformer.")


def _largest(report: Mapping[str, Any]) -> Grid:
    stages = ("prefill", "decode")
    inference = [row for row in report["ops"] if row["stage"] in stages]
    layers: dict[str, set] = {}
    for row in inference:
        layers.setdefault(_operation(row), set()).add(row["layer"])
    shares = _shares(inference, _operation, stages)
    ranked = sorted(shares, key=lambda name: -max(max(stage) for stage in shares[name].values()))[:TOP_OPERATIONS]
    rows = [(f"{len(layers[name])}x", name, *_share_cells(shares[name])) for name in ranked]
    note = "% of each column, all layers together; by the largest of the six"
    return Grid("Largest operations", ("", "operation", *_headers(stages)), rows, names=2, note=note)


_MARKS = {"pass": "\u2713 pass", "fail": "\u2717 FAIL", "skipped": "- skipped"}


def _checks(report: Mapping[str, Any]) -> Grid:
    rows: list[tuple[str, ...]] = []
    for check in report["checks"]:
        measured = "-" if check["measured"] is None else f"{check['measured']:,}"
        rows.append((_MARKS[check["status"]], check["name"], f"{check['declared']:,}", measured))
    notes = [f"{check['name']}: {check['note']}" for check in report["checks"] if check["note"]]
    note = "; ".join(notes) or "measured on the module itself, on the meta device"
    return Grid("Checks", ("", "check", "declared", "measured"), rows, names=2, note=note)


def markdown(report: Mapping[str, Any]) -> str:
    """report.md: the tables of the terminal as Markdown, with every convention spelled out."""
    lines = [f"# Cost of {_title(report)}", "", *(f"- {line}" for line in headline(report))]
    lines += [f"- versions: {', '.join(f'{name} {version}' for name, version in report['versions'].items())}", ""]
    for grid in grids(report):
        lines += [f"## {grid.title}", ""]
        if grid.note:
            lines += [grid.note, ""]
        lines.append(_md_row(header.replace("\n", " ") for header in grid.columns))
        lines.append(_md_row("---" if i < grid.names else "---:" for i in range(len(grid.columns))))
        lines += [*(_md_row(row) for row in grid.rows), ""]
    lines += ["## Conventions", "", *(f"- **{name}**: {text}" for name, text in report["conventions"].items()), ""]
    return "\n".join(lines)


def _md_row(cells: Iterable[str]) -> str:
    return "| " + " | ".join(_md_cell(cell) for cell in cells) + " |"


def _md_cell(text: str) -> str:
    body = text.lstrip()
    return "&nbsp;" * (len(text) - len(body)) + body.replace("|", "\\|").replace("<", "&lt;")


def _title(report: Mapping[str, Any]) -> str:
    return f"{report['name'] or 'model'} ({report['config_hash'][:8]})"


def print_report(report: Mapping[str, Any], console: Console | None = None) -> None:
    """The report on a terminal; made for 80 columns and more."""
    console = console or Console(highlight=False)
    console.print(Text(f"Cost of {_title(report)}", style="bold"))
    for line in headline(report):
        console.print(Text(f"  {line}"))
    ascii_only = not (console.encoding or "").lower().startswith("utf")
    for grid in grids(report):
        console.print(Text(f"\n{grid.title}", style="bold"))
        console.print(_table(grid, ascii_only))
        if grid.note:
            console.print(Text(grid.note, style="dim"))


def _table(grid: Grid, ascii_only: bool) -> Table:
    table = Table(box=box.ASCII2 if ascii_only else box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    dense = any("\n" in header for header in grid.columns)
    table.padding = (0, 0 if dense else 1, 0, 0)
    overflow: OverflowMethod = "crop" if ascii_only else "ellipsis"
    group = ""
    for i, header in enumerate(grid.columns):
        if i < grid.names:  # the last name gives way where the terminal is narrow
            table.add_column(header, no_wrap=i < grid.names - 1, overflow=overflow)
            continue
        first, _, second = header.partition("\n")
        starts, group = first != group, first
        lines = (first if starts else "", second) if second else (first,)
        width = max(map(len, lines)) + (2 if starts else 0)  # groups of columns stand apart
        table.add_column("\n".join(lines), justify="right", no_wrap=True, min_width=width)
    for row in grid.rows:
        style = "bold red" if row[0] == _MARKS["fail"] else None
        cells = (Text(_ascii(cell) if ascii_only else cell, style=_style(cell), end="") for cell in row)
        table.add_row(*cells, style=style)
    return table


def _ascii(text: str) -> str:
    return text.encode("ascii", "ignore").decode().strip()


def _style(cell: str) -> str:
    if cell == _MARKS["pass"]:
        return "green"
    return "dim" if cell in ("-", "<0.1") else ""
