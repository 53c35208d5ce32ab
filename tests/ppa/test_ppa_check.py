"""The checks of a report: they pass at any point, and each of them can fail."""

import io
from dataclasses import replace

import pytest
import torch
from rich.console import Console
from small import CHECKS, MODEL, STAGES, config

import ppa.check
import ppa.count
from gptcore.model import declare
from gptcore.ops import Bits
from ppa.check import counted_flops
from ppa.render import print_report, summary_lines
from ppa.report import failed_checks, make_report


@pytest.mark.parametrize("point", [{"context": 1}, {"seq_len": 1}, {"batch_size": 3}, {"bits": Bits(kv=3)}])
@pytest.mark.parametrize("softmax", ["softmax", "consmax"])
def test_checks_pass_at_any_point(point, softmax):
    changed = config(model={"attention": {**MODEL["attention"], "softmax": softmax}, "dropout": 0.1})
    assert failed_checks(make_report(changed, **point)) == []


@pytest.mark.parametrize("train", [{"optimizer": "muon"}, {"import_wte_npy": "x.npy", "import_wte_freeze": True}])
def test_checks_pass_however_the_model_is_trained(train):
    assert failed_checks(make_report(config(train=train))) == []


def drop(ending: str):
    """A declaration that forgets the operations whose name ends so."""

    def faulty(model, run, *rest):
        graph = declare(model, run, *rest)
        graph.ops = [op for op in graph.ops if not op.name.endswith(ending)]
        return graph

    return faulty


def rename_weight(model, run, *rest):
    graph = declare(model, run, *rest)
    graph._weights["transformer.wte.table"] = graph._weights.pop("transformer.wte.weight")
    return graph


def widen_cache(model, run, *rest):
    return declare(model, replace(run, S=run.S + 1) if run.stage == "decode" else run, *rest)


FAULTS = {
    "av forgotten": (drop(".av"), CHECKS - {"parameters", "weight_names_and_shapes"}),
    "gradient forgotten": (drop("c_fc.matmul.db"), {"train_matmul_flops"}),
    "weight misnamed": (rename_weight, {"weight_names_and_shapes"}),
    "one token too many": (widen_cache, {"decode_matmul_flops", "kv_cache_bytes"}),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_a_wrong_declaration_is_found(fault, monkeypatch):
    faulty, expected = FAULTS[fault]
    monkeypatch.setattr(ppa.count, "declare", faulty)
    found = make_report(config(), context=3)
    assert set(failed_checks(found)) == expected
    shown = io.StringIO()
    print_report(found, Console(file=shown, width=100))
    assert shown.getvalue().count("✗ FAIL") == len(expected)
    assert "FAILED: " in summary_lines(found)[-1]


def test_a_module_that_does_not_run_on_meta_is_a_failed_check(monkeypatch):
    monkeypatch.setattr(ppa.check, "counted_flops", lambda run: int(torch.zeros(1, device="meta")))
    found = make_report(config())
    assert set(failed_checks(found)) == {f"{stage}_matmul_flops" for stage in STAGES}
    assert all("does not run on meta" in check["note"] for check in found["checks"] if check["status"] == "fail")


def test_the_counter_sees_fused_attention_on_meta():
    """On the CPU the same call counts 0 (pytorch issue 195460), which is why the checks run on meta."""
    q = torch.zeros(1, 12, 64, 64, device="meta")
    attention = torch.nn.functional.scaled_dot_product_attention
    assert counted_flops(lambda: attention(q, q, q, is_causal=True)) == 12_582_912
