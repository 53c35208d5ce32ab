"""Rounding to few bits against torch's fake quantisation, and what the straight-through form promises."""

import pytest
import torch

from gptcore.quantize import fake_quantize, quantize, straight_through

EPS32 = torch.finfo(torch.float32).eps


def values(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("bits", [2, 4, 8, 16])
def test_symmetric_equals_torch(bits):
    x, top = values(31, 7), 2 ** (bits - 1) - 1
    expected = torch.fake_quantize_per_tensor_affine(x, (x.abs().max() / top).item(), 0, -top, top)
    torch.testing.assert_close(fake_quantize(x, bits), expected, rtol=4 * EPS32, atol=0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("method", ["symmetric", "affine"])
def test_codes_are_integers_in_range(method, dtype):
    x = values(11, 13).to(dtype)
    for bits in (2, 5, 8):
        codes, _, zero = quantize(x.float(), bits, method, -1)
        low, high = (0, 2**bits - 1) if method == "affine" else (1 - 2 ** (bits - 1), 2 ** (bits - 1) - 1)
        assert torch.equal(codes, codes.round()) and low <= codes.min() and codes.max() <= high
        assert bool(((torch.as_tensor(zero) >= low) & (torch.as_tensor(zero) <= high)).all())
        assert fake_quantize(x, bits, method, -1).dtype == dtype


@pytest.mark.parametrize("method", ["symmetric", "affine"])
def test_zero_stays_zero(method):
    x = torch.relu(values(5, 9))
    assert torch.equal(fake_quantize(x, 3, method, -1)[x == 0], x[x == 0])
    assert torch.equal(fake_quantize(torch.zeros(3, 4), 3, method, -1), torch.zeros(3, 4))


def test_straight_through_is_exact_at_both_ends():
    """Also where the rounded value is far away, so that x + (rounded - x) would lose digits."""
    x, rounded = values(50).requires_grad_(), 1e-4 * values(50, seed=1)
    assert not torch.equal(x + (rounded - x), rounded)
    for strength, expected in ((1.0, rounded), (0.0, x)):
        for given in (strength, torch.tensor(strength)):
            assert torch.equal(straight_through(x, rounded, given), expected)
    straight_through(x, rounded, 0.3).sum().backward()
    assert torch.equal(x.grad, torch.ones(50))


def test_strength_is_a_mixture():
    x = values(40)
    expected = 0.6 * x + 0.4 * fake_quantize(x, 2)
    torch.testing.assert_close(fake_quantize(x, 2, strength=0.4), expected, rtol=8 * EPS32, atol=8 * EPS32)
