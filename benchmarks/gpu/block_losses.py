"""Cross entropy of logits, and of a head's product, as `block_forms` asks for them."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels import losses_reference, losses_work
from kernels.roofline import Work

from .block_forms import Draw, Form, Named, Operator, given, size_of
from .block_plan import BlockPoint
from .contestants import compiled

SHAPED = {"smoothing": 0.1, "gamma": 2.0, "z": 1e-4}


class Fresh(torch.autograd.Function):
    """The same memory as no leaf, so that a gradient may replace it, as it replaces what a head made."""

    @staticmethod
    def forward(ctx, x):
        return x.detach()

    @staticmethod
    def backward(ctx, d):
        return d


def terms(p: BlockPoint) -> dict[str, Any]:
    return SHAPED if p.variant == "shaped" else {}


def new_targets(p: BlockPoint, draw: Draw) -> Named:
    """One in 16 is ignored; `count` are the others."""
    targets = draw.integers(0, p["V"], p["N"], dtype=torch.int64)
    targets[::16] = -1
    return {"targets": targets, "count": (targets >= 0).sum().float()}


def ce_tensors(p: BlockPoint, draw: Draw) -> Named:
    return {"logits": draw.normal(p["N"], p["V"], scale=2.0), **new_targets(p, draw)}


def ce_own(p: BlockPoint, flag: str) -> Form:
    from kernels.cross_entropy import cross_entropy

    return lambda logits, targets, count: cross_entropy(Fresh.apply(logits), targets, **terms(p))


def share_of_loss(p: BlockPoint, logits: Tensor, targets: Tensor, count: Tensor) -> Tensor:
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return losses_reference.token_losses(wide, targets, **terms(p)).sum() / count


def ce_reference(p: BlockPoint) -> Form:
    return lambda logits, targets, count: share_of_loss(p, logits, targets, count)


def torchs_loss(logits: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(logits.float(), targets, ignore_index=-1)


def ce_compile(p: BlockPoint, named: Named) -> Form:
    return compiled(lambda logits, targets, count: torchs_loss(logits, targets))


def linear_ce_tensors(p: BlockPoint, draw: Draw) -> Named:
    C, wide = p["C"], torch.float32 if "fp32 weight" in p.options else draw.dtype
    bias = draw.normal(p["V"], dtype=wide) if "bias" in p.options else None
    return given({"x": draw.normal(p["N"], C), "weight": draw.normal(p["V"], C, scale=C**-0.5, dtype=wide),
                  "bias": bias, **new_targets(p, draw)})  # fmt: skip


def linear_ce_own(p: BlockPoint, flag: str) -> Form:
    from kernels.linear_cross_entropy import linear_cross_entropy

    return lambda x, weight, targets, count, bias=None: linear_cross_entropy(
        x, weight, targets, bias_V=bias, **terms(p)
    )


def linear_logits(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return F.linear(x, weight.to(x.dtype), None if bias is None else bias.to(x.dtype))


def linear_ce_reference(p: BlockPoint) -> Form:
    return lambda x, weight, targets, count, bias=None: share_of_loss(p, linear_logits(x, weight, bias), targets, count)


def linear_ce_compile(p: BlockPoint, named: Named) -> Form:
    return compiled(lambda x, weight, targets, count, bias=None: torchs_loss(linear_logits(x, weight, bias), targets))


def linear_ce_work(p: BlockPoint, direction: str) -> Work:
    wide = 4 if "fp32 weight" in p.options else size_of(p)
    return losses_work.linear_work(p["N"], p["C"], p["V"], size_of(p), wide)


OPERATORS: dict[str, Operator] = {
    "cross_entropy": Operator(
        ce_tensors, ce_own, ce_reference, lambda p, _: losses_work.cross_entropy_work(p["N"], p["V"], size_of(p)),
        ("logits", "targets"), lambda p: p["V"], ("count",), writes=True, baselines={"compile": ce_compile}),
    "linear_cross_entropy": Operator(linear_ce_tensors, linear_ce_own, linear_ce_reference, linear_ce_work,
                                     ("x", "targets"), lambda p: max(p["V"], p["C"]), ("count",),
                                     baselines={"compile": linear_ce_compile}),
}  # fmt: skip
