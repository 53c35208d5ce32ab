"""The ahead-of-time gate of every family of kernels."""

from dataclasses import replace
from pathlib import Path

import pytest
from processes import run

pytest.importorskip("triton")

from kernels import aot, gate
from kernels.gates import attention

# What is compiled in every run of the suite, one or two points a family: what the page on the kernels speaks of.
HEADLINES = {
    "attention": "sm_90 forward (softmax|consmax) D128 bf16$",
    "losses": "sm_90 both bf16 V50304$",
    "mlp": "sm_90 backward gated silu short bf16$",
    "norms": "sm_90 backward add_layer N1024 bf16$",
    "quantised": "sm_90 ternary_decode ternary int8 decode, real i8$",
    "rotary": "sm_90 rotate D64 bf16$",
}


def test_what_compiles_keeps_its_budget():
    out = run("-m", "kernels.aot", "check", "all", *HEADLINES.values())
    assert "7 points hold, 0 do not" in out
    assert {line.split(";")[0] for line in out.splitlines()[:-1]} == set(HEADLINES) == set(aot.NAMES)


@pytest.mark.slow
@pytest.mark.parametrize("name", aot.NAMES)
def test_every_row_compiles_within_its_budget(name):
    run("-m", "kernels.aot", "check", name)


@pytest.mark.parametrize("name", aot.NAMES)
def test_what_is_kept_is_of_every_row_and_within_its_budget(name):
    family = aot.family(name)
    golden = family.read_golden()
    if not golden:
        pytest.skip("no golden file for this Triton")
    points = family.points()
    assert {point.name for point in points} == set(golden) and len(points) == len(golden)
    for point in points:
        line = golden[point.name]
        assert line | dict(point.launch) == line, f"{point.name} was kept with other tiles"
        figures = gate.Figures(**{name: value for name, value in line.items() if name in gate.Figures.__annotations__})
        assert gate.broken(point, figures) == [], point.name


@pytest.mark.parametrize("name", aot.NAMES)
def test_what_is_kept_is_of_this_code(name):
    """All points take too long to compile each time; that they were compiled from this very code takes none."""
    family = aot.family(name)
    if not family.digest.exists():
        pytest.skip("no golden file for this Triton")
    kept = family.digest.read_text().strip()
    assert kept == family.code_digest(), f"the kernels have changed: python -m kernels.aot write {name}"


def test_a_digest_knows_code_from_comments(monkeypatch, tmp_path):
    family, module = attention.FAMILY, attention.attention_forward
    now, forward = family.code_digest(), Path(module.__file__).read_text()
    for name, text in (
        ("same", forward + "# a comment\n"),
        ("other", forward.replace("l = l * shrink", "l = shrink * l")),
    ):
        (tmp_path / name).write_text(text)
        monkeypatch.setattr(module, "__file__", str(tmp_path / name))
        assert (family.code_digest() == now) == (name == "same")


def test_the_gate_goes_red():
    case = next(c for c in attention.cases() if c.name == "sm_90 forward consmax D128 bf16")
    loop = dict.fromkeys(attention.COUNTED, 0) | {"HGMMA": 16, "UTMALDG": 2, "EX2": 64, "MUFU": 64, "all": 271}
    good = gate.Figures(237, 0, 164864, case.launch.num_warps, True, loop)
    point = attention.point_of(case)
    assert gate.broken(point, good) == []
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
        assert rule in gate.broken(point, figures)
    clamped = attention.point_of(replace(case, flag="clamp"))
    assert "at most 304 instructions" in gate.broken(clamped, replace(good, loop=loop | {"all": 305}))
    wide = attention.point_of(replace(case, op="d_keys", D=256, dtype="fp32"))
    assert "spills" in gate.broken(wide, replace(good, stack_bytes=1025))
    assert "spills" not in gate.broken(wide, replace(good, stack_bytes=1024))
    kept = {point.name: gate.kept(point, good)}
    assert gate.changed(point, good, kept) == []
    assert gate.changed(point, replace(good, registers=250), kept) == ["registers was 237, is 250"]
    assert gate.changed(point, good, {"another point": {}}) == ["not in the golden file"]


def test_loops_are_found_in_machine_code():
    """Two nested loops; the inner has the products."""
    sass = """
.L_x_0:
        /*0000*/                   LDG.E.128 R4, desc[UR4][R2.64] ;
.L_x_1:
        /*0010*/              @!P0 FFMA R1, R2, R3, R1 ;
        /*0020*/                   HGMMA.64x128x16.F32.BF16 R24, gdesc[UR8], R24 ;
        /*0030*/               @P0 BRA `(.L_x_1) ;
        /*0040*/               @P1 BRA `(.L_x_0) ;
.L_x_2:
        /*0050*/                   BRA `(.L_x_2) ;
"""
    loops, program = gate.program_of(sass)
    assert [len(lines) for lines in loops] == [3] and len(program) == 6
    counted = gate.counts(gate.products_loop(loops, program), gate.COUNTED)
    assert counted["HGMMA"] == 1 and counted["LDG"] == 0 and counted["all"] == 3
    assert gate.counts(program, gate.COUNTED)["LDG128"] == 1
    with pytest.raises(AssertionError, match="no loop"):
        gate.products_loop([["FADD R1, R2, R3"]], program)
