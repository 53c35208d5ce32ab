"""Rows of a run in a CSV file that a kill leaves readable: each row is on the disk before the next is made."""

import csv
import io
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from .block_plan import BlockPoint
from .parts import AnyPoint
from .plan import split_contestant
from .stats import quantile

FACTS = ("code", "device", "multiprocessors", "l2_bytes", "driver", "cuda", "torch", "triton", "ptxas")
MEASURED = (
    "status", "reason", "median_s", "q20_s", "q80_s", "min_s", "reps", "host_bound", "flops", "bytes", "exponentials",
    "flops_per_s", "bytes_per_s", "error", "allowed", "value", "digest", "seed", "sm_clock_hz", "memory_clock_hz",
    "temperature_c", "power_w",
)  # fmt: skip
SHAPE = ("B", "H", "K", "T", "S", "D", "E", "dtype", "causal", "window", "softcap", "bias", "variant", "heads_inside",
         "mode", "splits", "run", "row", "sizes", "options")  # fmt: skip
LATER = {"mode", "sizes", "options"}  # columns that files of attention alone do not have
FIELDS = ("part", "point", "op", "contestant", "provider", "kind", "launch", *MEASURED, *SHAPE, *FACTS)
Row = dict[str, str]


def make(point: AnyPoint, found: Mapping, facts: Mapping[str, str]) -> Row:
    """One line of the file; `seconds` become quantiles, and rates follow from the median."""
    values = {n: x for n, x in found.items() if n != "seconds"}
    if seconds := found.get("seconds"):
        median = quantile(seconds, 0.5)
        values |= {"median_s": median, "q20_s": quantile(seconds, 0.2), "q80_s": quantile(seconds, 0.8)}
        values |= {"min_s": min(seconds), "reps": len(seconds)}
        values |= {f"{n}_per_s": values[n] / median for n in ("flops", "bytes") if values.get(n)}
    shape = asdict(point)
    provider, kind, launch, _ = split_contestant(str(found.get("contestant", "")))
    if isinstance(point, BlockPoint):
        kind = point.op
        shape |= {"sizes": point.sized, "options": ", ".join(point.options)}
    values |= {n: shape.get(n, "") for n in SHAPE} | {n: facts.get(n, "") for n in FACTS}
    values |= {"part": point.part, "point": point.name, "provider": provider, "kind": kind, "launch": launch}
    return {name: _text(values.get(name, "")) for name in FIELDS}


def _text(value) -> str:
    if isinstance(value, bool):
        return "yes" if value else ""
    return f"{value:.6g}" if isinstance(value, float) else str(value)


class Store:
    """Appends to `folder`/rows.csv. What is there stays, but for the parts `anew`."""

    def __init__(self, folder: Path, anew: Sequence[str] = ()):
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / "rows.csv"
        self.rows = [r for r in read(self.path) if r["part"] not in anew] if self.path.exists() else []
        write_atomically(self.path, _lines([dict(zip(FIELDS, FIELDS, strict=True)), *self.rows]))  # drops a torn line
        self.file = open(self.path, "a", newline="")

    def add(self, row: Row) -> None:
        self.rows.append(row)
        self.file.write(_lines([row]))
        self.file.flush()
        os.fsync(self.file.fileno())


def _lines(rows: Sequence[Mapping[str, str]]) -> str:
    text = io.StringIO()
    csv.DictWriter(text, FIELDS, lineterminator="\n").writerows(rows)
    return text.getvalue()


def read(path: Path) -> list[Row]:
    """Whole rows; the last line of a run that was killed may be torn, and is left out."""
    text = path.read_text()
    whole = text[: text.rfind("\n") + 1]
    rows = list(csv.reader(io.StringIO(whole)))
    fields = tuple(rows[0]) if rows else FIELDS
    if fields not in (FIELDS, tuple(n for n in FIELDS if n not in LATER)):
        raise ValueError(f"{path} has other columns than this version writes: use another --out")
    empty = dict.fromkeys(FIELDS, "")
    return [empty | dict(zip(fields, row, strict=True)) for row in rows[1:] if len(row) == len(fields)]


def write_atomically(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.tmp")
    with open(temporary, "w", newline="") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
