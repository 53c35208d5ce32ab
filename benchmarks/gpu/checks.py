"""Whether our kernels are right: against fp64 by an error rule, bit by bit over runs, and in how much they keep.

The rule, for the error relative to the truth, over all of a tensor (root mean square) and in its worst row: at most
twice that of plain torch in the same type, thrice for gradients, or a floor for roundings of the type; a row has four
times the floor. Rows are measured by their own length, but at least a tenth of the mean, so that rows that cancel do
not count. Inputs are drawn anew in each run; the seed is in the row.
"""

import hashlib
import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from . import contestants
from .plan import Point, split_contestant

FLOORS = {"bf16": 7e-3, "fp16": 1e-3, "fp32": 1e-5}
LAUNCH_OP = {"out": "forward", "q": "d_queries", "k": "d_keys", "v": "d_keys"}  # others: d_queries
RUNS = 20


def errors(got: Tensor, truth: Tensor) -> tuple[float, float]:
    """(of all, of the worst row), relative; what is not finite counts as infinite."""
    got, truth = got.double(), truth.double()
    whole = ((got - truth).norm() / truth.norm().clamp_min(1e-300)).item()
    rows = truth.norm(dim=-1)
    mean = rows.square().mean().sqrt()
    worst = ((got - truth).norm(dim=-1) / rows.clamp_min(0.1 * mean).clamp_min(1e-300)).max().item()
    return tuple(x if math.isfinite(x) else math.inf for x in (whole, worst))  # type: ignore[return-value]


def judged(got: dict, torchs: dict, truth: dict, dtype: str) -> Iterator[tuple[str, float, float]]:
    """(tensor, error, what is allowed) of the measure nearer to its limit."""
    for name, want in truth.items():
        times, floor = (2 if name.startswith("out") else 3), FLOORS[dtype]
        if not want.any():  # the gradient of the scores of a softmax over one key: measured by that of the values
            scale = truth["v"].double().square().mean() if "v" in truth else 1.0
            share = (got[name].double().square().mean() / scale).sqrt().item()
            yield name, (share if math.isfinite(share) else math.inf), floor
            continue
        pairs = zip(errors(got[name], want), errors(torchs[name], want), (1, 4), strict=True)
        found = [(error, max(times * theirs, room * floor)) for error, theirs, room in pairs]
        # Plain torch that overflows allows nothing.
        found = [(error, limit if math.isfinite(limit) else floor) for error, limit in found]
        yield name, *max(found, key=lambda pair: pair[0] / pair[1])


def row_errors(point: Point, contestant: str, named: dict[str, Tensor]) -> dict[str, tuple[float, float, str]]:
    """op of the launch table -> (error, allowed, tensor) of its worst tensor."""
    _, kind, launch, _ = split_contestant(contestant)
    naive = contestants.reference(point, kind)
    truth = contestants.outcome(naive, point, named, torch.float64)
    torchs = contestants.outcome(naive, point, {n: x.to(named["q"].dtype) for n, x in named.items()})
    with contestants.dirty_memory():
        got = contestants.outcome(contestants.own(point, kind, point.splits or 7), point, named, launch=launch)
    worst: dict[str, tuple[float, float, str]] = {}
    for name, error, allowed in judged(got, torchs, truth, point.dtype):
        op = "decode" if point.op == "decode" else LAUNCH_OP.get(name, "d_queries")
        if op not in worst or error / allowed > worst[op][0] / worst[op][1]:
            worst[op] = (error, allowed, name)
    return worst


def excess(error: float, allowed: float) -> float:
    """How near to its limit; what must be equal has none."""
    return error / allowed if allowed else math.inf if error else 0.0


def status(error: float, allowed: float) -> str:
    return "ok" if error <= allowed else "red"


def correctness(point: Point, contestant: str, device: str, seed: int) -> Iterator[dict]:
    kind = split_contestant(contestant)[1]
    named = contestants.new_tensors(point, kind, seed, device)
    for op, (error, allowed, tensor) in row_errors(point, contestant, named).items():
        yield {"op": op, "status": status(error, allowed), "error": error, "allowed": allowed, "reason": f"in {tensor}"}


def tune_check(point: Point, contestant: str, device: str, seed: int) -> Iterator[dict]:
    """One row: red when it spills or is wrong."""
    from kernels.gate import compile_point
    from kernels.gates.attention import Case, point_of
    from kernels.launch_table import Launch

    _, kind, launch, _ = split_contestant(contestant)
    tried = Launch(*map(int, launch.split("x")))
    figures = compile_point(point_of(Case(90, point.row, kind, point.D, tried)))
    facts = f"{figures.registers} registers, {figures.shared_bytes} B shared"
    if figures.stack_bytes:
        yield {"status": "red", "reason": f"spills {figures.stack_bytes} B; {facts}"}
        return
    found = list(correctness(point, contestant, device, seed))
    worst = max(found, key=lambda row: row["error"] / row["allowed"])
    yield worst | {"op": point.op, "reason": facts + "; " + worst["reason"]}


def last_heads(point: Point, named: dict[str, Tensor], b: int = -1, g: int = -1) -> dict[str, Tensor]:
    """The part of the tensors that belongs to one key head: (1, G, ...) and (1, 1, ...)."""
    G = point.H // point.K
    h = slice(g % point.K * G, (g % point.K + 1) * G)
    b %= point.B
    part = {}
    for name, x in named.items():
        if name in ("k", "v"):
            part[name] = x[b : b + 1, g % point.K :][:, :1]
        elif name in ("q", "out", "d_out"):
            part[name] = x[b : b + 1, h]
        elif name.endswith(("_H", "_HTS")):
            part[name] = x[h]
    return part


def gate(
    point: Point, contestant: str, named: dict[str, Tensor], splits: int, where=((-1, -1),)
) -> tuple[float, float]:
    """(error, allowed) of what is to be timed, on the very tensors: the output and gradients of single key heads.

    Truth is fp32 here, whose error is far below that of 2-byte types: scores of 16k x 16k in fp64 would not be cheap.
    """
    _, kind, launch, _ = split_contestant(contestant)
    naive = contestants.reference(point, kind)
    with contestants.dirty_memory():
        got = contestants.outcome(contestants.own(point, kind, splits), point, named, launch=launch)
    if not all(torch.isfinite(x).all() for x in got.values()):
        return math.inf, FLOORS[point.dtype]
    found = []
    for b, g in where:
        part = last_heads(point, named, b, g)
        truth = contestants.outcome(naive, point, part, torch.float32)
        torchs = contestants.outcome(naive, point, {n: x.to(named["q"].dtype) for n, x in part.items()})
        mine = last_heads(point, {n: x for n, x in got.items() if not n.endswith(("_H", "_HTS"))}, b, g)
        truth = {n: truth[n] for n in mine}  # gradients of constants are sums over the batch
        found += [(error, allowed) for _, error, allowed in judged(mine, torchs, truth, point.dtype)]
    return max(found, key=lambda pair: pair[0] / pair[1])


def int64(point: Point, contestant: str, device: str, seed: int) -> Iterator[dict]:
    """The first and the last head of tensors whose last elements lie beyond 2^31."""
    kind = split_contestant(contestant)[1]
    named = contestants.new_tensors(point, kind, seed, device)
    assert max(x.numel() for x in named.values()) > 2**31 or device == "cpu"
    error, allowed = gate(point, contestant, named, point.splits, ((0, 0), (-1, -1)))
    yield {"op": point.op, "status": status(error, allowed), "error": error, "allowed": allowed}


def determinism(point: Point, contestant: str, device: str, seed: int) -> Iterator[dict]:
    """The seed is fixed, and drawn on the CPU."""
    kind = split_contestant(contestant)[1]
    named = {n: x.to(device) for n, x in contestants.new_tensors(point, kind, 5, "cpu").items()}
    call = contestants.own(point, kind, point.splits)
    yield {"op": point.op, **repeated(lambda: contestants.outcome(call, point, named))}


def repeated(run: Callable[[], dict[str, Tensor]]) -> dict:
    """Equal bits in all runs; the digest lets another process compare."""
    with contestants.dirty_memory():
        first = run()
        different = 0
        for _ in range(RUNS - 1):
            again = run()
            different += not all(torch.equal(first[name], again[name]) for name in first)
    digest = hashlib.sha256()
    for x in first.values():
        digest.update(x.float().cpu().contiguous().numpy().tobytes())
    return {
        "status": "red" if different else "ok", "value": different, "digest": digest.hexdigest()[:16],
        "reason": f"{different} of {RUNS - 1} runs differ from the first",
    }  # fmt: skip


def memory(point: Point, contestant: str, device: str, seed: int) -> Iterator[dict]:
    """Bytes kept for the backward pass and the peak, over the sum of the tensors that must exist; at most 1.05."""
    kind = split_contestant(contestant)[1]
    named = contestants.leaves(contestants.new_tensors(point, kind, seed, device))
    d_out = named.pop("d_out")
    call = contestants.own(point, kind)
    wanted = [named[n] for n in "qkv"]
    torch.autograd.grad(call(**named), wanted, d_out)  # compiles
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    out = call(**named)
    kept = torch.cuda.memory_allocated() - before
    statistic = 4 * point.B * point.H * point.T if kind == "softmax" else 0
    torch.autograd.grad(out, wanted, d_out)
    peak = torch.cuda.max_memory_allocated()
    gradients = sum(x.numel() * x.element_size() for x in wanted)
    own = out.numel() * out.element_size()
    for what, got, floor in (("kept", kept, own + statistic), ("peak", peak, before + own + statistic + gradients)):
        share = got / floor
        yield {
            "op": what, "status": "ok" if share <= 1.05 else "red", "value": share, "error": share, "allowed": 1.05,
            "bytes": got, "reason": f"{got} B, of which {floor} B must be",
        }  # fmt: skip


CHECKS = {
    "correctness": correctness, "tune_check": tune_check, "int64": int64, "determinism": determinism, "memory": memory,
}  # fmt: skip
