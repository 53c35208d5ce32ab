"""Whether the kernels beside attention are right, by the rule of `checks`: parts of rows against fp64, sums over all.

What is exact must equal its definition bit for bit; that is computed on a CPU, of the first and last rows where there
are many elements. Losses and gradients of parameters are compared after all parts.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from . import checks, contestants
from .block_forms import Draw, Form, Named
from .block_ops import OPERATORS
from .block_plan import BlockPoint
from .plan import split_contestant

PART = 1 << 27  # elements
ENDS, FEW = 16, 1 << 24  # rows at either end of more elements
MOST_BYTES = 256e6  # P13, beside dW


def new_tensors(point: BlockPoint, seed: int, device: str) -> Named:
    return OPERATORS[point.op].tensors(point, Draw(point, seed, device))


def own(point: BlockPoint, contestant: str) -> tuple[BlockPoint, Form]:
    """Our kernel, and the point; what works in place has no backward pass."""
    flag = split_contestant(contestant)[3]
    return replace(point, mode="forward") if flag == "in-place" else point, OPERATORS[point.op].own(point, flag)


def outputs(call: Form, named: Named) -> tuple[Tensor, ...]:
    out = call(**named)
    return (out,) if isinstance(out, Tensor) else tuple(out)


def leaves(point: BlockPoint, named: Named) -> Named:
    """With gradients of all that has one, in memory of its own where the operator writes."""
    operator = OPERATORS[point.op]
    source = {n: x.detach().clone() if operator.writes else x.detach() for n, x in named.items()}
    back = point.mode != "forward"
    return {n: x.requires_grad_(back and x.is_floating_point() and n not in operator.held) for n, x in source.items()}


def cotangent(out: Tensor, seed: int) -> Tensor:
    """Random; of a loss 1."""
    if out.dim() == 0:
        return torch.ones_like(out)
    return torch.randn(out.shape, generator=torch.Generator(out.device).manual_seed(seed), device=out.device,
                       dtype=out.dtype)  # fmt: skip


def outcome(
    point: BlockPoint, call: Form, named: Named, cotangents: Sequence[Tensor] | None = None,
    dtype: torch.dtype | None = None,
) -> tuple[Named, list[Tensor]]:  # fmt: skip
    """(results and gradients by name, cotangents), in `dtype` where that is given."""
    wide = {n: x.to(dtype) if dtype and x.is_floating_point() else x for n, x in named.items()}
    grown = leaves(point, wide)
    with torch.set_grad_enabled(point.mode != "forward"):
        outs = outputs(call, grown)
    found = {f"out{i or ''}": out.detach() for i, out in enumerate(outs)}
    if point.mode == "forward":
        return found, []
    given = [cotangent(o, i) for i, o in enumerate(outs)] if cotangents is None else cotangents
    wanted = {n: x for n, x in grown.items() if x.requires_grad}
    ds = [d.to(o.dtype) for d, o in zip(given, outs, strict=True)]
    found |= dict(zip(wanted, torch.autograd.grad(outs, list(wanted.values()), ds), strict=True))
    return found, list(given)


def rows_of(point: BlockPoint, named: Named, where: slice) -> Named:
    rows = OPERATORS[point.op].rows
    return {n: x[where] if n in rows else x for n, x in named.items()}


def compared(point: BlockPoint, contestant: str, named: Named) -> Iterator[tuple[str, float, float]]:
    """(tensor, error, what is allowed) of all that the kernel makes."""
    operator, (point, call) = OPERATORS[point.op], own(point, contestant)
    with contestants.dirty_memory():
        got, cotangents = outcome(point, call, named)
    if operator.exact:
        yield from unequal(point, {n: x for n, x in got.items() if n.startswith("out")}, named)
        got = {n: x for n, x in got.items() if not n.startswith("out")}
    if got:
        yield from by_parts(point, got, named, cotangents)


def unequal(point: BlockPoint, got: Named, named: Named) -> Iterator[tuple[str, float, float]]:
    """Elements that are not the definition's."""
    operator, M = OPERATORS[point.op], point["M"]
    reference = operator.reference(point)
    many = M * operator.width(point) > FEW and M > 2 * ENDS and "whole" not in point.options
    for where in (slice(0, ENDS), slice(M - ENDS, M)) if many else (slice(0, M),):
        part = {n: x if operator.sums else x.cpu() for n, x in rows_of(point, named, where).items()}
        want, _ = outcome(replace(point, mode="forward"), reference, part)
        for name, x in got.items():
            mine = x[where].cpu()
            same = (mine == want[name]) | (mine.isnan() & want[name].isnan())
            yield name, float((~same).sum()) if mine.dtype == want[name].dtype else math.inf, 0.0


def by_parts(
    point: BlockPoint, got: Named, named: Named, cotangents: Sequence[Tensor]
) -> Iterator[tuple[str, float, float]]:
    operator = OPERATORS[point.op]
    reference, count = operator.reference(point), len(named[operator.rows[0]])
    step = count if "whole" in point.options else max(PART // operator.width(point), 1)
    whole = [n for n, x in got.items() if x.dim() == 0 or (n in named and n not in operator.rows)]
    sums: tuple[Named, Named] = {}, {}
    for first in range(0, count, step):
        where = slice(first, min(first + step, count))
        part = rows_of(point, named, where)
        ds = [d[where] if d.dim() else d for d in cotangents]
        found = [outcome(point, reference, part, ds, dtype)[0] for dtype in (torch.float64, None)]
        for total, new in zip(sums, found, strict=True):
            for n in whole:
                total[n] = total[n] + new[n].double() if n in total else new[n].double()
        truth, torchs = ({n: x for n, x in new.items() if n in got and n not in whole} for new in found)
        yield from checks.judged({n: got[n][where] for n in truth}, torchs, truth, point.dtype)
    yield from checks.judged(got, sums[1], sums[0], point.dtype)


def gate(point: BlockPoint, contestant: str, named: Named) -> tuple[float, float, str]:
    """(error, allowed, tensor) of the tensor nearest to its limit."""
    name, error, allowed = max(compared(point, contestant, named), key=lambda found: checks.excess(*found[1:]))
    return error, allowed, name


def correctness(point: BlockPoint, contestant: str, device: str, seed: int) -> Iterator[dict]:
    error, allowed, name = gate(point, contestant, new_tensors(point, seed, device))
    yield {"op": point.mode, "status": checks.status(error, allowed), "error": error, "allowed": allowed,
           "reason": f"in {name}"}  # fmt: skip


def determinism(point: BlockPoint, contestant: str, device: str, seed: int) -> Iterator[dict]:
    """The seed is fixed, and drawn on the CPU."""
    named = {n: x.to(device) for n, x in new_tensors(point, 5, "cpu").items()}
    point, call = own(point, contestant)
    cotangents = outcome(point, call, named)[1]
    yield {"op": point.mode, **checks.repeated(lambda: outcome(point, call, named, cotangents)[0])}


def memory(point: BlockPoint, contestant: str, device: str, seed: int) -> Iterator[dict]:
    from kernels import losses_work, mlp_work

    named = leaves(point, new_tensors(point, seed, device))
    _, call = own(point, contestant)
    wanted = [x for x in named.values() if x.requires_grad]

    def differentiated() -> None:
        torch.autograd.grad(call(**named), wanted, retain_graph=False)

    if point.op == "linear_cross_entropy":
        differentiated()  # compiles
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        differentiated()
        gradients = sum(x.numel() * x.element_size() for x in wanted)
        extra = torch.cuda.max_memory_allocated() - before - gradients
        sizes = named["x"].element_size(), named["weight"].element_size()
        model = losses_work.linear_extra_bytes(point["N"], point["C"], point["V"], *sizes)
        yield kept_row("extra", extra, model) | {"value": extra / MOST_BYTES}
        return
    call(**named)
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    out = call(**named)
    assert isinstance(out, Tensor)
    kept = torch.cuda.memory_allocated() - before
    act, _, gated = point.variant.partition(" ")
    M, C, size = point["M"], point["C"], out.element_size()
    saved = mlp_work.saved_bytes(M, C, point["H"], act, size, gated=bool(gated), recompute="recompute" in contestant)
    yield kept_row("kept", kept, saved - size * M * C + size * out.numel())  # the input is there already


def kept_row(what: str, got: int, model: int) -> dict:
    share = got / model
    return {"op": what, "status": "ok" if share <= 1.05 else "red", "value": share, "error": share, "allowed": 1.05,
            "bytes": got, "reason": f"{got} B, by the work model {model} B"}  # fmt: skip


def runnable(point: BlockPoint, call: Form, named: Named):
    """What is timed: a function of nothing. Operators that write go on with what they wrote."""
    back = point.mode != "forward"
    grown = leaves(point, named)
    wanted = [x for x in grown.values() if x.requires_grad]
    if not back:

        def run():
            with torch.no_grad():
                return call(**grown)

        return run
    outs = outputs(call, grown)
    ds = [cotangent(out, i) for i, out in enumerate(outs)]
    if point.mode == "backward":
        return lambda: torch.autograd.grad(outs, wanted, ds, retain_graph=True)
    return lambda: torch.autograd.grad(outputs(call, grown), wanted, ds)


CHECKS = {"block_correctness": correctness, "block_int64": correctness, "block_determinism": determinism,
          "block_memory": memory}  # fmt: skip
