"""Tensors, definitions, baselines and work of the operators beside attention, on a CPU without Triton's interpreter."""

from dataclasses import replace

import pytest
import torch

from benchmarks.gpu import block_checks, block_plan, block_step, subjects
from benchmarks.gpu.block_ops import OPERATORS, work_of
from benchmarks.gpu.block_plan import sized
from benchmarks.gpu.block_quantised import of_sums
from benchmarks.gpu.contestants import Absent
from kernels import mlp_work, quantised_reference

SMALL = {"M": 24, "N": 48, "K": 32, "C": 32, "H": 40, "V": 56, "B": 2, "T": 6, "D": 16, "R": 16}
TIMED = (block_plan.products, block_plan.mlp, block_plan.norms, block_plan.rotary, block_plan.cross_entropy,
         block_plan.linear_ce, block_plan.quantised)  # fmt: skip


def small(point):
    """Of the same operator, small, in fp32."""
    sizes = {n: SMALL[n] for n, _ in point.sizes}
    if "rotary" in point.op:
        sizes |= {"H": 3, "K": 1}
    return replace(point, sizes=sized(**sizes), dtype="fp32")


def kinds_of(plans):
    """One point of each operator, variant and set of options that has baselines."""
    points = [p for plan in plans for p in plan() if not all(c.startswith("triton") for c in p.contestants)]
    return list({(p.op, p.variant, p.options): p for p in points}.values())


@pytest.mark.parametrize("point", kinds_of(TIMED), ids=lambda p: p.name)
def test_baselines_compute_the_same(point, monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda function, dynamic: function)
    point = replace(small(point), mode="forward")
    named = block_checks.new_tensors(point, 1, "cpu")
    want, _ = block_checks.outcome(point, OPERATORS[point.op].reference(point), named)
    if point.op in ("int8_linear", "ternary_linear"):  # the product alone, or all of it
        product = (named["x"].float() @ quantised_weight(point, named).T).bfloat16()
    for name in (c for c in point.contestants if not c.startswith("triton")):
        got, _ = block_checks.outcome(point, OPERATORS[point.op].baselines[name](point, named), named)
        wanted = {"out": product} if name == "bf16" else want
        assert got.keys() == wanted.keys()
        for n, x in got.items():
            torch.testing.assert_close(x, wanted[n], rtol=2e-2 if x.dtype == torch.bfloat16 else 1e-4, atol=1e-4)
    with pytest.raises(Absent, match="no flex of"):
        subjects.Block(point, 1, "cpu", 4).run("flex")


def quantised_weight(point, named):
    w = named["w"] if "w" in named else quantised_reference.unpack_ternary(named["packed"], point["K"])
    return w.float()


def test_sums_by_floating_point_are_those_of_integers():
    x, w = (torch.randint(-128, 128, size, dtype=torch.int8) for size in ((7, 99), (5, 99)))
    point = next(p for p in block_plan.correctness() if p.op == "int8_linear" and p.variant == "int32")
    assert torch.equal(of_sums(point, x, w).long(), quantised_reference.sums(x, w))


def test_parts_make_the_whole(monkeypatch):
    """Losses and gradients of parameters are sums over parts; what is kept of one part only is seen."""
    base = small(block_plan.linear_ce()[0])
    named = block_checks.new_tensors(base, 1, "cpu")
    named["targets"] = torch.randint(-1, 56, (48,))
    named["count"] = (named["targets"] >= 0).sum().float()
    reference = OPERATORS[base.op].reference(base)
    got, cotangents = block_checks.outcome(base, reference, named)
    monkeypatch.setattr(block_checks, "PART", 5 * 56)
    found = list(block_checks.by_parts(base, got, named, cotangents))
    assert {name for name, *_ in found} == {"out", "x", "weight"} and len(found) == 2 + 10
    assert all(error <= allowed for _, error, allowed in found)
    late = got | {"x": got["x"].clone()}
    late["x"][-1] *= 1.01
    wrong = [name for name, error, allowed in block_checks.by_parts(base, late, named, cotangents) if error > allowed]
    assert wrong == ["x"]


def test_work():
    linear = next(p for p in block_plan.products() if p["K"] == 768 and p.variant == "gelu_tanh")
    M, K, N = 16384, 768, 3072
    done = work_of(linear)  # nothing is kept for a backward pass
    assert (done.flops, done.bytes) == (2 * M * K * N, 2 * (M * K + K * N + M * N))
    assert work_of(replace(linear, mode="both")).flops == 6 * M * K * N
    relu2 = next(p for p in block_plan.mlp() if p["C"] == 768 and p.variant == "relu2")
    parts = [mlp_work.mlp_work(d, M, 768, 3072, "relu2", 2, bias=False) for d in ("forward", "backward")]
    assert work_of(relu2).bytes == sum(w.bytes for w in parts) and work_of(relu2).flops == 3 * 4 * M * 768 * 3072
    norm = next(p for p in block_plan.norms() if p.op == "rms_norm" and p["N"] == 4096 and p.mode == "forward")
    assert work_of(norm).bytes == pytest.approx(4 * norm["M"] * 4096, rel=1e-3)
    loss = block_plan.cross_entropy()[0]
    assert work_of(loss).bytes == pytest.approx(6 * loss["N"] * loss["V"], rel=1e-3)
    turn = block_plan.rotary()[0]
    assert work_of(turn).bytes == pytest.approx(4 * 32 * 1024 * 24 * 64, rel=1e-2)
    decode = next(p for p in block_plan.quantised() if p.op == "ternary_linear" and p["M"] == 1)
    assert work_of(decode).bytes == pytest.approx(decode["N"] * decode["K"] / 4, rel=1e-2)


def test_the_step_is_that_of_gpt2():
    point = block_plan.step()[0]
    config = block_step.configuration(point)
    assert (config.n_layer, config.n_embd, config.block_size, config.vocab_size) == (12, 768, 1024, 50304)
    assert config.attention.n_head == 12 and config.mlp.activation.approximate == "tanh"
    newer = block_step.configuration(block_plan.step()[2])
    assert (newer.mlp.kind, newer.mlp.hidden_size, newer.norm.kind, newer.position.kind) == (
        "swiglu", 2048, "rmsnorm", "rotary")  # fmt: skip
    small_step = replace(point, sizes=sized(B=4, T=8, layers=1, C=16, heads=2, V=40), dtype="fp32")
    subject = block_step.Step(small_step, 1, "cpu", 4)
    model = block_step.fresh(small_step, "reference", "cpu")
    whole, parts = (subject.gradients(model, model, n) for n in (1, 2))
    assert whole.keys() == {"out", *(n for n, _ in model.named_parameters())}
    for name, x in whole.items():
        torch.testing.assert_close(parts[name], x, rtol=1e-4, atol=1e-6, msg=name)
    C, H, V, tokens = 16, 64, 40, 32
    flops = 6 * tokens * (3 * C * C + C * C + 2 * C * H + V * C) + 6 * C * tokens * 8
    subject.models["compile"] = model, model
    assert subject.work("compile").flops == flops
    before = model.transformer.wte.weight.detach().clone()
    subject.run("compile")()
    assert not torch.equal(before, model.transformer.wte.weight) and subject.facts("compile") == {}
