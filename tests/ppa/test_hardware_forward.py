"""What is trained is what is synthesised: forward passes of gptcore against the bit-accurate models, bit for bit.

Activations on every code that there is, integer softermax on rows of random lengths; each twice, with a seeded fault.
Quantised consmax: test_rtl_softmax.py; norms: test_hardware_norm.py.
"""

import numpy as np
import pytest
import torch

from gptcore.activation.lut_int import LutInt
from gptcore.activation.piecewise_int import PiecewiseInt
from gptcore.config import Dims
from gptcore.softmax.softermax_int import SoftermaxInt
from ppa import rtl
from ppa.rtl.integers import signed, unsigned
from ppa.rtl.lut_activation import LutActivation
from ppa.rtl.pwl_activation import PwlActivation
from ppa.rtl.softermax import Softermax

INT8 = np.arange(-128, 128)
INT16 = np.arange(-(1 << 15), 1 << 15)
LUTS, LINES = list(LutActivation.points), list(PwlActivation.points)
DIMS = Dims(8, 1, 16, True, 0.0)


def lookup(function, fraction_in, fraction_out):
    return LutInt(LutInt.Config(function=function, fraction_in=fraction_in, fraction_out=fraction_out))


def forward(module, codes, fraction_in, fraction_out, dtype=torch.float32):
    """Results in steps, of inputs that lie exactly on codes."""
    y = module(torch.from_numpy(codes).to(dtype) * 2.0**-fraction_in).double() * 2.0**fraction_out
    assert torch.equal(y, y.round())
    return y.long().numpy()


def check_lut(operator, module, dtype=torch.float32):
    knobs = operator.parameters
    got = forward(module, INT8, knobs["fraction_in"], knobs["fraction_out"], dtype)
    assert np.array_equal(got, signed(operator.step({"x": unsigned(INT8, 8)})["y"], 8))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", LUTS)
def test_every_code_of_a_table(name, dtype):
    operator = rtl.make(name)
    check_lut(operator, lookup(**operator.parameters).to(dtype), dtype)


@pytest.mark.parametrize("fractions", [(0, 8), (3, 3), (4, 6), (6, 2), (8, 0)], ids=str)
@pytest.mark.parametrize("function", ["gelu", "silu", "tanh", "sigmoid"])
def test_every_code_of_other_formats(function, fractions):
    check_lut(LutActivation(function, *fractions), lookup(function, *fractions))


def check_lines(name):
    operator = rtl.make(name)
    module = PiecewiseInt(PiecewiseInt.Config(function=operator.parameters["function"]))
    got = forward(module, INT16, 12, 12)
    assert np.array_equal(got, signed(operator.step({"x": unsigned(INT16, 16)})["y"], 16))


@pytest.mark.parametrize("name", LINES)
def test_every_code_of_straight_lines(name):
    check_lines(name)


def test_one_wrong_entry_is_noticed():
    operator = rtl.make("gelu_lut256")
    module = lookup(**operator.parameters)
    module.table[77] += 1
    with pytest.raises(AssertionError):
        check_lut(operator, module)


def test_a_truncated_line_is_noticed(monkeypatch):
    right = PiecewiseInt.steps

    def truncated(self, code):
        inside = code.clamp(-(4 << 12), (4 << 12) - 1) + (4 << 12)
        return right(self, code) - (self.rise[inside >> 11] * (inside & 2047) >> 10 & 1)  # what rounding had added

    monkeypatch.setattr(PiecewiseInt, "steps", truncated)
    with pytest.raises(AssertionError):
        check_lines("gelu_pwl16")


@pytest.mark.parametrize(
    "module, codes, fraction",
    [(LutInt(LutInt.Config()), INT8, 5), (PiecewiseInt(PiecewiseInt.Config()), INT16[::256], 12)],
    ids=["lut_int", "piecewise_int"],
)
def test_inputs_between_codes_and_beyond(module, codes, fraction):
    """To the nearest code, halves to the even one; beyond the last one to it. Undefined stays undefined."""
    step, rng = 2.0**-fraction, np.random.default_rng(0)
    inside = codes[1:-1] + rng.uniform(-0.499, 0.499, len(codes) - 2)
    assert torch.equal(module(torch.from_numpy(inside * step)), module(torch.from_numpy(codes[1:-1] * step)))
    ends = [(2.5, 2), (3.5, 4), (-0.5, 0), (1e30, codes[-1] if fraction == 5 else 32767), (float("-inf"), codes[0])]
    for given, code in ends:
        expected = module(torch.tensor([float(code) * step], dtype=torch.float64))
        assert torch.equal(module(torch.tensor([given * step], dtype=torch.float64)), expected), given
    assert module(torch.tensor([float("nan")])).isnan()


@pytest.mark.parametrize("kind, reach", [(LutInt, 127 / 32), (PiecewiseInt, 32767 / 4096)])
@pytest.mark.parametrize("function", ["gelu", "tanh"])
def test_gradient_is_that_of_the_function(kind, reach, function):
    """gelu' = Phi + x phi, tanh' = 1 - tanh^2; zero beyond the codes, and where the result is."""
    x = torch.linspace(-9, 9, 801, dtype=torch.float64).requires_grad_()
    kind(kind.Config(function=function))(x).sum().backward()
    at = x.detach()
    gelu = torch.special.ndtr(at) + at * torch.exp(-at * at / 2) / np.sqrt(2 * np.pi)
    slope = gelu if function == "gelu" else 1 - torch.tanh(at) ** 2
    low = -4.0 if kind is LutInt else -8.0
    inside = (at >= low) & (at <= reach)
    assert inside.any() and not inside.all()
    assert (x.grad - slope * inside).abs().max() <= 16 * torch.finfo(torch.float64).eps


def test_gradient_stops_where_the_result_saturates():
    x = torch.tensor([1.0, 3.0]).requires_grad_()  # silu(3) = 2.86 is above 127 / 64
    lookup("silu", 4, 6)(x).sum().backward()
    assert x.grad[0] > 0.9 and x.grad[1] == 0


# Softermax


def circuit(operator, codes, lengths):
    """Weights (rows, S), in steps, of rows of codes side by side as streams; zeros behind the end of a row."""
    rows, S = codes.shape
    operator.reset(rows)
    port, weights, sent = operator.inputs()["score"], np.zeros((rows, S), np.int64), []
    for phase, last in ((0, 1), (1, 4)):  # one idle cycle between the passes, and the latency of 3
        for i in range(S + last):
            valid = np.full(rows, i < S) & (i < lengths)
            x = {"valid": valid, "phase": np.full(rows, phase), "start": np.full(rows, i == 0 and phase == 0)}
            at = {name: np.asarray(value, np.int64) for name, value in x.items()}
            out = operator.step({**at, "score": unsigned(codes[:, min(i, S - 1)], port)})
            sent.append(out)
    for i in range(S):
        out = sent[S + 1 + i + 3]
        there = i < lengths
        assert (out["out_valid"] == there).all()
        weights[there, i] = out["weight"][there]
    return weights


def trained(module, codes, lengths, places, dtype=torch.float32):
    live = torch.from_numpy(np.arange(codes.shape[1]) < lengths[:, None])
    scores = torch.from_numpy(codes).to(dtype)[None, None] * 2.0**-places
    weights = module.weights(scores, live)[0, 0].double() * 2.0**15
    assert torch.equal(weights, weights.round())
    return weights.long().numpy()


def random_rows(rng, count, longest, bits):
    """Codes of many spreads, of them whole numbers, equal ones, rising and falling ones; lengths from 1 on."""
    half = 1 << (bits - 1)
    spread = half * 2.0 ** rng.uniform(-10, 1, (count, 1))
    codes = np.round(spread * rng.standard_normal((count, longest)) + half * rng.uniform(-0.5, 0.5, (count, 1)))
    codes[::7] = np.round(codes[::7] / 64) * 64
    codes[1::50], codes[2::50] = codes[1::50, :1], np.sort(codes[2::50], axis=1)
    codes[3::50], codes[4] = -np.sort(-codes[3::50], axis=1), np.where(np.arange(longest) % 2, half, -half)
    return np.clip(codes, -half, half - 1).astype(np.int64), rng.integers(1, longest + 1, count)


def check_softermax(count, longest, dtype=torch.float32, **knobs):
    config = SoftermaxInt.Config(**knobs)
    operator = Softermax(INT=config.integer, FRAC=config.fraction, SUM=config.sum_bits)
    codes, lengths = random_rows(np.random.default_rng(longest), count, longest, config.integer + config.fraction)
    got = trained(SoftermaxInt(config, DIMS, 1), codes, lengths, config.fraction, dtype)
    assert (got == circuit(operator, codes, lengths)).all()


@pytest.mark.parametrize("count, longest", [(4000, 3), (4000, 17), (3000, 64), (1000, 256), (8, 2047)])
def test_softermax_of_random_rows(count, longest):
    """12,008 rows in all."""
    check_softermax(count, longest)


def test_parameters_of_the_calibrated_point_are_the_defaults():
    config, point = SoftermaxInt.Config(), rtl.make("softermax").parameters
    assert (point["INT"], point["FRAC"], point["SUM"]) == (config.integer, config.fraction, config.sum_bits)
    assert np.array_equal(SoftermaxInt(config, DIMS, 1).powers, rtl.make("softermax").powers)


@pytest.mark.parametrize("integer, fraction, sum_bits", [(6, 6, 24), (4, 4, 20), (2, 8, 23), (6, 1, 30)])
def test_softermax_of_other_formats(integer, fraction, sum_bits):
    check_softermax(300, min(2 ** (sum_bits - 15) - 1, 80), integer=integer, fraction=fraction, sum_bits=sum_bits)


def floor_at_the_end(self, scores, live):
    """The sum of all powers by the last maximum, without the roundings on the way."""
    places, half = self.config.fraction, 2 ** (self.config.integer - 1)
    code = torch.round(scores * 2**places).long().clamp(-half << places, (half << places) - 1)
    whole, rest = code >> places, code & ((1 << places) - 1)
    highest = torch.where(live, whole + (rest > 0), -half).amax(-1, keepdim=True)
    power = self.powers[rest] >> highest - whole
    total = power.masked_fill(~live, 0).sum(-1, keepdim=True)
    shift = sum((total >> bit > 0).long() for bit in range(15, self.config.sum_bits))
    return power * self.reciprocals[total >> (shift + 8) & 63] >> 8 + shift


def one_reciprocal_off(self, scores, live):
    self.reciprocals[20] += 1
    return _RIGHT(self, scores, live)


_RIGHT = SoftermaxInt._integers


@pytest.mark.parametrize("fault", [floor_at_the_end, one_reciprocal_off])
def test_a_fault_of_softermax_is_noticed(fault, monkeypatch):
    monkeypatch.setattr(SoftermaxInt, "_integers", fault)
    with pytest.raises(AssertionError):
        check_softermax(3000, 64)


def test_scores_that_nobody_sees_do_not_count():
    """Also where the first keys are out of the window, and where a row sees nothing."""
    module, rng = SoftermaxInt(SoftermaxInt.Config(), DIMS, 1), np.random.default_rng(1)
    scores = torch.from_numpy(rng.normal(0, 3, (1, 1, 3, 9)))
    live = torch.ones(3, 9, dtype=torch.bool)
    live[0, :4], live[1] = False, False
    noise = torch.where(live, scores, torch.tensor(float("nan")))
    weights = module.weights(noise, live)
    assert torch.equal(weights[..., :1, 4:], module.weights(scores[..., :1, 4:], live[:1, 4:]))
    assert (weights[..., 0, :4] == 0).all() and (weights[..., 1, :] == 0).all()


def test_gradient_of_softermax_is_that_of_base_two():
    module = SoftermaxInt(SoftermaxInt.Config(), DIMS, 1)
    scores = torch.tensor([[[[0.3, -1.2, 2.7, 40.0]]]], dtype=torch.float64).requires_grad_()
    d = torch.tensor([0.5, -1.0, 2.0, 7.0], dtype=torch.float64)
    module.weights(scores, torch.tensor([[True, True, True, False]])).backward(d.view(1, 1, 1, 4))
    power = np.exp2(np.array([0.3, -1.2, 2.7]))
    p = power / power.sum()
    expected = np.log(2) * p * (d[:3].numpy() - (d[:3].numpy() * p).sum())
    assert np.abs(scores.grad[0, 0, 0, :3].numpy() - expected).max() <= 1e-15 and scores.grad[0, 0, 0, 3] == 0
    beyond = torch.tensor([[[[40.0, 1.0]]]]).requires_grad_()
    module.weights(beyond, torch.ones(1, 2, dtype=torch.bool))[..., 1].sum().backward()
    assert beyond.grad[0, 0, 0, 0] == 0


def test_rows_that_overflow_the_sum_are_refused():
    config = SoftermaxInt.Config(sum_bits=20)
    (problem,) = SoftermaxInt.check(config, Dims(8, 1, 32, True, 0.0))
    assert problem.field == "sum_bits" and "21 bits" in problem.message
    assert not list(SoftermaxInt.check(config, Dims(8, 1, 31, True, 0.0)))
