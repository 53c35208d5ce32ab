"""Rotary embedding in Triton's interpreter against its definition in fp64; run by test_interpreted.py."""

import contextlib
import itertools

import pytest
import torch
from attention_cases import FLOOR, FP32, dirty_memory, error  # first: it switches the interpreter on
from bf16_interpreter import patched
from twins import faulty

from kernels import rotary, rotary_normed
from kernels.norms_reference import rms_norm
from kernels.rotary import Launch, rotary_reference

dirty_memory = dirty_memory
slow = pytest.mark.slow
# sequences, query heads, key heads, tokens, width, entries that turn, first position
SHAPES = {
    "gpt": (2, 2, 2, 11, 64, 64, 0),
    "grouped": (2, 6, 2, 9, 20, 12, 5),
    "one_token": (5, 4, 1, 1, 16, 16, 30),
    "few_turn": (1, 2, 1, 7, 96, 2, 3),
}
FORMS = ("new", "projection")
QUICK = ("test_schema", "test_autograd_registration", "test_faketensor")  # of opcheck
ROUNDING = {torch.float32: FP32["out"], **FLOOR}


def small(monkeypatch, module=rotary):
    """Tiles of a few tokens, and programs of a few heads."""
    monkeypatch.setattr(module, "ROWS", {block: Launch(8, 4) for block in (8, 16, 32, 64)})


def tables(length, turned):
    """(cos, sin), as the model has them."""
    angle = torch.outer(torch.arange(length).double(), 10000.0 ** (-torch.arange(0, turned, 2).double() / turned))
    return torch.cat([angle.cos()] * 2, 1).float(), torch.cat([-angle.sin(), angle.sin()], 1).float()


def parts(qkv, shape):
    B, H, K, T, D, *_ = shape
    q, k, v = qkv.split([H * D, K * D, K * D], -1)
    return q.view(B, T, H, D).transpose(1, 2), k.view(B, T, K, D).transpose(1, 2), v


def defined(qkv, shape):
    *_, turned, start = shape
    q, k, v = parts(qkv, shape)
    cos, sin = (t.to(qkv.dtype) for t in tables(40, turned))
    return *(rotary_reference(x, cos, sin, start, turned) for x in (q, k)), v


def turned_by(form, module=rotary):
    """Function of (qkv, shape): queries, keys and values after the kernel."""

    def new(qkv, shape):
        *_, turned, start = shape
        q, k, v = parts(qkv, shape)
        return *module.rotary(q, k, *tables(40, turned), start, turned), v

    def projection(qkv, shape):
        _, H, K, _, D, turned, start = shape
        return parts(module.rotary_projection_(qkv, H, K, D, *tables(40, turned), start, turned), shape)

    return {"new": new, "projection": projection}[form]


def inputs(shape, dtype=torch.float32):
    B, H, K, T, D, *_ = shape
    return torch.randn(B, T, (H + 2 * K) * D, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(dtype)


def outcome(function, shape, qkv):
    """(q, k, v, gradient of the projection)."""
    leaf = qkv.detach().requires_grad_()
    outs = function(leaf * 1, shape)
    cotangents = [torch.linspace(-1, 1.1 + i, o.numel()).view(o.shape).to(o.dtype) for i, o in enumerate(outs)]
    return *(o.detach() for o in outs), torch.autograd.grad(outs, leaf, cotangents)[0]


def check(form, shape, dtype=torch.float32, module=rotary):
    shape = SHAPES[shape]
    qkv = inputs(shape, dtype)
    truth = outcome(defined, shape, qkv.double())
    theirs = outcome(defined, shape, qkv)
    got = outcome(turned_by(form, module), shape, qkv)
    for name, mine, their, want in zip(("q", "k", "v", "gradient"), got, theirs, truth, strict=True):
        assert mine.dtype == dtype
        times = 0 if dtype == torch.float32 else 3 if name == "gradient" else 2
        assert error(mine, want) <= max(times * error(their, want), ROUNDING[dtype]), f"error of {name}"


FAST = [("new", "gpt"), ("projection", "grouped"), ("new", "one_token")]


@pytest.mark.parametrize("form, shape", [pytest.param(*case, marks=[] if case in FAST else slow)
                                         for case in itertools.product(FORMS, SHAPES)])  # fmt: skip
def test_fp32(form, shape, monkeypatch):
    small(monkeypatch)
    check(form, shape)


@pytest.mark.parametrize("form, dtype", [("new", torch.bfloat16), ("projection", torch.float16),
                                         pytest.param("new", torch.float16, marks=slow),
                                         pytest.param("projection", torch.bfloat16, marks=slow)])  # fmt: skip
def test_narrow_types(form, dtype, monkeypatch):
    small(monkeypatch)
    with patched(monkeypatch) if dtype == torch.bfloat16 else contextlib.nullcontext():
        check(form, "grouped", dtype)


@slow
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("T, D, groups", [*((T, 32, 2) for T in (1, 15, 16, 17, 63, 100, 129)),
                                          *((17, D, 1) for D in (16, 64, 80, 96, 128, 192, 256)),
                                          *((5, 64, groups) for groups in (1, 2, 4, 8))])  # fmt: skip
def test_edge_shapes_in_their_own_tiles(form, T, D, groups, monkeypatch):
    shape = (2, 8, 8 // groups, T, D, D, 1)
    qkv = inputs(shape)
    monkeypatch.setitem(tables.__globals__, "tables", lambda length, turned, tables=tables: tables(200, turned))
    got, truth = outcome(turned_by(form), shape, qkv), outcome(defined, shape, qkv.double())
    assert max(error(mine, want) for mine, want in zip(got, truth, strict=True)) <= FP32["out"]


@pytest.mark.parametrize("shape", ["grouped", pytest.param("gpt", marks=slow), pytest.param("one_token", marks=slow)])
def test_in_place(shape, monkeypatch):
    """The parts of a split, without gradients; nothing else changes."""
    small(monkeypatch)
    shape = SHAPES[shape]
    *_, turned, start = shape
    qkv = inputs(shape)
    q, k, v = parts(qkv, shape)
    truth = defined(qkv.double(), shape)
    with torch.no_grad():
        rotary.rotary_(q, k, *tables(40, turned), start, turned)
    assert max(error(mine, want) for mine, want in zip((q, k), truth, strict=False)) <= FP32["out"]
    assert torch.equal(v.double(), truth[2])
    assert torch.equal(q[..., turned:].double(), truth[0][..., turned:])


def test_layouts(monkeypatch):
    """Any strides give the same numbers, with the heads inside the tokens; gradients too."""
    small(monkeypatch)
    shape = SHAPES["grouped"]
    *_, turned, start = shape
    q, k, _ = parts(inputs(shape), shape)
    cos_sin = tables(40, turned)
    plain = rotary.rotary(q, k, *cos_sin, start, turned)
    assert all(x.transpose(1, 2).is_contiguous() for x in plain)
    spread = q.new_zeros(*q.shape, 3)
    spread[..., 1] = q
    for other in (q.contiguous(), spread[..., 1]):
        leaf = other.detach().requires_grad_()
        turned_q, turned_k = rotary.rotary(leaf, k, *cos_sin, start, turned)
        assert torch.equal(turned_q, plain[0]) and torch.equal(turned_k, plain[1])
        gradient = torch.autograd.grad(turned_q, leaf, torch.ones(()).expand_as(turned_q))[0]
        assert torch.equal(gradient, rotary.rotary_op(torch.ones_like(q), k, *cos_sin, start, turned, True)[0])


def test_turning_back_restores(monkeypatch):
    small(monkeypatch)
    shape = SHAPES["gpt"]
    q, k, _ = parts(inputs(shape), shape)
    there = rotary.rotary_op(q, k, *tables(40, 64), 0, 64, False)
    back = rotary.rotary_op(*there, *tables(40, 64), 0, 64, True)
    assert max(error(a, b) for a, b in zip(back, (q, k), strict=True)) <= FP32["out"]
    assert error(there[0][:, :, 1:], q[:, :, 1:]) > 0.1


def test_no_tokens():
    q, k = torch.empty(2, 4, 0, 16), torch.empty(2, 2, 0, 16)
    out = rotary.rotary(q, k, *tables(8, 16), 0, 16)
    assert [x.shape for x in out] == [q.shape, k.shape]


def normed_and_defined(q, k, q_weight, k_weight, cos, sin, start, eps):
    pairs = ((q, q_weight), (k, k_weight))
    cos, sin = cos.to(q.dtype), sin.to(q.dtype)
    return tuple(rotary_reference(rms_norm(x, w, eps), cos, sin, start, x.shape[-1]) for x, w in pairs)


def outcome_of_both(function, shape, dtype, input_dtype):
    """Queries, keys and all gradients by name, in `dtype` from what is exact in `input_dtype`."""
    *_, D, _, start = shape
    generator = torch.Generator().manual_seed(2)
    weights = (torch.rand(D, generator=generator) + 0.5 for _ in range(2))
    leaves = [
        x.to(input_dtype).to(dtype).detach().requires_grad_() for x in (*parts(inputs(shape), shape)[:2], *weights)
    ]
    outs = function(*leaves, *tables(40, D), start, 1e-2)
    cotangents = [torch.linspace(-1, 1.1 + i, o.numel()).view(o.shape).to(o.dtype) for i, o in enumerate(outs)]
    names = ("q", "k", "dq", "dk", "dq_weight", "dk_weight")
    found = (*(o.detach() for o in outs), *torch.autograd.grad(outs, leaves, cotangents))
    return dict(zip(names, found, strict=True))


def check_both(shape, dtype=torch.float32, module=rotary_normed):
    shape = SHAPES[shape]
    truth = outcome_of_both(normed_and_defined, shape, torch.float64, dtype)
    theirs = outcome_of_both(normed_and_defined, shape, dtype, dtype)
    got = outcome_of_both(module.rms_norm_rotary, shape, dtype, dtype)
    for name, want in truth.items():
        times, floor = (2, "out") if len(name) == 1 else (3, "gradient")
        allowed = FP32[floor] if dtype == torch.float32 else max(times * error(theirs[name], want), FLOOR[dtype])
        assert error(got[name], want) <= allowed, f"error of {name}"


@pytest.mark.parametrize("shape, dtype", [("grouped", torch.float32), pytest.param("gpt", torch.float32, marks=slow),
                                          pytest.param("one_token", torch.float32, marks=slow),
                                          pytest.param("gpt", torch.float16, marks=slow),
                                          pytest.param("gpt", torch.bfloat16, marks=slow)])  # fmt: skip
def test_norm_and_turn_in_one(shape, dtype, monkeypatch):
    small(monkeypatch)
    with patched(monkeypatch) if dtype == torch.bfloat16 else contextlib.nullcontext():
        check_both(shape, dtype)


@slow
def test_one_graph_and_opcheck_of_both(monkeypatch):
    small(monkeypatch)
    shape = SHAPES["grouped"]
    *_, D, _, start = shape
    q, k, _ = (x.detach().requires_grad_() for x in parts(inputs(shape), shape))
    weight = torch.ones(D).requires_grad_()
    torch.library.opcheck(
        rotary_normed.rms_norm_rotary_op, (q, k, weight, weight.detach(), *tables(40, D), start, 1e-2)
    )
    compiled = torch.compile(rotary_normed.rms_norm_rotary, fullgraph=True, backend="aot_eager")
    eager, traced = (outcome_of_both(f, shape, torch.float32, torch.float32)
                     for f in (rotary_normed.rms_norm_rotary, compiled))  # fmt: skip
    assert all(torch.equal(eager[name], traced[name]) for name in eager)


def test_what_training_keeps(monkeypatch):
    """In place the projection is all that attention keeps; turned elsewhere, unturned queries and keys stay with v."""
    small(monkeypatch)
    shape = SHAPES["gpt"]
    qkv = inputs(shape).requires_grad_()

    def kept_bytes(form):
        storages = {}

        def note(x):
            storages[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
            return x

        with torch.autograd.graph.saved_tensors_hooks(note, lambda x: x):
            q, k, v = turned_by(form)(qkv + 0.0, shape)
            v = v.unflatten(-1, (2, 64)).transpose(1, 2)
            (q * k * v).sum()  # keeps all three, as attention does
        constants = sum(t.untyped_storage().nbytes() for t in tables(40, 64))
        return sum(storages.values()) - constants

    whole, part = qkv.nbytes, qkv.nbytes // 3
    product = part  # q * k, of this test
    assert kept_bytes("projection") == whole + product
    assert kept_bytes("new") == whole + 2 * part + product


def test_one_graph_and_opcheck(monkeypatch):
    small(monkeypatch)
    shape = SHAPES["grouped"]
    _, H, K, _, D, turned, start = shape
    qkv, cos_sin = inputs(shape), tables(40, turned)
    q, k, _ = (x.detach().requires_grad_() for x in parts(qkv, shape))
    torch.library.opcheck(rotary.rotary_op, (q, k, *cos_sin, start, turned, False))

    def function(qkv, shape):
        return parts(rotary.rotary_projection_(qkv, H, K, D, *cos_sin, start, turned), shape)

    eager = outcome(function, shape, qkv)
    traced = outcome(torch.compile(function, fullgraph=True, backend="aot_eager"), shape, qkv)
    assert all(torch.equal(a, b) for a, b in zip(eager, traced, strict=True))


@slow
def test_opcheck_of_every_operator(monkeypatch):
    small(monkeypatch)
    shape = SHAPES["grouped"]
    _, H, K, _, D, turned, start = shape
    cos_sin = tables(40, turned)
    q, k, _ = (x.detach().requires_grad_() for x in parts(inputs(shape), shape))
    torch.library.opcheck(rotary.rotary_op, (q, k, *cos_sin, start, turned, False))
    arguments = (inputs(shape).requires_grad_(), *cos_sin, H, K, D, start, turned, False)
    torch.library.opcheck(rotary.rotary_projection_op, arguments)
    q, k, _ = (x.clone() for x in parts(inputs(shape), shape))
    torch.library.opcheck(rotary.rotary_in_place_op, (q, k, *cos_sin, start, turned, False))


@slow
@pytest.mark.parametrize("form", [*FORMS, "in place"])
def test_inductor_compiles_what_stands_around_the_kernel(form, monkeypatch):
    small(monkeypatch)
    shape = SHAPES["grouped"]
    *_, turned, start = shape

    def block(qkv, shape):
        if form != "in place":
            return tuple(x * 2 for x in turned_by(form)(qkv + 1, shape))
        q, k, v = parts(qkv + 1, shape)
        rotary.rotary_(q, k, *tables(40, turned), start, turned)
        return q * 2, k * 2, v * 2

    qkv = inputs(shape)
    with torch.no_grad() if form == "in place" else contextlib.nullcontext():
        run = block if form == "in place" else lambda qkv, shape: outcome(block, shape, qkv)
        eager = run(qkv, shape)
        compiled = torch.compile(block, fullgraph=True)
        got = compiled(qkv, shape) if form == "in place" else outcome(compiled, shape, qkv)
    for mine, want in zip(got, eager, strict=True):
        torch.testing.assert_close(mine, want, rtol=1e-5, atol=1e-6)


def test_refusals():
    q, k = torch.randn(1, 2, 3, 16), torch.randn(1, 1, 3, 16)
    cos_sin = tables(8, 16)
    with pytest.raises(ValueError, match="positions 6 to 8 of tables of 8"):
        rotary.rotary(q, k, *cos_sin, 6, 16)
    with pytest.raises(ValueError, match="even number"):
        rotary.rotary(q, k, *cos_sin, 0, 18)
    with pytest.raises(ValueError, match="tables"):
        rotary.rotary(q, k, *cos_sin, 0, 8)
    with pytest.raises(ValueError, match="differ in more than heads"):
        rotary.rotary(q, k[:, :, :2], *cos_sin, 0, 16)
    with pytest.raises(ValueError, match="no gradient"):
        rotary.rotary_(q.requires_grad_(), k, *cos_sin, 0, 16)
    with pytest.raises(ValueError, match="must be adjacent"):
        rotary.rotary_(torch.randn(1, 2, 16, 3).mT, k, *cos_sin, 0, 16)
    with pytest.raises(ValueError, match="no two the same"):
        rotary.rotary_(k.expand(1, 2, 3, 16), k, *cos_sin, 0, 16)
    with pytest.raises(ValueError, match="do not begin"):
        rotary.rotary_projection_(torch.randn(1, 3, 40), 2, 1, 16, *cos_sin, 0, 16)


# name: text, text with the fault, form and shape that must see it
FAULTS = {
    "none": ("x_0 * cos_0 + x_1 * sin_0", "x_0 * cos_0 + x_1 * sin_0", "projection", "grouped"),
    "wrong sign": ("x_1 * cos_1 + x_0 * sin_1", "x_1 * cos_1 - x_0 * sin_1", "new", "grouped"),
    "partner of the whole head": ("(cols + HALF)[None, :]", "(cols + D // 2)[None, :]", "new", "grouped"),
    "gradient turns forth": ("sin_0, sin_1 = sin_1, sin_0", "sin_0, sin_1 = sin_0, sin_1", "new", "gpt"),
    "position of the tile": ("(token % T)", "(token % BT)", "projection", "gpt"),
    "start forgotten": ("(start + t) * cos_s", "t * cos_s", "new", "grouped"),
    "last keys left out": ("hi - H, some", "hi - H - 1, some", "projection", "grouped"),
    "rest not copied": ("if BR > 1:", "if BR > D:", "new", "grouped"),
}  # fmt: skip


# of the kernel that also normalises
FAULTS_OF_BOTH = {
    "none": ("(0.5 / HALF)", "(0.5 / HALF)"),
    "mean over a half": ("(0.5 / HALF)", "(1.0 / HALF)"),
    "weight of the other half": ("x_1 * rstd[:, None] * w_1", "x_1 * rstd[:, None] * w_0"),
    "statistics of another head": ("b * H * T + t", "b * K * T + t"),
}
SLOW = (
    "weight of the other half",
    "partner of the whole head",
    "position of the tile",
    "start forgotten",
    "rest not copied",
)


@pytest.mark.parametrize("name", [pytest.param(n, marks=slow) if n in SLOW else n for n in FAULTS])
def test_seeded_faults_are_seen(name, tmp_path, monkeypatch):
    right, wrong, form, shape = FAULTS[name]
    twin = faulty(tmp_path, monkeypatch, "rotary", "rotary_kernels", right, wrong)
    small(monkeypatch, twin)
    if name == "none":
        return check(form, shape, module=twin)
    with pytest.raises(AssertionError, match="error of"):
        check(form, shape, module=twin)


@pytest.mark.parametrize("name", [pytest.param(n, marks=slow) if n in SLOW else n for n in FAULTS_OF_BOTH])
def test_seeded_faults_of_both_are_seen(name, tmp_path, monkeypatch):
    right, wrong = FAULTS_OF_BOTH[name]
    twin = faulty(tmp_path, monkeypatch, "rotary_normed", "rotary_normed_kernels", right, wrong)
    if name == "none":
        return check_both("grouped", module=twin)
    with pytest.raises(AssertionError, match="error of"):
        check_both("grouped", module=twin)
