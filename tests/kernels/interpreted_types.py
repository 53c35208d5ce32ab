"""The attention kernels in Triton's interpreter in fp16 and bf16, on edge shapes and with large scores."""

import contextlib
import itertools
import math

import attention_cases as cases
import pytest
import torch
from attention_cases import KINDS, SHAPES, error, inputs, judge, outcome, small, truth_of
from bf16_interpreter import patched

from kernels import attention, attention_reference, launch_table
from kernels.launch_table import Launch

dirty_memory = cases.dirty_memory
slow = pytest.mark.slow


def interpreter_of(dtype, monkeypatch):
    return patched(monkeypatch) if dtype == torch.bfloat16 else contextlib.nullcontext()


def check_narrow(kind, shape, dtype, extras=""):
    """At most twice (gradients: thrice) the error of torch in the same type, or some roundings of it.

    torch's is that of the reference with the matrix products, and what goes into them, in the narrow type.
    """
    named = inputs(kind, shape, extras, dtype, batch=1)
    truth = truth_of(kind, shape, named)
    torchs = outcome(attention_reference.attention, kind, shape, {n: x.to(dtype) for n, x in named.items()})
    with small():
        got = outcome(attention.attention, kind, shape, named)
    for name, want in truth.items():
        if want.any():
            times = 2 if name == "out" else 3
            assert error(got[name], want) <= max(times * error(torchs[name], want), cases.FLOOR[dtype]), name


NARROW = [pytest.param(kind, shape, dtype, extras, marks=[] if fast else slow, id=f"{kind}-{shape}-{dtype}-{extras}")
          for kind, shape, dtype, extras in itertools.product(KINDS, SHAPES, (torch.float16, torch.bfloat16),
                                                              ("", "bias+alibi"))
          for fast in [(kind, shape, extras) == ("clamped", "window", "")]]  # fmt: skip


@pytest.mark.parametrize("kind, shape, dtype, extras", NARROW)
def test_narrow_types(kind, shape, dtype, extras, monkeypatch):
    with interpreter_of(dtype, monkeypatch):
        check_narrow(kind, SHAPES[shape], dtype, extras)


def test_bf16_needs_the_patch():
    named = inputs("softmax", (1, 1, 16, 16, 16, 16, {}), dtype=torch.bfloat16, batch=1)
    with small():
        got = attention.attention(*named.values(), KINDS["softmax"], 0.25)
    want = attention_reference.attention(*(x.double() for x in named.values()), KINDS["softmax"], 0.25)
    assert error(got, want) > 10 * cases.FLOOR[torch.bfloat16]


LENGTHS = (1, 15, 16, 17, 63, 100, 129)
GROUPS = (1, 2, 4, 8)
GRID = [(T, 32, groups, None) for T, groups in zip(LENGTHS, itertools.cycle((8, 4, 2, 1)))]
GRID += [(17, D, groups, None) for D, groups in zip((64, 80, 96, 128, 192, 256), itertools.cycle((1, 2, 4)))]
GRID += [(T, 16, groups, window) for T, groups in zip(LENGTHS[1:], itertools.cycle(GROUPS))
         for window in (1, T // 2, T + 1)]  # fmt: skip


@slow
@pytest.mark.parametrize("kind", ["softmax", "consmax"])
@pytest.mark.parametrize("T, D, groups, window", GRID)
def test_edge_shapes(kind, T, D, groups, window):
    heads = max(groups, 2)
    shape = (heads, heads // groups, T, T, D, D, {"window": window} if window else {})
    named = inputs(kind, shape, "alibi" if window else "", batch=1)
    # projections leave the heads inside the tokens
    named |= {name: named[name].transpose(1, 2).contiguous().transpose(1, 2) for name in "qkv"}
    with launch_table.forced(**{op: Launch(64, 32, 4, 1) for op in launch_table.OPS}):
        got = outcome(attention.attention, kind, shape, named)
    judge(got, truth_of(kind, shape, named))


@slow
@pytest.mark.parametrize("kind", list(KINDS))
def test_rows_without_keys_are_zero_and_have_no_gradient(kind):
    shape = (2, 1, 40, 17, 16, 16, {})
    with small():
        got = outcome(attention.attention, kind, shape, inputs(kind, shape, "bias+alibi"))
    assert all(torch.isfinite(x).all() for x in got.values())
    for empty in (got["out"][:, :, :23], got["q"][:, :, :23], got["bias_HTS"][:, :23]):
        assert not empty.any()


@pytest.mark.parametrize("kind", ["softmax", pytest.param("consmax", marks=slow)])
def test_masked_keys_beyond_any_type(kind):
    """Scores of +-70, and of masked keys beyond any type, neither overflow nor leak."""
    shape = (1, 1, 20, 20, 16, 16, {})
    named = inputs(kind, shape, batch=1)
    named["k"][:, :, -1] = 1e30 * named["q"][:, :, 0].sign()
    named["q"][:, :, -1] = 0
    named["q"] *= 70 / (named["q"][:, :, :-1] @ named["k"][:, :, :-1].mT).abs().max()
    truth = truth_of(kind, shape, named, scale=1.0)
    with small():
        got = outcome(attention.attention, kind, shape, named, scale=1.0)
    for name in ("out", "v"):  # 2e-5: half a unit of 70 log2(e) in fp32, times ln 2
        assert error(got[name], truth[name]) <= 2e-5, name
    assert torch.isfinite(got["q"][:, :, :-1]).all()


@pytest.mark.parametrize("dtype, highest", [(torch.float16, 10.0), pytest.param(torch.bfloat16, 80.0, marks=slow),
                                            pytest.param(torch.float32, 80.0, marks=slow)])  # fmt: skip
def test_weights_near_the_end_of_the_type(dtype, highest, monkeypatch):
    """Consmax with s - beta up to `highest`, just below where a weight overflows (11.09 in fp16, 88.7 otherwise)."""
    shape = (2, 1, 20, 20, 16, 16, {})
    named = inputs("consmax", shape, dtype=dtype, batch=1)
    named["gamma_H"] = torch.ones(2)
    scores = (named["q"].double() @ named["k"].double().mT).tril() - named["beta_H"].double().view(-1, 1, 1)
    scale = (highest / scores.max()).item()
    named["beta_H"] *= scale
    named["v"] = named["v"] * 0.5
    with interpreter_of(dtype, monkeypatch), small():
        got = outcome(attention.attention, "consmax", shape, named, scale=scale)
    truth = truth_of("consmax", shape, named, scale)
    # A score of `highest`, in powers of 2, is held to half a unit of the last place of fp32.
    allowed = max(cases.FLOOR.get(dtype, 0.0), 2 * highest * math.log2(math.e) * 2.0**-24)
    finfo = torch.finfo(dtype)
    for name, want in truth.items():
        fits = want.abs() < finfo.max
        assert torch.isfinite(got[name])[fits].all(), name
        assert error(got[name][fits], want[fits]) <= allowed, name
