"""Which layer of a grown model is which of its parent, and how a new layer starts as if it were not there."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn


def align(old: Sequence[Any], new: Sequence[Any]) -> list[int | None]:
    """For each new layer the old one that it is, None where it is added. Order is kept, as many as possible are equal
    in configuration, and of equal choices the first: the copy of a layer stands after it, new layers at the end."""
    if len(old) > len(new):
        survivors = align(new, old)  # for each old layer the new one that it becomes
        return [next(i for i, s in enumerate(survivors) if s == j) for j in range(len(new))]
    spare = len(new) - len(old)
    # best[i][k]: most equal pairs of old[i:] when k added layers have been passed
    best = [[0] * (spare + 2) for _ in range(len(old) + 1)]
    for i in range(len(old) - 1, -1, -1):
        best[i][spare + 1] = -1 - len(old)
        for k in range(spare, -1, -1):
            best[i][k] = max(best[i][k + 1], (old[i] == new[i + k]) + best[i + 1][k])
    found: list[int | None] = []
    i = k = 0
    while i < len(old):
        if (old[i] == new[i + k]) + best[i + 1][k] == best[i][k]:
            found.append(i)
            i += 1
        else:
            found.append(None)
            k += 1
    return found + [None] * (len(new) - len(found))


def sources(aligned: Sequence[int | None]) -> list[int]:
    """The old layer whose parameters a new one takes; an added layer those of the layer before it."""
    filled, last = [], next(i for i in aligned if i is not None)
    for i in aligned:
        last = last if i is None else i
        filled.append(last)
    return filled


def attention_of(block: Any) -> Any:
    return block.attn


def mlp_of(block: Any) -> Any:
    return block.mlp


Get = Callable[[Any], Any]  # a part of a block
PARTS: tuple[Get, ...] = (attention_of, mlp_of)


def joins(block: Any) -> list[tuple[str, str, tuple[Get, ...], Any]]:
    """(norm, placement, parts, residual) of every place where a layer adds to the stream."""
    if hasattr(block, "residual_2"):
        first, second = block.placements
        return [("ln_1", first, (attention_of,), block.residual_1), ("ln_2", second, (mlp_of,), block.residual_2)]
    return [("ln_1", block.config.placement, PARTS, block.residual_1)]


@torch.no_grad()
def silence(block: Any, may_change: Sequence[Get]) -> None:
    """Makes a layer add nothing, and lets it learn: by a learned factor of its residual, else by the gain of the norm
    behind a part, else by the projection that ends the part. `may_change`: parts that no older layer shares."""
    for name, placement, parts, residual in joins(block):
        out: Any = getattr(block, name + "_out" if placement == "peri" else name)
        if hasattr(residual, "alpha"):
            residual.alpha.zero_()
        elif placement in ("peri", "output") and getattr(out, "weight", None) is not None:
            for parameter in (out.weight, getattr(out, "bias", None)):
                if parameter is not None:
                    parameter.zero_()
        else:
            for part in (get(block) for get in parts if get in may_change):
                for projection in part.residual:
                    _zero(getattr(part, projection))


def _zero(projection: nn.Module) -> None:
    """A matrix that is a product, or has a length, keeps the factor that gradients of the other one need."""
    named = dict(projection.named_parameters(recurse=False))
    chosen = next((n for n in ("length", "b") if n in named), None)
    for name, parameter in named.items():
        if name in (chosen, "bias") or chosen is None:
            parameter.zero_()
