"""Streamed statistics against torch, numpy and closed forms of known distributions; formats against enumeration."""

import math

import numpy as np
import pytest
import torch

from gptcore.analysis import tensor_statistics as ts
from gptcore.analysis.formats import parse_format
from gptcore.errors import RunError, UserError
from gptcore.quantize import fake_quantize

N = 200_000


def measure(x, *, pieces=1, method="symmetric", formats=(), dim=-1, live=None):
    """As `gptcore inspect` does: the stream twice."""
    spread = ts.Spread("x")
    for piece, kept in zip(x.chunk(pieces), (live.chunk(pieces) if live is not None else [None] * pieces), strict=True):
        spread.update(piece if kept is None else piece[kept])
    errors = ts.Errors(spread, method, [parse_format(name) for name in formats], dim)
    for piece, kept in zip(x.chunk(pieces), (live.chunk(pieces) if live is not None else [None] * pieces), strict=True):
        errors.update(piece, kept)
    return errors.statistics()


def normal(*shape, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# what one pass takes


def check_moments(found, x):
    x = x.double().numpy()
    assert (found.count, found.low, found.high) == (x.size, x.min(), x.max())
    assert found.mean == pytest.approx(x.mean(), rel=1e-10, abs=1e-12)
    assert found.std == pytest.approx(x.std(), rel=1e-10)
    assert found.kurtosis == pytest.approx((((x - x.mean()) / x.std()) ** 4).mean(), rel=1e-9)


@pytest.mark.parametrize("pieces", [1, 7])
def test_moments_equal_numpy(pieces, monkeypatch):
    x = normal(60, 50).exp() - 3  # skewed: the third moment enters the fourth
    x[3, 4] = 0
    monkeypatch.setattr(ts, "CHUNK", 999)
    check_moments(measure(x, pieces=pieces), x)
    assert measure(x).zero_share == 1 / 3000

    class Fault(ts.Spread):
        def _merge(self, n, mean, m2, m3, m4):
            super()._merge(n, mean, m2, 0.0, m4)  # as if pieces had no skew

    monkeypatch.setattr(ts, "Spread", Fault)
    with pytest.raises(AssertionError):
        check_moments(measure(x, pieces=pieces), x)


def test_histogram_equals_torch():
    x = normal(N).double() * 3
    x[:5] = 0
    counts = torch.tensor(measure(x, pieces=3).counts)
    edges = torch.arange(ts.LOWEST * ts.PER_OCTAVE, ts.HIGHEST * ts.PER_OCTAVE + 1).double() / ts.PER_OCTAVE
    expected = torch.histogram(x[x != 0].abs().log2(), edges).hist.long()
    assert torch.equal(counts, expected) and counts.sum() == N - 5
    assert not torch.equal(counts, torch.histogram((x[x != 0].abs() * 1.1).log2(), edges).hist.long())


def test_magnitudes_beyond_the_bins_are_in_the_outermost():
    counts = measure(torch.tensor([2.0**-60, 2.0**-40, 1.0, 2.0**50])).counts
    assert (counts[0], counts[-1], sum(counts)) == (2, 1, 4)


def test_percentiles_are_the_upper_edge_of_their_bin():
    x = normal(N)
    found = measure(x)
    for value, share in ((found.abs_p50, 0.5), (found.abs_p999, 0.999)):
        true = np.quantile(x.abs().double().numpy(), share, method="inverted_cdf")
        assert true <= value <= true * 2 ** (1 / ts.PER_OCTAVE)
    assert measure(torch.tensor([0.0, 0.0, 0.0, 5.0])).abs_p50 == 0
    assert measure(torch.tensor([5.0, 5.0])).abs_p50 == 5  # never above the largest


def test_outliers_are_beyond_six_standard_deviations():
    x = normal(1000, 100)
    assert measure(x).outlier_share == 0
    x[0, :7] = torch.tensor([9.0, -9, 8, -8, 7, -7, 30])
    assert measure(x, pieces=4).outlier_share == 7 / x.numel()
    assert measure(x + 100).outlier_share == 7 / x.numel()  # from the mean, not from zero


def test_values_that_are_not_finite_are_named():
    for bad in (math.nan, math.inf):
        with pytest.raises(RunError, match="x holds values that are not finite"):
            ts.Spread("x").update(torch.tensor([1.0, bad]))


def test_constants_have_no_kurtosis_and_need_few_bits():
    found = measure(torch.zeros(4, 4))
    assert math.isnan(found.kurtosis) and found.bits_tensor(99) == found.bits_group(99) == 2


# rounding


def check_uniform(scale):
    """x uniform in +-1, step 1 / (2^(b-1) - 1): SQNR = (1/3) / (step^2 / 12) but for the two codes at the ends."""
    x = (torch.arange(N, dtype=torch.float64) + 0.5) / N * 2 - 1
    found = measure(x.float() * scale)
    for bits in range(4, 13):
        step = 1 / (2 ** (bits - 1) - 1)
        assert found.sqnr_tensor_db[bits] == pytest.approx(10 * math.log10(4 / step**2), abs=0.02)
    # 10 log10(4 n^2) >= 30 for n >= 15.8 codes to each side: 2^(b-1) - 1 is 15 with 5 bits, 31 with 6
    assert found.bits_tensor(30) == 6 and found.bits_tensor(29.5) == 5 and found.bits_tensor(200) is None


@pytest.mark.parametrize("scale", [1.0, 1e-3])
def test_a_uniform_distribution_has_its_textbook_sqnr(scale, monkeypatch):
    check_uniform(scale)
    honest = ts.uniform_error
    monkeypatch.setattr(ts, "uniform_error", lambda x, low, high, bits, m: honest(x, low, 1.1 * high, bits, m))
    with pytest.raises(AssertionError):
        check_uniform(scale)


def test_a_full_scale_sine_gains_six_decibels_a_bit():
    """6.02 b + 1.76 dB for a step of 2^(1 - b); ours is 2^(b-1) / (2^(b-1) - 1) times as wide (IEEE 1241)."""
    x = torch.sin(torch.arange(N, dtype=torch.float64) * (2 * math.pi * 997 / N)).float()
    found = measure(x)
    for bits in (6, 8, 10):
        wider = 20 * math.log10(2 ** (bits - 1) / (2 ** (bits - 1) - 1))
        assert found.sqnr_tensor_db[bits] == pytest.approx(6.02 * bits + 1.76 - wider, abs=0.2)


@pytest.mark.parametrize("method", ["symmetric", "affine"])
def test_errors_are_those_of_the_models_own_rounding(method):
    x = normal(40, 30).exp() - 0.5
    found = measure(x, pieces=3, method=method)
    for bits in (2, 5, 8, 16):
        for dim, db in ((None, found.sqnr_tensor_db[bits]), (-1, found.sqnr_group_db[bits])):
            noise = (x.double() - fake_quantize(x, bits, method, dim).double()).square().sum()
            assert db == pytest.approx(10 * math.log10(x.double().square().sum() / noise), abs=1e-4)
    other = {"symmetric": "affine", "affine": "symmetric"}[method]
    assert abs(measure(x, method=other).sqnr_group_db[5] - found.sqnr_group_db[5]) > 1


def test_what_is_masked_does_not_count():
    x = normal(6, 9, 9)
    live = torch.ones(9, 9, dtype=torch.bool).tril().expand_as(x)
    found = measure(x.masked_fill(~live, 0.0), pieces=2, live=live)
    check_moments(found, x[live])
    assert found.zero_share == 0 and found.count == 6 * 45
    with pytest.raises(AssertionError):
        check_moments(measure(x.masked_fill(~live, 0.0)), x[live])


# formats


def test_saturation_of_a_normal_distribution():
    """q3.4 ends at -8 and 8 - 1/16; with a standard deviation of 4 that is 2 and 1.984 of them."""
    loss = measure(normal(N) * 4, formats=["q3.4"], pieces=5).formats[0]
    expected = 0.5 * math.erfc(2 / math.sqrt(2)) + 0.5 * math.erfc((8 - 1 / 16) / 4 / math.sqrt(2))
    tolerance = 4 * math.sqrt(expected / N)  # standard deviations of a count
    assert loss.saturated == pytest.approx(expected, abs=tolerance)
    # fault: a range that counts the sign among the integer bits, 4 instead of 8
    assert abs(math.erfc(1 / math.sqrt(2)) - expected) > tolerance
    zero = math.erf(2.0**-5 / 4 / math.sqrt(2))  # below half a step
    assert loss.underflow == pytest.approx(zero, abs=4 * math.sqrt(zero / N))


def minifloats(exponent_bits, mantissa_bits, bias, largest):
    """Every non-negative value of a small float, written out."""
    found = []
    for e in range(2**exponent_bits):
        for m in range(2**mantissa_bits):
            fraction = m / 2**mantissa_bits
            found.append((1 + fraction) * 2.0 ** (e - bias) if e else fraction * 2.0 ** (1 - bias))
    return [v for v in found if v <= largest]


def test_zeros_do_not_underflow():
    loss = measure(torch.tensor([0.0, 0.0, 1e-9, 1.0]), formats=["q3.4"]).formats[0]
    assert (loss.underflow, loss.saturated) == (0.25, 0)


GRIDS = {
    "q2.3": [k / 8 for k in range(-32, 32)],
    "uq1.2": [k / 4 for k in range(8)],
    "fp8_e4m3": sorted({s * v for v in minifloats(4, 3, 7, 448) for s in (1, -1)}),
    "fp8_e5m2": sorted({s * v for v in minifloats(5, 2, 15, 57344) for s in (1, -1)}),
}


@pytest.mark.parametrize("name", GRIDS)
def test_formats_hold_the_nearest_of_their_values(name):
    grid, form = np.array(GRIDS[name]), parse_format(name)
    assert (form.low, form.high) == (grid[0], grid[-1])
    x = torch.cat([normal(4000) * 3, normal(500).exp() * 100, torch.tensor(GRIDS[name]), torch.tensor([1e6, -1e6, 0])])
    x = x.float()
    held = form.represent(x).double().numpy()
    assert np.isin(held, grid).all()
    distance = np.abs(x.double().numpy()[:, None] - grid)
    np.testing.assert_array_equal(np.abs(x.double().numpy() - held), distance.min(1))
    truncated = grid[np.clip(np.searchsorted(grid, x.double().numpy(), side="right") - 1, 0, None)]
    assert (np.abs(x.double().numpy() - truncated) > distance.min(1)).any()  # rounding down would be seen


def test_the_noise_of_a_float_is_that_of_its_mantissa():
    """Magnitudes of one octave, evenly in the logarithm: a step of 1/8, so noise (1/8)^2 / 12; 32.2 dB."""
    f = torch.exp2(torch.arange(N, dtype=torch.float64) / N)
    signal, noise = f.square().mean(), 2.0**-6 / 12
    found = measure(f.float(), formats=["fp8_e4m3"]).formats[0]
    assert found.sqnr_db == pytest.approx(10 * math.log10(signal / noise), abs=0.05)
    assert (found.saturated, found.underflow) == (0, 0)


@pytest.mark.parametrize("name", ["int8", "q3", "q0.0", "q20.20", "fp8", ""])
def test_unknown_formats(name):
    with pytest.raises(UserError, match="--format"):
        parse_format(name)
