"""Quantised ConSmax, every code of every table, against a model in integers and 60-digit decimals."""

import itertools
from decimal import Decimal, getcontext
from fractions import Fraction

import pytest
import torch

from gptcore.config import Dims
from gptcore.softmax import consmax_quan
from gptcore.softmax.consmax_quan import ConSmaxQuan

getcontext().prec = 60
LIVE = torch.ones(1, 1, dtype=torch.bool)
# format -> significant bits, exponent of the smallest normal number, largest number
FORMATS = {"bf16": (8, -126, (2**8 - 1) * 2**120), "fp16": (11, -14, 65504)}


def make(**knobs):
    return ConSmaxQuan(ConSmaxQuan.Config(**knobs), Dims(8, 1, 16, True, 0.0), 2)


def rounded(x: Fraction, form: str) -> Fraction:
    """x > 0 as an integer of p bits times a power of two, halves to the even integer."""
    p, lowest, highest = FORMATS[form]
    e = 0
    while x >= Fraction(2) ** (e + p):
        e += 1
    while x < Fraction(2) ** (e + p - 1):
        e -= 1
    quotient = x / Fraction(2) ** e
    whole = quotient.numerator // quotient.denominator
    rest = quotient - whole
    whole += rest > Fraction(1, 2) or (rest == Fraction(1, 2) and whole % 2)
    value = whole * Fraction(2) ** e
    return Fraction(0) if value < Fraction(2) ** lowest else min(value, Fraction(highest))


def power(base: str, exponent: Fraction) -> Fraction:
    x = Decimal(exponent.numerator) / Decimal(exponent.denominator)
    return Fraction(x.exp() if base == "e" else Decimal(2) ** x)


def model(code: int, constant: Fraction, *, bits, log2_reach, table, format, base) -> Fraction:
    """The weight of one code, as the circuit finds it."""
    step = Fraction(2) ** (log2_reach + 1 - bits)
    if table == "full":
        e = rounded(power(base, code * step), format)
    else:
        m = bits // 2
        high, low = code >> m, code & (2**m - 1)
        e = rounded(rounded(power(base, high * 2**m * step), format) * rounded(power(base, low * step), format), format)
    return rounded(e * constant, format) if e and constant else Fraction(0)


TABLES = [
    {"bits": bits, "log2_reach": reach, "table": table, "format": form, "base": base}
    for (bits, reach), table, form, base in itertools.product(
        [(8, 3), (7, 2), (4, 3)], ["full", "split"], ["bf16", "fp16"], ["e", "2"]
    )
]


@pytest.mark.parametrize("knobs", TABLES, ids=lambda k: "-".join(map(str, k.values())))
@pytest.mark.parametrize("beta, gamma", [(2.5, 100.0), (-3.0, 0.01), (3.0, 7000.0)])  # ordinary, overflow, underflow
def test_every_code(knobs, beta, gamma):
    module = make(**knobs, initial_beta=beta, initial_gamma=gamma)
    half, step = 2 ** (knobs["bits"] - 1), 2.0 ** (knobs["log2_reach"] + 1 - knobs["bits"])
    codes = torch.arange(-half, half)
    weights = module.weights((codes * step).view(1, 1, 1, -1).expand(1, 2, 1, -1), LIVE)
    power_of_base = torch.exp(torch.tensor(-beta) * module.ln_base)  # fp32, as the constant is defined
    constant = rounded(Fraction((power_of_base / torch.tensor(gamma)).item()), knobs["format"])
    expected = [model(code, constant, **knobs) for code in codes.tolist()]
    for h in range(2):
        assert [Fraction(w) for w in weights[0, h, 0].tolist()] == expected


def test_a_table_that_truncates_is_noticed(monkeypatch):
    def truncate(x, form):
        return (x.view(torch.int32) >> 16 << 16).view(torch.float32)

    monkeypatch.setattr(consmax_quan, "round_tensor", truncate)
    with pytest.raises(AssertionError):
        test_every_code(TABLES[0], 2.5, 100.0)


def test_rounding_of_tensors_equals_that_of_numbers():
    """Around every boundary: halves, the smallest normal number, the largest."""
    for name, (p, lowest, highest) in FORMATS.items():
        form = consmax_quan.FORMATS[name]
        ulp = 2.0 ** (1 - p)
        near = [1 + k * ulp / 4 for k in range(16)]
        smallest = [2.0**lowest * (1 - k * ulp / 8) for k in range(-3, 12)] if name == "fp16" else []
        largest = [highest * (1 + k * ulp / 4) for k in (-4, -2, -1, 0)] + [70000.0] * (name == "fp16")
        values = near + smallest + largest
        got = consmax_quan.round_tensor(torch.tensor(values), form).tolist()
        assert got == [consmax_quan.round_number(x, form) for x in torch.tensor(values).tolist()]
        assert [Fraction(x) for x in got] == [rounded(Fraction(x), name) for x in torch.tensor(values).tolist()]


def test_scores_between_codes_and_beyond():
    """Halves go to the even code; what is beyond the last code stays at it."""
    module = make()
    step = 2.0**-4
    for score, code in [
        (0.5, 0), (1.5, 2), (2.5, 2), (-0.5, 0), (-1.5, -2), (2.49, 2), (127.4, 127), (500, 127), (-128.6, -128),
        (float("inf"), 127), (-1e30, -128),
    ]:  # fmt: skip
        got = module.weights(torch.tensor([[[[score * step]], [[score * step]]]]), LIVE)
        assert torch.equal(got, module.weights(torch.tensor([[[[code * step]], [[code * step]]]]), LIVE)), score


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_the_type_of_the_model_leaves_the_table_alone(dtype):
    knobs = {"format": "fp16", "log2_reach": 3, "initial_beta": 2.5, "initial_gamma": 64.0}  # fit every type
    scores = torch.linspace(-8, 7.9, 50).view(1, 1, 1, -1).expand(1, 2, 1, -1)
    assert torch.equal(make(**knobs).to(dtype).weights(scores, LIVE), make(**knobs).weights(scores, LIVE))


@pytest.mark.parametrize("base, ln_base", [("e", 1.0), ("2", 0.6931471805599453)])
def test_gradients_are_those_of_consmax_at_the_rounded_weights(base, ln_base):
    module = make(base=base)
    scores = torch.tensor([-9.0, -3.3, 0.1, 7.2, 8.5]).view(1, 1, 1, -1).repeat(2, 2, 1, 1).requires_grad_()
    weights = module.weights(scores, torch.tensor([[True, True, True, False, True]]))
    d = torch.linspace(-1, 2, weights.numel()).view_as(weights)
    weights.backward(d)
    product = (d * weights).detach()
    inside = torch.tensor([0.0, 1.0, 1.0, 0.0, 0.0])  # beyond the codes, and the masked one
    tolerance = {"rtol": 8 * torch.finfo(torch.float32).eps, "atol": 0.0}
    torch.testing.assert_close(scores.grad, ln_base * product * inside, **tolerance)
    torch.testing.assert_close(module.beta.grad, -ln_base * product.sum((0, 2, 3)), **tolerance)
    torch.testing.assert_close(module.gamma.grad, -product.sum((0, 2, 3)) / 100, **tolerance)
