"""Student intervals against published tables, against scipy where it is there, and by coverage."""

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from search.paired import best_case, central_probability, central_quantile, expected_half_width, interval

# Federighi, J. Am. Stat. Assoc. 54 (1959), table of Student's t (upper tail 0.10 .. 0.001), three places.
TAILS = (0.10, 0.05, 0.025, 0.01, 0.005, 0.001)
TABLE = {
    1: (3.078, 6.314, 12.706, 31.821, 63.657, 318.309),
    2: (1.886, 2.920, 4.303, 6.965, 9.925, 22.327),
    3: (1.638, 2.353, 3.182, 4.541, 5.841, 10.214),
    4: (1.533, 2.132, 2.776, 3.747, 4.604, 7.173),
    5: (1.476, 2.015, 2.571, 3.365, 4.032, 5.893),
    6: (1.440, 1.943, 2.447, 3.143, 3.707, 5.208),
    9: (1.383, 1.833, 2.262, 2.821, 3.250, 4.297),
    10: (1.372, 1.812, 2.228, 2.764, 3.169, 4.144),
    20: (1.325, 1.725, 2.086, 2.528, 2.845, 3.552),
    30: (1.310, 1.697, 2.042, 2.457, 2.750, 3.385),
}
# The same to five places, upper tails 0.05, 0.025 and 0.005 (table at fr.scribd.com/document/347558049).
FINE = {
    1: (6.313752, 12.7062, 63.65674), 2: (2.919986, 4.30265, 9.92484), 3: (2.353363, 3.18245, 5.84091),
    4: (2.131847, 2.77645, 4.60409), 5: (2.015048, 2.57058, 4.03214), 6: (1.943180, 2.44691, 3.70743),
    7: (1.894579, 2.36462, 3.49948), 8: (1.859548, 2.30600, 3.35539), 9: (1.833113, 2.26216, 3.24984),
    10: (1.812461, 2.22814, 3.16927),
}  # fmt: skip
gains = st.lists(st.integers(-2000, 2000).map(lambda k: k / 1024), min_size=2, max_size=8)


@pytest.mark.parametrize("freedom", TABLE)
def test_quantiles_of_the_table(freedom):
    """To a unit of the last place: 10.214 of 3 degrees is printed as 10.215 elsewhere."""
    for tail, published in zip(TAILS, TABLE[freedom], strict=True):
        assert central_quantile(1 - 2 * tail, freedom) == pytest.approx(published, abs=0.001)


@pytest.mark.parametrize("freedom", FINE)
def test_quantiles_to_four_places(freedom):
    for tail, published in zip((0.05, 0.025, 0.005), FINE[freedom], strict=True):
        assert central_quantile(1 - 2 * tail, freedom) == pytest.approx(published, abs=1e-4)
        if freedom > 1:  # one degree off shows
            assert central_quantile(1 - 2 * tail, freedom - 1) != pytest.approx(published, abs=1e-4)


@given(st.floats(0.01, 0.999))
def test_quantiles_of_one_two_and_four_degrees_in_closed_form(p):
    """One degree is Cauchy's distribution; two and four have algebraic distribution functions."""
    assert central_quantile(p, 1) == pytest.approx(math.tan(math.pi * p / 2), rel=1e-9)
    assert central_quantile(p, 2) == pytest.approx(p * math.sqrt(2 / (1 - p * p)), rel=1e-9)
    # q = cos(acos(sqrt(a)) / 3) / sqrt(a), a = 1 - p^2: t = 2 sqrt(q - 1)  (Shaw 2006, J. Comput. Finance 9(4))
    a = 1 - p * p
    assert central_quantile(p, 4) == pytest.approx(
        2 * math.sqrt(math.cos(math.acos(math.sqrt(a)) / 3) / math.sqrt(a) - 1), rel=1e-6
    )


def test_quantiles_against_scipy():
    stats = pytest.importorskip("scipy.stats")
    for confidence in (0.5, 0.9, 0.95, 0.999):
        for freedom in (*range(1, 40), 120, 1001):
            expected = stats.t.ppf((1 + confidence) / 2, freedom)
            assert central_quantile(confidence, freedom) == pytest.approx(expected, rel=1e-9)


def test_probability_is_a_distribution_function():
    for freedom in (1, 2, 3, 8, 25):
        values = [central_probability(t / 10, freedom) for t in range(0, 4000, 7)]
        rounding = 1e-15 * freedom  # of a sum of freedom / 2 terms below 1
        assert all(b >= a - rounding for a, b in zip(values, values[1:], strict=False))
        assert values[0] == 0 and 0.998 < values[-1] <= 1 + rounding


def test_interval_of_a_worked_example():
    """Student's own sleep data (1908, table 1): mean 1.58, s 1.23, t(9) = 2.262 give 0.70 to 2.46 hours."""
    extra = (1.2, 2.4, 1.3, 1.3, 0.0, 1.0, 1.8, 0.8, 4.6, 1.4)
    found = interval(extra, 0.95)
    assert (round(found.mean, 2), round(found.low, 2), round(found.high, 2), found.seeds) == (1.58, 0.70, 2.46, 10)


def test_one_sample_gives_no_interval():
    found = interval((0.3,), 0.95)
    assert (found.mean, found.low, found.high, found.seeds) == (0.3, None, None, 1)
    assert expected_half_width((0.3,), 3, 0.95) is None and best_case((0.3,), 3, 0.95) is None


def test_identical_differences_give_a_point():
    # 0.1 three times: the mean by summing is not 0.1 and would leave a spread of rounding.
    for value, times in ((0.1, 3), (0.0, 2), (-0.7, 6)):
        found = interval((value,) * times, 0.95)
        assert found.mean == found.low == found.high == value
        assert expected_half_width((value,) * times, 2, 0.95) == 0.0


@pytest.mark.parametrize("bad", [(), (0.1, math.nan), (math.inf, 0.1), (0.1, None)])
def test_what_is_no_number_is_refused(bad):
    with pytest.raises(ValueError):
        interval(bad, 0.95)


@pytest.mark.parametrize(("confidence", "freedom"), [(0.0, 3), (1.0, 3), (math.nan, 3), (0.95, 0)])
def test_impossible_quantiles_are_refused(confidence, freedom):
    with pytest.raises(ValueError):
        central_quantile(confidence, freedom)


@given(gains, st.integers(-50, 50), st.floats(0.6, 0.99))
def test_interval_moves_turns_and_widens_with_its_data(values, shift, confidence):
    found = interval(values, confidence)
    moved = interval([v + shift for v in values], confidence)
    turned = interval([-v for v in values], confidence)
    assert found.low <= found.mean <= found.high
    assert moved.low == pytest.approx(found.low + shift, abs=1e-9)
    assert (turned.low, turned.high) == pytest.approx((-found.high, -found.low), abs=1e-9)
    wider = interval(values, (1 + confidence) / 2)
    assert wider.low <= found.low and wider.high >= found.high


def test_expected_half_width_is_the_width_of_equal_spread():
    """Two samples of spread s; eight with the same s by construction: +-s sqrt(7/8) each four times."""
    start = (0.5 - 1 / math.sqrt(2), 0.5 + 1 / math.sqrt(2))  # s = 1
    eight = [0.5 + sign * math.sqrt(7 / 8) for sign in (1, -1)] * 4  # s = 1
    wide = interval(eight, 0.9)
    assert expected_half_width(start, 6, 0.9) == pytest.approx((wide.high - wide.low) / 2, rel=1e-12)
    assert expected_half_width(start, 0, 0.9) == pytest.approx(interval(start, 0.9).high - 0.5, rel=1e-12)


@pytest.mark.parametrize("seeds", [2, 3, 6])
def test_coverage_is_the_confidence_and_a_normal_quantile_would_not_give_it(seeds):
    """4,000 samples: three standard errors of 95 % are 0.0103. With 1.96 for t, coverage of two seeds is 70 %."""
    rng = random.Random(seeds)
    samples = [[rng.gauss(0.2, 1.0) for _ in range(seeds)] for _ in range(4000)]
    inside = sum((i := interval(s, 0.95)).low <= 0.2 <= i.high for s in samples) / len(samples)
    narrow = 1.96 / central_quantile(0.95, seeds - 1)
    naive = sum(abs((i := interval(s, 0.95)).mean - 0.2) <= narrow * (i.high - i.low) / 2 for s in samples)
    assert inside == pytest.approx(0.95, abs=0.0103)
    assert naive / len(samples) < 0.95 - 0.0103


def test_best_case_covers_where_the_mean_goes():
    """The mean of six stays below what two foresaw in 97.5 % of cases (4,000 samples, three standard errors)."""
    rng = random.Random(5)
    samples = [[rng.gauss(0.0, 1.0) for _ in range(6)] for _ in range(4000)]
    below = sum(sum(s) / 6 <= best_case(s[:2], 4, 0.95).mean for s in samples) / len(samples)
    assert below == pytest.approx(0.975, abs=3 * math.sqrt(0.975 * 0.025 / 4000))
    assert best_case((0.1, 0.3), 0, 0.95).low == pytest.approx(interval((0.1, 0.3), 0.95).low)
