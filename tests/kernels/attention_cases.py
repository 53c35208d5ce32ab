"""Cases, truth and error rules of the interpreter's checks of the attention kernels.

Importing it switches Triton's interpreter on; compiled and interpreted kernels cannot share a process.
"""

import math
import os

os.environ["TRITON_INTERPRET"] = "1"

import pytest
import torch

from kernels import attention, attention_reference, launch_table
from kernels.attention_reference import Weighting

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
    "short_window": (2, 1, 40, 45, 16, 16, {"window": 3}),
    "wide_window": (1, 1, 48, 48, 16, 16, {"window": 20, "softcap": 2.0}),
}
FP32 = {"out": 2e-6, "gradient": 5e-6}  # root mean square of the error over that of the truth
FLOOR = {torch.float16: 1e-3, torch.bfloat16: 7e-3}  # half a unit of the last place, some roundings of it


def small(table=launch_table):
    """Small tiles: several a shape, and quick in the interpreter."""
    return table.forced(**{op: table.Launch(16, 16, 4, 1) for op in table.OPS})


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


def inputs(kind, shape, extras="", dtype=torch.float32, batch=2):
    """Arguments by name; `extras` may name a bias and alibi."""
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
    if "bias" in extras:
        named["bias_HTS"] = random(H, T, S).float()
    if "alibi" in extras:
        named["slopes_H"] = 0.5 / (1 + torch.arange(H).float())
    return named


def outcome(function, kind, shape, named, dtype=None, scale=None):
    """Output and gradients by name, for a cotangent that is neither constant nor zero anywhere."""
    leaves = {name: x.detach().to(dtype or x.dtype).requires_grad_(name != "slopes_H") for name, x in named.items()}
    rest = {name: x for name, x in leaves.items() if name not in "qkv"}
    scale = shape[4] ** -0.5 if scale is None else scale
    out = function(leaves["q"], leaves["k"], leaves["v"], KINDS[kind], scale, **rest, **shape[6])
    cotangent = torch.linspace(-1, 1.1, out.numel(), dtype=torch.float64).view_as(out).to(out.dtype)
    leaves.pop("slopes_H", None)
    gradients = torch.autograd.grad(out, list(leaves.values()), cotangent)
    return {"out": out.detach(), **dict(zip(leaves, gradients, strict=True))}


def truth_of(kind, shape, named, scale=None):
    return outcome(attention_reference.attention, kind, shape, named, torch.float64, scale)


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
        assert wrong <= FP32["out" if name == "out" else "gradient"], f"error of {name}"


def check(kind, shape, extras="", module=attention, table=launch_table):
    named = inputs(kind, shape, extras, batch=1)
    with small(table):
        got = outcome(module.attention, kind, shape, named)
    judge(got, truth_of(kind, shape, named))


def check_decode(kind, shape, splits, extras="", module=attention, table=launch_table):
    named = inputs(kind, shape, extras)
    arguments = [named.pop(name) for name in "qkv"], {"scale": 0.4, **named, **shape[6]}
    doubles = {n: x.double() if isinstance(x, torch.Tensor) else x for n, x in arguments[1].items()}
    truth = attention_reference.attention(*(x.double() for x in arguments[0]), KINDS[kind], **doubles)
    with small(table):
        got = module.attention_decode(*arguments[0], KINDS[kind], **arguments[1], splits=splits)
    assert error(got, truth) <= FP32["out"], "error of out"
    return got
