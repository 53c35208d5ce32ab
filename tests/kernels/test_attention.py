"""Runs the interpreter's checks of the attention kernels and the ahead-of-time gate, each in a process of its own."""

import os
import subprocess
import sys
from dataclasses import asdict, fields, replace
from pathlib import Path

import pytest

pytest.importorskip("triton")

INTERPRETED = [Path(__file__).with_name(f"interpreted_{name}.py") for name in ("attention", "types", "faults")]
ROOT = Path(__file__).parents[2]


def run(*arguments):
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, *map(str, arguments)], capture_output=True, text=True, cwd=ROOT,
                          env=environment)  # fmt: skip
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    return done.stdout


def interpreted(marks):
    out = run("-m", "pytest", "-p", "no:cacheprovider", "-m", marks, *INTERPRETED)
    assert " passed" in out and "skipped" not in out


def test_interpreted():
    interpreted("not slow")


@pytest.mark.slow
def test_interpreted_grid():
    interpreted("slow")


def test_what_compiles_keeps_its_budget():
    """The rows of the headline: forward at width 128."""
    out = run("-m", "kernels.aot", "check", "sm_90 forward (softmax|consmax) D128 bf16$")
    assert "2 points hold, 0 do not" in out


@pytest.mark.slow
def test_every_row_compiles_within_its_budget():
    run("-m", "kernels.aot", "check")


def test_what_is_kept_is_of_every_row_and_within_its_budget():
    from kernels import aot

    golden = aot.read_golden()
    if not golden:
        pytest.skip("no golden file for this Triton")
    assert {point.name for point in aot.points()} == set(golden)
    names = [field.name for field in fields(aot.Figures)]
    for point in aot.points():
        kept = golden[point.name]
        assert kept | asdict(point.launch) == kept, f"{point.name} was kept with other tiles"
        assert aot.broken(point, aot.Figures(**{name: kept[name] for name in names})) == [], point.name


def test_what_is_kept_is_of_this_code(monkeypatch, tmp_path):
    """All points take too long to compile each time; that they were compiled from this very code takes none."""
    from kernels import aot

    if not aot.DIGEST.exists():
        pytest.skip("no golden file for this Triton")
    now = aot.code_digest()
    assert aot.DIGEST.read_text().strip() == now, "the kernels have changed: python -m kernels.aot write"
    forward = Path(aot.attention_forward.__file__).read_text()
    for name, text in (
        ("same", forward + "# a comment\n"),
        ("other", forward.replace("l = l * shrink", "l = shrink * l")),
    ):
        (tmp_path / name).write_text(text)
        monkeypatch.setattr(aot.attention_forward, "__file__", str(tmp_path / name))
        assert (aot.code_digest() == now) == (name == "same")


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
    clamped = replace(point, flag="clamp")
    assert "at most 304 instructions" in aot.broken(clamped, replace(good, loop=loop | {"all": 305}))
    wide = replace(point, op="d_keys", D=256, dtype="fp32")
    assert "spills" in aot.broken(wide, replace(good, stack_bytes=1025))
    assert "spills" not in aot.broken(wide, replace(good, stack_bytes=1024))
    kept = {point.name: asdict(point.launch) | asdict(good)}
    assert aot.changed(point, good, kept) == []
    assert aot.changed(point, replace(good, registers=250), kept) == ["registers was 237, is 250"]
    assert aot.changed(point, good, {"another point": {}}) == ["not in the golden file"]


@pytest.mark.parametrize(
    "heads, S, multiprocessors, splits",
    [(8, 8192, 132, 32), (8, 32768, 132, 33), (64, 32768, 132, 5), (512, 32768, 132, 1), (1, 100, 132, 1)],
)
def test_a_decode_fills_the_device_with_parts_worth_their_launch(heads, S, multiprocessors, splits):
    from kernels.attention import default_splits

    assert default_splits(heads, S, multiprocessors) == splits
    assert splits == 1 or S / splits >= 256 and heads * splits < 2 * multiprocessors + heads
