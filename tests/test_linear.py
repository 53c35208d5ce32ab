"""Every linear kind against torch's own fake quantisation, an explicit product, or its formula written out."""

import math

import pytest
import torch
import torch.nn.functional as F

from gptcore.linear.rounded import RoundedLinear
from gptcore.ops import Graph, Pass
from gptcore.quantize import set_strength
from gptcore.registry import lookup

D_IN, D_OUT = 24, 20
EPS32, EPS64 = torch.finfo(torch.float32).eps, torch.finfo(torch.float64).eps


def make(kind, dtype=torch.float32, bias=True, std=0.02, **knobs):
    torch.manual_seed(2)
    cls = lookup("linear", kind)
    module = cls(cls.Config(**knobs), D_IN, D_OUT, bias=bias)
    with torch.no_grad():
        module.init_weights(std)
        if bias:
            module.bias.normal_()
    return module.to(dtype)


def rows(dtype=torch.float32, seed=0):
    return torch.randn(3, 5, D_IN, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def assert_close(got, expected, eps=EPS32, terms=D_IN):
    """A sum of `terms` products and a handful of roundings."""
    assert (got - expected).abs().max() <= 16 * eps * math.sqrt(terms) * max(1.0, expected.abs().max().item())


def torch_rounded(weight, bits, method, per):
    """The same weights by torch, with ranges taken from the weights as the documentation says."""
    weight = weight.detach()
    rows_OI = weight if per == "channel" else weight.reshape(1, -1)
    if method == "symmetric":
        top = 2 ** (bits - 1) - 1
        scale, zero, bounds = rows_OI.abs().amax(1) / top, torch.zeros(len(rows_OI)), (-top, top)
    else:
        low, high = rows_OI.amin(1).clamp(max=0), rows_OI.amax(1).clamp(min=0)
        scale, bounds = (high - low) / (2**bits - 1), (0, 2**bits - 1)
        zero = torch.round(-low / scale)
    if per == "channel":
        return torch.fake_quantize_per_channel_affine(weight, scale, zero.int(), 0, *bounds)
    return torch.fake_quantize_per_tensor_affine(weight, scale[0], zero[0].int(), *bounds)


def check_against_torch(bits, method, per):
    module = make("quantized", bits=bits, method=method, per=per)
    expected = torch_rounded(module.weight, bits, method, per)
    torch.testing.assert_close(module.weight_in_use(), expected, rtol=4 * EPS32, atol=0)
    assert_close(module(rows()), F.linear(rows(), expected, module.bias))
    lines = module.weight_in_use() if per == "channel" else module.weight_in_use().reshape(1, -1)
    assert max(len(line.unique()) for line in lines) <= 2**bits


@pytest.mark.parametrize("per", ["tensor", "channel"])
@pytest.mark.parametrize("method", ["symmetric", "affine"])
@pytest.mark.parametrize("bits", range(2, 9))
def test_quantized_equals_torch(bits, method, per):
    check_against_torch(bits, method, per)


def test_the_comparison_with_torch_can_fail(monkeypatch):
    cls = lookup("linear", "quantized")
    original = cls.round_weight
    monkeypatch.setattr(cls, "round_weight", lambda self, w: original(self, w + 0.01 * w.abs().amax()))
    with pytest.raises(AssertionError):
        check_against_torch(4, "symmetric", "tensor")


def test_affine_weights_may_all_have_one_sign():
    module = make("quantized", bits=4, method="affine", bias=False)
    with torch.no_grad():
        module.weight.uniform_(1.0, 2.0)
    step = module.weight.max().item() / 15  # the range includes zero
    assert (module.weight_in_use() - module.weight).abs().max() <= step / 2 * (1 + 8 * EPS32)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_ternary_weights_are_minus_one_zero_and_one(dtype):
    module = make("bitlinear_1p58", dtype)
    wide = module.weight.detach().to(torch.promote_types(dtype, torch.float32))
    scale = wide.abs().mean()
    used = module.weight_in_use()
    assert set(used.unique().tolist()) == {-scale.to(dtype).item(), 0.0, scale.to(dtype).item()}
    sign = torch.where(wide.abs() > scale / 2, wide.sign(), 0)  # nearest of the three: half the scale is the border
    assert torch.equal(used, (sign * scale).to(dtype))


def test_one_bit_weights_are_the_sign_of_the_centred_matrix():
    module = make("bitlinear", torch.float64)
    with torch.no_grad():
        module.weight.add_(0.01)  # the mean matters
    weight = module.weight.detach()
    expected = weight.abs().mean() * (weight - weight.mean()).sign()
    assert torch.equal(module.weight_in_use(), expected)
    with torch.no_grad():
        module.weight.fill_(0.5)  # nothing is above the mean: sign(0) is -1
    assert torch.equal(module.weight_in_use(), torch.full_like(weight, -0.5))


@pytest.mark.parametrize("kind", ["bitlinear", "bitlinear_1p58"])
def test_inputs_are_rounded_by_token(kind):
    module, x = make(kind, torch.float64, activation_bits=4), rows(torch.float64)
    top = x.abs().amax(-1, keepdim=True)
    rounded = torch.round(x / top * 7) * top / 7
    assert_close(module(x), F.linear(rounded, module.weight_in_use(), module.bias), EPS64)
    plain = make(kind, torch.float64, activation_bits=None)
    assert_close(plain(x), F.linear(x, plain.weight_in_use(), plain.bias), EPS64)
    assert torch.equal(plain(torch.zeros_like(x)), plain.bias.expand(3, 5, D_OUT))
    assert torch.equal(module(torch.zeros_like(x)), plain(torch.zeros_like(x)))


STRAIGHT = [
    ("quantized", {"bits": 2}), ("quantized", {"bits": 3, "method": "affine", "per": "channel"}),
    ("bitlinear_1p58", {}), ("bitlinear", {}),
]  # fmt: skip


@pytest.mark.parametrize("kind, knobs", STRAIGHT, ids=str)
def test_gradient_goes_straight_through(kind, knobs):
    """Weights get the gradient of an unrounded layer on the same (rounded) input; inputs that of the weights in use."""
    module, x = make(kind, torch.float64, **knobs), rows(torch.float64).requires_grad_()
    upstream = torch.randn(3, 5, D_OUT, dtype=torch.float64)
    module(x).backward(upstream)
    bits = knobs.get("activation_bits", 8) if kind.startswith("bit") else None
    seen = x.detach()
    if bits:
        top = seen.abs().amax(-1, keepdim=True)
        seen = torch.round(seen / top * 127) * top / 127
    plain = torch.nn.Linear(D_IN, D_OUT).double()
    plain(seen).backward(upstream)
    assert_close(module.weight.grad, plain.weight.grad, EPS64)
    assert_close(module.bias.grad, plain.bias.grad, EPS64)
    assert_close(x.grad, upstream @ module.weight_in_use().detach(), EPS64)


@pytest.mark.parametrize("kind, knobs", STRAIGHT, ids=str)
def test_strength_fades_the_rounding_in(kind, knobs):
    module, x = make(kind, torch.float64, **knobs), rows(torch.float64)
    set_strength(module, 0.0)
    assert torch.equal(module(x), F.linear(x, module.weight, module.bias))
    rounded = module.round_weight(module.weight.detach())
    set_strength(module, 0.25)
    assert_close(module.weight_in_use(), 0.75 * module.weight + 0.25 * rounded, EPS64)
    assert "strength" not in module.state_dict()


@pytest.mark.parametrize("knobs, rank", [({"rank": 3}, 3), ({"fraction": 0.25}, 5), ({"rank": 99}, 20)], ids=str)
def test_low_rank_equals_the_explicit_product(knobs, rank):
    module, x = make("low_rank", torch.float64, **knobs), rows(torch.float64)
    product = module.b @ module.a
    assert torch.linalg.matrix_rank(product) == rank
    assert_close(module(x), F.linear(x, product, module.bias), EPS64)


def test_low_rank_starts_at_the_asked_standard_deviation():
    cls = lookup("linear", "low_rank")
    module = cls(cls.Config(), 256, 256, bias=False)
    torch.manual_seed(0)
    with torch.no_grad():
        module.init_weights(0.02)
    # Entries share factors, so the spread of the measured value is about that of one factor's variance: 1/sqrt(rank).
    assert (module.b @ module.a).std().item() == pytest.approx(0.02, rel=0.1)
    assert sum(p.numel() for p in module.parameters()) == 256 * 256  # half of a square's side: equal parameters


@pytest.mark.parametrize("order", [1, 2, 5])
def test_kan_equals_a_sum_of_functions(order):
    """T_k(cos a) = cos(k a), so the polynomials need no recurrence here."""
    module, x = make("kan", torch.float64, order=order), rows(torch.float64)
    angle = torch.acos(torch.tanh(x))
    functions = [F.silu(x)] + [torch.cos(k * angle) for k in range(1, order + 1)]
    pieces = module.weight.split(D_IN, dim=1)
    expected = module.bias + sum(f @ w.T for f, w in zip(functions, pieces, strict=True))
    # acos loses half the digits near 1 in the angle, but cos gives them back; the recurrence doubles errors at most.
    assert_close(module(x), expected, EPS64 * 2**order, D_IN * (1 + order))
    assert module.weight.numel() == (1 + order) * D_IN * D_OUT


STORED = [("quantized", {"bits": 3}, 3), ("bitlinear", {}, 1), ("bitlinear_1p58", {}, 2), ("low_rank", {}, 16)]


@pytest.mark.parametrize("kind, knobs, bits", STORED, ids=str)
@pytest.mark.parametrize("stage", ["decode", "train"])
def test_stored_bits(kind, knobs, bits, stage):
    """Deployed weights take their few bits, training keeps them wide."""
    g = Graph(Pass(stage, 1, 1, 1))
    cls = lookup("linear", kind)
    cls.declare(cls.Config(**knobs), g, g.tensor("x", 1, 1, D_IN), D_OUT, bias=True)
    wide = stage == "train"
    assert {w.bits for name, w in g.weights().items() if name != "bias"} == {16 if wide else bits}
    assert g.weights()["bias"].bits == 16


def test_affine_declares_its_zero_point():
    cls = lookup("linear", "quantized")
    primitives = {}
    for method in ("symmetric", "affine"):
        g = Graph(Pass("decode", 1, 1, 1))
        cls.declare(cls.Config(method=method), g, g.tensor("x", 1, 1, D_IN), D_OUT, bias=False)
        primitives[method] = [op.primitives() for op in g.ops if op.primitives()]
    assert primitives["symmetric"] == [{"mul": D_OUT}]
    assert primitives["affine"] == [{"add": D_IN}, {"mul": 2 * D_OUT, "add": D_OUT}]


def test_zero_weights_stay_finite():
    for kind, knobs in STRAIGHT:
        module = make(kind, **knobs)
        with torch.no_grad():
            module.weight.zero_()
        assert isinstance(module, RoundedLinear)
        assert torch.equal(module(rows()), module.bias.expand(3, 5, D_OUT))


def torch_weight_norm(module, dim):
    """torch's own, with the lengths of the module (ones if it has none)."""
    plain = torch.nn.utils.parametrizations.weight_norm(torch.nn.Linear(D_IN, D_OUT).to(module.weight.dtype), dim=dim)
    lengths, vectors = plain.parametrizations.weight.original0, plain.parametrizations.weight.original1
    with torch.no_grad():
        lengths.copy_(torch.ones_like(lengths) if module.length is None else module.length.view_as(lengths))
        vectors.copy_(module.weight)
        plain.bias.copy_(module.bias)
    return plain, lengths, vectors


def check_weight_norm(over, length, x):
    """Result and all gradients."""
    module = make("weight_norm", torch.float64, over=over, length=length)
    with torch.no_grad():
        module.weight.mul_(3.0)
        if module.length is not None:
            module.length.uniform_(0.5, 2.0)
    plain, lengths, vectors = torch_weight_norm(module, dim=0 if over == "input" else 1)
    got, expected = module(x), plain(x)
    assert_close(got, expected, EPS64)
    upstream = torch.randn(got.shape, dtype=torch.float64)
    got.backward(upstream)
    expected.backward(upstream)
    assert_close(module.weight.grad, vectors.grad, EPS64, D_IN * 15)
    assert_close(module.bias.grad, plain.bias.grad, EPS64, 15)
    if module.length is not None:
        assert_close(module.length.grad.view_as(lengths), lengths.grad, EPS64, D_IN * 15)
    # Along the vector itself nothing is learned.
    inner = (module.weight.grad * module.weight).sum(module.dim)
    assert inner.abs().max() <= 64 * EPS64 * (module.weight.grad.norm() * module.weight.norm()).item()


@pytest.mark.parametrize("length", ["one", "learned"])
@pytest.mark.parametrize("over", ["input", "output"])
def test_weight_norm_equals_torch(over, length):
    check_weight_norm(over, length, rows(torch.float64))


def test_the_comparison_of_weight_norm_can_fail(monkeypatch):
    cls = lookup("linear", "weight_norm")
    monkeypatch.setattr(cls, "unit_weight", lambda self: F.normalize(self.weight, dim=1 - self.dim))
    with pytest.raises(AssertionError):
        check_weight_norm("input", "one", rows(torch.float64))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_weight_norm_in_every_precision(dtype):
    """Vectors of one length, however small or large the weights behind them; a vector of zeros stays one."""
    for size in (1e-4, 100.0):
        module = make("weight_norm", dtype, std=size)
        norms = module.unit_weight().double().norm(dim=1)
        assert (norms - 1).abs().max() <= 2 * torch.finfo(dtype).eps
        with torch.no_grad():
            module.weight[0] = 0
        out = module(rows(dtype))
        out.sum().backward()
        assert torch.equal(out[..., 0], module.bias[0].expand(3, 5)) and out.isfinite().all()
        assert module.weight.grad[1:].isfinite().all()


@pytest.mark.parametrize("over, width", [("input", D_IN), ("output", D_OUT)])
def test_learned_lengths_begin_as_those_of_a_plain_layer(over, width):
    module = make("weight_norm", over=over, length="learned", std=0.5)
    assert module.length.detach().unique().item() == pytest.approx(0.5 * math.sqrt(width), rel=EPS32)
    # The length of a vector of n normal numbers is sqrt(n) within about 1/sqrt(2), half a sigma of it on average.
    assert make("linear", std=0.5).weight.norm(dim=1).mean().item() == pytest.approx(0.5 * math.sqrt(D_IN), rel=0.1)


def test_weight_norm_is_stored_ready_for_use():
    """Training declares the normalisation of the matrix, decoding does not; learned lengths cost a product."""
    cls = lookup("linear", "weight_norm")
    primitives = {}
    for stage, length in (("train", "one"), ("decode", "one"), ("decode", "learned")):
        g = Graph(Pass(stage, 1, 1, 1))
        cls.declare(cls.Config(length=length), g, g.tensor("x", 1, 1, D_IN), D_OUT, bias=False)
        primitives[stage, length] = [op.primitives() for op in g.ops if op.primitives()]
    size = D_IN * D_OUT
    assert primitives["train", "one"] == [{"mul": size, "add": size}, {"max": D_OUT, "rsqrt": D_OUT}, {"mul": size}]
    assert primitives["decode", "one"] == [] and primitives["decode", "learned"] == [{"mul": D_OUT}]
