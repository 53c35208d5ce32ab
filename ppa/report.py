"""The cost report: one JSON document, and the files made from it.

    report.json   everything, versioned, in SI units; the others are views of it
    report.html   a page that needs nothing else: no network, no script to be readable
    report.md     the tables that the terminal shows
    ops.csv       one row an operation

Counts need no machine. Area, energy and latency are those on the machine that `--hardware` or the configuration names;
without one they are left out.
"""

import csv
import io
import json
import platform
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from gptcore.config import Config
from gptcore.config import identity as identity_of
from gptcore.errors import UserError
from gptcore.files import write_atomically
from gptcore.ops import PRIMITIVES, Bits

from .check import run_checks
from .count import BYTE_CLASSES, CONVENTIONS, MASTER_BITS, Counted, count, make_point, train_bits
from .page.report_page import render_page
from .priced import describe, estimator, price
from .render import markdown, print_report, summary_lines
from .validation import RESULTS

SCHEMA_VERSION = 1


def make_report(
    config: Config, *, batch_size: int = 1, seq_len: int | None = None, context: int | None = None,
    bits: Bits | None = None, identity: str | None = None, name: str | None = None, hardware: str | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Counts of a configuration at one point, checked against the module on the meta device.

    `seq_len` (prefill, train) and `context` (decode) default to block_size, `bits` to the configuration's. `identity`
    is that of the configuration before its vocabulary size was filled in, if it was. `hardware` is asked for by name
    and must exist; the configuration's own need not. UserError where the vocabulary is unknown or the point does not
    fit. A failed check is no exception here: see `failed_checks`.
    """
    if config.model.vocab_size is None:
        raise UserError("model.vocab_size is unknown: prepare the data set, or set model.vocab_size")
    machine_name = hardware or config.hardware
    point = make_point(config.model, batch_size=batch_size, seq_len=seq_len, context=context, bits=bits)
    counted = count(config, point)
    training = train_bits(config)
    priced = price(config, point, machine_name) if machine_name else {}
    return {
        "schema_version": SCHEMA_VERSION,
        "config_hash": identity or identity_of(config),
        "name": name,
        "model": config.model.model_dump(mode="json"),
        "hardware": describe(machine_name),
        "point": {
            "batch": point.batch, "seq_len": point.seq_len, "context": point.context,
            "bits": {"weight": point.bits.weight, "activation": point.bits.activation, "kv": point.bits.kv},
            "train_bits": {
                "weight": training.weight, "activation": training.activation, "optimizer": MASTER_BITS,
                "dtype": config.train.dtype,
            },
        },
        "conventions": CONVENTIONS,
        "versions": _versions(),
        "totals": {**_totals(counted), **priced.get("totals", {})},
        "estimate": priced.get("estimate"),
        "checks": [check.as_dict() for check in run_checks(config.model, counted, config.train)],
        "ops": counted.rows,
    }  # fmt: skip


def _totals(counted: Counted) -> dict[str, Any]:
    return {"params": counted.params, "weight_bytes": counted.weight_bytes, **counted.totals}


def _versions() -> dict[str, str]:
    try:
        own = metadata.version("gptcore")
    except metadata.PackageNotFoundError:
        own = "not installed"
    return {
        "gptcore": own, "estimator": estimator(), "torch": torch.__version__, "python": platform.python_version(),
    }  # fmt: skip


def failed_checks(report: Mapping[str, Any]) -> list[str]:
    """Names of the checks whose two numbers differ, or that could not be measured."""
    return [check["name"] for check in report["checks"] if check["status"] == "fail"]


def to_json(report: Mapping[str, Any]) -> str:
    """JSON text with one line an operation, so that two reports can be compared by line."""
    return _lines(report, 3, "\n") + "\n"


def _lines(value: Any, depth: int, newline: str) -> str:
    """JSON of `value`, broken into lines down to `depth`."""
    if depth == 0 or not isinstance(value, (dict, list)) or not value:
        return json.dumps(value)
    inner = newline + " "
    if isinstance(value, dict):
        parts = (f"{json.dumps(key)}: {_lines(item, depth - 1, inner)}" for key, item in value.items())
        return "{" + inner + f",{inner}".join(parts) + newline + "}"
    return "[" + inner + f",{inner}".join(_lines(item, depth - 1, inner) for item in value) + newline + "]"


_PLAIN = ("stage", "phase", "slot", "kind", "layer", "name", "op", "flops", "flops_causal", "macs")
_GROUPS = (
    ("op_counts", PRIMITIVES),
    ("op_counts_causal", PRIMITIVES),
    ("bytes", (*BYTE_CLASSES, "fused", "unfused")),
)


def to_csv(report: Mapping[str, Any]) -> str:
    """One row an operation; nested counts become columns such as `op_counts.exp` and `bytes.weights`."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*_PLAIN, *(f"{group}.{key}" for group, keys in _GROUPS for key in keys)])
    for row in report["ops"]:
        nested = (row[group].get(key, 0) for group, keys in _GROUPS for key in keys)
        writer.writerow([*(row[key] for key in _PLAIN), *nested])
    return text.getvalue()


def write_report(
    report: Mapping[str, Any], folder: str | Path, baseline: Mapping[str, Any] | None = None
) -> list[Path]:
    """Writes report.json, report.html (against `baseline`), report.md and ops.csv, each atomically; their paths.

    UserError if it cannot.
    """
    folder = Path(folder)
    validation = _judged(json.loads(RESULTS.read_text())) if RESULTS.exists() else None
    texts: dict[str, Callable[[Mapping[str, Any]], str]] = {
        "report.json": to_json, "report.html": lambda r: render_page(r, baseline, validation), "report.md": markdown,
        "ops.csv": to_csv,
    }  # fmt: skip
    paths = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for file_name, render in texts.items():
            write_atomically(folder / file_name, render(report).encode())
            paths.append(folder / file_name)
    except OSError as error:
        raise UserError(f"cannot write the report into {folder}: {error.strerror}; choose another with -o") from error
    return paths


def _judged(validation: Mapping[str, Any]) -> dict[str, Any]:
    """The scores that a bar is set on; docs/validation.md has the others too."""
    sections = ({**s, "scores": [x for x in s["scores"] if x["bar"] is not None]} for s in validation["sections"])
    return {"sections": [section for section in sections if section["scores"]]}


__all__ = [
    "describe", "failed_checks", "make_report", "print_report", "summary_lines", "to_csv", "to_json",
    "write_report",
]  # fmt: skip
