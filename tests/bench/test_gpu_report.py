"""Plan, statistics, targets and report of the GPU benchmark: pure functions."""

import math
import statistics
from dataclasses import replace
from xml.etree import ElementTree

import pytest

from benchmarks.gpu import picture, plan, report, stats, store, targets, work
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
    for name, part in plan.PARTS.items():
        points = part.points([])
        assert len({(p.name, p.contestants) for p in points}) == len(points), name
        dealt = plan.units(points, part.parallel)
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
    drawn = picture.roofline([("a<b", 10.0, 1e12), ("c", 500.0, 5e14)], 4e12, 8e14, "Test & device")
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
