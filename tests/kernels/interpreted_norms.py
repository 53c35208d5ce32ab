"""The norms in Triton's interpreter against their fp64 definition, with seeded faults; run by test_interpreted.py."""

import contextlib
import itertools

import pytest
import torch
import torch.nn.functional as F
from attention_cases import FLOOR, FP32, dirty_memory, error  # first: it switches the interpreter on
from bf16_interpreter import patched
from twins import faulty

from kernels import norms, norms_reference
from kernels.norms import Launch

dirty_memory = dirty_memory
slow = pytest.mark.slow
KINDS = ("rms_norm", "layer_norm", "add_rms_norm", "add_layer_norm")
EPS = 1e-2  # large enough to be missed
# leading dimensions and width; `heads` is a view of (tokens, heads) with heads first, as attention has queries
SHAPES = {"odd": (7, 50), "one": (1, 3), "rows": (2, 5, 64), "heads": (2, 3, 5, 20), "deep": (2, 1, 3, 2, 2, 33)}
PATHS = ("tile", "chunks", "long")  # how rows of more than 32 are gone through


def small(monkeypatch, path="tile", module=norms):
    """Tiles of a few rows and three programs, so that there are several of all."""
    rows = {(op, width): Launch(2, min(width, 16) if path == "chunks" and op == "backward" else width, 4, 3, 2)
            for op in ("forward", "backward") for width in (16, 32, 64)}  # fmt: skip
    rows |= {(op, 0): Launch(1, 16, 4) for op in ("forward", "backward", "total")}
    rows["parameters", 0] = Launch(2, 16, 4, 3)
    monkeypatch.setattr(module, "ROWS", rows)
    monkeypatch.setattr(module, "OWN_ROWS", {})
    monkeypatch.setattr(module, "LONGEST", 16 if path == "long" else 64)


def inputs(kind, shape, dtype=torch.float32, parameter_dtype=torch.float32):
    """Arguments by name, in order."""
    generator = torch.Generator().manual_seed(0)

    def random(*size, dtype=dtype):
        return torch.randn(size, generator=generator, dtype=torch.float64).to(dtype)

    named = {"x": random(*shape) + 1}
    if "add" in kind:
        named["y"] = random(*shape)
    named["weight"] = random(shape[-1], dtype=parameter_dtype)
    if "layer" in kind:
        named["bias"] = random(shape[-1], dtype=parameter_dtype)
    return named


def outcome(function, kind, named, dtype=None, used=(True, True)):
    """Outputs and gradients by name, for cotangents that are neither constant nor zero anywhere."""
    leaves = {n: x if x is None else x.detach().to(dtype or x.dtype).requires_grad_() for n, x in named.items()}
    outs = function(*leaves.values(), EPS)
    outs = dict(zip(("sum", "out"), outs, strict=True)) if "add" in kind else {"out": outs}
    kept = [out for out, use in zip(outs.values(), used, strict=False) if use]
    cotangents = [torch.linspace(-1, 1.1 + i, out.numel(), dtype=torch.float64).view(out.shape).to(out.dtype)
                  for i, out in enumerate(kept)]  # fmt: skip
    wanted = {n: x for n, x in leaves.items() if x is not None}
    gradients = torch.autograd.grad(kept, list(wanted.values()), cotangents, allow_unused=True)
    found = {n: x.detach() for n, x in outs.items()} | dict(zip(wanted, gradients, strict=True))
    return {n: x for n, x in found.items() if x is not None}


def judge(got, truth):
    assert set(got) == set(truth)
    for name, want in truth.items():
        assert got[name].shape == want.shape
        assert error(got[name], want) <= FP32["out" if name in ("out", "sum") else "gradient"], f"error of {name}"


def check(kind, shape="odd", module=norms, used=(True, True)):
    named = inputs(kind, SHAPES[shape])
    if shape == "heads":
        named |= {n: named[n].transpose(1, 2).contiguous().transpose(1, 2) for n in ("x", "y") if n in named}
    got = outcome(getattr(module, kind), kind, named, used=used)
    judge(got, outcome(getattr(norms_reference, kind), kind, named, torch.float64, used))


ALL = [pytest.param(*case, marks=[] if fast else slow)
       for case in itertools.product(KINDS, SHAPES, PATHS)
       for fast in [case[1:] == ("odd", "tile") or (case[0] == "add_layer_norm" and case[1] == "odd")
                    or case == ("rms_norm", "heads", "tile")]]  # fmt: skip


@pytest.mark.parametrize("kind, shape, path", ALL)
def test_fp32(kind, shape, path, monkeypatch):
    small(monkeypatch, path)
    check(kind, shape)


@slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("N", [16, 64, 96, 128, 500, 768, 2048, 4100, 16384, 16400])
def test_widths_in_their_own_tiles(kind, N):
    named = inputs(kind, (3, N))
    judge(
        outcome(getattr(norms, kind), kind, named), outcome(getattr(norms_reference, kind), kind, named, torch.float64)
    )


@pytest.mark.parametrize("used", [(True, False), (False, True)])
def test_one_output_is_used(used, monkeypatch):
    small(monkeypatch)
    check("add_layer_norm", used=used)


@pytest.mark.parametrize("kind, left_out", [("add_layer_norm", ["weight"]), ("layer_norm", ["weight", "bias"]),
                                            ("rms_norm", ["weight"])])  # fmt: skip
@pytest.mark.parametrize("path", ["tile", pytest.param("long", marks=slow)])
def test_without_parameters(kind, left_out, path, monkeypatch):
    small(monkeypatch, path)
    named = inputs(kind, (5, 50)) | dict.fromkeys(left_out)
    truth = outcome(getattr(norms_reference, kind), kind, named, torch.float64)
    judge(outcome(getattr(norms, kind), kind, named), truth)


def torchs(kind):
    """torch's own, in the type of its inputs."""

    def norm(x, *parameters):
        *parameters, eps = (p.to(x.dtype) if isinstance(p, torch.Tensor) else p for p in parameters)
        return (F.layer_norm if "layer" in kind else F.rms_norm)(x, x.shape[-1:], *parameters, eps)

    return (lambda x, y, *rest: (x + y, norm(x + y, *rest))) if "add" in kind else norm


@pytest.mark.parametrize("kind", ["rms_norm", "add_layer_norm", *(pytest.param(k, marks=slow) for k in KINDS[1:3])])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("path", ["tile", pytest.param("chunks", marks=slow), pytest.param("long", marks=slow)])
def test_narrow_types(kind, dtype, path, monkeypatch):
    """At most twice (gradients: thrice) the error of torch in the same type, or some roundings of it."""
    small(monkeypatch, path)
    named = inputs(kind, (7, 50), dtype, dtype)
    truth = outcome(getattr(norms_reference, kind), kind, named, torch.float64)
    theirs = outcome(torchs(kind), kind, named)
    with patched(monkeypatch) if dtype == torch.bfloat16 else contextlib.nullcontext():
        got = outcome(getattr(norms, kind), kind, named)
    for name, want in truth.items():
        times = 2 if name in ("out", "sum") else 3
        assert got[name].dtype == dtype
        assert error(got[name], want) <= max(times * error(theirs[name], want), FLOOR[dtype]), name


@pytest.mark.parametrize("path", ["tile", pytest.param("long", marks=slow)])
def test_parameters_of_another_type(path, monkeypatch):
    """fp32 parameters beside activations of 16 bits, as in mixed precision; their gradients are fp32 sums."""
    small(monkeypatch, path)
    named = inputs("layer_norm", (7, 50), torch.float16)
    got = outcome(norms.layer_norm, "layer_norm", named)
    truth = outcome(norms_reference.layer_norm, "layer_norm", named, torch.float64)
    assert [got[n].dtype for n in ("out", "x", "weight", "bias")] == [torch.float16] * 2 + [torch.float32] * 2
    assert max(error(got[n], truth[n]) for n in ("out", "x")) <= FLOOR[torch.float16]
    # the cotangent, which both round, is all that is left
    assert max(error(got[n], truth[n]) for n in ("weight", "bias")) <= FLOOR[torch.float16]


@pytest.mark.parametrize("path", [pytest.param(path, marks=slow) if path != "tile" else path for path in PATHS])
def test_types_of_autocast(path, monkeypatch):
    """A stream of fp32, a branch and a result of 16 bits: every tensor rounds once, to its own type."""
    small(monkeypatch, path)
    named = inputs("add_layer_norm", (7, 50))
    named["y"] = named["y"].half()

    def fused(*arguments):
        return norms.add_layer_norm(*arguments, dtype=torch.float16)

    got = outcome(fused, "add_layer_norm", named)
    truth = outcome(norms_reference.add_layer_norm, "add_layer_norm", named, torch.float64)
    assert {n for n, x in got.items() if x.dtype == torch.float16} == {"out", "y"}
    assert error(got["sum"], truth["sum"]) <= FP32["out"]
    assert max(error(got[n], truth[n]) for n in truth) <= FLOOR[torch.float16]
    assert torch.equal(got["y"], got["x"].half())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_only_the_sum_is_used(dtype):
    """Then the gradient passes by the norm, in the types of the parts."""
    x, y = torch.randn(3, 16, requires_grad=True), torch.randn(3, 16, dtype=dtype, requires_grad=True)
    total, _ = norms.add_rms_norm(x, y, None, EPS)
    dx, dy = torch.autograd.grad(total, (x, y), torch.ones_like(total))
    assert torch.equal(dx, torch.ones_like(x)) and torch.equal(dy, torch.ones_like(y))


def test_strides_make_no_difference(monkeypatch):
    """Columns of a wider buffer, rows that all are one, entries that are not adjacent, a spread cotangent."""
    small(monkeypatch)
    wide = torch.randn(4, 6, 70, generator=torch.Generator().manual_seed(1))
    weight = torch.ones(20)
    for view in (wide[..., 10:30], wide[:, ::2, 1:21].transpose(0, 1), wide[:1, :1, :20].expand(4, 6, 20),
                 wide[:, :, :4].reshape(4, 24)[:, :20].t().contiguous().t()):  # fmt: skip
        x = view.detach().requires_grad_()
        out = norms.rms_norm(x, weight, EPS)
        got = torch.autograd.grad(out, x, torch.ones(()).expand_as(out))[0]
        plain = view.detach().contiguous().requires_grad_()
        same = norms.rms_norm(plain, weight, EPS)
        assert torch.equal(out, same)
        assert torch.equal(got, torch.autograd.grad(same, plain, torch.ones_like(same))[0])


def test_results_keep_the_order_of_dimensions_in_memory(monkeypatch):
    small(monkeypatch)
    x = torch.randn(2, 5, 3, 16)[..., :16].transpose(1, 2).requires_grad_()
    out = norms.rms_norm(x, None, EPS)
    assert out.transpose(1, 2).is_contiguous()
    assert torch.autograd.grad(out.sum(), x)[0].transpose(1, 2).is_contiguous()


@pytest.mark.parametrize("shape", [(0, 16), (3, 0, 16)])
def test_no_rows(shape, monkeypatch):
    small(monkeypatch)
    got = outcome(norms.add_layer_norm, "add_layer_norm", inputs("add_layer_norm", shape))
    assert got["out"].shape == got["x"].shape == shape
    assert not got["weight"].any() and not got["bias"].any()


@pytest.mark.parametrize("path", ["tile", *(pytest.param(path, marks=slow) for path in PATHS[1:])])
def test_gradients_are_the_same_each_time(path, monkeypatch):
    small(monkeypatch, path)
    named = inputs("add_layer_norm", (13, 50))
    first, second = (outcome(norms.add_layer_norm, "add_layer_norm", named) for _ in range(2))
    assert all(torch.equal(first[n], second[n]) for n in first)


def test_one_graph_and_opcheck(monkeypatch):
    small(monkeypatch)
    named = inputs("add_layer_norm", (2, 3, 20))
    leaves = [x.requires_grad_() for x in named.values()]
    quick = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(norms.norm_forward_op, (*leaves, EPS, True, torch.float32), test_utils=quick)
    compiled = torch.compile(norms.add_layer_norm, fullgraph=True, backend="aot_eager")
    eager = outcome(norms.add_layer_norm, "add_layer_norm", named)
    traced = outcome(compiled, "add_layer_norm", named)
    assert all(torch.equal(eager[n], traced[n]) for n in eager)


@slow
@pytest.mark.parametrize("path", ["tile", "long"])
def test_opcheck_with_shapes_that_vary(path, monkeypatch):
    small(monkeypatch, path)
    leaves = [x.requires_grad_() for x in inputs("add_layer_norm", (2, 3, 50)).values()]
    torch.library.opcheck(norms.norm_forward_op, (*leaves, EPS, True, torch.float32))
    heads = torch.randn(2, 5, 3, 50).transpose(1, 2).requires_grad_()
    torch.library.opcheck(
        norms.norm_forward_op, (heads, None, torch.ones(50).requires_grad_(), None, EPS, False, torch.float16)
    )


@slow
def test_inductor_compiles_what_stands_around_the_kernels(monkeypatch):
    small(monkeypatch)

    def block(x, y, weight, bias, eps):
        total, normed = norms.add_layer_norm(x * 2, torch.relu(y), weight, bias, eps)
        return total, normed.sigmoid()

    named = inputs("add_layer_norm", (2, 3, 20))
    eager = outcome(block, "add_layer_norm", named)
    compiled = outcome(torch.compile(block, fullgraph=True), "add_layer_norm", named)
    for name, want in eager.items():
        torch.testing.assert_close(compiled[name], want, rtol=1e-5, atol=1e-6, msg=name)


def test_refusals():
    x = torch.randn(2, 16)
    with pytest.raises(ValueError, match="weight of shape"):
        norms.rms_norm(x, torch.ones(15), EPS)
    with pytest.raises(ValueError, match="must be alike"):
        norms.add_rms_norm(x, x[:1], None, EPS)
    with pytest.raises(ValueError, match="rows"):
        norms.rms_norm(torch.empty(1, 16, device="meta").expand(2**31, 16), None, EPS)


# name: text, text with the fault, kind, shape and path that must see it
FAULTS = {
    "none": ("tl.sum(x * x, 1) * (1.0 / N)", "tl.sum(x * x, 1) * (1.0 / N)", "add_layer_norm", "odd", "tile"),
    "mean over the padding": ("tl.sum(x * x, 1) * (1.0 / N)", "tl.sum(x * x, 1) * (1.0 / BN)", "rms_norm", "odd",
                              "tile"),
    "variance of the padding": ("tl.where(inside, x - mean[:, None], 0.0)", "x - mean[:, None]", "layer_norm", "odd",
                                "tile"),
    "no mean of gradients": ("dx -= shift[:, None]", "dx -= 0.0", "layer_norm", "odd", "tile"),
    "gradient of the sum forgotten": ("dx += load_rows(ds_ptr", "dx += 0.0 * load_rows(ds_ptr", "add_rms_norm", "odd",
                                      "tile"),
    "last partial row dropped": ("range(0, P, BP)", "range(0, P - 1, BP)", "rms_norm", "odd", "tile"),
    "heads for tokens": ("x_at = row_offsets(rows, n1, n2, x_0, x_1, x_2)",
                         "x_at = row_offsets(rows, n1, n2, x_0, x_2, x_1)", "rms_norm", "heads", "tile"),
    "one chunk for all": ("rows, cols + c * BN, mean", "rows, cols, mean", "rms_norm", "odd", "chunks"),
    "long rows stop early": ("for start in range(0, N, BN)", "for start in range(0, N - BN, BN)", "rms_norm", "odd",
                             "long"),
    "bias takes the place of weight": ("programs.to(tl.int64) * N * W_GRAD", "programs.to(tl.int64) * 0", "layer_norm",
                                       "odd", "tile"),
}  # fmt: skip
SLOW = ("long rows stop early", "one chunk for all", "variance of the padding", "bias takes the place of weight")


@pytest.mark.parametrize("name", [pytest.param(n, marks=slow) if n in SLOW else n for n in FAULTS])
def test_seeded_faults_are_seen(name, tmp_path, monkeypatch):
    right, wrong, kind, shape, path = FAULTS[name]
    twin = faulty(tmp_path, monkeypatch, "norms", "norms_kernels", right, wrong)
    small(monkeypatch, path, twin)
    if name == "none":
        return check(kind, shape, twin)
    with pytest.raises(AssertionError, match="error of"):
        check(kind, shape, twin)
