"""Definitions of the norms against torch's, and their work model against counts by hand."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

pytest.importorskip("triton")

from kernels import norms_reference as reference
from kernels.norms import LONGEST, OWN_ROWS, ROWS, table_row
from kernels.norms_work import Norm, chain_bytes, floor_bytes, norm_work, partial_rows

EPS = 1e-3


def random(*shape, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(len(shape)), dtype=torch.float64).to(dtype)


def test_definitions_are_torchs():
    x, y, weight, bias = random(3, 4, 10) + 2, random(3, 4, 10), random(10), random(1, 10)[0]
    close = torch.testing.assert_close
    close(reference.rms_norm(x, weight, EPS), F.rms_norm(x, (10,), weight, EPS))
    close(reference.layer_norm(x, weight, bias, EPS), F.layer_norm(x, (10,), weight, bias, EPS))
    close(reference.layer_norm(x, None, None, EPS), F.layer_norm(x, (10,), None, None, EPS))
    total, normed = reference.add_rms_norm(x, y, weight, EPS)
    close(total, x + y)
    close(normed, F.rms_norm(x + y, (10,), weight, EPS))
    close(reference.add_layer_norm(x, y, weight, bias, EPS)[1], F.layer_norm(x + y, (10,), weight, bias, EPS))
    assert reference.rms_norm(x.bfloat16(), weight, EPS).dtype == torch.bfloat16


def test_gradients_of_the_definitions():
    x, y, weight, bias = (random(*s).requires_grad_() for s in ((2, 3, 5), (2, 3, 5), (5,), (5,)))
    assert torch.autograd.gradcheck(lambda *a: reference.add_rms_norm(*a, EPS), (x, y, weight))
    assert torch.autograd.gradcheck(lambda *a: reference.add_layer_norm(*a, EPS), (x, y, weight, bias))


@pytest.mark.parametrize("centred", [False, True])
def test_closed_form_of_the_backward_pass(centred):
    """What the kernels compute: dx = r (g - n mean(g n) - mean(g)), dw = sum dy n, db = sum dy."""
    x, weight, bias, dy = random(6, 9) + 1, random(9), random(9), random(2, 6, 9)[1]
    leaves = [t.requires_grad_() for t in (x, weight, *([bias] if centred else []))]
    out = (reference.layer_norm if centred else reference.rms_norm)(*leaves, EPS)
    got = torch.autograd.grad(out, leaves, dy)
    z = x - x.mean(-1, keepdim=True) if centred else x
    r = (z.square().mean(-1, keepdim=True) + EPS).rsqrt()
    n, g = z * r, dy * weight
    dx = g - n * (g * n).mean(-1, keepdim=True) - (g.mean(-1, keepdim=True) if centred else 0)
    want = [r * dx, (dy * n).sum(0), dy.sum(0)]
    for mine, closed in zip(got, want, strict=False):
        torch.testing.assert_close(mine, closed)


def test_floors_of_published_accounts():
    """bf16: 4 bytes a number forward, 6 backward, 8 with a residual sum, in either direction."""
    plain, added = Norm(1000, 4096), Norm(1000, 4096, added_size=2)
    numbers = 1000 * 4096
    assert floor_bytes("forward", plain) == 4 * numbers
    assert floor_bytes("backward", plain) == 6 * numbers
    assert floor_bytes("forward", added) == floor_bytes("backward", added) == 8 * numbers
    # a stream of fp32 and branches of bf16: reads 4 + 2, writes 4 + 2; backward 2 + 4 + 4 read, 4 + 2 written
    mixed = Norm(1000, 4096, size=4, out_size=2, added_size=2)
    assert floor_bytes("forward", mixed) == 12 * numbers
    assert floor_bytes("backward", mixed) == 16 * numbers


def test_work_by_hand():
    M, N = 16384, 768
    forward = norm_work("forward", Norm(M, N, centred=True, parameters=2))
    assert forward.bytes == 4 * M * N + 2 * 4 * M + 2 * 4 * N
    assert forward.flops == 7 * M * N  # 2 for the mean, 2 for the variance, 3 to scale and shift
    # 4 rows a tile, so 4096 tiles for 264 programs, each of which leaves a row of fp32 that is read once
    assert partial_rows(Norm(M, N), 132) == 264
    backward = norm_work("backward", Norm(M, N))
    assert backward.bytes == 6 * M * N + 4 * M + 2 * 4 * N + 2 * 4 * 264 * N
    assert backward.bytes <= 1.03 * floor_bytes("backward", Norm(M, N))
    assert norm_work("backward", Norm(M, N, parameters=0)).bytes == 6 * M * N + 4 * M
    assert partial_rows(Norm(5, N), 132) == 2
    long = Norm(100, 2 * LONGEST)
    assert norm_work("backward", long).bytes > 10 * 100 * 2 * LONGEST  # 4 of them for the gradient of the weight


def test_chain_by_hand():
    """The sum 6 bytes, the norm 4; backward dx 6, dw reads 4 again, the sum of gradients 6."""
    plain, added = Norm(10, 64), Norm(10, 64, added_size=2)
    assert [chain_bytes(op, plain) / 640 for op in ("forward", "backward")] == [4, 10]
    assert [chain_bytes(op, added) / 640 for op in ("forward", "backward")] == [10, 16]
    # as autocast does it: the sum of both types, whose gradient is cast for the branch
    mixed = Norm(10, 64, size=4, out_size=4, added_size=2)
    assert [chain_bytes(op, mixed) / 640 for op in ("forward", "backward")] == [18, 20 + 12 + 6]
    for norm in (plain, added, mixed):
        assert all(chain_bytes(op, norm) >= floor_bytes(op, norm) for op in ("forward", "backward"))
    with pytest.raises(ValueError, match="sideways"):
        floor_bytes("sideways", plain)


@pytest.mark.parametrize("N", [1, 16, 17, 768, 16384, 16385, 50304])
def test_rows_of_every_width(N):
    """A tile has a power of two of columns, all of a row that is held in registers."""
    for size, out_size in ((2, 2), (4, 4), (4, 2)):
        row = table_row(90, "forward", N, size, out_size)
        assert row.BN & (row.BN - 1) == 0
        assert N <= row.BN or N > LONGEST
    for row in (*ROWS.values(), *OWN_ROWS.values()):
        assert row.BM * row.BN >= 32 * row.num_warps


def test_the_gate_goes_red():
    from kernels.gate import Figures
    from kernels.gates import norms as gates

    named = {point.name: point for point in gates.points()}
    loop = dict.fromkeys(gates.COUNTED, 0) | {"LDG": 24, "LDG128": 24, "STG": 10, "STG128": 8, "all": 500}
    good = Figures(96, 0, 64, 4, True, loop)
    forward = named["sm_90 forward add_layer N1024 bf16"].rules  # 4 rows a thread
    assert all(forward(good).values())
    backward = named["sm_90 backward add_layer N16384 bf16"].rules  # no row but one
    assert all(backward(replace(good, num_warps=16, loop=loop | {"LDG": 26, "STG": 8})).values())
    ahead = named["sm_90 backward add_layer N8192 bf16"].rules  # tiles are copied to shared memory
    copies = {"LDG": 0, "LDG128": 0, "STG": 8, "LDGSTS": 24, "LDGSTS128": 20}
    assert all(ahead(replace(good, num_warps=16, loop=loop | copies)).values())
    for rule, rules, figures in (
        ("no other loads", ahead, replace(good, loop=loop | copies | {"LDG": 1})),
        ("wide loads", ahead, replace(good, loop=loop | copies | {"LDGSTS": 25})),
        ("spills", forward, replace(good, stack_bytes=8)),
        ("wide loads", forward, replace(good, loop=loop | {"LDG": 25})),
        ("wide loads", forward, replace(good, loop=loop | {"LDG": 24, "LDG128": 0, "LDG64": 24})),
        ("wide stores", forward, replace(good, loop=loop | {"STG": 11})),
        ("wide loads", backward, replace(good, num_warps=16, loop=loop | {"LDG": 27, "STG": 8})),
        ("wide stores", backward, replace(good, num_warps=16, loop=loop | {"LDG": 26, "STG": 9})),
        ("warps", backward, good),
        ("all programs at once", backward, replace(good, registers=129, num_warps=16)),
    ):
        assert not rules(figures)[rule], rule
