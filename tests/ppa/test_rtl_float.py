"""Models of the float operators against numpy and torch, which round to the nearest, ties to even, as well."""

import numpy as np
import pytest
import torch

from gptcore.softmax.consmax_quan import FORMATS as TRAINED
from gptcore.softmax.consmax_quan import round_number
from ppa.rtl import fp, make
from ppa.rtl.fp import BF16, E4M3, FORMATS, FP16, FP32

# Bounds of exponents between which neither an operand nor a sum nor a product leaves the normal numbers.
SAFE = {"bf16": (-60, 60), "fp16": (-6, 6), "fp32": (-60, 60), "e4m3": (-2, 3)}


def patterns(rng, name, count):
    """Random normal numbers, with many ties, cancellations and equal exponents among them."""
    fmt = FORMATS[name]
    low, high = SAFE[name]
    exponent = rng.integers(low, high + 1, count) if rng.integers(2) else rng.integers(0, 3, count)
    mantissa = rng.integers(0, 1 << fmt.man, count) >> (shift := rng.integers(0, fmt.man + 1, count)) << shift
    return rng.integers(0, 2, count) << (fmt.width - 1) | (exponent + fmt.bias) << fmt.man | mantissa


def rounded(exact, name):
    """Patterns of float64 numbers by numpy and torch; each of them rounds once."""
    if name == "bf16":
        # torch goes by fp32, which would round twice: what fp32 leaves out becomes its last bit.
        single = exact.astype(np.float32).astype(np.float64)
        bits = exact.astype(np.float32).view(np.int32) - (np.abs(single) > np.abs(exact))
        odd = (bits | (single != exact)).astype(np.int32)
        return torch.from_numpy(odd).view(torch.float32).bfloat16().view(torch.int16).numpy().astype(int) & 0xFFFF
    if name == "e4m3":
        return torch.from_numpy(exact).float().to(torch.float8_e4m3fn).view(torch.uint8).numpy().astype(int)
    kind = {"fp16": (np.float16, np.uint16), "fp32": (np.float32, np.uint32)}[name]
    return exact.astype(kind[0]).view(kind[1]).astype(int)


@pytest.mark.parametrize("name", FORMATS)
def test_products_sums_and_conversions(name):
    fmt, rng = FORMATS[name], np.random.default_rng(0)
    for _ in range(20):
        a, b = patterns(rng, name, 5000), patterns(rng, name, 5000)
        x, y = fp.to_float(a, fmt), fp.to_float(b, fmt)
        assert (fp.from_float(x, fmt) == a).all()
        assert (fp.fp_mul(a, b, fmt) == rounded(x * y, name)).all()
        # A float64 sum is exact, or else one operand is too small to change the other.
        far = np.maximum(np.abs(x / y), np.abs(y / x)) >= 2.0 ** (51 - fmt.man)
        total = np.where(far, np.where(np.abs(x) > np.abs(y), x, y), x + y)
        assert (fp.fp_add(a, b, fmt) == rounded(np.where(total == 0, 0.0, total), name)).all()


@pytest.mark.parametrize("name", ["bf16", "fp16", "fp32"])
def test_quotients(name):
    """A float64 quotient is never so near a tie that its own rounding matters; fp32 is divided by numpy itself."""
    fmt, rng = FORMATS[name], np.random.default_rng(2)
    for _ in range(20):
        a, b = patterns(rng, name, 5000), patterns(rng, name, 5000)
        x, y = (fp.to_float(v, fmt).astype(np.float32 if name == "fp32" else np.float64) for v in (a, b))
        assert (fp.fp_div(a, b, fmt) == rounded((x / y).astype(np.float64), name)).all()
    sign = 1 << (fmt.width - 1)
    assert fp.fp_div(fmt.one | sign, 0, fmt) == fmt.highest | sign  # nothing is infinite
    assert fp.fp_div(sign, 1, fmt) == 0 and fp.fp_div(0, fmt.one, fmt) == 0
    assert fp.fp_div(fmt.highest, fmt.one >> 1, fmt) == fmt.highest and fp.fp_div(1 << fmt.man, fmt.highest, fmt) == 0


@pytest.mark.parametrize("name", ["bf16", "fp16", "e4m3"])
def test_sums_of_products(name):
    """Exact products, fp32 sums, as numpy adds them; an operand counts from the second cycle after its own on."""
    operator, rng = make(f"mac_{name}"), np.random.default_rng(3)
    fmt, streams = FORMATS[name], 500
    operator.reset(streams)
    expected = [np.zeros(streams, dtype=np.float32)] * 2
    for _ in range(60):
        a, b = patterns(rng, name, streams), patterns(rng, name, streams)
        clear = rng.integers(0, 8, streams) == 0
        acc = operator.step({"a": a, "b": b, "clear": clear.astype(np.int64)})["acc"]
        assert (fp.to_float(acc, FP32) == expected[-2]).all()
        product = (fp.to_float(a, fmt) * fp.to_float(b, fmt)).astype(np.float32)
        expected.append(np.where(clear, np.float32(0), expected[-1]) + product)


def test_every_pattern_returns_from_a_float():
    for fmt in (BF16, FP16, E4M3):
        bits = np.arange(1 << fmt.width)
        kept = (bits & ((1 << (fmt.width - 1)) - 1)) <= fmt.highest
        expected = np.where(bits >> fmt.man & ((1 << fmt.exp) - 1) == 0, 0, bits)
        assert (fp.from_float(fp.to_float(bits, fmt), fmt) == expected)[kept].all()


@pytest.mark.parametrize("fmt", FORMATS.values(), ids=FORMATS)
def test_ends_of_the_range(fmt):
    smallest, sign = 1 << fmt.man, 1 << (fmt.width - 1)
    two, half, one = fmt.one + smallest, fmt.one - smallest, fmt.one
    # Products: overflow saturates with its sign; underflow is +0; what rounds up to the smallest normal stays.
    assert (
        fp.fp_mul(fmt.highest, two, fmt) == fmt.highest
        and fp.fp_mul(fmt.highest | sign, two, fmt) == fmt.highest | sign
    )
    assert fp.fp_mul(smallest | sign, half, fmt) == 0
    assert fp.fp_mul(2 * smallest - 1 + smallest, half, fmt) == 2 * smallest - 1
    assert fp.fp_mul(2 * smallest - 1, one - 1, fmt) == 2 * smallest - 2  # still normal
    assert fp.fp_mul(smallest + 1, one - 1, fmt) == smallest  # 1 + 2^-man - 2^-(man + 1) - .. rounds to 1 or above
    assert fp.fp_mul(smallest, one - 1, fmt) == 0
    # Operands without an exponent are zeros, also the negative ones.
    assert fp.fp_mul(1, two, fmt) == 0 and fp.fp_mul(sign, one, fmt) == 0 and fp.fp_add(sign, sign | 1, fmt) == 0
    assert fp.fp_add(one | sign, 1, fmt) == one | sign
    # Sums: exact cancellation, saturation, a difference below the smallest normal.
    assert fp.fp_add(one, one | sign, fmt) == 0
    assert fp.fp_add(fmt.highest, fmt.highest, fmt) == fmt.highest
    assert fp.fp_add(smallest + 1, smallest | sign, fmt) == 0
    assert fp.from_float(np.array([1e300, -1e300, np.inf]), fmt).tolist() == [
        fmt.highest,
        fmt.highest | sign,
        fmt.highest,
    ]
    assert (
        fp.to_float(fmt.highest, fmt)
        == {BF16: 3.3895313892515355e38, FP16: 65504, FP32: np.finfo(np.float32).max, E4M3: 448}[fmt]
    )
    with pytest.raises(ValueError, match="NaN"):
        fp.from_float(np.nan, fmt)


def test_rounding_once_after_flushing_is_that_of_the_trained_weights():
    rng = np.random.default_rng(1)
    for name, fmt in (("bf16", BF16), ("fp16", FP16)):
        low = TRAINED[name].lowest
        x = np.concatenate([np.exp2(rng.uniform(-140, 130, 5000)), low * (1 - np.exp2(-rng.uniform(5, 14, 2000)))])
        expected = [round_number(v, TRAINED[name]) for v in x.tolist()]
        assert fp.to_float(fp.from_float(x, fmt), fmt).tolist() == expected
