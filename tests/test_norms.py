"""Every norm against torch's own where some choice of knobs makes them equal, else against its formula written out."""

import math

import pytest
import torch
import torch.nn.functional as F

from gptcore.config import Dims, GPTConfig, identity
from gptcore.flat import flat_names
from gptcore.norm import krmsnorm
from gptcore.ops import Graph, Pass
from gptcore.registry import kinds, lookup

EPS64 = torch.finfo(torch.float64).eps
WIDTH = 24
DIMS = Dims(n_embd=WIDTH, n_layer=1, block_size=8, bias=True, dropout=0.0)
NORMS = list(kinds("norm"))


def make(kind, width=WIDTH, **knobs):
    """In float64, with random values in place of the initial ones."""
    torch.manual_seed(2)
    cls = lookup("norm", kind)
    module = cls(cls.Config(**knobs), width, DIMS).double()
    with torch.no_grad():
        for p in module.parameters():
            p.add_(torch.randn_like(p) * 0.1)
    return module


def rows(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def rms(x, weight=None):
    return F.rms_norm(x, x.shape[-1:], weight, 1e-6)


def assert_close(got, expected):
    """A sum of WIDTH squares and a handful of roundings."""
    scale = max(1.0, expected.abs().max().item())
    assert (got - expected).abs().max().item() <= 16 * EPS64 * math.sqrt(WIDTH) * scale


EQUAL_TO_RMSNORM = [
    ("rmsnorm", {}),
    ("prmsnorm", {"pct": 1.0}),
    ("krmsnorm", {"k": WIDTH, "selection": "first"}),
    ("krmsnorm", {"k": WIDTH + 5, "selection": "last"}),
    ("krmsnorm", {"k": WIDTH, "selection": "random"}),
    ("hyperspherenorm", {"gain": True}),
    ("hyperspherenorm", {"gain": True, "radius": math.sqrt(WIDTH)}),
]


@pytest.mark.parametrize("kind, knobs", EQUAL_TO_RMSNORM, ids=str)
def test_equal_to_rms_norm(kind, knobs):
    module, x = make(kind, **knobs), rows(3, 5, WIDTH).requires_grad_()
    y, reference = module(x), rms(x, module.weight)
    assert_close(y, reference)
    upstream = rows(3, 5, WIDTH, seed=1)
    ours = torch.autograd.grad(y, (x, module.weight), upstream)
    theirs = torch.autograd.grad(reference, (x, module.weight), upstream)
    for got, expected in zip(ours, theirs, strict=True):
        assert_close(got, expected)


@pytest.mark.parametrize("bias", [True, False])
def test_without_a_learned_scale(bias):
    dims = Dims(n_embd=WIDTH, n_layer=1, block_size=8, bias=bias, dropout=0.0)
    x, shape = rows(4, WIDTH), (WIDTH,)
    for kind, reference in (("layernorm", F.layer_norm(x, shape)), ("rmsnorm", rms(x))):
        cls = lookup("norm", kind)
        plain, learned = cls(cls.Config(scale="none"), WIDTH, dims), cls(cls.Config(), WIDTH, dims)
        assert_close(plain(x), reference)
        assert not list(plain.parameters())
        expected = ["weight", "bias"] if bias and kind == "layernorm" else ["weight"]
        assert [name for name, _ in learned.named_parameters()] == expected
    assert_close(make("hyperspherenorm")(x), rms(x))


def test_saying_the_default_scale_is_the_same_experiment():
    for kind in ("layernorm", "rmsnorm"):
        said = GPTConfig.model_validate({"norm": {"kind": kind, "scale": "learned"}})
        assert identity(said) == identity(GPTConfig.model_validate({"norm": kind}))
        other = GPTConfig.model_validate({"norm": {"kind": kind, "scale": "none"}})
        assert identity(said) != identity(other)


@pytest.mark.parametrize("pct, measured", [(0.0625, 2), (0.5, 12), (0.01, 1), (1 / 3, 8), (0.07 * 100 / WIDTH, 7)])
def test_partial_statistics(pct, measured):
    module, x = make("prmsnorm", pct=pct), rows(4, WIDTH)
    root = ((x[:, :measured] ** 2).sum(-1, keepdim=True) / measured + 1e-6).sqrt()
    assert_close(module(x), x / root * module.weight)


@pytest.mark.parametrize("selection", ["first", "last", "random"])
@pytest.mark.parametrize("gain", [True, False])
def test_chosen_statistics(selection, gain):
    module, x = make("krmsnorm", k=5, selection=selection, gain=gain), rows(4, WIDTH)
    chosen = {"first": range(5), "last": range(WIDTH - 5, WIDTH)}.get(selection)
    if chosen is None:
        chosen = module.chosen.tolist()
        assert len(set(chosen)) == 5 and set(chosen) <= set(range(WIDTH))
    root = (sum(x[:, i] ** 2 for i in chosen) / 5 + 1e-6).sqrt()
    assert_close(module(x), x / root.unsqueeze(1) * (module.weight if gain else 1))
    assert gain or not list(module.parameters())


def test_random_choice_is_always_the_same():
    """Whatever the global seed, and without being stored."""
    torch.manual_seed(1)
    first = make("krmsnorm", selection="random")
    torch.rand(5)
    second = make("krmsnorm", selection="random")
    assert torch.equal(first.chosen, second.chosen) and "chosen" not in first.state_dict()
    assert first.chosen.tolist() != list(range(10)) and first.chosen.tolist() != list(range(WIDTH - 10, WIDTH))
    x = rows(3, WIDTH).float().bfloat16()
    assert torch.equal(first.bfloat16()(x), second.bfloat16()(x))  # the choice survives a change of type


def integer_rms(row, largest_code):
    """With Python's integers, rounding half to even as the hardware that torch stands for."""
    step = max(abs(v) for v in row) / largest_code
    codes = [round(v / step) for v in row]
    assert max(abs(c) for c in codes) == largest_code
    return step * math.sqrt(sum(c * c for c in codes) / len(codes))


def check_codes():
    for quantize, largest_code in (("int8", 127), ("int16", 32767)):
        module, x = make("krmsnorm", k=6, quantize=quantize, gain=False, eps=1e-12), rows(20, WIDTH)
        roots = torch.tensor([integer_rms(row.tolist(), largest_code) for row in x[:, -6:]], dtype=torch.float64)
        assert_close(module(x), x / (roots**2 + 1e-12).sqrt().unsqueeze(1))


def test_statistics_of_integer_codes():
    check_codes()


def test_check_of_codes_sees_another_number_of_levels(monkeypatch):
    monkeypatch.setitem(krmsnorm.LARGEST_CODE, "int8", 128)
    with pytest.raises(AssertionError):
        check_codes()


def test_rounding_passes_gradients_through():
    """The gradient is that of the unrounded norm at the rounded statistics: J = s I - s^3 x c^T / k, c the codes."""
    module, x = make("krmsnorm", k=6, quantize="int8", gain=False), rows(1, WIDTH).requires_grad_()
    part = x.detach()[0, -6:]
    step = part.abs().max() / 127
    codes = torch.round(part / step) * step
    s = ((codes**2).mean() + 1e-6) ** -0.5
    expected = s * torch.eye(WIDTH, dtype=torch.float64)
    expected[:, -6:] -= s**3 / 6 * torch.outer(x.detach()[0], codes)
    got = torch.autograd.functional.jacobian(lambda row: module(row.unsqueeze(0))[0], x.detach()[0])
    assert_close(got, expected)


@pytest.mark.parametrize("knobs", [{"radius": 3.0}, {"radius": 3.0, "learned": True}, {"learned": True, "scale": 4.0}])
def test_on_the_sphere(knobs):
    torch.manual_seed(2)
    cls = lookup("norm", "hyperspherenorm")
    module, x = cls(cls.Config(eps=1e-12, **knobs), WIDTH, DIMS).double(), rows(7, WIDTH)
    radius = knobs.get("radius", math.sqrt(WIDTH))
    lengths = module(x).norm(dim=-1)
    assert (lengths / radius - 1).abs().max() <= 1e-6  # a float32 parameter, and eps
    assert_close(module(x) / lengths.unsqueeze(1), x / x.norm(dim=-1, keepdim=True))
    if "learned" in knobs:
        assert module.radius.item() == pytest.approx(radius / knobs.get("scale", 1.0), rel=1e-6)
        module.radius.data.mul_(2)
        assert_close(module(x).norm(dim=-1), 2 * lengths)


def test_only_long_vectors_are_shortened():
    module = make("cappedhyperspherenorm", radius=2.0)
    x = torch.nn.functional.normalize(rows(40, WIDTH), dim=-1) * torch.linspace(0, 4, 40, dtype=torch.float64)[:, None]
    y, short = module(x), x.norm(dim=-1) < 2
    assert torch.equal(y[short], x[short]) and 10 < short.sum() < 30
    assert_close(y[~short].norm(dim=-1), torch.full((int((~short).sum()),), 2.0, dtype=torch.float64))
    assert_close(
        make("cappedhyperspherenorm")(100 * x[1:]).norm(dim=-1), torch.tensor(math.sqrt(WIDTH), dtype=torch.float64)
    )
    for row, is_short in ((x[5], True), (x[35], False)):
        got = torch.autograd.functional.jacobian(module, row)
        u = row / row.norm()
        eye = torch.eye(WIDTH, dtype=torch.float64)
        assert_close(got, eye if is_short else 2 / row.norm() * (eye - torch.outer(u, u)))


def test_dynamic_tanh():
    """Algorithm 1 of arXiv 2503.10622: weight * tanh(alpha * x) + bias."""
    module, x = make("dact", alpha_init=0.5), rows(3, 4, WIDTH)
    assert module.alpha.numel() == 1 and module.weight.shape == module.bias.shape == (WIDTH,)
    assert_close(module(x), module.weight * torch.tanh(module.alpha * x) + module.bias)


@pytest.mark.parametrize("learned", [(), ("alpha",), ("weight",), ("bias",), ("alpha", "bias"), ("alpha", "weight")])
def test_dynamic_activation_flags(learned):
    flags = {name: name in learned for name in ("alpha", "weight", "bias")}
    module, x = make("dact", activation={"kind": "softsign"}, **flags), rows(5, WIDTH)
    values = {"alpha": 1.0, "weight": 1.0, "bias": 0.0} | dict(module.named_parameters())
    assert set(dict(module.named_parameters())) == set(learned)
    scaled = values["alpha"] * x
    assert_close(module(x), values["weight"] * scaled / (1 + scaled.abs()) + values["bias"])


def test_a_norm_cannot_change_the_width():
    model = GPTConfig.model_validate({"norm": {"kind": "dact", "activation": "glu"}})
    assert any("width" in message for _, message in model.problems())


def test_learned_activation_inside():
    module = make("dact", activation={"kind": "prelu"})
    assert [n for n, _ in module.named_parameters()] == ["alpha", "weight", "bias", "activation.slope"]


def test_identity():
    x = rows(3, WIDTH)
    assert torch.equal(make("identity")(x), x)


# All kinds

KNOBS = [(kind, {}) for kind in NORMS] + [
    ("layernorm", {"scale": "none"}),
    ("rmsnorm", {"scale": "none"}),
    ("krmsnorm", {"selection": "random", "quantize": "int8"}),
    ("krmsnorm", {"gain": False, "quantize": "int16"}),
    ("hyperspherenorm", {"learned": True}),
    ("hyperspherenorm", {"learned": True, "gain": True}),
    ("hyperspherenorm", {"radius": 2.0}),
    ("dact", {"activation": {"kind": "pfla"}, "bias": False}),
    ("dact", {"activation": {"kind": "identity"}, "weight": False, "bias": False, "alpha": False}),
]


@pytest.mark.parametrize("kind, knobs", KNOBS, ids=str)
def test_zeros_give_no_undefined_number(kind, knobs):
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        module = make(kind, **knobs).to(dtype)
        x = torch.zeros(2, WIDTH, dtype=dtype, requires_grad=True)
        y = module(x)
        y.sum().backward()
        bias = getattr(module, "bias", None)
        if "activation" not in knobs and kind != "layernorm_int":  # which rounds its bias
            assert torch.equal(y, torch.zeros_like(y) + (0 if bias is None else bias))
        for tensor in (y, x.grad, *(p.grad for p in module.parameters())):
            assert tensor.isfinite().all()


@pytest.mark.parametrize("kind, knobs", KNOBS, ids=str)
def test_large_half_precision_inputs(kind, knobs):
    """60,000 squared is far beyond half precision; the result is that of float64, rounded."""
    module = make(kind, **knobs)
    with torch.no_grad():  # weights that the narrow type holds exactly
        for p in module.parameters():
            p.copy_(p.half())
    x = (rows(4, WIDTH).sign() * 6e4).half()
    expected, x = module(x.double()), x.requires_grad_()
    y = module.half()(x)
    y.sum().backward()
    fits = expected.abs() < torch.finfo(torch.float16).max
    error = (y.double() - expected).abs()[fits]
    assert (error <= 8 * torch.finfo(torch.float16).eps * expected.abs().clamp_min(1)[fits]).all() and fits.any()
    assert y.dtype == torch.float16 and x.grad.isfinite().all()


@pytest.mark.parametrize("kind, knobs", KNOBS, ids=str)
def test_any_leading_shape(kind, knobs):
    """Rows are normalised alone: heads, tokens and sequences are all the same to a norm."""
    module, x_BHTD = make(kind, width=6, **knobs), rows(2, 3, 4, 6)
    y = module(x_BHTD)
    assert y.shape == x_BHTD.shape
    assert_close(y, torch.stack([module(row) for row in x_BHTD.reshape(-1, 6)]).view_as(y))
    assert_close(module(x_BHTD.transpose(1, 2)), y.transpose(1, 2))


@pytest.mark.parametrize("kind, knobs", KNOBS, ids=str)
def test_gradients_by_finite_differences(kind, knobs):
    if kind.endswith("_int") or knobs.get("quantize") or knobs.get("activation", {}).get("kind") == "pfla":
        pytest.skip("not smooth: rounding has its own test, and so has the table")
    module = make(kind, width=6, **knobs)
    names = [name for name, _ in module.named_parameters()]

    def function(x, *parameters):
        return torch.func.functional_call(module, dict(zip(names, parameters, strict=True)), (x,))

    parameters = [p.detach().clone().requires_grad_() for p in module.parameters()]
    assert torch.autograd.gradcheck(function, (rows(3, 6).requires_grad_(), *parameters))


@pytest.mark.parametrize("kind, knobs", KNOBS, ids=str)
@pytest.mark.parametrize("width", [1, 6, WIDTH])
def test_declared_parameters(kind, knobs, width):
    module, g = make(kind, width=width, **knobs), Graph(Pass("prefill", 2, 3, 3))
    out = module.declare(module.config, g, g.tensor("x", 2, 3, width), DIMS)
    assert {n: w.shape for n, w in g.weights().items()} == {n: tuple(p.shape) for n, p in module.named_parameters()}
    assert out.shape == (2, 3, width) and module(rows(2, 3, width)).shape == out.shape


def test_partial_statistics_cost_less():
    """What the kinds are for: squares of k numbers a row instead of all."""
    squares = {}
    for kind, knobs in (("rmsnorm", {}), ("prmsnorm", {"pct": 0.25}), ("krmsnorm", {"k": 5}), ("dact", {})):
        cls, g = lookup("norm", kind), Graph(Pass("prefill", 1, 2, 2))
        cls.declare(cls.Config(**knobs), g, g.tensor("x", 1, 2, WIDTH), DIMS)
        squares[kind] = sum(op.primitives()["mul"] for op in g.ops if op.name.endswith("square"))
    assert squares == {"rmsnorm": 2 * WIDTH, "prmsnorm": 2 * WIDTH // 4, "krmsnorm": 2 * 5, "dact": 0}


def test_names_of_the_forks():
    assert set(flat_names()) >= {
        "prmsnorm_pct", "krmsnorm_num", "krmsnorm_quantize_type", "krmsnorm_enable_gain", "krmsnorm_selection_type",
        "hsnorm_gain", "hsnorm_scale", "hsnorm_radius", "hsnorm_radius_learning", "dact_activation",
        "dact_alpha_init", "dact_use_alpha", "dact_use_gamma", "dact_use_beta",
    }  # fmt: skip
