"""Plan, statistics, targets and report of the GPU benchmark: pure functions."""

import itertools
import json
import math
import statistics
from dataclasses import asdict, replace
from xml.etree import ElementTree

import pytest

from benchmarks.gpu import block_plan, parts, picture, plan, report, stats, store, targets, work
from benchmarks.gpu.runner import red_kernels

FACTS = {"device": "Test device", "torch": "2", "triton": "3", "ptxas": "12", "driver": "5", "code": "abc"}


def timed_row(part, point, contestant, seconds, **fields):
    found = {"contestant": contestant, "op": point.op, "status": "ok", "seconds": [seconds] * 100, "host_bound": 0}
    done = work.of(point, contestant, 2)
    return store.make(replace(point, part=part), found | {"flops": done.flops, "bytes": done.bytes} | fields, FACTS)


# ---- plan


def test_every_launch_row_is_checked_with_every_kind():
    from kernels import attention_reference, launch_table

    assert plan.KINDS == attention_reference.KINDS and plan.OPS == launch_table.OPS
    rows = {(op, D) for _, op, D in launch_table.ROWS}
    planned = {(p.op, p.D, plan.split_contestant(c)[1]) for p in plan.correctness() for c in p.contestants}
    for op, D in rows:
        assert all(("decode" if op == "decode" else "backward", D, kind) in planned for kind in plan.KINDS)
    assert any(p.B * p.H * p.T * p.D > 2**31 for p in plan.int64())


def test_plan():
    for name, part in parts.PARTS.items():
        points = part.points([])
        assert len({(p.name, p.contestants) for p in points}) == len(points), name
        assert {p.part for p in points} <= {name}
        assert all(parts.point_of(json.loads(json.dumps(asdict(p)))) == p for p in points)
        dealt = parts.units(points, part.parallel)
        assert sorted(p.name for unit in dealt for p in unit) == sorted(p.name for p in points)
    lengths = {(p.T, p.D) for p in plan.forward()}
    assert lengths == {(T, D) for T in (1024, 2048, 4096, 8192, 16384) for D in (64, 128)}
    assert all(p.B * p.T == 16384 for p in plan.forward() + plan.backward())
    assert max(4 * p.B * p.K * p.S * p.D for p in plan.decode()) <= 40e9
    row = {"part": "tune_check", "row": "d_keys", "D": "64", "kind": "consmax", "launch": "64x64x4x2"}
    assert [p.contestants for p in plan.tune([row | {"status": "ok"}])] == [
        ("triton:consmax", "triton:consmax@64x64x4x2")]  # fmt: skip
    assert plan.tune([row | {"status": "red"}]) == []
    assert plan.split_contestant("triton:consmax@64x64x4x2!frozen") == ("triton", "consmax", "64x64x4x2", "frozen")


def test_every_launch_row_of_the_block_is_checked():
    """Rows of sm_90, which the device has; those of sm_80 are the same code with other numbers."""
    from kernels import cross_entropy, mlp_rows, norms, quantised_launch, rotary

    checks = block_plan.correctness()
    of = {op: [p for p in checks if p.op == op] for op in {p.op for p in checks}}
    mlps = set()
    for p in of["mlp"]:
        act, _, gated = p.variant.partition(" ")
        for direction in ("forward", "backward"):
            form = mlp_rows.form(act, bool(gated))
            size = 4 if p.dtype == "fp32" else 2
            mlps.add((direction, form, mlp_rows.launch(90, direction, form, p["M"], p["H"], p["C"], size, 132)))
    rows = {(direction, form, row) for (a, direction, form, _), row in mlp_rows.ROWS.items() if a == 90}
    assert rows <= mlps and mlp_rows.WIDE in {row for _, _, row in mlps}
    for op in ("mlp", "linear"):
        gates = ("", " gated") if op == "mlp" else ("",)
        wanted = itertools.product(mlp_rows.SIGN + mlp_rows.SMOOTH, gates, ("bf16", "fp16", "fp32"))
        assert {(p.variant, p.dtype) for p in of[op]} == {(act + gate, dtype) for act, gate, dtype in wanted}

    ops, found = ("forward", "backward", "parameters", "total"), []
    for p in (p for op in block_plan.NORMS for p in of[op]):
        out = 4 if p.dtype == "fp32" else 2
        size = 4 if "mixed" in p.options else out
        found += [norms.table_row(90, op, p["N"], size, out) for op in ops]
    assert {row for (a, *_), row in norms.OWN_ROWS.items() if a == 90} | set(norms.ROWS.values()) <= set(found)
    for op in ("rotary", "rms_norm_rotary"):
        widths = {dict(p.sizes).get("R", p["D"]) for p in of[op]}
        assert set(rotary.ROWS) < {rotary.table_row(R // 2)[0] for R in widths}
    tiles = {(size, V): cross_entropy.tile(90, size, V)[0] for size in (2, 4)
             for V in {p["V"] for p in of["cross_entropy"]}}  # fmt: skip
    for size, itemsize in ((2, 2), (4, 4)):
        table = {row for (a, s, _), row in cross_entropy.ROWS.items() if (a, s) == (90, itemsize)}
        assert table == {row for (s, _), row in tiles.items() if s == size}
    few = quantised_launch.FEW
    for op in ("int8_linear", "ternary_linear"):
        tried = {(p.variant, p["M"] > few) for p in of[op]}
        assert tried == set(itertools.product(block_plan.RESULTS, (True, False)))
    assert {p.dtype for p in of["ternary_wide"]} == {"bf16", "fp16", "fp32"}


def test_the_block_is_larger_than_32_bits_and_fits():
    def elements(p):
        s = dict(p.sizes)
        if p.op.endswith("rotary"):
            return s["B"] * s["H"] * s["T"] * s["D"]
        return math.prod(sorted(s.values())[-2:])

    assert all(elements(p) > 2**31 for p in block_plan.int64())
    assert {p.op for p in block_plan.int64()} >= {p.op for p in block_plan.determinism()} - {
        "layer_norm", "add_rms_norm"}  # fmt: skip
    assert sum(parts.PARTS[n].weight for n in parts.GROUPS["block"]) <= 550  # seconds, about
    assert all(p["M"] * p["N"] * 2 >= 64e6 for p in block_plan.norms())


# ---- statistics and work


def test_quantiles_and_means():
    values = [0.3, 9.0, 4.0, 1.5, 2.2, 7.1]
    assert stats.quantile(values, 0.5) == statistics.median(values)
    cuts = statistics.quantiles(values, n=5, method="inclusive")
    assert [stats.quantile(values, q) for q in (0.2, 0.8)] == pytest.approx([cuts[0], cuts[3]])
    assert stats.geometric_mean([2.0, 8.0]) == pytest.approx(4.0)
    assert stats.geometric_mean(values) == pytest.approx(statistics.geometric_mean(values))
    with pytest.raises(ValueError):
        stats.geometric_mean([1.0, 0.0])


def test_work():
    full = plan.Point("x", "forward", (), 2, 4, 2, 64, 64, 32, 32, causal=False)
    assert work.of(full, "triton:softmax", 2).flops == 4 * 2 * 4 * 64 * 64 * 32
    causal = replace(full, causal=True)
    assert work.of(causal, "triton:softmax", 2).flops == 2 * 2 * 4 * 64 * 64 * 32
    both, backward = (work.of(replace(causal, op=op), "triton:relu", 2) for op in ("both", "backward"))
    assert (both.flops, backward.flops) == (7 * 2 * 4 * 64 * 64 * 32, 5 * 2 * 4 * 64 * 64 * 32)
    assert both.exponentials == 0
    decode = replace(full, op="decode", T=1, S=1000)
    assert work.of(decode, "triton:consmax", 2).bytes == 2 * (2 * 2 * 2 * 1000 * 32 + 2 * 2 * 4 * 32)
    # Of 16 queries, those after the 4th see 4 keys.
    assert work.live_share(replace(full, T=16, S=16, window=4)) == (1 + 2 + 3 + 4 * 13) / (16 * 17 / 2)


# ---- targets and report


def forward_rows(ours, softmax=2.2, flash=3.0, at=4096):
    point = next(p for p in plan.forward() if p.T == at and p.D == 64)
    times = {"triton:consmax": ours, "triton:softmax": softmax, "sdpa-flash": flash}
    return [timed_row("forward", point, name, seconds * 1e-3) for name, seconds in times.items()]


def headline(rows):
    return [v.text for v in targets.verdicts(rows) if v.target.name == "headline"]


def test_targets():
    assert headline(forward_rows(2.0)) == ["met", "met"]
    assert headline(forward_rows(2.1)) == ["missed", "met"]
    mixed = forward_rows(2.1) + forward_rows(1.0, at=8192)
    assert headline(mixed) == ["met in the mean", "met"]
    verdict = next(v for v in targets.verdicts(mixed) if v.target.name == "headline")
    assert (verdict.worst, verdict.mean) == pytest.approx((2.2 / 2.1, math.sqrt(2.2 / 2.1 * 2.2)))
    assert headline(forward_rows(2.0, at=1024)) == ["not measured", "not measured"]
    refused = [
        r | {"status": "refused"} if r["contestant"] == "triton:consmax" else r for r in forward_rows(1, at=8192)
    ]
    assert headline(forward_rows(2.0) + refused) == ["met, incomplete", "met, incomplete"]


def test_window_and_decode_targets():
    full, narrow = plan.window()[:2]
    share = work.live_share(narrow)
    rows = [
        timed_row("window", full, "triton:consmax", 1.0),
        timed_row("window", narrow, "triton:consmax", 1.2 * share),
    ]
    verdict = next(v for v in targets.verdicts(rows) if v.target.name == "P7" and "consmax" in v.target.what)
    assert verdict.worst == pytest.approx(1.2, rel=1e-3) and verdict.text == "met"
    copy = timed_row("ceilings", plan.ceilings()[0], "copy", 2.0 * 2**32 / 4e12)
    point = next(p for p in plan.decode() if 4 * p.B * p.K * p.S * p.D > 256e6)
    decode = timed_row("decode", point, "triton:consmax", work.of(point, "triton:consmax", 2).bytes / 3e12)
    verdict = next(v for v in targets.verdicts([copy, decode]) if "triton:consmax decode, share" in v.target.what)
    assert verdict.worst == pytest.approx(0.75, rel=1e-3) and verdict.text == "missed"


def block_row(point, contestant, seconds, **fields):
    found = {"contestant": contestant, "op": point.op, "status": "ok", "seconds": [seconds] * 100, "host_bound": 0}
    return store.make(point, found | {"bytes": 4e9} | fields, FACTS)


def verdict_of(what, rows):
    (found,) = (v for v in targets.verdicts(rows) if v.target.what == what)
    return found


def test_block_targets():
    """A third slower than the bar asks, and as fast; of shapes that another bar is for, nothing."""
    narrow = next(p for p in block_plan.products() if p["K"] == 768 and p.variant == "relu2")
    wide = next(p for p in block_plan.products() if p["K"] == 4096 and p.variant == "relu2")
    rows = [block_row(p, name, s) for p in (narrow, wide) for name, s in (("triton", 1.0), ("compile", 1.05))]
    assert verdict_of("linear + activation over torch.compile, K <= 1024", rows).text == "missed"
    assert verdict_of("linear + activation over torch.compile, K 4096", rows).text == "met"
    assert verdict_of("linear + activation over torch.compile, K 2048", rows).text == "not measured"
    plain = next(p for p in block_plan.products() if p.variant == "none")
    rows = [block_row(plain, "triton", 1.0), block_row(plain, "mm", 0.87)]
    assert verdict_of("GEMM alone over cuBLAS", rows).values == {plain.name: pytest.approx(0.87)}
    copy = timed_row("ceilings", plan.ceilings()[0], "copy", 2.0 * 2**32 / 4e12)
    forward, backward = block_plan.norms()[:2]
    rows = [copy, block_row(forward, "triton", 4e9 / 3.64e12), block_row(backward, "triton", 4e9 / 3.1e12)]
    assert verdict_of("norms forward, share of copy bandwidth", rows).worst == pytest.approx(0.91, rel=1e-3)
    assert verdict_of("norms backward, share of copy bandwidth", rows).text == "missed"
    head = block_plan.linear_ce()[0]
    rows = [block_row(head, "triton", 1.06), block_row(head, "compile", 1.0)]
    assert verdict_of("head and loss, time over that of torch.compile", rows).text == "missed"
    kept = block_row(replace(head, part="block_memory"), "triton", 1.0, value=0.9)
    mlp = block_row(next(p for p in block_plan.memory() if p.op == "mlp"), "triton", 1.0, value=1.04)
    assert verdict_of("head and loss, memory beside dX and dW over 256 MB", [kept, mlp]).values == {
        head.name: pytest.approx(0.9)}  # fmt: skip


def test_step_in_the_report():
    """With what has no operations, or no bytes, that count."""
    softmax, consmax, newer = block_plan.step()
    loss = block_row(block_plan.cross_entropy()[0], "triton", 0.1, flops=0.0)
    rows = [block_row(softmax, "triton", 0.1, value=20.5e9), block_row(softmax, "compile", 0.12)]
    rows.append(block_row(newer, "compile", 0.25))
    rows.append(store.make(consmax, {"contestant": "triton!compile", "status": "refused", "reason": "wrong"}, FACTS))
    assert verdict_of("training step with kernels over torch.compile", rows).text == "met, incomplete"
    page = report.markdown([*rows, loss])
    norm = block_row(block_plan.norms()[0], "triton", 0.1, flops=4e9)
    steps = [r | {"bytes": "0", "bytes_per_s": ""} for r in rows]
    theirs = block_row(block_plan.norms()[0], "compile", 0.1, flops=4e9)
    assert report.roofline_points([*steps, loss, norm, theirs]) == [("triton rms_norm", 1.0, 4e10)]
    assert "100000.0 (100000.0 to 100000.0), 40 |" in page  # GB/s
    assert f"| softmax | triton | {32 * 1024 / 0.1:.0f} | 20.50 |" in page
    assert f"| consmax, swiglu, rmsnorm, rotary | compile | {32 * 1024 / 0.25:.0f} |  |" in page
    assert "refused: triton!compile, step consmax" in page


def test_red_checks_of_the_block():
    point = next(p for p in block_plan.correctness() if p.op == "mlp" and p.variant == "gelu gated")
    red = store.make(point, {"contestant": "triton", "op": "both", "status": "red"}, FACTS)
    timing = next(p for p in block_plan.mlp() if p.variant == "silu gated")
    assert red_kernels([red], "abc") == [point.kernel] != [timing.kernel]
    assert replace(timing, variant="gelu gated").kernel == point.kernel


def check_row(status, digest="", run=0, part="correctness"):
    point = plan.Point(part, "backward", (), 1, 1, 1, 8, 8, 64, 64, run=run)
    found = {"contestant": "triton:relu", "op": "d_keys", "status": status, "error": 0.5, "allowed": 0.1, "seed": 7}
    return store.make(point, found | {"digest": digest}, FACTS)


def test_report_shows_what_is_bad():
    rows = forward_rows(2.0) + [check_row("red"), check_row("skipped")]
    page = report.markdown(rows)
    for part in (
        "Test device",
        "error 0.5, allowed 0.1",
        "seed 7",
        "| headline |",
        "2000.0 (2000.0 to 2000.0)",
        "skipped",
    ):
        assert part in page, part
    assert report.is_red(rows) and not report.is_red(forward_rows(2.0))
    assert red_kernels(rows, "abc") == [plan.kernel_name("relu", 64, "", "bf16")] and red_kernels(rows, "new") == []
    twins = [check_row("ok", "1f", 1, "determinism"), check_row("ok", "1f", 2, "determinism")]
    assert report.unequal_digests(twins) == []
    assert report.unequal_digests([twins[0], check_row("ok", "2e", 2, "determinism")]) and report.unequal_digests(
        twins[:1]
    )


def test_roofline_picture():
    drawn = picture.roofline([("a<b", 10.0, 1e12), ("c", 500.0, 5e14), ("none", 0.0, 0.0)], 4e12, 8e14, "Test & device")
    root = ElementTree.fromstring(drawn)
    circles = [c for c in root if c.tag.endswith("circle")]
    assert len(circles) == 4 and root.find("{*}text").text == "Test & device"
    assert float(circles[0].get("cx")) < float(circles[2].get("cx")) and float(circles[0].get("cy")) > float(
        circles[2].get("cy")
    )
    # 1 ms for 4e9 bytes of 4e12 a second is the roof itself.
    assert report.roofline_share(1.0, 4e9, 1e-3, 4e12, 8e14) == pytest.approx(1.0)


def test_winners():
    point = replace(plan.Point("tune", "forward", (), 1, 1, 1, 8, 8, 64, 64), row="forward")
    tried = {"triton:consmax": 2.0, "triton:consmax@128x64x8x3": 1.6, "triton:consmax@64x64x4x2": 1.8}
    rows = [timed_row("tune", point, name, seconds) for name, seconds in tried.items()]
    line = '(90, "forward", 64, "consmax"): Launch(128, 64, 8, 3),  # 1.250x of the committed row'
    assert report.winners(rows) == [line]
    assert report.winners(rows[:1]) == ["# forward 64 consmax: the committed row is the fastest"]
