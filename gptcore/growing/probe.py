"""What norms and positions do to more coordinates, found out by asking the modules: no kind is known by name."""

import copy
import math
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn

from .axes import FRESH, MEAN, ZERO, Axis, axis

TOLERANCE = 1e-6


def _double(module: nn.Module) -> Any:
    return copy.deepcopy(module).cpu().double().eval()


def _rows(count: int, width: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(count, width, generator=generator, dtype=torch.float64) + 0.3


def measured(norm: nn.Module, width: int) -> Tensor:
    """Indices of the entries that a norm's statistics are taken from: those that change the outputs of others."""
    norm, x = _double(norm), _rows(1, width) * 3  # long enough for a cap on the length to act
    with torch.no_grad():
        moved = (norm(x + torch.eye(width, dtype=torch.float64)) - norm(x)).abs() > 1e-9
    moved.fill_diagonal_(False)
    return moved.any(1).nonzero().flatten()


def expand(x: Tensor, stream: Axis) -> Tensor:
    """The last dimension of `x` as the child's stream carries it."""
    wide = x[..., stream.source.clamp_min(0)] * stream.factor
    mean = x.mean(-1, keepdim=True) * stream.factor
    filler = torch.where(stream.start == MEAN, mean, 0.0)
    return torch.where(stream.kept, wide, filler)


@dataclass(frozen=True)
class NormFit:
    """`gain`: factor of the child's gain and `left`: factor of its output that is left to its readers, so that it puts
    out what is wanted; `error` of that on random rows whose entries are about 1."""

    gain: float
    left: float
    error: float


@torch.no_grad()
def fit_norm(old: nn.Module, new: nn.Module, stream: Axis, want: float, *, writes: bool = False) -> NormFit:
    """How `new` puts out `left` times `want` times what `old` does. Its input is the parent's as `stream` says.

    One that `writes` the stream has to put out the new coordinates, too.
    """
    before, after = _double(old), _double(new)
    x = _rows(64, stream.size)
    kept = stream.kept if not writes else torch.ones_like(stream.kept)
    plain = Axis(stream.source, stream.start, torch.ones_like(stream.factor), stream.size)
    target, wide = expand(before(x), plain)[:, kept] * want, expand(x, stream)
    root, scale = math.sqrt(len(stream.source) / stream.size), float(stream.factor[0])
    factors = sorted({a * b for a, b in product((1.0, want), (1.0, 1 / scale, scale, 1 / root, root))})
    olds, news = dict(before.named_parameters()), dict(after.named_parameters())
    for name, parameter in news.items():
        if name in olds and olds[name].shape == parameter.shape and parameter.numel() == 1:
            parameter.copy_(olds[name])
    if "bias" in olds and "bias" in news:
        news["bias"].copy_(expand(olds["bias"], plain.starting(ZERO)) * want)
    fits = []
    for factor in factors:
        if "weight" in news:
            gain = expand(olds["weight"], plain.starting(ZERO)) if "weight" in olds else torch.ones_like(news["weight"])
            news["weight"].copy_(gain.where(stream.kept, 1.0) * factor)
            fits.append(NormFit(factor, 1.0, float((after(wide)[:, kept] - target).abs().max())))
        else:
            fits.append(NormFit(1.0, factor, float((after(wide)[:, kept] / factor - target).abs().max())))
    return min(fits, key=lambda fit: fit.error)


def rotation(old: Any, new: Any, old_width: int, new_width: int, length: int) -> tuple[Axis, bool]:
    """How the entries of a head lie in a wider one so that position does to them what it did, and whether there is a
    place for each where it does; what has none takes the place where position does the most similar."""
    parts_old, parts_new = (_turns(p, w, length) for p, w in ((old, old_width), (new, new_width)))
    source, exact = torch.full((new_width,), -1), True
    for places, series in parts_old:
        gaps = [
            float((series - other).abs().max()) if series.shape == other.shape else math.inf for _, other in parts_new
        ]
        nearest = min(range(len(gaps)), key=gaps.__getitem__, default=None)
        exact &= nearest is not None and gaps[nearest] <= TOLERANCE
        if nearest is not None and gaps[nearest] < math.inf:
            source[torch.tensor(parts_new.pop(nearest)[0])] = torch.tensor(places)
    return axis(source, old_width, FRESH), exact


def _turns(position: Any, width: int, length: int) -> list[tuple[list[int], Tensor]]:
    """Groups of entries that position mixes with each other, and what it does to them at each place."""
    basis = torch.eye(width)[:, None, None, :].expand(width, 1, length, width)
    with torch.no_grad():
        matrix = position.rotate(basis, basis, 0)[0].squeeze(1).transpose(0, 1)  # place, from, to
    linked = (matrix.abs() > 0).any(0)
    linked = linked | linked.mT
    seen: set[int] = set()
    groups = []
    for i in range(width):
        if i not in seen:
            places = sorted({i, *linked[i].nonzero().flatten().tolist()})
            seen.update(places)
            groups.append((places, matrix[:, places][:, :, places]))
    return groups


def head_order(old: Any, new: Any, old_heads: int, new_heads: int, length: int) -> Tensor | None:
    """Which head of the child gets the parent's bias of scores: index of the parent or -1. None if it cannot be kept,
    or is learned."""
    like = torch.zeros(1)
    with torch.no_grad():
        rows, others = (p.bias(n, length, length, 0, like) for p, n in ((old, old_heads), (new, new_heads)))
    causal = torch.ones(length, length, dtype=torch.bool).tril()
    source = torch.full((new_heads,), -1)
    for head in range(old_heads):
        same = [
            n for n in range(new_heads)
            if source[n] < 0 and torch.allclose(rows[head][causal], others[n][causal], rtol=0, atol=TOLERANCE)
        ]  # fmt: skip
        if not same:
            return None
        source[same[0]] = head
    return source


def stream_order(old: nn.Module | None, new: nn.Module | None, old_width: int, new_width: int) -> tuple[Tensor, float]:
    """(which coordinate of the parent each of the child's carries, -1 for none; the factor on the stream that leaves
    the mean square of what is measured as it was). The norms are one of the parent and the same of the child."""
    index = torch.arange(new_width)
    source = index.where(index < old_width, -1)
    if old is None or new is None:
        return source, 1.0
    a, b = measured(old, old_width), measured(new, new_width)
    if not len(a) or not len(b):
        return source, 1.0
    if len(a) < old_width and len(b) >= len(a) and new_width >= old_width:
        rest_old = [i for i in range(old_width) if i not in set(a.tolist())]
        rest_new = [i for i in range(new_width) if i not in set(b.tolist())]
        if len(rest_new) >= len(rest_old):
            source = torch.full((new_width,), -1)
            source[b[: len(a)]] = a
            source[torch.tensor(rest_new[: len(rest_old)], dtype=torch.long)] = torch.tensor(rest_old, dtype=torch.long)
    return source, math.sqrt(len(b) / len(a))


@torch.no_grad()
def weights_of(linear: nn.Module) -> str | None:
    """What a linear layer does to its weights that stands against growing them; None if nothing."""
    lone: Any = _double(linear)
    if getattr(lone, "weight", None) is None or lone.d_out < 2:
        return None
    half, x = lone.d_out // 2, _rows(4, lone.d_in)

    def out(weight: Tensor) -> Tensor:
        lone.weight.copy_(weight)
        return lone(x) - (0 if lone.bias is None else lone.bias)

    weight = _rows(*lone.weight.shape)
    weight[half : 2 * half] = weight[:half]
    emptied = weight.clone()
    emptied[half:] = 0
    whole, alone = out(weight)[:, :half], out(emptied)[:, :half]
    if not torch.allclose(out(weight * 2)[:, :half], whole * 2):
        return "have a length of their own"
    if not torch.allclose(whole, alone):
        return "depend on the mean of the matrix"
    other = weight.flip(0)
    return None if torch.allclose(out(weight + other), out(weight) + out(other)) else "are rounded"
