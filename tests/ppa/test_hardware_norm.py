"""Norms as they are trained in int8 against the models of the circuits, bit for bit, and seeded faults."""

import numpy as np
import pytest
import torch
from test_rtl_units import normalised

from gptcore.config import Dims
from gptcore.norm import layernorm_int, rmsnorm_int
from gptcore.norm.layernorm_int import LayerNormInt
from gptcore.norm.rmsnorm_int import RMSNormInt
from ppa import rtl
from ppa.rtl import rmsnorm
from ppa.rtl.layernorm import LayerNorm
from ppa.rtl.rmsnorm import RmsNorm

DIMS = Dims(8, 1, 16, True, 0.0)


def random_rows(width, rng):
    """Rows (width, R) that contain 127 or -127, so that they are their own codes; some far from 0."""
    rows = 60_000 // width + 40
    x = 2.0 ** rng.uniform(0, 7, rows) * rng.standard_normal((width, rows)) + rng.choice([0, 0, 30, -120], rows)
    x = np.clip(np.round(x), -127, 127).astype(int)
    x[:, 0], x[:, 1] = 0, 127
    x[rng.integers(0, width, rows), np.arange(rows)] = rng.choice([-127, 127], rows)
    return x


def set_parameters(module, rng, spread):
    with torch.no_grad():
        for p in module.parameters():
            p.copy_(torch.from_numpy(spread * rng.standard_normal(p.shape)))


def codes(parameter, scale):
    return np.clip(np.round(parameter.detach().numpy() * np.float32(scale)), -128, 127).astype(int)


def check_rmsnorm(width, fraction=5, spread=1.0):
    rng = np.random.default_rng(width)
    x = random_rows(width, rng)
    module = RMSNormInt(RMSNormInt.Config(fraction=fraction), width, DIMS)
    set_parameters(module, rng, spread)
    got = module(torch.from_numpy(x.T).float()).detach().numpy() * 2.0**fraction
    weight = codes(module.weight, np.sqrt(width) * 2.0 ** (fraction - 4))
    operator = RmsNorm(**rtl.make("rmsnorm_int8").parameters)
    expected, _ = normalised(operator, x, {"weight": weight[:, None] + np.zeros_like(x)}, width)
    assert (got == expected.T).all()


@pytest.mark.parametrize(
    "width, fraction, spread", [(1, 5, 1), (6, 7, 1), (16, 5, 9), (96, 5, 1), (768, 4, 1), (1024, 5, 2)]
)
def test_rmsnorm_of_random_rows(width, fraction, spread):
    check_rmsnorm(width, fraction, spread)


def test_a_rounding_of_rmsnorm_is_noticed(monkeypatch):
    right = rmsnorm_int.inverse_root

    def one_off(total, table, bits):
        r, exponent = right(total, table, bits)
        return r - (r & 1), exponent

    monkeypatch.setattr(rmsnorm_int, "inverse_root", one_off)
    with pytest.raises(AssertionError):
        check_rmsnorm(6)


def test_inverse_root_of_every_sum():
    """All sums of 24 bits that differ in the 12 bits that count, against the circuit's steps one after another."""
    total = np.unique(np.arange(1, 1 << 12)[:, None] << np.arange(13)[None, :])
    r, exponent = rmsnorm_int.inverse_root(torch.from_numpy(total), torch.tensor(rmsnorm_int.seeds()), 24)
    wanted = np.full_like(total, 11)
    for _ in range(12):
        small = total >> 22 == 0
        total, wanted = np.where(small, total << 2, total), wanted - small
    m, root, t = total >> 12, (256 + np.array(rmsnorm.SEEDS)[total >> 17]) << 3, np.zeros_like(total)
    for phase in (rmsnorm.ROOT, rmsnorm.RESIDUAL, rmsnorm.REFINE):
        root, t = rmsnorm.newton(np.full_like(m, phase), m, root, t)
    assert np.array_equal(r, root) and np.array_equal(exponent, wanted)


def test_rows_are_rounded_by_their_largest_entry():
    """Of any size: codes are round(127 x / max |x|); zeros stay zeros; the gradient is that of the norm."""
    module, x = RMSNormInt(RMSNormInt.Config(), 8, DIMS), torch.randn(50, 8, dtype=torch.float64)
    codes = torch.round(x / x.abs().amax(-1, keepdim=True) * 127)
    for size in (1e-6, 1.0, 1e6):
        assert torch.equal(module(x * size), module(codes))
    assert (module(torch.zeros(8)) == 0).all()
    a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
    module(a).square().sum().backward()
    y = torch.nn.functional.rms_norm(b, (8,), eps=1e-6)
    (y * 2 * module(x).detach()).sum().backward()
    assert (a.grad - b.grad).abs().max() <= 1e-12


# Layer norm


def check_layernorm(width, fraction=5, spread=1.0, bias=True):
    rng = np.random.default_rng(width)
    x = random_rows(width, rng)
    module = LayerNormInt(LayerNormInt.Config(fraction=fraction), width, Dims(width, 1, 16, bias, 0.0))
    set_parameters(module, rng, spread)
    got = module(torch.from_numpy(x.T).float()).detach().numpy() * 2.0**fraction
    point = {**rtl.make("layernorm_int8").parameters, "LENGTH": width}
    columns = {"weight": codes(module.weight, 2 ** (fraction + 1)), "bias": np.zeros(width, dtype=int)}
    if bias:
        columns["bias"] = codes(module.bias, 2**fraction)
    columns = {name: column[:, None] + np.zeros_like(x) for name, column in columns.items()}
    expected, _ = normalised(LayerNorm(**point), x, columns, width)
    assert (got == expected.T).all()


@pytest.mark.parametrize(
    "width, fraction, spread, bias",
    [(32, 5, 1, True), (33, 6, 2, False), (96, 4, 1, True), (128, 5, 1, True), (768, 5, 1, True), (1024, 3, 9, True)],
)
def test_layernorm_of_random_rows(width, fraction, spread, bias):
    check_layernorm(width, fraction, spread, bias)


def test_a_rounding_of_layernorm_is_noticed(monkeypatch):
    monkeypatch.setattr(layernorm_int, "nearest", lambda value, places: value >> places)
    with pytest.raises(AssertionError):
        check_layernorm(96)


def test_layernorm_of_scaled_rows():
    """Rows of any size have the same codes; zeros give the bias; the gradient is that of the norm."""
    module, x = LayerNormInt(LayerNormInt.Config(), 32, DIMS), torch.randn(50, 32, dtype=torch.float64)
    for size in (1e-6, 1e6):
        assert torch.equal(module(x * size), module(x))
    assert (module(torch.zeros(32)) == 0).all()
    a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
    d = torch.randn(50, 32, dtype=torch.float64)
    (module(a) * d).sum().backward()
    (torch.nn.functional.layer_norm(b, (32,)) * d).sum().backward()
    assert (a.grad - b.grad).abs().max() <= 1e-12


@pytest.mark.parametrize("kind, width", [(RMSNormInt, 1025), (LayerNormInt, 1025), (LayerNormInt, 31)])
def test_rows_that_the_circuit_does_not_take_are_refused(kind, width):
    (problem,) = kind.check(kind.Config(), Dims(width, 1, 16, True, 0.0))
    assert problem.field == "kind" and str(width) in problem.message
