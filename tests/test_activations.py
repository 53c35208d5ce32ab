"""Every activation against its formula written out in the test, and the kinds made of tables against numpy.

Values and gradients in float64; half precision and extreme inputs apart.
"""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from gptcore.activation import tables
from gptcore.config import GPTConfig
from gptcore.flat import flat_names
from gptcore.ops import Graph, Pass
from gptcore.registry import kinds, lookup

EPS64 = torch.finfo(torch.float64).eps
HALVES = (torch.float16, torch.bfloat16)


def make(kind, **knobs):
    cls = lookup("activation", kind)
    return cls(cls.Config(**knobs))


def phi(x):
    """The normal distribution function."""
    return torch.special.ndtr(x)


def sigmoid(x):
    return 1 / (1 + torch.exp(-x))


FORMULAS = [
    ("celu", {"alpha": 0.5}, lambda x: torch.where(x > 0, x, 0.5 * (torch.exp(x / 0.5) - 1))),
    ("elu", {"alpha": 1.5}, lambda x: torch.where(x > 0, x, 1.5 * (torch.exp(x) - 1))),
    ("gelu", {}, lambda x: x * phi(x)),
    ("gelu_shifted", {"shift": 0.25}, lambda x: (x - 0.25) * phi(x - 0.25)),
    ("gelu_shifted", {"shift": -0.3, "learned": False}, lambda x: (x + 0.3) * phi(x + 0.3)),
    ("identity", {}, lambda x: x),
    ("leaky_relu", {"slope": 0.2}, lambda x: torch.where(x > 0, x, 0.2 * x)),
    ("mish", {}, lambda x: x * torch.tanh(torch.log(1 + torch.exp(x)))),
    ("prelu", {"initial_slope": 1.5}, lambda x: torch.where(x > 0, x, 1.5 * x)),
    ("relu", {}, lambda x: torch.where(x > 0, x, 0 * x)),
    ("relu6", {}, lambda x: torch.where(x < 0, 0 * x, torch.where(x > 6, 0 * x + 6, x))),
    ("relu_power", {"power": 3.0}, lambda x: torch.where(x > 0, x * x * x, 0 * x)),
    ("relu_power", {"power": 1.0}, lambda x: torch.where(x > 0, x, 0 * x)),
    ("relu_power", {"power": 1.5}, lambda x: torch.where(x > 0, x * x.clamp_min(1e-9).sqrt(), 0 * x)),
    ("rrelu", {"lower": 0.1, "upper": 0.5}, lambda x: torch.where(x > 0, x, 0.3 * x)),
    ("selu", {}, lambda x: 1.0507009873554805 * torch.where(x > 0, x, 1.6732632423543772 * (torch.exp(x) - 1))),
    ("sigmoid", {}, sigmoid),
    ("silu", {}, lambda x: x * sigmoid(x)),
    ("softplus", {"beta": 1.7}, lambda x: torch.log(1 + torch.exp(1.7 * x)) / 1.7),
    ("softshrink", {"threshold": 0.4}, lambda x: torch.sign(x) * torch.where(x.abs() > 0.4, x.abs() - 0.4, 0 * x)),
    ("softsign", {}, lambda x: x / (1 + x * torch.sign(x))),
    ("squared_gelu", {}, lambda x: torch.sign(x) * (x * phi(x)) ** 2),
    ("squared_relu", {}, lambda x: torch.where(x > 0, x * x, 0 * x)),
    ("tanh", {}, lambda x: 1 - 2 / (torch.exp(2 * x) + 1)),
]


def inputs() -> torch.Tensor:
    """Points on both sides of every bend, none on one."""
    return torch.linspace(-8, 8, 400, dtype=torch.float64).requires_grad_()


@pytest.mark.parametrize("kind, knobs, formula", FORMULAS, ids=lambda v: v if isinstance(v, str) else "")
def test_formula(kind, knobs, formula):
    module, x, again = make(kind, **knobs).double().eval(), inputs(), inputs()
    y, reference = module(x), formula(again)
    y.sum().backward()
    reference.sum().backward()
    # A few roundings of numbers up to the largest intermediate: exp(16) in 1 - 2/(exp(2x) + 1) cancels back to one.
    for got, expected in ((y, reference), (x.grad, again.grad)):
        scale = max(1.0, expected.abs().max().item())
        assert (got - expected).abs().max().item() <= 64 * EPS64 * scale


TORCH = [
    ("celu", {"alpha": 0.7}, nn.CELU(0.7)),
    ("elu", {"alpha": 1.5}, nn.ELU(1.5)),
    ("gelu", {}, nn.GELU()),
    ("gelu_shifted", {}, nn.GELU()),
    ("glu", {}, nn.GLU()),
    ("leaky_relu", {}, nn.LeakyReLU()),
    ("mish", {}, nn.Mish()),
    ("prelu", {}, nn.PReLU()),
    ("relu6", {}, nn.ReLU6()),
    ("rrelu", {}, nn.RReLU()),
    ("selu", {}, nn.SELU()),
    ("sigmoid", {}, nn.Sigmoid()),
    ("silu", {}, nn.SiLU()),
    ("softplus", {}, nn.Softplus()),
    ("softshrink", {}, nn.Softshrink()),
    ("softsign", {}, nn.Softsign()),
    ("tanh", {}, nn.Tanh()),
    ("identity", {}, nn.Identity()),
]


@pytest.mark.parametrize("kind, knobs, theirs", TORCH, ids=lambda v: v if isinstance(v, str) else "")
def test_defaults_are_those_of_torch(kind, knobs, theirs):
    x = torch.randn(3, 5, 8)
    for training in (False, True):
        results = []
        for module in (make(kind, **knobs), theirs):
            torch.manual_seed(3)
            results.append(module.train(training)(x))
        torch.testing.assert_close(*results, rtol=0, atol=1e-7)


def test_gated_halves():
    module, x = make("glu"), torch.randn(2, 3, 10, dtype=torch.float64)
    assert (module(x) - x[..., :5] * sigmoid(x[..., 5:])).abs().max() <= 8 * EPS64
    g = Graph(Pass("prefill", 2, 3, 3))
    out = module.declare(module.config, g, g.tensor("x", 2, 3, 10))
    assert out.shape == module(x).shape == (2, 3, 10 // module.narrowing)
    (op,) = g.ops
    assert op.primitives() == {"exp": 30, "add": 30, "div": 30}


def test_random_slopes():
    module, x = make("rrelu", lower=0.2, upper=0.4), -torch.ones(10_000)
    torch.manual_seed(0)
    first = module(x)
    torch.manual_seed(0)
    assert torch.equal(first, module(x)) and not torch.equal(first, module(x))
    slopes = -first
    assert slopes.min() >= 0.2 and slopes.max() <= 0.4
    # The mean of n uniform numbers of width w has standard deviation w / sqrt(12 n); five of them.
    assert abs(slopes.mean().item() - 0.3) <= 5 * 0.2 / math.sqrt(12 * 10_000)
    assert torch.equal(module(-x), -x)


# Kinds made of tables


def spread(module, scale=0.3):
    """Random values in place of the initial ones."""
    torch.manual_seed(1)
    with torch.no_grad():
        for p in module.parameters():
            p.add_(torch.randn_like(p) * scale)
    return module.double()


def straight_tails(x, knots, values, left_slope, right_slope):
    inside = np.interp(x, knots, values)
    left, right = values[0] + left_slope * (x - knots[0]), values[-1] + right_slope * (x - knots[-1])
    return np.where(x < knots[0], left, np.where(x > knots[-1], right, inside))


def check_fixed_table():
    module = make("piecewise", points=7, left=-3.0, right=3.0)
    x = np.linspace(-20, 20, 3001)
    knots = np.linspace(-3, 3, 9)
    values = (torch.from_numpy(knots) * phi(torch.from_numpy(knots))).numpy()
    expected = straight_tails(x, knots, values, 0.0, 1.0)
    got = module.double()(torch.from_numpy(x)).numpy()
    assert np.abs(got - expected).max() <= 20 * torch.finfo(torch.float32).eps  # the table is kept in float32
    return module


def check_learned_values():
    module = spread(make("pfla", points=12, left=-4.0, right=3.0))
    x, knots, values = np.linspace(-9, 9, 3001), np.linspace(-4, 3, 12), module.values.detach().numpy()
    d = np.diff(values) / np.diff(knots)
    got = module(torch.from_numpy(x)).detach().numpy()
    assert np.abs(got - straight_tails(x, knots, values, d[0], d[-1])).max() <= 1000 * EPS64


def check_learned_knots():
    module = spread(make("pfla", points=12, left=-4.0, right=3.0, knots="learned"), scale=2.0)
    gaps = np.exp(module.gaps.detach().numpy())
    share = 7 / 8 * gaps / gaps.sum() + 1 / 8 / 11
    x, knots = np.linspace(-9, 9, 3001), -4 + 7 * np.concatenate([[0], np.cumsum(share)])
    assert abs(knots[-1] - 3) < 1e-12 and np.diff(knots).min() < 0.1 < 1.5 < np.diff(knots).max()
    values = module.values.detach().numpy()
    d = np.diff(values) / np.diff(knots)
    got = module(torch.from_numpy(x)).detach().numpy()
    assert np.abs(got - straight_tails(x, knots, values, d[0], d[-1])).max() <= 10_000 * EPS64  # slopes up to 30


def check_spline():
    """The matrix form of Catmull-Rom, with end points that prolong the outermost chords."""
    module = spread(make("learned_spline", knots=9, left=-4.0, right=4.0))
    p = module.values.detach().numpy()
    p = np.concatenate([[2 * p[0] - p[1]], p, [2 * p[-1] - p[-2]]])
    t = np.linspace(0, 1, 41)[:-1]
    for i in range(8):
        a, b, c, d = p[i : i + 4]
        expected = 0.5 * (
            2 * b + (c - a) * t + (2 * a - 5 * b + 4 * c - d) * t**2 + (3 * b - a - 3 * c + d) * t**3
        )  # fmt: skip
        got = module(torch.from_numpy(-4 + i + t)).detach().numpy()
        assert np.abs(got - expected).max() <= 1000 * EPS64
    x = torch.tensor([-9.0, 9.0], dtype=torch.float64)
    tails = torch.tensor([p[1] - 5 * (p[2] - p[1]), p[-2] + 5 * (p[-2] - p[-3])])
    assert (module(x) - tails).abs().max() <= 1000 * EPS64


TABLE_CHECKS = [check_fixed_table, check_learned_values, check_learned_knots, check_spline]


@pytest.mark.parametrize("check", TABLE_CHECKS)
def test_table_kinds(check):
    check()


@pytest.mark.parametrize("check", TABLE_CHECKS)
def test_checks_of_tables_see_a_neighbouring_segment(check, monkeypatch):
    right = tables.table_index

    def wrong(position, count):
        return (right(position, count) - 1).clamp_min(0)

    for module in ("tables", "pfla"):
        monkeypatch.setattr(f"gptcore.activation.{module}.table_index", wrong)
    with pytest.raises(AssertionError):
        check()


def test_fixed_table_error_is_that_of_linear_interpolation():
    """At most h^2 / 8 max |f''|: 2 phi(0) = 0.798 for gelu; outside what f misses of its asymptotes at the bounds."""
    x = torch.linspace(-30, 30, 5001, dtype=torch.float64)
    error = (make("piecewise").double()(x) - F.gelu(x)).abs()
    assert error.max() <= 0.5**2 / 8 * 2 / math.sqrt(2 * math.pi) + 1e-6
    assert error[x.abs() > 4].max() <= abs(F.gelu(torch.tensor(-4.0)).item()) + 1e-6


LEARNED = [
    ("gelu_shifted", {}),
    ("prelu", {}),
    ("pfla", {"points": 8, "left": -3.0, "right": 3.0}),
    ("pfla", {"points": 8, "left": -3.0, "right": 3.0, "knots": "learned"}),
    ("learned_spline", {"knots": 7, "left": -3.0, "right": 3.0}),
]


def check_gradients(kind, knobs):
    module = spread(make(kind, **knobs))
    names = [name for name, _ in module.named_parameters()]
    x = (torch.arange(-33, 34, dtype=torch.float64) * 0.131 + 0.017).requires_grad_()

    def function(x, *parameters):
        return torch.func.functional_call(module, dict(zip(names, parameters, strict=True)), (x,))

    parameters = [p.detach().clone().requires_grad_() for p in module.parameters()]
    assert torch.autograd.gradcheck(function, (x, *parameters), raise_exception=False)


@pytest.mark.parametrize("kind, knobs", LEARNED, ids=str)
def test_learned_parameters_by_finite_differences(kind, knobs):
    check_gradients(kind, knobs)


def test_finite_differences_see_a_wrong_power(monkeypatch):
    right = tables._PiecewisePolynomial.backward

    def wrong(ctx, grad):
        d_offset, none, d_table = right(ctx, grad)
        return d_offset, none, torch.cat([d_table[:1], 2 * d_table[1:]])

    monkeypatch.setattr(tables._PiecewisePolynomial, "backward", staticmethod(wrong))
    with pytest.raises(AssertionError):
        check_gradients("learned_spline", {"knots": 7})


def test_starts_on_gelu():
    x = torch.linspace(-12, 12, 999)
    for kind, bound in (("pfla", 0.408**2 / 8 * 0.8), ("learned_spline", 0.01)):
        assert (make(kind)(x) - F.gelu(x)).abs().max() <= bound


def test_undefined_and_infinite_numbers_index_nothing_outside():
    x = torch.tensor([math.nan, math.inf, -math.inf, 3e38, -3e38, 1.0])
    for kind, knobs in (("piecewise", {}), ("pfla", {}), ("pfla", {"knots": "learned"}), ("learned_spline", {})):
        y = make(kind, **knobs)(x)
        assert y[0].isnan() and y[-1].isfinite()


# All kinds


@pytest.mark.parametrize("kind", list(kinds("activation")))
@pytest.mark.parametrize("dtype", [torch.float32, *HALVES], ids=str)
def test_extreme_inputs(kind, dtype):
    """Never NaN; finite wherever the value itself fits the type."""
    large = 6e4 if dtype is torch.float16 else 1e4
    x = torch.tensor([-large, large, 0.0, -0.0, 1e-6, -1e-6, -1.0, 1.0], dtype=dtype)
    module, x = make(kind).to(dtype), x.clone().requires_grad_()
    wide = make(kind).double().eval()(x.detach().double())
    y = module(x)
    y.sum().backward()
    assert y.dtype == dtype and not y.isnan().any() and not x.grad.isnan().any()
    fits = wide.abs() < torch.finfo(dtype).max
    assert y[fits].isfinite().all()
    for name, p in module.named_parameters():
        assert not p.grad.isnan().any(), name


@pytest.mark.parametrize("kind", list(kinds("activation")))
@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_half_precision_is_a_rounding(kind, dtype):
    """Also with float32 parameters, as under autocast."""
    x = torch.linspace(-6, 6, 400).to(dtype)
    reference = make(kind).double().eval()(x.double())
    for module in (make(kind).eval(), make(kind).to(dtype).eval()):
        y = module(x)
        assert y.dtype == dtype
        # A rounding of the result and three before it, each of a number of its size or of size one.
        assert ((y.double() - reference).abs() <= 4 * torch.finfo(dtype).eps * reference.abs().clamp_min(1)).all()


KNOBS = [(kind, {}) for kind in kinds("activation")] + [
    ("gelu_shifted", {"learned": False}),
    ("pfla", {"knots": "learned", "points": 9}),
]


@pytest.mark.parametrize("kind, knobs", KNOBS, ids=str)
def test_declared_parameters_and_shape(kind, knobs):
    module, g = make(kind, **knobs), Graph(Pass("prefill", 2, 3, 3))
    out = module.declare(module.config, g, g.tensor("x", 2, 3, 8))
    assert {n: w.shape for n, w in g.weights().items()} == {n: tuple(p.shape) for n, p in module.named_parameters()}
    assert out.shape == tuple(module(torch.randn(2, 3, 8)).shape)


def test_products_of_a_power():
    """Square and multiply: x^5 = (x^2)^2 x."""
    cls = lookup("activation", "relu_power")
    products = [cls.per_element(cls.Config(power=float(p)))["mul"] for p in (1, 2, 3, 4, 5, 8)]
    assert products == [0, 1, 2, 2, 3, 3]
    assert cls.per_element(cls.Config(power=2.5)) == {"max": 1, "log": 1, "mul": 1, "exp": 1}


IMPOSSIBLE = [
    ({"kind": "piecewise", "function": "glue"}, "did you mean 'glu'"),
    ({"kind": "piecewise", "function": "glu"}, "no fixed function"),
    ({"kind": "piecewise", "function": "prelu"}, "no fixed function"),
    ({"kind": "piecewise", "function": "squared_relu"}, "no straight tails"),
    ({"kind": "piecewise", "left": 5.0}, "left 5.0 is not below right 4.0"),
    ({"kind": "pfla", "right": -10.0}, "not below"),
    ({"kind": "learned_spline", "right": -10.0}, "not below"),
    ({"kind": "rrelu", "lower": 0.5}, "lower 0.5 exceeds upper"),
]


@pytest.mark.parametrize("activation, message", IMPOSSIBLE, ids=lambda v: v if isinstance(v, str) else "")
def test_impossible_knobs_are_explained(activation, message):
    model = GPTConfig.model_validate({"vocab_size": 9, "mlp": {"activation": activation}})
    ((path, text),) = model.problems()
    assert path[:2] == ("mlp", "activation") and message in text


@pytest.mark.parametrize("function", ["silu", "mish", "tanh", "sigmoid", "softplus", "elu", "rrelu", "piecewise"])
def test_tables_of_other_functions(function):
    model = GPTConfig.model_validate({"mlp": {"activation": {"kind": "piecewise", "function": function}}})
    assert not list(model.problems())
    x = torch.linspace(-12, 12, 999, dtype=torch.float64)
    error = make("piecewise", function=function).double()(x) - make(function).double().eval()(x)
    # Tails start on the function where it is not straight yet: 0.08 below zero for silu and mish at -4.
    assert error.abs().max() <= 0.1


def test_names_of_the_forks():
    assert set(flat_names()) >= {
        "relu_power", "shifted_gelu_learnable_shift", "shifted_gelu_initial_shift", "softshrink_lambda",
        "pla_num_points", "pla_left_bound", "pla_right_bound", "pfla_num_points", "pfla_left_bound",
        "pfla_right_bound", "lsa_num_knots",
    }  # fmt: skip
