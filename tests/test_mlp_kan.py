"""The Kolmogorov-Arnold mlp against the recursion of its splines, scipy, Chebyshev series of numpy, and its formula."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.polynomial import chebyshev

from gptcore.config import Dims
from gptcore.loader import load
from gptcore.mlp import kan
from gptcore.mlp.kan import HIGHEST_DEGREE, KolmogorovArnold, Splines
from gptcore.registry import lookup

EPS64 = torch.finfo(torch.float64).eps
GRIDS = [(1, 5, 1.0), (2, 3, 0.7), (3, 5, 1.0), (3, 1, 2.0), (4, 6, 3.0), (HIGHEST_DEGREE, 8, 1.0)]
grids = pytest.mark.parametrize("degree, grid, span", GRIDS)
# Terms of at most 3 (n + 1)^n / (2^n n!) < 7 that leave up to 1, a few roundings each: 64 eps.
TOLERANCE = 64 * EPS64


def places(degree, grid, span, count=401):
    """On the grid, in the intervals around it, and beyond everything; by chance none of them a knot."""
    reach = span * (1 + 2 * degree / grid) * 1.1
    return torch.linspace(-reach, reach * 1.01, count, dtype=torch.float64)


def knots(degree, grid, span):
    return np.linspace(-span - degree * 2 * span / grid, span + degree * 2 * span / grid, grid + 2 * degree + 1)


def cox_de_boor(x, t, j, degree):
    """The recursion of de Boor (1972), for one spline and one place."""
    if degree == 0:
        return float(t[j] <= x < t[j + 1])
    left = (x - t[j]) / (t[j + degree] - t[j]) * cox_de_boor(x, t, j, degree - 1)
    right = (t[j + degree + 1] - x) / (t[j + degree + 1] - t[j + 1]) * cox_de_boor(x, t, j + 1, degree - 1)
    return left + right


def values_of(x, degree, grid, span):
    """(places, splines), from the product's function of one input."""
    return Splines.apply(x[:, None], degree, grid, span)


def check_against_recursion(degree, grid, span):
    x, t = places(degree, grid, span, count=60), knots(degree, grid, span)
    expected = [[cox_de_boor(v, t, j, degree) for j in range(grid + degree)] for v in x.tolist()]
    assert (values_of(x, degree, grid, span) - torch.tensor(expected)).abs().max() <= TOLERANCE


@grids
def test_splines_are_those_of_the_recursion(degree, grid, span):
    check_against_recursion(degree, grid, span)


@pytest.mark.parametrize("fault", ["share", "middle"])
def test_wrong_splines_are_found(fault, monkeypatch):
    bump = kan.bump
    wrong = {"share": lambda a, n, power: bump(a, n, power) * (1 + 1e-12), "middle": lambda a, *n: bump(a + 1e-12, *n)}
    monkeypatch.setattr(kan, "bump", wrong[fault])
    with pytest.raises(AssertionError):
        check_against_recursion(3, 5, 1.0)


@grids
def test_splines_and_their_derivatives_are_those_of_scipy(degree, grid, span):
    interpolate = pytest.importorskip("scipy.interpolate")
    x, t = places(degree, grid, span).requires_grad_(), knots(degree, grid, span)
    values = values_of(x, degree, grid, span)
    for j in range(grid + degree):
        spline = interpolate.BSpline.basis_element(t[j : j + degree + 2], extrapolate=False)
        inside = x.detach().numpy()
        expected = torch.from_numpy(np.nan_to_num(spline(inside)))
        assert (values[:, j] - expected).abs().max() <= TOLERANCE
        slope = torch.from_numpy(np.nan_to_num(spline.derivative()(inside)))
        (got,) = torch.autograd.grad(values[:, j].sum(), x, retain_graph=True)
        assert (got - slope).abs().max() <= TOLERANCE * grid / span


@grids
def test_splines_add_up_to_one_on_the_grid_and_end_beyond_it(degree, grid, span):
    x = torch.linspace(-span, span, 101, dtype=torch.float64)
    assert (values_of(x, degree, grid, span).sum(-1) - 1).abs().max() <= TOLERANCE * (degree + 1)
    beyond = span * (1 + 2 * degree / grid) + 1e-9
    far = torch.tensor([-1e30, -beyond, beyond, 1e30], dtype=torch.float64)
    assert torch.equal(values_of(far, degree, grid, span), torch.zeros(4, grid + degree, dtype=torch.float64))


def make(dtype=torch.float64, bias=True, width=6, **knobs):
    torch.manual_seed(1)
    module = KolmogorovArnold(KolmogorovArnold.Config(**knobs), Dims(width, 1, 8, bias=bias, dropout=0.0))
    for layer in (module.c_fc, module.c_proj):
        layer.init_weights(0.5)
    return module.to(dtype)


def edge_by_edge(layer, x, curve):
    """The definition: (tokens, d_in) -> (tokens, d_out), the function of every edge evaluated for itself."""
    d_out, d_in = layer.weight.shape
    c_OJI = layer.coefficients.detach().view(d_out, -1, d_in)
    y = F.silu(x) @ layer.weight.detach().T + layer.bias.detach()
    for o in range(d_out):
        for i in range(d_in):
            y[:, o] += torch.from_numpy(curve(c_OJI[o, :, i].numpy(), x[:, i].numpy()))
    return y


def check_network(module, curve):
    x = 0.5 * torch.randn(2, 5, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = edge_by_edge(module.c_proj, edge_by_edge(module.c_fc, x.flatten(0, 1), curve), curve).view(2, 5, 6)
    terms = module.c_fc.coefficients.shape[1]
    assert (module(x) - expected).abs().max() <= 64 * EPS64 * math.sqrt(terms) * max(1.0, expected.abs().max().item())


@pytest.mark.parametrize("degree, grid", [(3, 5), (2, 4)])
def test_network_of_splines_equals_its_definition(degree, grid):
    interpolate = pytest.importorskip("scipy.interpolate")

    def curve(c, x):  # scipy knows no zeros beyond the knots: two more of them on either side, with coefficients 0
        more = degree + 1
        h = 4.0 / grid
        t = np.linspace(-2.0 - (degree + more) * h, 2.0 + (degree + more) * h, grid + 2 * (degree + more) + 1)
        return interpolate.BSpline(t, np.pad(c, more), degree)(np.clip(x, t[degree], t[-degree - 1]))

    check_network(make(order=degree, grid=grid, span=2.0, hidden_size=8), curve)


@pytest.mark.parametrize("order", [1, 2, 3, 7])
def test_network_of_polynomials_equals_its_definition(order):
    module = make(basis="polynomial", order=order, hidden_size=8)
    check_network(module, lambda c, x: chebyshev.chebval(np.tanh(x), [0.0, *c]))


@pytest.mark.parametrize("basis", ["bspline", "polynomial"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_functions_are_computed_in_full_precision(basis, dtype):
    layer = make(torch.float32, basis=basis).c_fc
    x = torch.randn(50, 6, generator=torch.Generator().manual_seed(0)).to(dtype)
    assert torch.equal(layer.features(x), layer.features(x.float()).to(dtype))


@pytest.mark.parametrize("basis", ["bspline", "polynomial"])
@pytest.mark.parametrize("width", [128, 256, 384, 768])
def test_as_many_parameters_as_a_plain_mlp(basis, width):
    dims = Dims(width, 1, 8, bias=False, dropout=0.0)
    plain = lookup("mlp", "mlp")
    with torch.device("meta"):
        ours, theirs = (cls(cls.Config(**k), dims) for cls, k in ((KolmogorovArnold, {"basis": basis}), (plain, {})))
    count, expected = (sum(p.numel() for p in module.parameters()) for module in (ours, theirs))
    assert abs(count / expected - 1) <= 4 / ours.config.width(width)  # the width is a multiple of 8


def test_flat_names():
    config = load(None, ["--mlp_variant=kan", "--kan_poly_order=2", "--kan_base_activation=relu"]).config.model.mlp
    assert (config.order, config.activation.kind) == (2, "relu")
