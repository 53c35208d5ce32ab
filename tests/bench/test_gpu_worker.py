"""The worker of the GPU benchmark on tiny tensors: our kernels in Triton's interpreter, right and made wrong."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.gpu import timing

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def said():
    pytest.importorskip("triton")
    done = subprocess.run([sys.executable, "-m", "tests.bench.interpreted_worker"], capture_output=True, text=True,
                          cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"})  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    first, *lines = map(json.loads, done.stdout.splitlines())
    return first | {"unit": lines}


def test_right_kernels_are_green(said):
    assert [(r["op"], r["status"]) for r in said["right"]] == [
        ("forward", "ok"), ("d_queries", "ok"), ("d_keys", "ok"), ("decode", "ok")]  # fmt: skip
    assert {r["status"] for name in ("one key", "repeats", "first and last head") for r in said[name]} == {"ok"}


def test_wrong_kernels_are_red_and_not_timed(said):
    assert {r["op"]: r["status"] for r in said["wrong gradient"]} == {
        "forward": "ok", "d_queries": "red", "d_keys": "red"}  # fmt: skip
    for name in ("wrong gradient, timed", "wrong scale, timed", "red before"):
        ours = [r for r in said[name] if r["contestant"].startswith("triton")]
        assert [r["status"] for r in ours] == ["refused"] and "seconds" not in ours[0], name
    assert [r["status"] for name in ("wrong scale", "unsteady", "unwritten") for r in said[name]] == ["red"] * 3
    assert said["unwritten"][0]["error"] == math.inf
    assert said["crash"][0]["status"] == "error" and "shared memory" in said["crash"][0]["reason"]


def test_what_is_timed(said):
    rows = {r["contestant"]: r for r in said["timed"]}
    assert [len(rows[name]["seconds"]) for name in ("triton:consmax", "sdpa-math")] == [100, 100]
    assert rows["sdpa-cudnn"]["status"] == "absent" and "backend" in rows["sdpa-cudnn"]["reason"]
    # In turns: each is first in every other round.
    ours, theirs = (rows[name]["seconds"] for name in ("triton:consmax", "sdpa-math"))
    assert sum(a < b for a, b in zip(ours, theirs, strict=True)) == 50
    # A launch row on trial is used, in the backward pass too, and in no other kernel.
    assert said["tried"][0]["status"] == "ok"
    assert [row for row in said["used"] if row[0] == "d_keys"] == [["d_keys", 32, 32]]
    assert ["forward", 32, 32] not in said["used"]


def test_a_unit(said):
    environment, right, first, failed, second = said["unit"]
    assert environment["environment"].keys() >= {"code", "torch", "triton", "ptxas"}
    assert (right["row"]["status"], failed["row"]["status"]) == ("ok", "error")
    assert [first, second] == [{"done": 0}, {"done": 1}]


def test_the_other_kernels(said):
    """As attention: green when right, red and refused when wrong."""
    block = said["block"]
    for name in ("right", "by parts", "ends"):
        assert [r for r in block[name] if r["status"] != "ok"] == [], name
    assert len(block["right"]) == 22
    for name in ("slope", "unwritten", "turned back", "logits for a gradient", "one element", "unsteady"):
        assert {r["status"] for r in block[name]} == {"red"}, name
    assert block["unwritten"][0]["error"] == math.inf and block["one element"][0]["error"] == 1
    for name in ("red before", "wrong, timed", "wrong step"):
        ours = [r for r in block[name] if r["contestant"].startswith("triton")]
        assert {r["status"] for r in ours} == {"refused"} and not any("seconds" in r for r in ours), name


def test_what_is_timed_of_the_other_kernels(said):
    block = said["block"]
    assert {r["contestant"]: r["status"] for r in block["timed"]} == {"triton": "ok", "mm": "ok", "flex": "absent"}
    assert all(len(block[name][0]["seconds"]) == 100 for name in ("timed backward", "timed in place", "step"))
    ours = next(r for r in block["timed"] if r["contestant"] == "triton")
    assert (ours["flops"], ours["bytes"]) == (2 * 20 * 24 * 36, 2 * (20 * 24 + 24 * 36 + 20 * 36))
    assert block["gradient over logits"]


class Clock:
    def warm(self, name, run):
        run()

    def time(self, name, run):
        return 1e-6, name == "late"


def test_rounds():
    def broken():
        raise ValueError("no such back end")

    def lost():
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    ticks = iter(range(1000))
    runs = {"a": int, "late": int, "broken": broken}
    found = timing.interleaved(runs, Clock(), limit_s=5.0, now=lambda: next(ticks))
    # A tick a round from the 21st on, until more than 5 have passed.
    assert len(found["a"].seconds) == timing.FEWEST + 5 and found["a"].host_bound == 0
    assert found["late"].host_bound == timing.FEWEST + 5
    assert found["broken"].failed == "ValueError: no such back end" and not found["broken"].seconds
    assert len(timing.interleaved({"a": int}, Clock(), limit_s=60.0)["a"].seconds) == timing.ROUNDS
    with pytest.raises(RuntimeError, match="illegal"):  # the device is lost: nothing after it would be true
        timing.interleaved({"lost": lost}, Clock(), limit_s=60.0)
