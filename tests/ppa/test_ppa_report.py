"""The report as a document, and its views: files, Markdown, terminal."""

import io
import json

import pytest
import torch
from rich.console import Console
from small import CHECKS, STAGES, config

from gptcore.config import identity
from gptcore.errors import UserError
from gptcore.ops import PRIMITIVES, Bits
from gptcore.units import si
from ppa.count import BYTE_CLASSES, CONVENTIONS, add_up
from ppa.render import markdown, print_report
from ppa.report import make_report, write_report


@pytest.fixture(scope="module")
def report():
    return make_report(config(), batch_size=2, seq_len=12, context=9, bits=Bits(8, 16, 4), name="small")


def test_schema(report):
    """The keys that other programs read; adding some is fine, losing one is a new schema version."""
    assert report["schema_version"] == 1
    assert report["config_hash"] == identity(config())
    assert report["point"]["bits"] == {"weight": 8, "activation": 16, "kv": 4}
    assert (report["point"]["batch"], report["point"]["seq_len"], report["point"]["context"]) == (2, 12, 9)
    assert report["conventions"] == CONVENTIONS and "1 MAC = 2 FLOPs" in report["conventions"]["flops"]
    assert report["versions"]["torch"] == torch.__version__
    totals = report["totals"]
    assert totals["params"] > 0 and totals["weight_bytes"] > 0 and totals["decode"]["kv_bytes"] > 0
    for stage in STAGES:
        stated = totals[stage]
        assert {"matmul_flops", "matmul_flops_causal", "macs", "op_counts", "op_counts_causal", "bytes"} <= set(stated)
        assert set(stated["op_counts"]) == set(stated["op_counts_causal"]) == set(PRIMITIVES)
        assert set(stated["bytes"]) == {*BYTE_CLASSES, "fused", "unfused"}
    assert {check["name"] for check in report["checks"]} == CHECKS
    assert all(check["status"] == "pass" and check["declared"] == check["measured"] for check in report["checks"])
    for row in report["ops"]:
        assert set(row) == {
            "stage", "phase", "slot", "kind", "layer", "name", "op", "flops", "flops_causal", "macs", "op_counts",
            "op_counts_causal", "bytes",
        }  # fmt: skip


def test_hash_can_be_that_of_the_configuration_before_its_vocabulary_was_known():
    unknown = config(model={"vocab_size": None})
    filled = make_report(unknown.with_vocab(29), identity=identity(unknown))
    assert filled["config_hash"] == identity(unknown) != identity(unknown.with_vocab(29))
    with pytest.raises(UserError, match="model.vocab_size is unknown"):
        make_report(unknown)


def test_hardware():
    named = make_report(config(hardware="edge-sky130"))
    assert named["hardware"]["name"] == "edge-sky130" and named["hardware"]["description"]["kind"] == "asic"
    asked = make_report(config(), hardware="edge-sky130")
    assert asked["totals"] == named["totals"] and asked["estimate"] == named["estimate"]
    with pytest.raises(UserError, match="did you mean 'edge-sky130'"):
        make_report(config(), hardware="edge-sky13")
    plain = make_report(config())
    assert plain["estimate"] is None and "area_m2" not in plain["totals"]
    assert plain["hardware"] == {"name": None, "statement": plain["hardware"]["statement"]}
    assert "no hardware named" in plain["hardware"]["statement"]


def test_kernels_and_components_of_a_report_add_up():
    report = make_report(config(), hardware="edge-asap7")
    estimate, totals = report["estimate"], report["totals"]
    assert sum(q["value"] for q in estimate["area_by_component"].values()) == pytest.approx(totals["area_m2"]["value"])
    for stage in STAGES:
        rows = [row for row in estimate["kernels"] if row["stage"] == stage]
        assert sum(row["seconds"] for row in rows) == pytest.approx(totals["latency_s"][stage]["value"])
        assert sum(row["dram_bytes"] for row in rows) == pytest.approx(estimate["stages"][stage]["dram_bytes"])
        by_component = estimate["stages"][stage]["energy_by_component"]
        for name in by_component.keys() - {"control", "leakage"}:
            parts = sum(row["energy_by_component"].get(name, 0.0) for row in rows)
            assert parts == pytest.approx(by_component[name]["value"])
        energy = totals["energy_j"][stage]
        assert sum(q["value"] for q in by_component.values()) == pytest.approx(energy["value"])
        per_token = totals["energy_per_token_j"][stage]["value"] * estimate["stages"][stage]["tokens"]
        assert per_token == pytest.approx(energy["value"])
    here = next(row for row in estimate["sweep"] if (row["batch"], row["context"]) == (1, 16))
    assert here["decode"]["latency_s"] == totals["latency_s"]["decode"]


def test_files(report, tmp_path):
    folder = tmp_path / "new" / "folder"
    paths = write_report(report, folder)
    assert [path.name for path in paths] == ["report.json", "report.html", "report.md", "ops.csv"]
    assert sorted(p.name for p in folder.iterdir()) == sorted(path.name for path in paths)
    assert json.loads((folder / "report.json").read_text()) == report
    lines = (folder / "report.json").read_text().splitlines()
    assert sum('"phase":' in line for line in lines) == len(report["ops"])  # one line an operation


def test_csv_loads_and_adds_up(report, tmp_path):
    pandas = pytest.importorskip("pandas")
    write_report(report, tmp_path)
    table = pandas.read_csv(tmp_path / "ops.csv")
    assert len(table) == len(report["ops"])
    for stage in STAGES:
        rows, totals = table[table["stage"] == stage], report["totals"][stage]
        assert rows["flops"].sum() == totals["matmul_flops"]
        assert rows["op_counts.exp"].sum() == totals["op_counts"]["exp"]
        assert rows["op_counts_causal.exp"].sum() == totals["op_counts_causal"]["exp"]
        assert rows["bytes.fused"].sum() == totals["bytes"]["fused"]


def test_markdown_tables_are_well_formed(report):
    text = markdown(report)
    blocks = [block.splitlines() for block in text.split("\n\n") if block.startswith("|")]
    assert len(blocks) == 5
    for block in blocks:
        assert {line.count("|") for line in block} == {block[0].count("|")}
        assert set(block[1]) <= set("|-: ")
    assert "✓ pass" in text and "## Conventions" in text
    assert f"{report['totals']['params']:,} parameters" in text


@pytest.mark.parametrize("width", [80, 100, 120])
def test_terminal_output_fits(report, width):
    shown = io.StringIO()
    print_report(report, Console(file=shown, width=width))
    lines = shown.getvalue().splitlines()
    assert max(map(len, lines)) <= width
    assert sum("✓ pass" in line for line in lines) == len(CHECKS)
    if width >= 100:
        assert not any("…" in line for line in lines)
    assert all(title in lines for title in ("Totals by stage", "Shares by slot", "Largest operations", "Checks"))


def test_terminal_without_unicode(report):
    raw = io.BytesIO()
    with io.TextIOWrapper(raw, encoding="ascii") as stream:
        print_report(report, Console(file=stream, width=80))
        stream.flush()
        assert b"pass" in raw.getvalue()


def test_shares_add_up_to_the_whole(report):
    """The table by slot leaves nothing out."""
    for stage in STAGES:
        rows = [row for row in report["ops"] if row["stage"] == stage]
        slots = {row["slot"] for row in rows}
        parts = [add_up(row for row in rows if row["slot"] == slot) for slot in slots]
        assert sum(part["matmul_flops"] for part in parts) == report["totals"][stage]["matmul_flops"]
        assert sum(part["bytes"]["fused"] for part in parts) == report["totals"][stage]["bytes"]["fused"]


@pytest.mark.parametrize(
    "value, unit, text",
    [
        (291_648_307_200, "FLOP", "291.6 GFLOP"), (37_748_736, "B", "37.75 MB"), (999, "", "999"), (0, "B", "0 B"),
        (1000, "", "1.000 k"), (999_960, "", "1.000 M"), (12_345, "", "12.35 k"), (0.99489, "", "0.9949"),
    ],
)  # fmt: skip
def test_si(value, unit, text):
    assert si(value, unit) == text
