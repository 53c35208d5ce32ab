"""The definition of rotary embedding against the model's and complex numbers, and its work model by hand."""

from dataclasses import replace

import pytest
import torch

pytest.importorskip("triton")

from kernels.rotary import ROWS, chain_bytes, rotary_reference, rotary_work, table_row
from kernels.rotary_normed import rms_norm_rotary_work


def tables(length, turned, theta=10000.0):
    angle = torch.outer(torch.arange(length).double(), theta ** (-torch.arange(0, turned, 2).double() / turned))
    return torch.cat([angle.cos()] * 2, 1), torch.cat([-angle.sin(), angle.sin()], 1), angle


@pytest.mark.parametrize("turned", [8, 6, 2])
def test_the_definition_is_a_turn_of_complex_numbers(turned):
    """Pairs (x_i, x_(i + h)) as x_i + j x_(i + h), times exp(j angle)."""
    x = torch.randn(2, 3, 5, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    cos, sin, angle = tables(9, turned)
    got = rotary_reference(x, cos, sin, 4, turned)
    half = turned // 2
    turning = torch.complex(x[..., :half], x[..., half:turned]) * torch.polar(torch.ones(5, half).double(), angle[4:9])
    torch.testing.assert_close(got[..., :turned], torch.cat([turning.real, turning.imag], -1))
    assert torch.equal(got[..., turned:], x[..., turned:])


def test_gradient_of_the_definition():
    """Also that it is the turn by the negative angle, which the kernel computes."""
    x = torch.randn(1, 2, 3, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64, requires_grad=True)
    cos, sin, _ = tables(5, 4)
    assert torch.autograd.gradcheck(lambda x: rotary_reference(x, cos, sin, 1, 4), (x,))
    d = torch.linspace(-1, 1, x.numel(), dtype=torch.float64).view(x.shape)
    got = torch.autograd.grad(rotary_reference(x, cos, sin, 1, 4), x, d)[0]
    torch.testing.assert_close(got, rotary_reference(d, cos, -sin, 1, 4))


def test_work_by_hand():
    """4 bytes a number of bf16, in place or not, where all turn."""
    B, H, K, T, D = 2, 12, 4, 1024, 64
    numbers = B * T * (H + K) * D
    table = 2 * 4 * T * D
    assert rotary_work(B, H, K, T, D, D, 2).bytes == rotary_work(B, H, K, T, D, D, 2, in_place=False).bytes
    assert rotary_work(B, H, K, T, D, D, 2).bytes == 4 * numbers + table
    assert rotary_work(B, H, K, T, D, D, 2).flops == 3 * numbers  # two products and a sum
    assert rotary_work(B, H, K, T, D, 16, 2).bytes == numbers + table // 4  # a quarter turns, the rest stays
    assert rotary_work(B, H, K, T, D, 16, 2, in_place=False).bytes == 4 * numbers + table // 4
    assert chain_bytes(B, H, K, T, D, D, 2) == 18 * numbers
    assert chain_bytes(B, H, K, T, D, 16, 2) == 18 * numbers // 4 + 4 * numbers


def test_work_with_a_norm_by_hand():
    """Forward 4 bytes a number of bf16 and 4 a head, instead of 8 and 4; backward 4 to turn and 6 for the norms."""
    B, H, K, T, D = 8, 12, 4, 2048, 64
    numbers = B * T * (H + K) * D
    table = 2 * 4 * T * D
    forward = rms_norm_rotary_work("forward", B, H, K, T, D, 2)
    assert forward.bytes == 4 * numbers + 4 * numbers // D + table + 2 * 4 * D
    assert forward.flops == 7 * numbers
    backward = rms_norm_rotary_work("backward", B, H, K, T, D, 2)
    assert 10 * numbers < backward.bytes < 10.2 * numbers


@pytest.mark.parametrize("half", [1, 8, 10, 32, 48, 256, 300])
def test_rows_of_every_width(half):
    block, row = table_row(half)
    assert block >= half and block & (block - 1) == 0 and row.BT >= 1
    assert all(block * row.BT // (32 * row.num_warps) == 8 for block, row in ROWS.items())


def test_the_gate_goes_red():
    from kernels.gate import Figures
    from kernels.gates import rotary as gates

    point = next(p for p in gates.points() if p.name == "sm_90 rotate D128 bf16")
    loop = dict.fromkeys(gates.COUNTED, 0) | {"LDG": 12, "LDG128": 12, "STG": 4, "STG128": 4, "all": 400}
    good = Figures(56, 0, 0, 4, True, loop)
    assert all(point.rules(good).values())
    for rule, figures in {
        "spills": replace(good, stack_bytes=8),
        "64-bit addresses": replace(good, wide_addresses=False),
        "all accesses are wide": replace(good, loop=loop | {"LDG": 13}),
        "no sine or cosine": replace(good, loop=loop | {"SINCOS": 1}),
        "no exchange between threads": replace(good, loop=loop | {"SHFL": 1}),
    }.items():
        assert not point.rules(figures)[rule], rule
