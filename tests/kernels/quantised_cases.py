"""Cases, checks and the truth of the interpreter's tests of the quantised kernels; results equal it, bit for bit.

Importing it switches Triton's interpreter on; compiled and interpreted kernels cannot share a process.
"""

import os

os.environ["TRITON_INTERPRET"] = "1"

import math
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from triton.runtime import interpreter

from kernels import fake_quantise, fixed_point, fixed_point_reference, int8_linear, quantised_launch, ternary_linear
from kernels import quantised_reference as reference

SMALL = {
    "int8": (32, 32, 32), "int8 rounded": (32, 32, 32), "int8 decode": (16, 32, 32), "ternary int8": (32, 32, 32),
    "ternary int8 decode": (16, 32, 32), "ternary 2-byte": (16, 32, 32), "ternary 4-byte": (16, 32, 32),
}  # fmt: skip
FLOOR = {torch.float16: 1e-3, torch.bfloat16: 7e-3}


@contextmanager
def small(table=quantised_launch):
    """Small tiles: several a shape, and quick in the interpreter."""
    before = dict(table.ROWS), dict(table.BLOCKS)
    table.ROWS.update({(90, op): table.Product(*tile, 4, 1) for op, tile in SMALL.items()})
    blocks = {"combine": 32, "row sums": 32, "element": 8192, "range": 512}
    table.BLOCKS.update({op: table.Block(size, 4) for op, size in blocks.items()})
    try:
        yield
    finally:
        table.ROWS.update(before[0])
        table.BLOCKS.update(before[1])


def rounded_once(x, y, z):
    """x y + z of fp32, by fp64: the product is exact there, the sum is rounded to odd, so that no tie appears.

    S. Boldo, G. Melquiond, IEEE Trans. Comput. 57 (4), 2008.
    """
    with np.errstate(all="ignore"):
        product, z = np.broadcast_arrays(x.astype(np.float64) * y, z.astype(np.float64))
        total = product + z
        back = total - product
        rest = (product - (total - back)) + (z - back)
        even = (total.view(np.int64) & 1) == 0
        away = np.where((rest > 0) == (total > 0), 1, -1)
        odd = (total.view(np.int64) + np.where((rest != 0) & even & np.isfinite(rest), away, 0)).view(np.float64)
        return odd.astype(np.float32)


@pytest.fixture(autouse=True)
def harsh(monkeypatch):
    """Whatever is not written is NaN, or 77; a product and sum that is one instruction is rounded once."""

    def dirty(function):
        def filled(*args, **kwargs):
            out = function(*args, **kwargs)
            return out.fill_(math.nan if out.is_floating_point() else 77) if out.device.type == "cpu" else out

        return filled

    def fma(self, x, y, z):
        return interpreter.TensorHandle(rounded_once(x.data, y.data, z.data), z.dtype.scalar)

    monkeypatch.setattr(torch, "empty", dirty(torch.empty))
    monkeypatch.setattr(torch.Tensor, "new_empty", dirty(torch.Tensor.new_empty))
    monkeypatch.setattr(interpreter.InterpreterBuilder, "create_fma", fma)


def equal(got, want, what):
    """Bits, but for what kind of NaN."""
    assert got.dtype == want.dtype and got.shape == want.shape, f"error of {what}: {got.dtype} {got.shape}"
    if want.is_floating_point():
        assert torch.equal(got.isnan(), want.isnan()), f"error of {what}: NaN"
        got, want = got.nan_to_num(0.0), want.nan_to_num(0.0)
        assert torch.equal(got.signbit(), want.signbit()), f"error of {what}: signs"
    assert torch.equal(got, want), f"error of {what} in {(got != want).sum()} of {got.numel()}"


def integers(*size, low=-128, high=128, dtype=torch.int8, seed=0):
    return torch.randint(low, high, size, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def numbers(*size, seed=0):
    return torch.randn(size, generator=torch.Generator().manual_seed(seed))


def scales(M, N):
    """Of tokens and outputs, and a bias; the products that they make use the range of int8."""
    return 0.05 + numbers(M, seed=1).abs(), 0.001 + 0.001 * numbers(N, seed=2).abs(), numbers(N, seed=3)


def requantiser(N):
    """Factors, shifts of 0 to 63, a bias; the first ones powers of two, so that there are ties."""
    factor = integers(N, low=1 << 15, high=1 << 16, dtype=torch.int32, seed=4)
    factor[: N // 2] = 1 << 15
    shift = integers(N, low=19, high=27, dtype=torch.int32, seed=5)
    shift[-2:] = torch.tensor([0, 63])[-N:]
    return factor, shift, integers(N, low=-1000, high=1000, dtype=torch.int32, seed=6)


def products(name, M, N, K):
    """(weights, function of the epilogue's arguments, the same requantised by integers) of int8 or ternary weights."""
    x = integers(M, K, seed=7)
    if name == "int8":
        w = integers(N, K, seed=8)
        return x, w, lambda module: (
            lambda *a, **k: module.int8_linear(x, w, *a, **k), lambda *a, **k: module.int8_linear_fixed(x, w, *a, **k)
        )  # fmt: skip
    w = integers(N, K, low=-1, high=2, seed=8)
    packed = reference.pack_ternary(w)

    def real(module, x_scale=None, w_scale=None, bias=None, **k):
        return module.ternary_linear(x, packed, K, w_scale, bias, x_scale=x_scale, **k)

    return (
        x,
        w,
        lambda module: (
            lambda *a, **k: real(module, *a, **k),
            lambda *a, **k: module.ternary_linear_fixed(x, packed, K, *a, **k),
        ),
    )


def check_products(name, M, N, K, splits=0, module=None):
    """All epilogues of one shape."""
    x, w, of = products(name, M, N, K)
    module = module or {"int8": int8_linear, "ternary": ternary_linear}[name]
    real, fixed = of(module)
    acc, given, factors = reference.sums(x, w), scales(M, N), requantiser(N)
    want = reference.real(acc, *given)
    with small(module.table):
        equal(real(out="int32", splits=splits), acc.int(), "sums")
        equal(real(*given, out="fp32", splits=splits), want, "numbers")
        equal(real(*given, out="int8", out_scale=0.03, splits=splits), reference.steps(want, 0.03), "steps")
        equal(fixed(*factors, splits=splits), reference.fixed(acc, *factors), "fixed")


def check_halves(module=int8_linear):
    """Every code times 1, and times 127 plus 100, over 2: half of them ties, the others mostly out of reach."""
    x = torch.arange(-128, 128, dtype=torch.int8).view(-1, 1).repeat(1, 2)
    x[:, 1] = 1
    w = torch.tensor([[1, 0], [127, 100]], dtype=torch.int8)
    acc = x.int() @ w.int().T
    want = torch.tensor([round(v / 2) for v in acc.flatten().tolist()]).view_as(acc).clamp(-128, 127)
    assert (want[:, 1].abs() >= 127).sum() > 200
    table = module.table
    with small(table):
        table.ROWS[90, "int8 rounded"] = table.Product(256, 16, 32, 4, 1)
        equal(module.int8_linear(x, w, out="int8", out_scale=2.0), want.to(torch.int8), "steps")
        fixed = module.int8_linear_fixed(x, w, torch.tensor([1]), torch.tensor([1]))
    equal(fixed, want.to(torch.int8), "fixed")


def check_rounding(x, bits, method, dim, strength=1.0, module=fake_quantise):
    x = x.detach().requires_grad_()
    with small(module.table):
        got = module.fake_quantise(x, bits, method, dim, strength)
        (d,) = torch.autograd.grad(got, x, numbers(*x.shape).to(x.dtype))
    equal(got.detach(), fixed_point_reference.fake_quantise(x.detach(), bits, method, dim, strength), "rounding")
    equal(d, numbers(*x.shape).to(x.dtype), "gradient")


def turning_points(first, last):
    """Rows of half steps and their neighbours, one for each power of two: each is where rounding turns."""
    generator = torch.Generator().manual_seed(0)
    powers = 2.0 ** torch.arange(first, last).view(-1, 1)
    scale = (1 + torch.rand(len(powers), 1, generator=generator)) * powers
    half = torch.randint(-120, 120, (len(powers), 40), generator=generator) + 0.5
    x = (half.double() * scale.double()).float().view(torch.int32)
    x = (x + torch.randint(-1, 2, x.shape, generator=generator, dtype=torch.int32)).view(torch.float32)
    return torch.cat([x, 127 * scale], 1)


def check_codes(x, bits=8, module=fake_quantise):
    codes, scale = module.quantise_rows(x, bits)
    true_codes, true_scale = fixed_point_reference.quantise_rows(x, bits)
    equal(codes, true_codes, "codes")
    equal(scale, true_scale, "scales")


def entries_of(function, fraction_in, fraction_out):
    curve = fixed_point_reference.CURVES[function]
    steps = torch.round(curve(torch.arange(-128, 128).double() / 2**fraction_in) * 2**fraction_out)
    return steps.clamp(-128, 127).to(torch.int8)


def lines_of(function):
    curve = fixed_point_reference.CURVES[function]
    knots = torch.round(curve(torch.arange(-8, 9).double() / 2) * 4096).int()
    return knots[:-1].clone(), knots.diff()


def check_activation(x, function, kind, module=fixed_point, fractions=(6, 5)):
    """Values are equal; gradients come from other series. No input has its exact value where results saturate."""
    if kind == "lut":
        tables = (entries_of(function, *fractions),)
        settings = dict(zip(("fraction_in", "fraction_out"), fractions, strict=True))
    else:
        tables, settings = lines_of(function), {}
    results = []
    with small(module.table):
        for source in (module, fixed_point_reference):
            leaf = x.detach().requires_grad_()
            y = getattr(source, f"{kind}_activation")(leaf, *tables, function, **settings)
            results.append((y.detach(), *torch.autograd.grad(y, leaf, numbers(*x.shape).to(x.dtype))))
    (y, d), (y_true, d_true) = results
    equal(y, y_true, "values")
    wrong = ((d.double() - d_true.double()).norm() / d_true.double().norm()).item()
    assert wrong <= (5e-6 if x.dtype == torch.float32 else FLOOR[x.dtype]), f"error of gradient {wrong}"
