"""Kernels of an operation list: nothing lost, nothing counted twice."""

import pytest
from small import config

from gptcore.ops import Bits, Graph, Pass
from ppa.count import add_up, declare_stage, make_point, op_row
from ppa.work import kernels_of

STAGES = ("prefill", "decode", "train")


def kernels(c, stage, **point):
    return kernels_of(declare_stage(c, make_point(c.model, **point), stage).ops)


def gpt(**model):
    return config(
        model={"attention": {"kind": "causal", "n_head": 2}, "n_layer": 1, "vocab_size": 29, "bias": False, **model}
    )


@pytest.mark.parametrize("stage", STAGES)
def test_every_product_and_primitive_is_in_one_kernel(stage):
    ops = declare_stage(config(), make_point(config().model), stage).ops
    found = kernels_of(ops)
    assert sum(k.macs for k in found) == pytest.approx(sum(op.macs_causal for op in ops))
    counts: dict[str, int] = {}
    for kernel in found:
        for stream in kernel.streams:
            for name, count in stream.counts:
                counts[name] = counts.get(name, 0) + count
    declared = add_up(op_row(op, stage) for op in ops)["op_counts_causal"]
    gathered = sum(op.primitives()["add"] for op in ops if type(op).__name__ == "Gather" and op.primitives())
    assert counts == {
        name: n - gathered * (name == "add") for name, n in declared.items() if n - gathered * (name == "add")
    }


def test_bytes_of_a_small_model_by_hand():
    """Width 32, 2 heads, 16 tokens, 2 bytes a value, pre-norm layers without biases, mlp of 4 times the width."""
    T, C, V = 16, 32, 29
    found = kernels(gpt(norm={"kind": "rmsnorm"}, position={"kind": "none"}), "prefill")
    moved = {k.name.removeprefix("transformer.").removeprefix("h.0."): k.moved_bytes for k in found}
    norm = 2 * (2 * T * C) + 2 * C  # in, out, gain
    assert moved["ln_1.mean_square"] == moved["ln_2.mean_square"] == moved["ln_f.mean_square"] == norm
    assert moved["attn.c_attn.matmul"] == 2 * (T * C + 3 * C * C + 3 * T * C)
    assert moved["attn.qk"] == 2 * 4 * T * C  # q, k, v in and the heads out; the scores never leave
    assert moved["attn.c_proj.matmul"] == 2 * (T * C + C * C + T * C)
    assert moved["residual_1"] == moved["residual_2"] == 2 * 3 * T * C
    assert moved["mlp.c_fc.matmul"] == 2 * (T * C + 4 * C * C + 4 * T * C)
    assert moved["mlp.c_proj.matmul"] == 2 * (4 * T * C + 4 * C * C + T * C)
    assert moved["lm_head.matmul"] == 2 * (T * C + C * V + T * V)
    assert moved["wte.rows"] == 4 * T + 2 * T * C + 2 * T * C  # indices, rows read, rows written
    ops = declare_stage(gpt(norm={"kind": "rmsnorm"}), make_point(gpt().model), "prefill").ops
    assert sum(moved.values()) <= add_up(op_row(op, "prefill") for op in ops)["bytes"]["fused"]


def test_a_tensor_read_twice_in_a_kernel_moves_once_and_two_halves_move_both():
    g = Graph(Pass("prefill", 1, 4, 4), Bits(16, 16, 16))
    x = g.tensor("x", 1, 4, 8)
    total = g.reduce("sum", x, add=1)
    g.pointwise("scaled", x, total, mul=1)
    a, b = g.split(x, 4, 4)
    g.pointwise("gate", a, b, mul=1)
    row, gate = kernels_of(g.ops)
    assert row.activation_bytes == 2 * 2 * 32  # x in once, out once
    assert gate.activation_bytes == 2 * (16 + 16 + 16)


def test_attention_is_one_kernel_of_two_products_and_a_row_reducing_stream():
    c = gpt()
    attention = next(k for k in kernels(c, "decode", context=9) if len(k.products) == 2)
    qk, av = attention.products
    assert (qk.batch, qk.m, qk.k, qk.n) == (2, 1, 16, 9) and (av.batch, av.m, av.k, av.n) == (2, 1, 9, 16)
    (softmax,) = attention.streams
    assert (softmax.elements, softmax.length, softmax.reductions) == (2 * 9, 9, 2)
    elementwise = gpt(attention={"kind": "causal", "n_head": 2, "softmax": {"kind": "consmax"}})
    (weights,) = next(k for k in kernels(elementwise, "decode") if len(k.products) == 2).streams
    assert weights.reductions == 0


def test_causal_products_leave_out_masked_pairs():
    attention = next(k for k in kernels(gpt(), "prefill") if len(k.products) == 2)
    assert attention.products[0].live == pytest.approx(16 * 17 / 2 / 16**2)
    assert attention.streams[0].elements == 2 * 16 * 17 / 2


def test_an_optimizer_updates_everything_in_one_kernel():
    c = gpt()
    updates = [k for k in kernels(c, "train") if k.phase == "optimizer"]
    (update,) = updates
    params = sum(t.numel for t in declare_stage(c, make_point(c.model), "train").weights().values())
    assert update.streams[0].elements == params
    assert update.weight_bytes + update.state_bytes == 4 * params * (2 + 1 + 4)  # weight and two moments in and out
