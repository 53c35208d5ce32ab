"""Cross entropy and its fused form in Triton's interpreter against their fp64 definitions."""

import attention_cases as cases
import pytest
import torch
import torch.nn.functional as F
from attention_cases import FP32, error
from bf16_interpreter import patched
from twins import faulty

from kernels import cross_entropy, linear_cross_entropy, losses_reference

dirty_memory = cases.dirty_memory
TERMS = {
    "plain": {}, "smooth": {"smoothing": 0.1}, "z": {"z": 1e-2}, "focal": {"gamma": 1.5},
    "all": {"smoothing": 0.2, "gamma": 0.7, "z": 1e-2},
}  # fmt: skip
# vocabulary, distance of rows: below a tile, at the end of one, tiles and both ends, tiles and one end
SIZES = {
    "narrow": (65, 65), "tile": (512, 512), "odd": (2571, 2571), "far": (3000, 3015), "end": (9001, 9008),
    "gpt2": (50257, 50257), "padded": (50257, 50272), "even": (50304, 50304), "wide": (131072, 131072),
}  # fmt: skip
FAST = [("narrow", "all"), ("odd", "plain"), ("narrow", "focal"), ("end", "z")]
ALL = [pytest.param(*case, marks=[] if case in FAST else pytest.mark.slow)
       for case in ((size, terms) for size in SIZES for terms in TERMS)]  # fmt: skip
SOME = ("test_schema", "test_faketensor", "test_autograd_registration")  # the last takes seconds
ALL_TESTS = (*SOME, "test_aot_dispatch_dynamic")
IGNORED = 5  # none of the usual numbers, and a column where there are as many


def random(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def rows_of(V, stride, N=4):
    """Logits as columns of a wider matrix, and targets with one ignored, at the ends of the row and inside."""
    logits = 4 * random(N, stride)
    targets = torch.tensor([V - 1, 0, IGNORED, V // 2, *range(N)])[:N]
    return logits, targets


def outcome(function, logits, targets, V, dtype, d=0.7, **terms):
    """(loss, gradient of the whole matrix); the logits are not a leaf."""
    leaf = logits.to(dtype).requires_grad_()
    loss = function((leaf * 1)[:, :V], targets, ignore_index=IGNORED, **terms)
    return loss.detach(), torch.autograd.grad(loss, leaf, torch.tensor(d, dtype=loss.dtype))[0]


def judge(got, want, forward=FP32["out"], backward=FP32["gradient"]):
    assert error(got[0], want[0]) <= forward, "error of the loss"
    for i, (a, b) in enumerate(zip(got[1:], want[1:], strict=True)):
        assert error(a, b) <= backward, f"error of gradient {i}"


def check(size, terms, module=cross_entropy):
    V, stride = SIZES[size]
    logits, targets = rows_of(V, stride)
    want = outcome(losses_reference.cross_entropy, logits, targets, V, torch.float64, **TERMS[terms])
    for in_place in (True, False):
        got = outcome(module.cross_entropy, logits, targets, V, torch.float32, in_place=in_place, **TERMS[terms])
        judge(got, want)


@pytest.mark.parametrize("size, terms", ALL)
def test_fp32(size, terms):
    check(size, terms)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("size", ["odd", pytest.param("even", marks=pytest.mark.slow)])
def test_narrow_types_are_as_good_as_in_torch(size, dtype, monkeypatch):
    """The loss is that of the rounded logits; the gradient is rounded once, as by torch."""
    V, stride = SIZES[size]
    logits, targets = rows_of(V, stride)
    logits = logits.to(dtype)
    want = outcome(losses_reference.cross_entropy, logits, targets, V, torch.float64, **TERMS["all"])
    with patched(monkeypatch):
        got = outcome(cross_entropy.cross_entropy, logits, targets, V, dtype, **TERMS["all"])

    def chain(x, *rest, **options):
        return losses_reference.cross_entropy(x.float(), *rest, **options)

    torchs = outcome(chain, logits, targets, V, dtype, **TERMS["all"])
    assert got[1].dtype == dtype
    judge(got, want, FP32["out"], 1.05 * error(torchs[1], want[1]))


def compared(logits, targets, **options):
    """(loss, gradient) here and by torch."""
    found = []
    for function in (cross_entropy.cross_entropy, F.cross_entropy):
        leaf = logits.clone().requires_grad_()
        loss = function(leaf * 1, targets, ignore_index=-1, **(options if function is not F.cross_entropy else {}))
        found += [loss.detach(), torch.autograd.grad(loss, leaf)[0]]
    return found


@pytest.mark.parametrize("V", [65, pytest.param(9000, marks=pytest.mark.slow)])
def test_rows_at_the_edge_of_numbers(V):
    """All but one -inf, all at 80, -80 and 80; then a target that cannot be, whose loss is infinite."""
    logits = torch.full((4, V), -torch.inf)
    logits[0, 7], logits[1], logits[2, : V // 2], logits[2, V // 2 :], logits[3] = 1.0, 80.0, -80.0, 80.0, -80.0
    logits[3, 3] = 80.0
    loss, gradient, their_loss, theirs = compared(logits, torch.tensor([7, 1, V - 1, 3]))
    assert error(loss, their_loss) <= 1e-6 and torch.isfinite(gradient).all()
    assert (gradient - theirs).abs().max() <= 5e-7  # of numbers up to 1/4
    loss, gradient, _, theirs = compared(logits, torch.tensor([8, 1, V - 1, 3]))
    assert loss == torch.inf and (gradient - theirs).abs().max() <= 5e-7


def test_fp64_is_refused():
    with pytest.raises(ValueError, match="fp32"):
        cross_entropy.cross_entropy(random(2, 5), torch.tensor([0, 1]))


def test_a_vocabulary_of_one_token():
    loss, gradient, *_ = compared(torch.tensor([[3.0], [-80.0]]), torch.tensor([0, 0]), z=0.1, smoothing=0.5)
    assert error(loss, torch.tensor(0.1 * (9 + 6400) / 2)) <= 1e-6
    assert (gradient - torch.tensor([[0.3], [-8.0]])).abs().max() <= 2e-6


def test_ignored_rows():
    """They may hold anything, and no row at all has the mean NaN and no gradient: as torch.nn.functional has it."""
    logits = random(3, 70).float()
    logits[1] = torch.nan
    leaf = logits.clone().requires_grad_()
    loss = cross_entropy.cross_entropy(leaf * 1, torch.tensor([3, -1, 69]))
    (gradient,) = torch.autograd.grad(loss, leaf)
    assert error(loss, F.cross_entropy(logits[[0, 2]], torch.tensor([3, 69]))) <= 1e-6
    assert not gradient[1].any() and gradient[[0, 2]].isfinite().all()
    loss, gradient, theirs, their_gradient = compared(random(3, 70).float(), torch.full((3,), -1))
    assert loss.isnan() and theirs.isnan() and not gradient.any() and not their_gradient.any()
    x, weight = random(3, 8).float().requires_grad_(), random(70, 8).float().requires_grad_()
    loss = linear_cross_entropy.linear_cross_entropy(x, weight, torch.full((3,), -1))
    assert loss.isnan() and not any(g.any() for g in torch.autograd.grad(loss, (x, weight)))


@pytest.mark.parametrize("target", [70, 10**12, -2])
def test_a_target_out_of_range_is_nan_and_reads_nothing(target):
    leaf = random(3, 70).float().requires_grad_()
    loss = cross_entropy.cross_entropy(leaf * 1, torch.tensor([3, target, 4]))
    (gradient,) = torch.autograd.grad(loss, leaf, torch.tensor(1.0))
    assert loss.isnan() and gradient[1].isnan().all() and gradient[[0, 2]].isfinite().all()


def test_no_rows():
    leaf, targets = torch.zeros(0, 70, requires_grad=True), torch.zeros(0, dtype=torch.int64)
    loss = cross_entropy.cross_entropy(leaf * 1, targets)
    assert loss.isnan() and torch.autograd.grad(loss, leaf)[0].shape == (0, 70)
    x, weight = torch.zeros(0, 8, requires_grad=True), torch.zeros(70, 8, requires_grad=True)
    loss = linear_cross_entropy.linear_cross_entropy(x, weight, targets)
    assert loss.isnan() and [g.any().item() for g in torch.autograd.grad(loss, (x, weight))] == [False, False]


def test_strides_make_no_difference():
    """Rows apart, columns apart, rows that are one and the same, targets apart."""
    logits, targets = random(4, 90).float(), torch.tensor([1, 2, 3, 69])
    want = cross_entropy.cross_entropy(logits[:, 3:73].contiguous(), targets)
    for other in (logits[:, 3:73], logits[:, 3:73].T.contiguous().T):
        assert torch.equal(cross_entropy.cross_entropy(other, targets.repeat_interleave(2)[::2]), want)
    found = []
    for function in (cross_entropy.cross_entropy, F.cross_entropy):
        leaf = logits[:1, :70].clone().requires_grad_()
        loss = function((leaf * 1).expand(4, 70), targets)
        found.append([loss, *torch.autograd.grad(loss, leaf)])
    judge(*found)


def test_the_gradient_takes_the_place_of_the_logits():
    """Also in memory; columns beside them stay, and whoever else wants the logits in a backward pass is told."""
    leaf, targets = random(4, 80).float().requires_grad_(), torch.tensor([1, 2, 3, 64])

    def logits():
        made = leaf * 1
        return made, made[:, :65]

    made, used = logits()
    before = made.detach().clone()
    loss = cross_entropy.cross_entropy(used, targets)
    (gradient,) = torch.autograd.grad(loss, used, retain_graph=True)
    assert gradient.data_ptr() == made.data_ptr() and torch.equal(made[:, 65:], before[:, 65:])
    with pytest.raises(RuntimeError, match="inplace"):
        torch.autograd.grad(loss, leaf)
    made, used = logits()
    loss = cross_entropy.cross_entropy(used, targets)
    square = made.square().sum()
    torch.autograd.grad(loss, made, retain_graph=True)
    with pytest.raises(RuntimeError, match="inplace"):
        torch.autograd.grad(square, leaf)


def test_leaves_are_left_alone():
    logits, targets = random(4, 65).float(), torch.tensor([1, 2, 3, 64])
    for view in (lambda x: x, lambda x: x.view(2, 2, 65).flatten(0, 1)):
        leaf = logits.clone().requires_grad_()
        cross_entropy.cross_entropy(view(leaf), targets).backward()
        assert torch.equal(leaf, logits) and leaf.grad.data_ptr() != leaf.data_ptr()


def linear_outcome(function, dtypes, N=7, V=70, C=20, d=0.7, bias=True, seed=0, **options):
    """(loss, gradients) of x, weight and bias, rounded to their types first, computed in those."""
    kinds, compute = dtypes
    leaves = [random(N, C, seed=seed), random(V, C, seed=seed + 1), random(V, seed=seed + 2)][: 2 + bias]
    leaves = [x.to(kind).to(compute or kind).requires_grad_() for x, kind in zip(leaves, kinds, strict=False)]
    targets = torch.arange(N) * 3 % V
    targets[1] = IGNORED
    loss = function(*leaves[:2], targets, bias_V=leaves[2] if bias else None, ignore_index=IGNORED, **options)
    return [loss.detach(), *torch.autograd.grad(loss, leaves, torch.tensor(d, dtype=loss.dtype))]


def check_linear(terms, chunk, module=linear_cross_entropy, dtype=torch.float32, forward=FP32["out"], **options):
    kinds = (dtype,) * 3
    want = linear_outcome(losses_reference.linear_cross_entropy, (kinds, torch.float64), **TERMS[terms], **options)
    got = linear_outcome(module.linear_cross_entropy, (kinds, None), chunk=chunk, **TERMS[terms], **options)
    if dtype == torch.float32:
        return judge(got, want)
    torchs = linear_outcome(losses_reference.linear_cross_entropy, (kinds, None), **TERMS[terms], **options)
    for name, a, b, c in zip(("loss", "x", "weight", "bias"), got, torchs, want, strict=False):
        assert error(a, c) <= 1.2 * error(b, c) + forward, f"error of {name}"


@pytest.mark.parametrize("terms, chunk, options", [
    ("plain", None, {"bias": False}), ("all", 3, {}), pytest.param("smooth", 7, {}, marks=pytest.mark.slow),
    pytest.param("z", 1, {"d": 1.0}, marks=pytest.mark.slow),
    pytest.param("focal", 64, {"N": 130, "V": 1043, "C": 33}, marks=pytest.mark.slow),
    pytest.param("all", None, {"N": 5, "V": 50257, "C": 16, "bias": False}, marks=pytest.mark.slow),
])  # fmt: skip
def test_fused(terms, chunk, options):
    check_linear(terms, chunk, **options)


@pytest.mark.parametrize("dtype", [torch.float16, pytest.param(torch.bfloat16, marks=pytest.mark.slow)])
@pytest.mark.parametrize("d", [1.0, pytest.param(2.0**16, marks=pytest.mark.slow)])
def test_fused_narrow_types_are_as_good_as_in_torch(dtype, d, monkeypatch):
    """With factors that are powers of 2, as of a loss that is scaled for fp16."""
    with patched(monkeypatch):
        check_linear("smooth", 5, dtype=dtype, N=10, V=200, C=64, d=d, forward=1e-5)


def test_fp16_gradients_of_many_rows_do_not_vanish():
    """The third token has a probability of 2e-4 and is no target; over 4000 rows that is below what fp16 holds."""
    N, V, C = 4000, 3, 4
    bias = torch.tensor([0.0, -1.0, -8.0]).half()
    leaves = (random(N, C) / 10 + 1).half().requires_grad_(), (random(V, C) / 10).half().requires_grad_()
    targets = torch.arange(N) % 2
    rows = linear_cross_entropy.losses_rows

    def stand_in(grid):  # the interpreter takes half a minute for so many rows
        def both(logits, target, loss, d, *_, **__):
            p = logits.float().softmax(-1)
            loss.copy_(-p.gather(1, target[:, None]).log()[:, 0])
            logits.copy_((p - F.one_hot(target, V)) * d)

        return both

    class Stand:
        __getitem__ = staticmethod(stand_in)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rows, "both", Stand())
        loss = linear_cross_entropy.linear_cross_entropy(*leaves, targets, bias_V=bias)
    scaled = torch.autograd.grad(loss, leaves, torch.tensor(2.0**16))
    wide = [x.detach().double().requires_grad_() for x in leaves]
    loss = losses_reference.linear_cross_entropy(*wide, targets, bias_V=bias.double())
    want = torch.autograd.grad(2.0**16 * loss, wide)
    assert error(scaled[0], want[0]) <= 1e-3
    assert all(error(a, b) <= 1e-3 for a, b in zip(scaled[1], want[1], strict=True))


def test_only_what_is_asked_for_is_computed():
    """A frozen head, a frozen stream, no gradient at all."""
    x, weight, targets = random(6, 8).float(), random(65, 8).float(), torch.arange(6)
    want = losses_reference.linear_cross_entropy(x, weight, targets)
    for needs in ((True, False), (False, True), (False, False)):
        leaves = [leaf.clone().requires_grad_(need) for leaf, need in zip((x, weight), needs, strict=True)]
        flat = (None, targets, 0, 0, 0, -1, 4, [*needs, False], True)
        made = linear_cross_entropy.linear_cross_entropy_op(*leaves, *flat)
        assert [m.numel() > 0 for m in made[1:4]] == [*needs, False] and error(made[0], want) <= 1e-6
        assert made[0].requires_grad == any(needs)
    with torch.no_grad():
        loss = linear_cross_entropy.linear_cross_entropy(x.requires_grad_(), weight, targets)
    assert not loss.requires_grad and error(loss, want) <= 1e-6


def test_a_weight_of_another_type_and_autocast(monkeypatch):
    """As torch's layer under autocast, but the gradient of an fp32 weight is not rounded to bf16 on its way."""
    kinds = (torch.bfloat16, torch.float32)
    want = linear_outcome(losses_reference.linear_cross_entropy, (kinds, torch.float64), bias=False)

    def cast(function):
        def under_autocast(x, weight, *rest, **options):
            with torch.autocast("cpu", torch.bfloat16):
                return function(x.float(), weight, *rest, **options)

        return under_autocast

    with patched(monkeypatch):
        got = linear_outcome(linear_cross_entropy.linear_cross_entropy, (kinds, None), bias=False, chunk=3)
        auto = linear_outcome(cast(linear_cross_entropy.linear_cross_entropy), (kinds, None), bias=False, chunk=3)
    torchs = linear_outcome(cast(losses_reference.linear_cross_entropy), (kinds, None), bias=False)
    assert got[2].dtype == torch.float32 and all(torch.equal(a, b) for a, b in zip(got, auto, strict=True))
    for name, a, b, c in zip(("loss", "x", "weight"), got, torchs, want, strict=True):
        assert error(a, c) <= 1.2 * error(b, c) + 1e-5, name


@pytest.mark.parametrize("tests", [SOME, pytest.param(ALL_TESTS, marks=pytest.mark.slow)], ids=len)
def test_one_graph_and_opcheck(tests):
    x, weight = random(6, 8).float().requires_grad_(), random(65, 8).float().requires_grad_()
    logits, targets = (x @ weight.T).detach().requires_grad_(), torch.tensor([1, 2, -1, 64, 3, 4])
    terms = (0.1, 0.0, 1e-3, -1)
    torch.library.opcheck(cross_entropy.cross_entropy_op, (logits, targets, *terms, False), test_utils=tests)
    fused = (x, weight, None, targets, *terms, 4, [True, True, False], False)
    torch.library.opcheck(linear_cross_entropy.linear_cross_entropy_op, fused, test_utils=tests)
    if tests is ALL_TESTS:
        left = cross_entropy.cross_entropy_op(logits.detach(), targets, *terms, False)[1]
        plain = (logits.detach().clone(), targets, left, torch.ones(6), -1)
        torch.library.opcheck(cross_entropy.cross_entropy_backward_op, plain, test_utils=SOME)
        torch.library.opcheck(cross_entropy.cross_entropy_backward_op_, plain, test_utils=SOME)
        torch.library.opcheck(linear_cross_entropy.scale_op_, (torch.ones(9), torch.tensor(2.0)), test_utils=SOME)

    def losses(x, weight):
        logits = x @ weight.T
        apart = cross_entropy.cross_entropy(logits, targets, smoothing=0.1)
        return 0.3 * (apart + linear_cross_entropy.linear_cross_entropy(x, weight, targets, z=1e-3))

    found = []
    for function in (losses, torch.compile(losses, fullgraph=True, backend="aot_eager")):
        loss = function(x, weight)
        found.append([loss, *torch.autograd.grad(loss, (x, weight))])
    judge(found[1], [x.double() for x in found[0]], 1e-7, 2e-7)


def fp16_rows(module):
    """Gradients of fp16 rows that carry a power of 2, of a mean over 5."""
    check_linear("plain", 4, module, torch.float16, N=6, V=70, C=16, d=1.0, forward=1e-5)


# name: file, text, text with the fault, check
FAULTS = {
    "none": ("losses_rows", "hit + share", "hit + share", lambda m: check("odd", "all", m)),
    "missing rescale": ("losses_rows", "l * tl.exp2(m - higher)", "l", lambda m: check("far", "plain", m)),
    "row start": ("losses_rows", "place == target - lead - n0", "place == target - n0",
                  lambda m: check("odd", "plain", m)),
    "lost end": ("losses_rows", "n < V - inner", "n < V - inner - 1", lambda m: check("odd", "plain", m)),
    "half of the z-loss": ("losses_rows", "2.0 * z * log_z", "z * log_z", lambda m: check("narrow", "z", m)),
    "no share": ("losses_rows", "exp2(x * LOG2E - shift) * k - share", "exp2(x * LOG2E - shift) * k",
                 lambda m: check("narrow", "smooth", m)),
    "slope of the focal weight": ("losses_rows", "gamma * p, 0.0", "gamma, 0.0", lambda m: check("narrow", "focal", m)),
    "another ignored index": ("losses_rows", "if target != ignore", "if target >= 0",
                              lambda m: check("narrow", "plain", m)),
    "what comes from behind": ("linear_cross_entropy", "factor = d_loss * unit", "factor = unit",
                               lambda m: check_linear("plain", 3, m)),
    "first chunk only": ("linear_cross_entropy", "total.addmm_(a, b)", "total.any() or total.addmm_(a, b)",
                         lambda m: check_linear("plain", 3, m)),
    "power of two": ("linear_cross_entropy", "1.0 / mantissa, torch", "1.0 / count, torch", fp16_rows),
}  # fmt: skip
SLOW = (
    "lost end", "slope of the focal weight", "no share", "half of the z-loss", "first chunk only",
    "another ignored index",
)  # fmt: skip


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow) if n in SLOW else n for n in FAULTS])
def test_seeded_faults_are_seen(name, tmp_path, monkeypatch):
    file, right, wrong, run = FAULTS[name]
    module = file if file != "losses_rows" else "cross_entropy"
    twin = faulty(tmp_path, monkeypatch, module, file, right, wrong)
    if name == "none":
        return run(twin)
    with pytest.raises(AssertionError, match="error of"):
        run(twin)


@pytest.mark.slow
def test_a_backward_pass_repeats_itself():
    logits, targets = rows_of(*SIZES["far"])
    found = [outcome(cross_entropy.cross_entropy, logits, targets, 3000, torch.float32, **TERMS["all"])
             for _ in range(2)]  # fmt: skip
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
