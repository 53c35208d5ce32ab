"""The MLP kernels in Triton's interpreter against their fp64 definition; run by the runner of interpreted tests."""

import contextlib
import itertools

import attention_cases as cases
import pytest
import torch
import triton
import triton.language as tl
from attention_cases import FLOOR, FP32, error
from bf16_interpreter import patched
from twins import faulty

from kernels import mlp, mlp_products, mlp_reference, mlp_work
from kernels.mlp_reference import ACTIVATIONS
from kernels.mlp_rows import Launch

dirty_memory = cases.dirty_memory
slow = pytest.mark.slow
NAMES = ("x", "w_up", "b_up", "w_down", "b_down")
# (tokens, width of the model, hidden width): 6 rows of tiles, a group and 2 more; nothing a multiple of a tile
SHAPE = ((3, 30), 20, 36)


@pytest.fixture(autouse=True)
def small(monkeypatch):
    forced(monkeypatch, mlp)


def forced(monkeypatch, module, row=Launch(16, 32, 16, 4, 1, 2, 3)):
    """Small tiles in small groups, walked over by 3 programs."""
    monkeypatch.setattr(module, "GROUP", 4)
    monkeypatch.setattr(module, "launch", lambda *_: row)
    monkeypatch.setattr(module, "SLOPES", {"BM": 64, "BN": 32, "num_warps": 4, "num_stages": 1})


def tensors(shape=SHAPE, gated=False, bias=True, scale=1.0):
    tokens, C, H = shape
    generator = torch.Generator().manual_seed(0)

    def random(*size):
        return torch.randn(size, generator=generator, dtype=torch.float64)

    up = H * (1 + gated)
    found = [random(*tokens, C) * scale, random(up, C) / C**0.5, random(up), random(C + 4, H) / H**0.5, random(C + 4)]
    return [x if bias or x.dim() > 1 or name == "x" else None for name, x in zip(NAMES, found, strict=True)]


def outcome(function, given, *settings, dtype=torch.float32, **options):
    """Output and gradients by name, for a cotangent that is neither constant nor zero anywhere."""
    leaves = [None if x is None else x.detach().to(dtype).requires_grad_() for x in given]
    out = function(*leaves, *settings, **options)
    cotangent = torch.linspace(-1, 1.1, out.numel(), dtype=torch.float64).view_as(out).to(dtype)
    named = {name: x for name, x in zip(NAMES, leaves, strict=False) if x is not None}
    gradients = torch.autograd.grad(out, list(named.values()), cotangent)
    return {"out": out.detach(), **dict(zip(named, gradients, strict=True))}


def judge(got, truth):
    for name, want in truth.items():
        assert error(got[name], want) <= FP32["out" if name == "out" else "gradient"], f"error of {name}"


def check(activation, gated=False, recompute=False, shape=SHAPE, bias=True, module=mlp):
    given = tensors(shape, gated, bias)
    got = outcome(module.mlp, given, activation, gated, recompute=recompute)
    judge(got, outcome(mlp_reference.mlp, given, activation, gated, dtype=torch.float64))


def check_linear(activation, shape=SHAPE, bias=True, module=mlp):
    given = tensors(shape, bias=bias)[:3]
    got = outcome(module.linear_activation, given, activation)
    judge(got, outcome(mlp_reference.linear_activation, given, activation, dtype=torch.float64))


FAST = [("none", False, True), ("relu", False, False), ("relu2", False, True), ("gelu", False, False),
        ("gelu_tanh", True, False), ("silu", True, True), ("relu", True, False)]  # fmt: skip
ALL = [pytest.param(*case, marks=[] if case in FAST else slow)
       for case in itertools.product(ACTIVATIONS, (False, True), (False, True))]  # fmt: skip


@pytest.mark.parametrize("activation, gated, recompute", ALL)
def test_mlp(activation, gated, recompute):
    check(activation, gated, recompute)


@pytest.mark.parametrize("activation", [a if a in ("none", "relu2", "silu") else pytest.param(a, marks=slow)
                                        for a in ACTIVATIONS])  # fmt: skip
def test_linear(activation):
    check_linear(activation)


SHAPES = [((1,), 1, 1), ((2, 1), 16, 15), ((16,), 17, 17), ((63,), 64, 63), ((100,), 33, 100), ((129,), 48, 129)]


@slow
@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("activation, gated", [("relu2", False), ("gelu", False), ("gelu", True), ("silu", True)])
def test_edge_shapes(activation, gated, shape, parts, monkeypatch):
    forced(monkeypatch, mlp, Launch(64, 32, 32, 4, 1, parts, 2))
    check(activation, gated, shape=shape)
    check(activation, gated, True, shape, bias=False)
    if not gated:
        check_linear(activation, shape)
        check_linear(activation, shape, bias=False)


NARROW = [pytest.param(*case, marks=[] if case in [("gelu", True, torch.float16), ("silu", False, torch.bfloat16)] else
          slow) for case in itertools.product(ACTIVATIONS, (False, True), (torch.float16, torch.bfloat16))]  # fmt: skip


@pytest.mark.parametrize("activation, gated, dtype", NARROW)
def test_narrow_types(activation, gated, dtype, monkeypatch):
    """At most twice (gradients: thrice) the error of torch in the same type, or some roundings of it."""
    given = [x.to(dtype).double() for x in tensors(gated=gated)]
    pairs = [(mlp.mlp, mlp_reference.mlp, given, (activation, gated))]
    if not gated:
        pairs.append((mlp.linear_activation, mlp_reference.linear_activation, given[:3], (activation,)))
    for function, reference, inputs, settings in pairs:
        truth = outcome(reference, inputs, *settings, dtype=torch.float64)
        torchs = outcome(reference, inputs, *settings, dtype=dtype)
        with patched(monkeypatch) if dtype == torch.bfloat16 else contextlib.nullcontext():
            got = outcome(function, inputs, *settings, dtype=dtype)
        for name, want in truth.items():
            allowed = max((2 if name == "out" else 3) * error(torchs[name], want), FLOOR[dtype])
            assert got[name].dtype == dtype and error(got[name], want) <= allowed, name


@slow
@pytest.mark.filterwarnings("ignore:overflow encountered in exp2")
@pytest.mark.parametrize("activation, gated", [(a, g) for a in ("gelu", "gelu_tanh", "silu") for g in (False, True)])
def test_values_far_from_zero(activation, gated):
    """Tails of the activations: z up to some 10^4, where exponentials are 0 or infinite."""
    given = tensors(gated=gated, scale=1e4)
    got = outcome(mlp.mlp, given, activation, gated)
    truth = outcome(mlp_reference.mlp, given, activation, gated, dtype=torch.float64)
    for name, want in truth.items():  # 1e-5: slopes where z crosses 0 between 10^4 and -10^4 are of rounded sums
        assert error(got[name], want) <= 1e-5, name


@triton.jit
def distribution(z_ptr, below_ptr, type_ptr, N: tl.constexpr):
    columns = tl.arange(0, N)
    below, density = mlp_products.normal(tl.load(z_ptr + columns), type_ptr.dtype.element_ty)
    tl.store(below_ptr + columns, below)


@pytest.mark.parametrize("dtype, allowed", [(torch.float32, 1.2e-7), (torch.bfloat16, 2.7e-5)])
def test_the_normal_distribution_to_its_tails(dtype, allowed):
    """What is fitted, and of fp32 some roundings: those of the arithmetic, and of the exponent, up to 26."""
    z = torch.linspace(-6, 6, 1024)
    below = torch.empty_like(z)
    distribution[(1,)](z, below, torch.empty(1, dtype=dtype), N=1024)
    want = torch.special.ndtr(z.double())
    assert ((below - want) / want).abs().max() <= allowed + 6 * 2.0**-24 + 26 * 2.0**-24


def saved_bytes(function, *arguments, **options):
    """What autograd holds of a call, weights aside."""
    kept = {}
    weights = {x.data_ptr() for x in arguments[1:5] if isinstance(x, torch.Tensor)}

    def pack(x):
        if x.data_ptr() not in weights:
            kept[x.data_ptr()] = x.untyped_storage().nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        out = function(*arguments, **options)
    assert all(node.name().endswith("AccumulateGrad") for node, _ in out.grad_fn.next_functions if node), "one node"
    return sum(kept.values())


def test_no_more_is_saved_than_is_said():
    """x, and as many tensors of (M, H) as the module and its work model say."""
    M, (_, C, H) = 9, SHAPE
    for activation, gated, recompute, tensors_MH in [
        ("relu", False, False, 1), ("relu2", False, True, 0), ("gelu", False, False, 1), ("silu", True, False, 2),
        ("gelu", True, True, 0),
    ]:  # fmt: skip
        given = [x.float().requires_grad_() for x in tensors(((M,), C, H), gated)]
        got = saved_bytes(mlp.mlp, *given, activation, gated, recompute=recompute)
        assert got == 4 * (M * C + tensors_MH * M * H), (activation, gated, recompute)
        assert got == mlp_work.saved_bytes(M, C, H, activation, 4, gated=gated, recompute=recompute)
    for activation, tensors_MN in [("none", 0), ("relu2", 1), ("gelu", 1)]:
        given = [x.float().requires_grad_() for x in tensors(((M,), C, H))[:3]]
        assert saved_bytes(mlp.linear_activation, *given, activation) == 4 * (M * C + tensors_MN * M * H), activation


def test_strides_types_and_needs():
    """Transposed weights, a slice of wider rows, a gradient without strides; only what needs a gradient gets one."""
    x, w_up, b_up, w_down, b_down = (t.float() for t in tensors(((17,), 20, 36)))
    wide = torch.cat([x, x], 1)[:, 3:23]
    turned = [wide, w_up.t().contiguous().t(), torch.stack([b_up, x[0].mean() * b_up], 1)[:, 0],
              w_down.t().contiguous().t(), b_down]  # fmt: skip
    for needs in [(0, 0, 0, 1, 0), (1, 0, 1, 0, 1)]:
        leaves = [t.detach().requires_grad_(bool(n)) for t, n in zip(turned, needs, strict=True)]
        mlp.mlp(*leaves, "gelu").sum().backward()
        doubles = [t.detach().double().requires_grad_(bool(n)) for t, n in zip(turned, needs, strict=True)]
        mlp_reference.mlp(*doubles, "gelu").sum().backward()
        for leaf, double in zip(leaves, doubles, strict=True):
            assert (leaf.grad is None) == (double.grad is None)
            assert leaf.grad is None or error(leaf.grad, double.grad) <= FP32["gradient"]
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert mlp.mlp(*turned, "gelu").dtype == torch.float32
        assert error(mlp.mlp(*turned, "gelu"), mlp_reference.mlp(*(t.double() for t in turned), "gelu")) < FP32["out"]
    with pytest.raises(ValueError, match="all must be one of"):
        mlp.mlp(x, w_up.half(), b_up, w_down, b_down, "gelu")
    with pytest.raises(ValueError, match="'swish' is none of"):
        mlp.linear_activation(x, w_up, None, "swish")
    with pytest.raises(ValueError, match="w_up is"):
        mlp.mlp(x, w_up, b_up, w_down, b_down, "gelu", gated=True)


def test_weights_of_a_caller_that_casts():
    """fp32 weights, used in fp16, get fp32 gradients."""
    given = [x.float().requires_grad_() for x in tensors(((17,), 20, 36))]
    mlp.mlp(*(x.half() for x in given), "relu2").float().square().sum().backward()
    truth = [x.detach().double().requires_grad_() for x in given]
    mlp_reference.mlp(*truth, "relu2").square().sum().backward()
    for got, want in zip(given, truth, strict=True):
        assert got.grad.dtype == torch.float32 and error(got.grad, want.grad) <= 1e-2


@pytest.mark.parametrize("activation, gated", [("silu", True), pytest.param("relu2", False, marks=slow)])
def test_no_tokens(activation, gated):
    got = outcome(mlp.mlp, tensors(((2, 0), 20, 36), gated), activation, gated)
    assert got.pop("out").shape == (2, 0, 24)
    assert not any(x.any() for x in got.values())
    assert mlp.linear_activation(torch.zeros(0, 4), torch.ones(3, 4), None, activation).shape == (0, 3)


@slow
def test_bits_do_not_depend_on_the_number_of_programs(monkeypatch):
    found = []
    for programs in (1, 2, 7):
        forced(monkeypatch, mlp, Launch(16, 32, 16, 4, 1, 2, programs))
        for recompute in (False, True):
            found.append(outcome(mlp.mlp, tensors(gated=True), "gelu", True, recompute=recompute))
    assert all(torch.equal(found[0][name], other[name]) for other in found for name in found[0])


def test_one_graph_and_opcheck(monkeypatch):
    forced(monkeypatch, mlp, Launch(32, 32, 16, 4, 1, 1, 2))
    given = [x.float().requires_grad_() for x in tensors(((17,), 16, 20), True)]
    quick = "test_schema", "test_autograd_registration", "test_faketensor"  # the rest: the next test
    torch.library.opcheck(mlp.mlp_op, (*given, "silu", True, True), test_utils=quick)
    compiled = torch.compile(mlp.mlp, fullgraph=True, backend="aot_eager")
    eager, traced = (outcome(f, given, "silu", True) for f in (mlp.mlp, compiled))
    assert all(torch.equal(eager[name], traced[name]) for name in eager)


@slow
def test_opcheck_of_what_the_others_keep():
    for gated, keep in itertools.product((False, True), (False, True)):
        given = [x.float().requires_grad_() for x in tensors(((17,), 16, 21), gated)]
        torch.library.opcheck(mlp.mlp_op, (*given, "relu2", gated, keep))
        torch.library.opcheck(mlp.mlp_op, (*given[:2], None, given[3], None, "gelu", gated, keep))
    for activation in ("none", "relu2", "gelu"):
        torch.library.opcheck(mlp.linear_activation_op, (*given[:2], None, activation, True))


@slow
def test_inductor_compiles_what_stands_around_the_kernels():
    given = [x.float() for x in tensors(((17,), 16, 20), True)]
    eager, traced = (outcome(f, given, "silu", True) for f in (mlp.mlp, torch.compile(mlp.mlp, fullgraph=True)))
    for name, want in eager.items():
        torch.testing.assert_close(traced[name], want, rtol=1e-5, atol=1e-6, msg=name)


FAULTS = {  # file, text, text with the fault, and what must see it
    "none": ("mlp_products", "d = below + z * density", "d = below + z * density", lambda m: check("gelu", module=m)),
    "slope of gelu": ("mlp_products", "d = below + z * density", "d = below", lambda m: check("gelu", module=m)),
    "first group again": ("mlp_products", "i = group * GROUP + place", "i = place", lambda m: check("relu", module=m)),
    "sums of up over those of the gate": ("mlp_products", "sums_ptr + N + columns", "sums_ptr + columns",
                                          lambda m: check("silu", True, module=m)),
    "kept overwritten": ("mlp", "d_kept = kept if recompute and not sign else", "d_kept = kept if True else",
                         lambda m: check("relu", module=m)),
    "bias of the gate added to up": ("mlp_products", "bias_ptr + N + columns", "bias_ptr + columns",
                                     lambda m: check("silu", True, module=m)),
    "remade without bias": ("mlp", "rows, w_up, b_up, hidden, read", "rows, w_up, None, hidden, read",
                            lambda m: check("silu", False, True, module=m)),
    "slope of relu2": ("mlp_products", "2.0 * tl.sqrt(h)", "tl.sqrt(h)", lambda m: check_linear("relu2", module=m)),
    "second part of a tile": ("mlp_products", "right, m0, n0 + BP, sums", "right, m0, n0, sums",
                              lambda m: check("relu", module=m)),
    "gate and up swapped": ("mlp", "half = w.shape[0] // 2 * w.stride(0)", "half = 0 * w.stride(0)",
                            lambda m: check("silu", True, module=m)),
    "coefficient of the normal distribution": ("mlp_products", "0.130416396", "0.1304",
                                               lambda m: check("gelu", module=m)),
}  # fmt: skip
QUICK = ("none", "slope of gelu", "first group again", "sums of up over those of the gate")


@pytest.mark.parametrize("name", [n if n in QUICK else pytest.param(n, marks=slow) for n in FAULTS])
def test_seeded_faults_are_seen(name, tmp_path, monkeypatch):
    file, right, wrong, run = FAULTS[name]
    twin = faulty(tmp_path, monkeypatch, "mlp", file, right, wrong)
    forced(monkeypatch, twin)
    if name == "none":
        return run(twin)
    with pytest.raises(AssertionError, match="error of"):
        run(twin)
