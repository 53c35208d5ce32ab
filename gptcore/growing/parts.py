"""Attention and mlp of a grown block: which axis of each of their parameters is what.

What a part reads and writes is the stream; between the two it has heads or hidden units of its own. New ones start as
usual on the side that computes them and at zero on the side that uses them, so that nothing changes and both learn.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..attention.causal import HeadedAttention
from ..attention.linear import LinearAttention
from ..attention.mla import LatentAttention
from ..attention.ssm import StateSpace
from ..mlp.moe import MixtureOfExperts
from .axes import FRESH, ZERO, Axis, axis, joined, nested, padded, tiled
from .probe import fit_norm, head_order, rotation

Put = Callable[[Tensor, Tensor, list[Axis]], None]  # (parameter of the child, of the parent, axes)


@dataclass
class Part:
    """One part of one layer. `reads` and `writes` are axes of the stream, as its columns and rows see it."""

    reads: Axis
    writes: Axis
    put: Put
    old_position: Any
    new_position: Any
    length: int
    notes: list[str] = field(default_factory=list)


def fit(old: Any, new: Any, part: Part) -> Axis | None:
    """Fills the parameters of `new` that this module knows the axes of; returns the axis of the heads, if any."""
    if type(old) is not type(new):
        return None
    if isinstance(new, HeadedAttention):
        return _headed(old, new, part)
    if isinstance(new, LatentAttention):
        return _latent(old, new, part)
    if isinstance(new, LinearAttention):
        return _linear(old, new, part)
    if isinstance(new, StateSpace):
        return _state_space(old, new, part)
    if isinstance(new, MixtureOfExperts):
        _experts(old, new, part)
    elif hasattr(new, "c_fc"):
        _hidden(old, new, part)
    return None


def put_linear(old: Any, new: Any, out: Axis, inside: Axis, put: Put) -> None:
    """A linear layer of any kind; what it has beside matrices and a bias is left to others."""
    for name, parameter in new.named_parameters(recurse=False):
        source = getattr(old, name, None)
        if source is None or source.dim() != parameter.dim():
            continue
        axes: list[Axis] = []
        if name == "bias":
            axes = [out]
        elif name == "a":
            axes = [padded(len(source), len(parameter), FRESH), inside]
        elif name == "b":
            axes = [out, padded(source.shape[1], parameter.shape[1], ZERO)]
        elif name == "length":  # the length of what an output sums over, or of what an input feeds
            axes = [a for a in (out, inside) if len(a.source) == len(parameter) and a.size == len(source)][:1]
        elif parameter.dim() == 2:
            repeat = parameter.shape[1] // len(inside.source)
            if source.shape[1] == repeat * inside.size:
                axes = [out, tiled(inside, repeat)]
                if name != "weight":
                    axes = [out, joined([inside.starting(ZERO)] * repeat)]
        if axes:
            put(parameter, source, axes)


def _size(linear: Any, dim: int) -> int:
    known = getattr(linear, ("d_out", "d_in")[dim], None)
    return linear.weight.shape[dim] if known is None else known


def _by_head(old: nn.Module, new: nn.Module, heads: Axis, put: Put) -> None:
    """Constants of heads."""
    others = dict(old.named_parameters())
    for name, parameter in new.named_parameters():
        source = others.get(name)
        if (
            source is not None
            and source.dim() == 1
            and (len(source), len(parameter)) == (heads.size, len(heads.source))
        ):
            put(parameter, source, [heads])


def _groups(heads: int, keys: int) -> list[list[int]]:
    """Query heads of each key head."""
    return [[h for h in range(heads) if h * keys // heads == k] for k in range(keys)]


def _heads(old: Any, new: Any, part: Part) -> tuple[Axis, Axis]:
    """Query heads and key heads: those that shared keys go on sharing them, or get copies."""
    query, key = torch.full((new.H,), -1), torch.full((new.K,), -1)
    order = None
    if part.old_position.has_bias and part.new_position.has_bias and old.K == old.H and new.K == new.H:
        order = head_order(part.old_position, part.new_position, old.H, new.H, min(part.length, 32))
    if order is not None:
        return axis(order, old.H, FRESH), axis(order, old.K, FRESH)
    free = iter(enumerate(_groups(new.H, new.K)))
    for number, members in enumerate(_groups(old.H, old.K)):
        waiting = list(members)
        for at, places in free:
            key[at] = number
            for place in places[: len(waiting)]:
                query[place] = waiting.pop(0)
            if not waiting:
                break
        if waiting:
            part.notes.append(f"{old.H} heads on {old.K} keys do not fit {new.H} heads on {new.K}")
            return padded(old.H, new.H, FRESH), padded(old.K, new.K, FRESH)
    return axis(query, old.H, FRESH), axis(key, old.K, FRESH)


def _turned(part: Part, old_width: int, new_width: int) -> Axis:
    if new_width < old_width:
        part.notes.append(f"heads of {old_width} become heads of {new_width}")
        return padded(old_width, new_width, FRESH)
    found, exact = rotation(part.old_position, part.new_position, old_width, new_width, part.length)
    if not exact:
        part.notes.append(f"heads of {old_width} become heads of {new_width}: position turns them by other angles")
    return found


def _headed(old: Any, new: Any, part: Part) -> Axis:
    query, key = _heads(old, new, part)
    inner = padded(old.D, new.D, FRESH) if old.D == new.D else _turned(part, old.D, new.D)
    value = padded(old.E, new.E, FRESH)
    both_learned = hasattr(old, "scale") and hasattr(new, "scale")
    normed = {name for name in ("q_norm", "v_norm") if hasattr(new, name)}
    # The score scale changes with the width. Its change is spread over queries and keys, and over values (which the
    # projection takes back), so that all of one matrix changes by one factor: rounding to few bits stays the same.
    root = 1.0 if both_learned or normed or old.D == new.D else (new.D / old.D) ** 0.25
    if normed and (old.D, old.E) != (new.D, new.E):
        part.notes.append(f"heads of {old.D} become heads of {new.D}, and a norm inside of them sees the new entries")
    concat = _size(new.c_proj, 1) == new.H * new.E
    q = nested(query, inner).times(root)
    k = nested(key, inner.starting(ZERO)).times(root)
    v = nested(key if concat else key.starting(ZERO), value).times(root)
    outs = {"q": q, "k": k, "v": v}
    if old.projections == new.projections:
        if len(new.projections) == 1:
            put_linear(old.c_attn, new.c_attn, joined([q, k, v]), part.reads, part.put)
        else:
            for name in new.projections:
                put_linear(getattr(old, name), getattr(new, name), outs[name[-1]], part.reads, part.put)
    if concat:
        used = nested(query.starting(ZERO), value.starting(ZERO))
    else:
        used = nested(padded(_size(old.c_proj, 1) // old.E, _size(new.c_proj, 1) // new.E, ZERO), value.starting(ZERO))
        if old.H != new.H or old.config.n_cproj != new.config.n_cproj:
            part.notes.append("sums of heads are of other heads")
    put_linear(old.c_proj, new.c_proj, part.writes, used.times(1 / root), part.put)
    _by_head(old, new, query, part.put)
    return query


def _linear(old: Any, new: Any, part: Part) -> Axis:
    heads = padded(old.H, new.H, FRESH)
    inner, value = padded(old.D, new.D, FRESH), padded(old.E, new.E, FRESH)
    if old.D != new.D:
        part.notes.append("features of new entries of a head do not vanish")
    out = joined([nested(heads, inner), nested(heads, inner.starting(ZERO)), nested(heads, value)])
    put_linear(old.c_attn, new.c_attn, out, part.reads, part.put)
    used = nested(heads.starting(ZERO), value.starting(ZERO))
    put_linear(old.c_proj, new.c_proj, part.writes, used, part.put)
    return heads


def _state_space(old: Any, new: Any, part: Part) -> Axis:
    heads, inner = padded(old.H, new.H, FRESH), padded(old.P, new.P, FRESH)
    x, b = nested(heads, inner), padded(old.N, new.N, FRESH)
    channels = joined([x, b, b.starting(ZERO)])
    put_linear(old.c_attn, new.c_attn, joined([x, channels, heads]), part.reads, part.put)
    taps, before = len(new.conv_weight), len(new.conv_weight) - len(old.conv_weight)  # the last tap is the token itself
    shifted = torch.arange(taps) - before
    part.put(new.conv_weight, old.conv_weight, [axis(shifted.clamp_min(-1), len(old.conv_weight), ZERO), channels])
    part.put(new.conv_bias, old.conv_bias, [channels])
    for name in ("dt_bias", "A_log", "D"):
        part.put(getattr(new, name), getattr(old, name), [heads])
    used = nested(heads.starting(ZERO), inner.starting(ZERO))
    put_linear(old.c_proj, new.c_proj, part.writes, used, part.put)
    return heads


def _latent(old: Any, new: Any, part: Part) -> Axis:
    heads = padded(old.H, new.H, FRESH)
    plain, turned = padded(old.N, new.N, FRESH), padded(old.R, new.R, FRESH)
    if old.R != new.R:
        turned = _turned(part, old.R, new.R)
    value = padded(old.E, new.E, FRESH)
    root = ((new.N + new.R) / (old.N + old.R)) ** 0.5
    queries = nested(heads, joined([plain, turned])).times(root)
    latent, columns = _through_norm(old.kv_norm, new.kv_norm, old.L, new.L, part)
    if hasattr(old, "q_up") and hasattr(new, "q_up"):
        inside, of_latent = _through_norm(old.q_norm, new.q_norm, old.Q, new.Q, part)
        put_linear(old.q_up, new.q_up, queries, of_latent, part.put)
        queries = inside
    if hasattr(old, "q_up") == hasattr(new, "q_up"):
        out = joined([queries, latent, turned.starting(ZERO)])
        put_linear(old.c_attn, new.c_attn, out, part.reads, part.put)
    up = joined([nested(heads, plain.starting(ZERO)), nested(heads, value)])
    put_linear(old.kv_up, new.kv_up, up, columns, part.put)
    used = nested(heads.starting(ZERO), value.starting(ZERO))
    put_linear(old.c_proj, new.c_proj, part.writes, used, part.put)
    _by_head(old.softmax, new.softmax, heads, part.put)
    return heads


def _through_norm(old: Any, new: Any, old_width: int, new_width: int, part: Part) -> tuple[Axis, Axis]:
    """A latent that is normalised: (rows that write it, columns that read it)."""
    rows = padded(old_width, new_width, ZERO, (new_width / old_width) ** 0.5)
    found = fit_norm(old, new, rows, 1.0)
    put_norm(old, new, rows, found.gain, 1.0, part.put)
    return rows, padded(old_width, new_width, FRESH, 1 / found.left)


def put_norm(old: Any, new: Any, stream: Axis, gain: float, want: float, put: Put) -> None:
    """A norm of the stream: its gain and bias times these factors; new gains and biases as initialised."""
    plain = axis(stream.source, stream.size, FRESH)
    for name, factor in (("weight", gain), ("bias", want)):
        source, parameter = getattr(old, name, None), getattr(new, name, None)
        if source is not None and parameter is not None:
            put(parameter, source, [plain.times(factor)])
        elif parameter is not None and name == "weight":
            with torch.no_grad():
                parameter.fill_(gain)


def _hidden(old: Any, new: Any, part: Part) -> None:
    """A product up, something that works unit by unit or on halves, and a product down."""
    shapes = []
    for mlp in (old, new):
        narrowing = getattr(getattr(mlp, "activation", None), "narrowing", 1)
        ups = getattr(mlp, "branches", 1) * narrowing
        unit = _size(mlp.c_fc, 0) // ups
        shapes.append((unit, ups, _size(mlp.c_proj, 1) // unit))
    (before, ups, downs), (after, *others) = shapes
    if others != [ups, downs]:
        return
    put_linear(old.c_fc, new.c_fc, joined([padded(before, after, FRESH)] * ups), part.reads, part.put)
    put_linear(old.c_proj, new.c_proj, part.writes, joined([padded(before, after, ZERO)] * downs), part.put)


def _experts(old: Any, new: Any, part: Part) -> None:
    experts = padded(len(old.router.weight), len(new.router.weight), FRESH)
    if len(experts.source) != experts.size:
        part.notes.append("the router chooses among other experts")
    narrowing = new.activation.narrowing
    if old.activation.narrowing != narrowing:
        return
    before, after = old.c_proj.weight.shape[1], new.c_proj.weight.shape[1]
    hidden = joined([padded(before, after, FRESH)] * narrowing)
    part.put(new.router.weight, old.router.weight, [experts, part.reads])
    part.put(new.c_fc.weight, old.c_fc.weight, [experts, part.reads, hidden])
    part.put(new.c_proj.weight, old.c_proj.weight, [experts, padded(before, after, ZERO), part.writes])
