"""Runs the interpreter's checks of the attention kernels and the ahead-of-time gate, each in a process of its own."""

import os
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest

pytest.importorskip("triton")

INTERPRETED = Path(__file__).with_name("interpreted_attention.py")
ROOT = Path(__file__).parents[2]


def run(*arguments):
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, *map(str, arguments)], capture_output=True, text=True, cwd=ROOT,
                          env=environment)  # fmt: skip
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    return done.stdout


def interpreted(marks):
    out = run("-m", "pytest", "-p", "no:cacheprovider", "-m", marks, INTERPRETED)
    assert " passed" in out and "skipped" not in out


def test_interpreted():
    interpreted("not slow")


@pytest.mark.slow
def test_interpreted_grid():
    interpreted("slow")


def test_what_compiles_keeps_its_budget():
    """The rows of the headline: forward at width 128."""
    out = run("-m", "kernels.aot", "check", "sm_90 forward softmax D128", "sm_90 forward consmax D128")
    assert "2 points hold, 0 do not" in out


@pytest.mark.slow
def test_every_row_compiles_within_its_budget():
    run("-m", "kernels.aot", "check")


def test_the_gate_goes_red():
    from kernels import aot

    point = next(p for p in aot.points() if p.name == "sm_90 forward consmax D128 bf16")
    loop = dict.fromkeys(aot.COUNTED, 0) | {"HGMMA": 16, "UTMALDG": 2, "EX2": 64, "MUFU": 64, "all": 271}
    good = aot.Figures(237, 0, 164864, point.launch.num_warps, True, loop)
    assert aot.broken(point, good) == []
    faults = {
        "spills": replace(good, stack_bytes=8),
        "shared memory": replace(good, shared_bytes=232_449),
        "warps": replace(good, num_warps=12),
        "64-bit addresses": replace(good, wide_addresses=False),
        "no select": replace(good, loop=loop | {"FSEL": 1}),
        "products of warp groups": replace(good, loop=loop | {"HGMMA": 0}),
        "one exponential a score": replace(good, loop=loop | {"EX2": 66, "MUFU": 66}),
        "no row statistic": replace(good, loop=loop | {"FMNMX": 4}),
        "at most 300 instructions": replace(good, loop=loop | {"all": 301}),
    }
    for rule, figures in faults.items():
        assert rule in aot.broken(point, figures)
    kept = {point.name: asdict(point.launch) | asdict(good)}
    assert aot.changed(point, good, kept) == []
    assert aot.changed(point, replace(good, registers=250), kept) == ["registers was 237, is 250"]
    assert aot.changed(point, good, {"another point": {}}) == ["not in the golden file"]
