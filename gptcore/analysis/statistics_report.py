"""Measured statistics as files (CSV, JSON) and as the table of the terminal."""

import csv
import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..checkpoint import write_json
from ..files import write_atomically
from .measure import Measured
from .tensor_statistics import LOWEST, PER_OCTAVE, WIDTHS, TensorStatistics

FORMAT = 1


def records(measured: Sequence[Measured], group: str, target_db: float) -> list[dict[str, Any]]:
    """One flat record a place; null for what is not a finite number or needs more than 16 bits."""
    return [
        {"layer": m.place.layer, "place": m.place.label} | _numbers(m.statistics, group, target_db)
        | {"own_bits": m.own_bits}
        for m in measured
    ]  # fmt: skip


def _numbers(s: TensorStatistics, group: str, target_db: float) -> dict[str, Any]:
    found = {
        "count": s.count, "low": s.low, "high": s.high, "mean": s.mean, "std": s.std, "kurtosis": s.kurtosis,
        "zero_share": s.zero_share, "abs_p50": s.abs_p50, "abs_p99.9": s.abs_p999, "outlier_share": s.outlier_share,
        f"bits_{group}": s.bits_group(target_db), "bits_tensor": s.bits_tensor(target_db),
        f"sqnr_8bit_{group}_db": s.sqnr_group_db.get(8), "sqnr_8bit_tensor_db": s.sqnr_tensor_db[8],
    }  # fmt: skip
    for loss in s.formats:
        found |= {
            f"{loss.name}_saturated": loss.saturated, f"{loss.name}_underflow": loss.underflow,
            f"{loss.name}_sqnr_db": loss.sqnr_db,
        }  # fmt: skip
    return {key: _finite(value) for key, value in found.items()}


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_statistics(
    folder: Path, name: str, measured: Sequence[Measured], head: dict[str, Any], group: str, target_db: float
) -> list[Path]:
    """FOLDER/NAME.csv and .json, which also has the SQNR of every width and the histograms; their paths."""
    rows = records(measured, group, target_db)
    write_table(folder / f"{name}.csv", rows)
    full = []
    for row, m in zip(rows, measured, strict=True):
        s = m.statistics
        bins = {f"{LOWEST + i / PER_OCTAVE:g}": n for i, n in enumerate(s.counts) if n}
        sqnr = {"tensor": s.sqnr_tensor_db, group: s.sqnr_group_db}
        full.append(
            row
            | {"sqnr_db": {key: {b: _finite(x) for b, x in by_bits.items()} for key, by_bits in sqnr.items()}}
            | {"histogram": {"log2_lower_edge": bins, "bins_per_octave": PER_OCTAVE}}
        )
    write_json(folder / f"{name}.json", {"format": FORMAT, **head, "places": full})
    return [folder / f"{name}.csv", folder / f"{name}.json"]


def write_table(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """A CSV file of records that all have the keys of the first."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_atomically(path, text.getvalue().encode())


def print_statistics(measured: Sequence[Measured], group: str, target_db: float, console: Any) -> None:
    """A row a place, of all its layers the widest range and the worst of the rest; bits as fewest to most."""
    by_label: dict[str, list[TensorStatistics]] = {}
    for m in measured:
        by_label.setdefault(m.place.label, []).append(m.statistics)
    table = _table("place", "layers", "lowest", "highest", "|x| 99.9 %", "kurtosis", "> 6 sigma", group, "tensor")
    for label, found in by_label.items():
        table.add_row(
            label, str(len(found)), f"{min(s.low for s in found):.4g}", f"{max(s.high for s in found):.4g}",
            f"{max(s.abs_p999 for s in found):.3g}", f"{max(s.kurtosis for s in found):.3g}",
            share(max(s.outlier_share for s in found)),
            _span([s.bits_group(target_db) for s in found]) if found[0].sqnr_group_db else "-",
            _span([s.bits_tensor(target_db) for s in found]),
        )  # fmt: skip
    console.print(table, highlight=False, markup=False)
    console.print(
        f"{group}, tensor: bits for {target_db:g} dB SQNR with a range for each {group}, and with one for the tensor\n",
        highlight=False, markup=False,
    )  # fmt: skip
    names = [loss.name for loss in measured[0].statistics.formats]
    table = _table("place", *(f"{name} {what}" for name in names for what in ("out of range", "to zero", "SQNR dB")))
    for label, found in by_label.items():
        cells = [label]
        for losses in zip(*(s.formats for s in found), strict=True):
            cells += [share(max(x.saturated for x in losses)), share(max(x.underflow for x in losses))]
            cells.append(f"{round(min(x.sqnr_db for x in losses), 1) + 0.0:.1f}")
        table.add_row(*cells)
    console.print(table, highlight=False, markup=False)


def _table(first: str, *others: str) -> Any:
    from rich.table import Table

    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column(first, no_wrap=True)
    for title in others:
        table.add_column(title, justify="right", overflow="fold")
    return table


def share(value: float) -> str:
    """As a percentage of two digits; 0 only for none, 100 % only for all."""
    if value in (0, 1):
        return "100 %" if value else "0"
    if value > 0.995:
        return "> 99 %"
    return f"{value:.1e}" if value < 1e-5 else f"{100 * value:.2g} %"


def _span(bits: Sequence[int | None]) -> str:
    most = WIDTHS[-1]
    ends = [str(b) if b is not None else f">{most}" for b in (min(bits, key=_order), max(bits, key=_order))]
    return ends[0] if ends[0] == ends[1] else "-".join(ends)


def _order(bits: int | None) -> int:
    return bits if bits is not None else WIDTHS[-1] + 1
