"""The attention kernels in Triton's interpreter against their fp64 definition; run by test_attention.py in a process of
its own, because compiled and interpreted kernels cannot share one."""

import importlib
import itertools
import math
import os
import shutil
from pathlib import Path

os.environ["TRITON_INTERPRET"] = "1"

import pytest
import torch

from kernels import attention, attention_reference, launch_table
from kernels.attention_reference import Weighting
from kernels.launch_table import Launch

KINDS = {
    "softmax": Weighting(),
    "softermax": Weighting(base=2.0),
    "lobo": Weighting(),
    "consmax": Weighting("consmax"),
    "clamped": Weighting("consmax", base=2.0, clamp=0.3),
    "sigmoid": Weighting("sigmoid", log_keys=True),
    "relu": Weighting("relu", shift=1.0, by_keys=True),
    "relu2": Weighting("relu2", shift=1.0, divisor=3.0),
    "polymax": Weighting("polymax", power=3, x_intercept=-1.0),
    "softplus": Weighting("softplus", divisor=0.7, by_keys=True),
}
# heads, key heads, queries, keys, width, value width, options
SHAPES = {
    "odd": (2, 2, 33, 33, 16, 16, {}),
    "window": (4, 2, 17, 40, 20, 8, {"window": 9}),
    "empty_rows": (2, 1, 40, 17, 16, 16, {"softcap": 1.5}),
    "full": (2, 2, 20, 36, 16, 32, {"causal": False}),
    "wide_window": (2, 1, 48, 48, 16, 16, {"window": 20, "softcap": 2.0}),
}
SMALL = {op: Launch(16, 16, 4, 1) for op in launch_table.OPS}
FAST = [
    ("softmax", "wide_window", True), ("softermax", "full", False), ("lobo", "empty_rows", False),
    ("consmax", "window", True), ("clamped", "odd", False), ("sigmoid", "odd", False), ("relu", "full", False),
    ("relu2", "full", False), ("polymax", "empty_rows", False), ("softplus", "odd", False),
]  # fmt: skip
FAST_SET = set(FAST)
ALL = [pytest.param(*case, marks=[] if case in FAST_SET else pytest.mark.slow)
       for case in itertools.product(KINDS, SHAPES, (False, True))]  # fmt: skip
GRID = [(T, 32, groups) for T, groups in zip((1, 15, 16, 17, 63, 100, 129), itertools.cycle((8, 4, 2, 1)))]
GRID += [(17, D, groups) for D, groups in zip((64, 80, 96, 128, 192, 256), itertools.cycle((1, 2, 4)))]


@pytest.fixture(autouse=True)
def dirty_memory(monkeypatch):
    """Whatever is not written is NaN."""

    def dirty(function):
        def filled(*args, **kwargs):
            out = function(*args, **kwargs)
            return out.fill_(math.nan) if out.is_floating_point() and out.device.type == "cpu" else out

        return filled

    monkeypatch.setattr(torch, "empty", dirty(torch.empty))
    monkeypatch.setattr(torch.Tensor, "new_empty", dirty(torch.Tensor.new_empty))


def inputs(kind, shape, bias=False, dtype=torch.float32, batch=2):
    H, K, T, S, D, E, _ = shape
    generator = torch.Generator().manual_seed(0)

    def random(*size):
        return torch.randn(size, generator=generator, dtype=torch.float64)

    named = {"q": random(batch, H, T, D), "k": random(batch, K, S, D), "v": random(batch, K, S, E)}
    named = {name: x.to(dtype) for name, x in named.items()}
    if KINDS[kind].kind == "consmax":
        named |= {"beta_H": (random(H) * 0.3 + 0.5).float(), "gamma_H": (random(H).abs() + 1).float()}
    if kind == "lobo":
        named["lobo_H"] = random(H).float()
    if bias:
        named["bias_HTS"] = random(H, T, S).float()
    return named


def outcome(function, kind, shape, named, dtype=None, scale=None):
    """Output and gradients by name, for a cotangent that is neither constant nor zero anywhere."""
    leaves = {name: x.detach().to(dtype or x.dtype).requires_grad_() for name, x in named.items()}
    rest = {name: x for name, x in leaves.items() if name not in "qkv"}
    scale = shape[4] ** -0.5 if scale is None else scale
    out = function(leaves["q"], leaves["k"], leaves["v"], KINDS[kind], scale, **rest, **shape[6])
    cotangent = torch.linspace(-1, 1.1, out.numel(), dtype=torch.float64).view_as(out).to(out.dtype)
    gradients = torch.autograd.grad(out, list(leaves.values()), cotangent)
    return {"out": out.detach(), **dict(zip(leaves, gradients, strict=True))}


def error(got, want):
    """Root mean square of the difference over that of the truth; NaN counts as infinite."""
    wrong = ((got.double() - want.double()).norm() / want.double().norm().clamp_min(1e-30)).item()
    return math.inf if math.isnan(wrong) else wrong


def judge(got, truth):
    """fp32 against fp64. A gradient that is exactly 0 (softmax of one key) is measured by that of the values."""
    for name, want in truth.items():
        if want.any():
            wrong = error(got[name], want)
        else:
            wrong = (got[name].double().norm() / truth["v"].norm()).item()
        assert wrong <= (2e-6 if name == "out" else 5e-6), f"error of {name}"


def check(kind, shape, bias=False, module=attention, table=launch_table):
    named = inputs(kind, shape, bias)
    truth = outcome(attention_reference.attention, kind, shape, named, torch.float64)
    with table.forced(**{op: table.Launch(16, 16, 4, 1) for op in table.OPS}):
        got = outcome(module.attention, kind, shape, named)
    judge(got, truth)


def check_decode(kind, shape, splits, module=attention, table=launch_table):
    named = inputs(kind, shape)
    arguments = [named.pop(name) for name in "qkv"], {"scale": 0.4, **named, **shape[6]}
    doubles = {n: x.double() if isinstance(x, torch.Tensor) else x for n, x in arguments[1].items()}
    truth = attention_reference.attention(*(x.double() for x in arguments[0]), KINDS[kind], **doubles)
    with table.forced(decode=table.Launch(16, 16, 4, 1)):
        got = module.attention_decode(*arguments[0], KINDS[kind], **arguments[1], splits=splits)
    assert error(got, truth) <= 2e-6, "error of out"
    return got


@pytest.mark.parametrize("kind, shape, bias", ALL)
def test_fp32(kind, shape, bias):
    check(kind, SHAPES[shape], bias)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["softmax", "consmax"])
@pytest.mark.parametrize("T, D, groups", GRID)
def test_edge_shapes(kind, T, D, groups):
    named = (max(groups, 2), max(groups, 2) // groups, T, T, D, D, {})
    x = inputs(kind, named, batch=1)
    truth = outcome(attention_reference.attention, kind, named, x, torch.float64)
    with launch_table.forced(**{op: Launch(64, 32, 4, 1) for op in launch_table.OPS}):
        got = outcome(attention.attention, kind, named, x)
    judge(got, truth)


@pytest.mark.parametrize("kind", [k if k == "consmax" else pytest.param(k, marks=pytest.mark.slow)
                                  for k in KINDS])  # fmt: skip
def test_fp16(kind):
    """At most twice (backward: thrice) the error of torch in the same type, or a rounding of it."""
    shape = SHAPES["odd"]
    named = inputs(kind, shape, dtype=torch.float16)
    truth = outcome(attention_reference.attention, kind, shape, named, torch.float64)
    torchs = outcome(attention_reference.attention, kind, shape, {n: x.half() for n, x in named.items()})
    with launch_table.forced(**SMALL):
        got = outcome(attention.attention, kind, shape, named)
    for name, want in truth.items():
        times = 2 if name == "out" else 3
        assert error(got[name], want) <= max(times * error(torchs[name], want), 1e-3), name


@pytest.mark.parametrize("kind", ["softmax", "consmax"])
def test_strides_make_no_difference(kind):
    """Heads inside tokens, as projections leave them, and rows that no descriptor can address."""
    shape = (2, 1, 20, 20, 18, 18, {})
    named = inputs(kind, shape)
    with launch_table.forced(**SMALL):
        plain = outcome(attention.attention, kind, shape, named)
        other = {n: x.transpose(1, 2).contiguous().transpose(1, 2) if n in "qkv" else x for n, x in named.items()}
        moved = outcome(attention.attention, kind, shape, other)
    assert all(torch.equal(plain[name], moved[name]) for name in plain)


@pytest.mark.parametrize("kind", ["softmax", "consmax"])
def test_large_scores(kind):
    """Scores of +-70, and of masked keys beyond any type, neither overflow nor leak."""
    shape = (1, 1, 20, 20, 16, 16, {})
    named = inputs(kind, shape, batch=1)
    named["k"][:, :, -1] = 1e30 * named["q"][:, :, 0].sign()
    named["q"][:, :, -1] = 0
    named["q"] *= 70 / (named["q"][:, :, :-1] @ named["k"][:, :, :-1].mT).abs().max()
    truth = outcome(attention_reference.attention, kind, shape, named, torch.float64, scale=1.0)
    with launch_table.forced(**SMALL):
        got = outcome(attention.attention, kind, shape, named, scale=1.0)
    for name in ("out", "v"):  # 2e-5: half a unit of 70 log2(e) in fp32, times ln 2
        assert error(got[name], truth[name]) <= 2e-5, name
    assert torch.isfinite(got["q"][:, :, :-1]).all()


@pytest.mark.parametrize("kind, shape", [("softmax", (4, 2, 1, 70, 20, 8, {})), ("consmax", (4, 2, 1, 70, 20, 8, {})),
                                         ("lobo", (4, 1, 3, 50, 16, 16, {"window": 9})),
                                         pytest.param("sigmoid", (4, 1, 3, 50, 16, 16, {"softcap": 2.0}),
                                                      marks=pytest.mark.slow)])  # fmt: skip
def test_decode_with_any_number_of_splits(kind, shape):
    whole = check_decode(kind, shape, 1)
    parts = [check_decode(kind, shape, splits) for splits in (2, 5, 5)]
    assert max(error(part, whole) for part in parts) <= 1e-6
    assert torch.equal(parts[1], parts[2])


def test_one_graph_and_opcheck():
    shape = (2, 1, 17, 17, 16, 16, {})
    named = inputs("consmax", shape, batch=1)
    flat = attention._flat(KINDS["consmax"], 0.3, True, None, None, named["beta_H"], named["gamma_H"], None, None)
    leaves = [x.requires_grad_() for x in (named["q"], named["k"], named["v"])]
    with launch_table.forced(**{op: Launch(32, 32, 4, 1) for op in launch_table.OPS}):
        torch.library.opcheck(attention.attention_forward_op, (*leaves, *flat))
        torch.library.opcheck(attention.attention_decode_op, (*leaves, *flat, 2), test_utils="test_faketensor")
        compiled = torch.compile(attention.attention, fullgraph=True, backend="aot_eager")
        eager = outcome(attention.attention, "consmax", shape, named)
        traced = outcome(compiled, "consmax", shape, named)
    assert all(torch.equal(eager[name], traced[name]) for name in eager)


FAULTS = {
    "none": ("attention_tiles", "(distance >= 0)", "(distance >= 0)", ("consmax", "odd")),
    "off-by-one mask": ("attention_tiles", "(distance >= 0)", "(distance > 0)", ("consmax", "odd")),
    "wrong scale": ("attention", "else self.scale * rate", "else self.scale", ("softmax", "odd")),
    "missing rescale": ("attention_forward", "acc = acc * shrink[:, None]", "acc = acc", ("softmax", "odd")),
    "swapped group": ("attention_forward", "g = h // G", "g = (h + 1) % H // G", ("consmax", "window")),
    "row shift of the backward mask": ("attention_tiles", "first = n0 + T - S", "first = n0 + T - S + 16",
                                       ("consmax", "odd")),
    "dropped split": ("attention_decode", "for i in range(splits):\n            acc +=",
                      "for i in range(splits - 1):\n            acc +=", ("consmax", "window")),
}  # fmt: skip


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow) if "backward" in n else n for n in FAULTS])
def test_seeded_faults_are_seen(name, tmp_path, monkeypatch):
    """A copy of the package with one fault fails the checks that a faithful copy passes."""
    file, right, wrong, (kind, shape) = FAULTS[name]
    package = "faulty_" + "".join(c if c.isalnum() else "_" for c in name)
    shutil.copytree(Path(attention.__file__).parent, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    for module in (tmp_path / package).glob("attention*.py"):
        text = module.read_text().replace("gptkernels::", package + "::")
        if module.stem == file:
            assert right in text
            text = text.replace(right, wrong)
        module.write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    twin = importlib.import_module(package + ".attention")
    table = importlib.import_module(package + ".launch_table")
    checks = {"dropped split": lambda: check_decode(kind, SHAPES[shape], 3, twin, table)}
    run = checks.get(name, lambda: check(kind, SHAPES[shape], False, twin, table))
    if name == "none":
        return run()
    with pytest.raises(AssertionError, match="error of"):
        run()
