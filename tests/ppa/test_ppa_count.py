"""Counts against published numbers, formulas derived here by hand, and the traps that other tools fell into."""

import json
from pathlib import Path

import pytest

from gptcore.errors import UserError
from gptcore.loader import from_dict, load
from gptcore.ops import PRIMITIVES, Bits
from ppa.count import BYTE_CLASSES, Counted, add_up, count, make_point

ROOT = Path(__file__).parents[2]
PUBLISHED = ROOT.parent / "shared" / "validation" / "gpt2_counts.json"
STAGES = ("prefill", "decode", "train")
MEDIUM = ["model.n_layer=24", "model.n_embd=1024", "model.attention.n_head=16"]

# Grouped heads, a sliding window, ConSmax, an untied head, no biases; sizes that share no factor where they need not.
B, L, C, H, K, D, V, BLOCK, WINDOW, T, S = 3, 2, 32, 4, 2, 8, 29, 16, 5, 12, 9
TINY = {
    "n_layer": L, "n_embd": C, "block_size": BLOCK, "vocab_size": V, "bias": False, "tie_embeddings": False,
    "attention": {"kind": "causal", "n_head": H, "n_kv_head": K, "window": WINDOW, "softmax": "consmax"},
    "mlp": {"kind": "mlp", "activation": "relu"}, "norm": "rmsnorm", "position": "learned",
}  # fmt: skip


def gpt2(*overrides: str) -> Counted:
    config = load(ROOT / "explorations" / "gpt2_124m.yaml", overrides).config
    return count(config, make_point(config.model))


def tiny(model: dict | None = None, train: dict | None = None, **point) -> Counted:
    config = from_dict({"model": {**TINY, **(model or {})}, "train": train or {}})
    return count(config, make_point(config.model, **{"batch_size": B, "seq_len": T, "context": S, **point}))


def rows_of(counted: Counted, stage: str, ending: str) -> list[dict]:
    return [row for row in counted.rows if row["stage"] == stage and row["name"].endswith(ending)]


@pytest.fixture(scope="module")
def small() -> Counted:
    return gpt2()


def test_gpt2_124m(small):
    assert small.params == 124_439_808
    assert small.totals["prefill"]["matmul_flops"] == 291_648_307_200
    assert small.totals["decode"]["matmul_flops"] == 284_812_800
    assert small.totals["train"]["matmul_flops"] == 874_944_921_600
    assert small.kv_bytes == small.totals["decode"]["kv_bytes"] == 37_748_736
    assert small.weight_bytes == 2 * 124_439_808


def test_gpt2_350m():
    medium = gpt2(*MEDIUM)
    assert medium.params == 354_823_168
    assert medium.totals["prefill"]["matmul_flops"] == 826_951_073_792
    assert medium.totals["decode"]["matmul_flops"] == 807_569_408
    assert medium.kv_bytes == 100_663_296


@pytest.mark.skipif(not PUBLISHED.exists(), reason="the shared validation figures are not beside this repository")
@pytest.mark.parametrize("name, overrides", [("gpt2_124M", []), ("gpt2_350M", MEDIUM)])
def test_every_part_of_the_cross_checked_counts(name, overrides):
    published, counted = json.loads(PUBLISHED.read_text())[name], gpt2(*overrides)
    parts = {"qkv": "c_attn.matmul", "proj": "attn.c_proj.matmul", "qk": ".qk", "av": ".av", "fc": "c_fc.matmul",
             "fcproj": "mlp.c_proj.matmul", "lm_all": "lm_head.matmul", "lm": "lm_head.matmul"}  # fmt: skip

    def flops(stage: str, part: str) -> int:
        return sum(row["flops"] for row in rows_of(counted, stage, parts[part]))

    forward = {part: n for part, n in published["forward_parts_flops"].items() if part != "lm_last"}
    assert {part: flops("prefill", part) for part in forward} == forward
    decode = published["decode_flops_context_1024"]
    for part in ("qkv", "proj", "qk", "av", "lm"):
        assert flops("decode", part) == decode[part], part
    assert flops("decode", "fc") + flops("decode", "fcproj") == decode["mlp"]
    assert counted.totals["decode"]["matmul_flops"] == decode["total"]
    assert counted.params == published["params_tied"]
    assert counted.totals["prefill"]["matmul_flops"] == published["forward_flops_logits_all"]
    assert counted.kv_bytes == published["kv_cache_bytes_fp16_context_1024"]
    if name == "gpt2_124M":
        both = published["flop_counter_mode"]["forward_backward_manual_logits_all"]
        assert counted.totals["train"]["matmul_flops"] == both


def test_causal_flops_of_gpt2_leave_out_exactly_the_masked_pairs(small):
    masked_pairs = 12 * 12 * (1024 * 1024 - 1024 * 1025 // 2)  # layers, heads
    prefill = small.totals["prefill"]
    assert prefill["matmul_flops"] - prefill["matmul_flops_causal"] == 2 * 2 * 64 * masked_pairs
    assert small.totals["decode"]["matmul_flops_causal"] == small.totals["decode"]["matmul_flops"]


LINEAR_WEIGHTS = C * (H + 2 * K) * D + H * D * C + 2 * C * 4 * C  # of one layer
PAIRS = WINDOW * (WINDOW + 1) // 2 + (T - WINDOW) * WINDOW  # sum over queries i = 1..T of min(i, WINDOW)


def test_closed_form_of_parameters_and_cache():
    counted = tiny(bits=Bits(weight=4, activation=16, kv=8))
    norms, consmax = 2 * C, 2 * H
    params = 2 * V * C + BLOCK * C + L * (LINEAR_WEIGHTS + norms + consmax) + C
    assert counted.params == params
    assert counted.weight_bytes == params // 2  # 4 bits; every tensor here has an even number of elements
    assert counted.kv_bytes == L * 2 * B * K * D * WINDOW


def test_closed_form_of_macs():
    counted = tiny()
    prefill, decode, train = (counted.totals[stage] for stage in STAGES)
    rest = B * T * (L * LINEAR_WEIGHTS + C * V)
    assert prefill["macs"] == rest + L * 2 * B * H * D * T * T
    assert prefill["matmul_flops_causal"] == 2 * (rest + L * 2 * B * H * D * PAIRS)
    seen = min(S, WINDOW)
    assert decode["macs"] == B * (L * LINEAR_WEIGHTS + C * V + L * 2 * H * D * seen)
    assert decode["matmul_flops_causal"] == decode["matmul_flops"]
    # Each product c = a b has the two gradients dc b^T and a^T dc of the same size.
    assert train["macs"] == 3 * prefill["macs"]
    assert train["matmul_flops_causal"] == 3 * prefill["matmul_flops_causal"]


def test_closed_form_of_primitive_operations():
    counted = tiny()
    prefill, decode = counted.totals["prefill"], counted.totals["decode"]
    tokens, hidden, scores = B * T, 4 * C, L * B * H * T * T
    norms = 2 * L + 1
    expected = dict.fromkeys(PRIMITIVES, 0) | {
        "exp": scores,
        # learned position; two residual sums a layer; a norm sums squares and adds eps
        "add": tokens * C + L * 2 * tokens * C + norms * (tokens * C + tokens),
        # ConSmax: scale and constant; a norm squares, divides by the width, and multiplies by scale and weight
        "mul": 2 * scores + norms * (tokens * C + tokens + 2 * tokens * C),
        "rsqrt": norms * tokens,
        "max": L * tokens * hidden,  # relu
    }
    assert prefill["op_counts"] == expected
    live = L * B * H * PAIRS
    assert prefill["op_counts_causal"] == expected | {"exp": live, "mul": expected["mul"] - 2 * (scores - live)}
    assert decode["op_counts"]["exp"] == decode["op_counts_causal"]["exp"] == L * B * H * WINDOW


def test_closed_form_of_bytes():
    counted = tiny(bits=Bits(weight=8, activation=16, kv=4))
    fc = rows_of(counted, "prefill", "h.1.mlp.c_fc.matmul")
    assert len(fc) == 1 and fc[0]["layer"] == 1 and fc[0]["slot"] == "linear"
    assert fc[0]["bytes"]["weights"] == C * 4 * C
    assert fc[0]["bytes"]["activations"] == fc[0]["bytes"]["fused"] - C * 4 * C == 2 * B * T * (C + 4 * C)
    # The result of attention is as large as the queries; the scores are intermediates (LLM-Viewer: S x S).
    (av,) = rows_of(counted, "prefill", "h.0.attn.av")
    assert av["bytes"]["intermediates"] == 2 * B * H * T * T
    assert av["bytes"]["fused"] == av["bytes"]["activations"] == 2 * (B * K * T * D + B * H * T * D)
    # A decode step reads what the window holds and writes one token, at 4 bits.
    assert counted.totals["decode"]["bytes"]["kv"] == L * 2 * B * K * D * (WINDOW + 1) // 2
    # Of a prompt only the tokens within the window are kept.
    assert counted.totals["prefill"]["bytes"]["kv"] == L * 2 * B * K * D * min(T, WINDOW) // 2


@pytest.mark.parametrize("dtype, width", [("float32", 4), ("bfloat16", 2)])
def test_bytes_of_a_training_step(dtype, width):
    """Master weights, gradients and moments have 4 bytes whatever the deployed widths; activations follow the dtype."""
    counted = tiny(train={"dtype": dtype}, bits=Bits(weight=1, activation=1, kv=1))
    step = add_up(row for row in counted.rows if row["phase"] == "optimizer")["bytes"]
    n = counted.params
    assert (step["weights"], step["gradients"], step["optimizer"]) == (2 * 4 * n, 4 * n, 4 * 4 * n)
    (fc,) = rows_of(counted, "train", "h.0.mlp.c_fc.matmul")
    assert fc["bytes"]["activations"] == width * B * T * (C + 4 * C)
    assert fc["bytes"]["weights"] == 4 * C * 4 * C
    (db,) = rows_of(counted, "train", "h.0.mlp.c_fc.matmul.db")
    assert db["bytes"]["gradients"] == width * B * T * 4 * C + 4 * C * 4 * C


def test_lookup_is_no_matrix_product(small):
    """GenZ prices it as one: 79 GFLOP too many."""
    lookups = [row for row in small.rows if row["slot"] == "embedding"]
    assert lookups and all(row["flops"] == 0 for row in lookups)
    (prefill,) = rows_of(small, "prefill", "wte.rows")
    assert prefill["bytes"]["weights"] == 2 * 1024 * 768  # the rows read, not the table


def test_head_has_two_flops_a_mac_and_counts_when_untied(small):
    """LLM-Viewer counts it once; llm-analysis loses an untied one."""
    (head,) = rows_of(small, "prefill", "lm_head.matmul")
    assert head["flops"] == 2 * 1024 * 768 * 50257
    untied = gpt2("model.tie_embeddings=false")
    assert untied.params == small.params + 768 * 50257
    for stage in STAGES:
        assert untied.totals[stage]["matmul_flops"] == small.totals[stage]["matmul_flops"]


def test_decode_attends_to_the_context_linearly():
    """llm-analysis leaves it out; klei22's search counts S^2 for each token."""
    full = {"window": None}

    def flops(context: int) -> int:
        return tiny({"attention": {**TINY["attention"], **full}}, context=context).totals["decode"]["matmul_flops"]

    for context in range(1, BLOCK):
        assert flops(context + 1) - flops(context) == 2 * 2 * L * B * H * D


def test_prefill_ignores_context_and_decode_ignores_seq_len():
    assert tiny(context=3).totals["prefill"] == tiny(context=4).totals["prefill"]
    assert tiny(seq_len=3).totals["decode"] == tiny(seq_len=4).totals["decode"]


def test_rows_and_totals_hold_together(small):
    for counted in (small, tiny()):
        for row in counted.rows:
            moved = row["bytes"]
            assert row["flops"] == 2 * row["macs"]
            assert 0 <= row["flops_causal"] <= row["flops"]
            assert all(row["op_counts_causal"][p] <= n for p, n in row["op_counts"].items())
            assert moved["unfused"] == sum(moved[key] for key in BYTE_CLASSES)
            assert moved["fused"] == moved["unfused"] - moved["intermediates"] >= 0
        for stage in STAGES:
            rows, totals = [row for row in counted.rows if row["stage"] == stage], counted.totals[stage]
            assert totals["matmul_flops"] == sum(row["flops"] for row in rows) == 2 * totals["macs"]
            assert totals["matmul_flops_causal"] == sum(row["flops_causal"] for row in rows)
            for key in ("op_counts", "op_counts_causal", "bytes"):
                assert totals[key] == {k: sum(row[key].get(k, 0) for row in rows) for k in totals[key]}


def test_kv_bytes_are_linear_in_context_up_to_the_window():
    per_token = L * 2 * B * K * D * 2
    assert [tiny(context=n).kv_bytes for n in (1, 2, 5, 6, 16)] == [per_token * n for n in (1, 2, 5, 5, 5)]


SCALED = {
    "width": ({"n_embd": 2 * C}, {}), "depth": ({"n_layer": L + 1}, {}), "batch": ({}, {"batch_size": B + 1}),
    "heads": ({"attention": {**TINY["attention"], "n_kv_head": H}}, {}), "vocabulary": ({"vocab_size": V + 1}, {}),
    "seq_len": ({}, {"seq_len": T + 1}), "context": ({}, {"context": WINDOW}),
    "window": ({"attention": {**TINY["attention"], "window": WINDOW + 1}}, {}),
    "weight bits": ({}, {"bits": Bits(weight=17)}), "activation bits": ({}, {"bits": Bits(activation=17)}),
    "kv bits": ({}, {"bits": Bits(kv=17)}),
}  # fmt: skip


@pytest.mark.parametrize("what", SCALED)
def test_monotone(what):
    """Nothing gets cheaper when a model or a point grows, and something gets dearer."""

    def numbers(counted: Counted) -> list[int]:
        found = [counted.params, counted.weight_bytes, counted.kv_bytes]
        for t in (counted.totals[stage] for stage in STAGES):
            found += [t["macs"], t["matmul_flops_causal"], *t["op_counts"].values(), *t["bytes"].values()]
        return found

    model, point = SCALED[what]
    base = {"context": WINDOW - 1}
    before, after = numbers(tiny(**base)), numbers(tiny(model, **{**base, **point}))
    assert all(a >= b for a, b in zip(after, before, strict=True)) and after != before


def test_softmax_costs_more_than_consmax_by_exactly_its_reductions():
    """A score of softmax: scale, max, subtract, exp, sum, divide. Of ConSmax: exp, two products (constants folded)."""
    exact = tiny({"attention": {**TINY["attention"], "softmax": "softmax"}})
    consmax = tiny()
    for stage, scores in (("prefill", L * B * H * T * T), ("decode", L * B * H * WINDOW)):
        a, b = exact.totals[stage]["op_counts"], consmax.totals[stage]["op_counts"]
        difference = {p: (a[p] - b[p]) / scores for p in PRIMITIVES if a[p] != b[p]}
        assert difference == {"max": 1, "add": 2, "div": 1, "mul": -1}
        assert exact.totals[stage]["macs"] == consmax.totals[stage]["macs"]
    reductions = [r for r in exact.rows if r["slot"] == "softmax" and r["op"] == "reduce" and r["stage"] == "prefill"]
    assert {r["name"].rsplit(".", 1)[1] for r in reductions} == {"max", "sum"}
    assert not [r for r in consmax.rows if r["slot"] == "softmax" and r["op"] == "reduce"]


@pytest.mark.parametrize(
    "point, words",
    [
        ({"seq_len": BLOCK + 1}, "seq_len 17 exceeds model.block_size 16"),
        ({"context": BLOCK + 1}, "context 17 exceeds model.block_size 16"),
        ({"context": 0}, "context 0 must be at least 1"),
        ({"batch_size": -1}, "batch_size -1 must be at least 1"),
    ],
)
def test_points_that_do_not_fit(point, words):
    with pytest.raises(UserError, match=words):
        tiny(**point)
