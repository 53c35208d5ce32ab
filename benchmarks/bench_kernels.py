"""Time of attention weightings: forward, forward with backward, and decode; every path that this machine has. On a
GPU, of the kernels beside attention, too, and of their definitions.

    kernels    the plain torch definition of each kind of the kernels, and, on a GPU, the Triton kernel
    gptcore    each registered kind of softmax, as the model runs it (`attend`), on this device
    sdpa       torch's own fused softmax attention, the yardstick

Nothing is timed before it is compared with its definition in the same type, or fp64 where a kernel is compared: a wrong
one fails and leaves no number. The Triton interpreter is never timed. On a CPU times are CPU seconds of one thread, so
that other programs disturb them little. On a GPU they contain the host's launches; `python -m benchmarks.gpu` is for
claims. `kernel_table.py` makes the table and the picture; ratios, never gates.
"""

import functools
import math
import os
import statistics
import time

import pytest
import torch
import torch.nn.functional as F

from benchmarks.gpu import block_plan, checks, contestants, work
from benchmarks.gpu.block_plan import BlockPoint
from benchmarks.gpu.plan import KINDS, Point
from benchmarks.gpu.report import roofline_share
from gptcore.config import Dims
from gptcore.masking import CausalMask
from gptcore.registry import build, kinds, lookup
from gptcore.softmax import Scoring, Softmax
from kernels.roofline import Work

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
B, H, T, CACHE, D = (8, 16, 2048, 32768, 64) if DEVICE == "cuda" else (1, 4, 256, 32768, 32)
DTYPE = "bf16" if DEVICE == "cuda" else "fp32"
SECONDS, FEWEST = 0.15, 7  # of a case
CLOCK = time.perf_counter if DEVICE == "cuda" else time.process_time
OPS = ("forward", "both", "decode")
UNTIMED = "no GPU: the Triton kernels would run in the interpreter, which is not timed"
TOLERANCE = {"fp32": 1e-4, "bf16": 2e-2}  # of a fused form to its definition in the same type
PATHS = [*(("kernels", kind) for kind in KINDS), *(("gptcore", kind) for kind in kinds("softmax")),
         ("sdpa", "softmax"), *(("triton", kind) for kind in KINDS)]  # fmt: skip


def point(op: str, kind: str) -> Point:
    queries, keys, splits = (1, CACHE, 8) if op == "decode" else (T, T, 0)
    return Point("bench", op, (f"triton:{kind}",), B, H, H, queries, keys, D, D, dtype=DTYPE, splits=splits)


def gptcore_pair(kind: str, at: Point):
    """(the form the model runs, its definition) of a registered kind of softmax, as functions of named tensors."""
    torch.manual_seed(0)
    module = build(lookup("softmax", kind).Config(), Dims(H * D, 1, at.S, True, 0.0), H).to(DEVICE).eval()
    scoring = Scoring(CausalMask(at.T, at.S), contestants.scale(at))
    forms = module.attend, functools.partial(Softmax.attend, module)
    return [lambda q, k, v, form=form: form(q, k, v, scoring) for form in forms]


def sdpa(at: Point):
    def fused(q, k, v):
        return F.scaled_dot_product_attention(q, k, v, is_causal=at.T > 1, scale=contestants.scale(at))

    return fused


def require(error: float, allowed: float, what: str) -> None:
    """No number of what is wrong."""
    if not error <= allowed:
        pytest.fail(f"{what} is wrong, so it is not timed: error {error:.2g}, allowed {allowed:.2g}")


def compare(run, definition, at: Point, named: dict, what: str) -> None:
    got, want = (contestants.outcome(f, at, named) for f in (run, definition))
    for name in got:
        # A curve of a step has gradients of zero.
        error, _ = checks.errors(got[name], want[name]) if want[name].any() else (float(got[name].any()), 0.0)
        require(error, TOLERANCE[DTYPE], f"{name} of {what}")


def runnable(op: str, path: str, kind: str):
    """What is timed, compared with its definition before."""
    at = point(op, kind)
    named = contestants.new_tensors(at, kind if path in ("kernels", "triton") else "softmax", 1, DEVICE)
    if path == "triton":
        run = contestants.own(at, kind, at.splits)
        for row, (error, allowed, tensor) in checks.row_errors(at, at.contestants[0], named).items():
            require(error, allowed, f"{tensor} of {row} of the kernel of {kind}")
    elif path == "kernels":
        plain = contestants.reference(at, kind)
        run = lambda q, **rest: plain(q, **{n: x.to(q.dtype) for n, x in rest.items()})  # noqa: E731
        truth = contestants.outcome(plain, at, named, torch.float64)
        for name, got in contestants.outcome(run, at, named).items():
            require(checks.errors(got, truth[name])[0], TOLERANCE[DTYPE], f"{name} of {kind}")
    elif path == "gptcore":
        run, definition = gptcore_pair(kind, at)
        compare(run, definition, at, named, f"{kind} of gptcore")
    else:
        run = sdpa(at)
        compare(run, contestants.reference(at, "softmax"), at, named, "sdpa")
    return at, contestants.callable_of(run, at, named, "")


def synchronised(run):
    def call():
        run()
        torch.cuda.synchronize()

    return call if DEVICE == "cuda" else run


@pytest.fixture(scope="module")
def ceilings() -> tuple[float, float]:
    """(bytes a second of a copy, operations a second of a matrix product), the best of a few, on this device."""
    torch.set_num_threads(1)
    dtype = contestants.DTYPES[DTYPE]
    size, side = (1 << 31, 8192) if DEVICE == "cuda" else (1 << 26, 768)
    source = torch.randn(size // dtype.itemsize, device=DEVICE).to(dtype)
    target, a = torch.empty_like(source), torch.randn(side, side, device=DEVICE).to(dtype)

    def best(run) -> float:
        times = []
        for _ in range(6):
            began = CLOCK()
            synchronised(run)()
            times.append(CLOCK() - began)
        return min(times)

    return 2 * size / best(lambda: target.copy_(source)), 2 * side**3 / best(lambda: a @ a)


def block_points() -> list[BlockPoint]:
    """Of every operator one shape, that of a model of width 1024 where it has such."""
    parts = (block_plan.products, block_plan.mlp, block_plan.norms, block_plan.rotary, block_plan.cross_entropy,
             block_plan.linear_ce, block_plan.quantised)  # fmt: skip
    points = sorted((p for part in parts for p in part()), key=lambda p: 1024 not in dict(p.sizes).values())
    found: dict[tuple, BlockPoint] = {}
    for p in points:
        found.setdefault((p.op, p.variant, p.mode), p)
    return list(found.values())


def block_runnable(at: BlockPoint, path: str, device: str = DEVICE):
    """What is timed of an operator: our kernel, compared with its definition before, or the definition."""
    from benchmarks.gpu import block_checks, block_ops  # need triton

    named = block_checks.new_tensors(at, 1, device)
    if path == "triton":
        contestant = next(c for c in at.contestants if c.startswith("triton"))
        error, allowed, tensor = block_checks.gate(at, contestant, named)
        require(error, allowed, f"{tensor} of the kernel of {at.name}")
        return block_checks.runnable(*block_checks.own(at, contestant), named)
    return block_checks.runnable(at, block_ops.OPERATORS[at.op].reference(at), named)


@pytest.mark.parametrize("path, kind", PATHS, ids=[f"{path}-{kind}" for path, kind in PATHS])
@pytest.mark.parametrize("op", OPS)
@pytest.mark.benchmark(timer=CLOCK)
def test_attention(benchmark, ceilings, op, path, kind):
    if path == "triton" and os.environ.get("TRITON_INTERPRET") == "1":
        pytest.skip("the Triton interpreter is not timed")
    if path == "triton" and DEVICE == "cpu":
        pytest.skip(UNTIMED)
    at, run = runnable(op, path, kind)
    done = work.of(at, f"{path}:{kind}", contestants.DTYPES[DTYPE].itemsize)
    measure(benchmark, ceilings, run, done, op=op, path=path, kind=kind, point=at.name)


@pytest.mark.skipif(DEVICE == "cpu", reason=UNTIMED)
@pytest.mark.parametrize("path", ["triton", "kernels"])
@pytest.mark.parametrize("at", block_points(), ids=lambda at: at.name)
@pytest.mark.benchmark(timer=CLOCK)
def test_block(benchmark, ceilings, at, path):
    from benchmarks.gpu.block_ops import work_of

    kind = f"{at.op} {at.variant}".strip()
    op = f"{kind} {at.mode}"
    measure(benchmark, ceilings, block_runnable(at, path), work_of(at), op=op, path=path, kind=kind, point=at.name)


def measure(benchmark, ceilings: tuple[float, float], run, done: Work, **facts: str) -> None:
    run = synchronised(run)
    run()
    began = CLOCK()
    run()
    rounds = max(FEWEST, math.ceil(SECONDS / (CLOCK() - began)))
    benchmark.group = facts["op"]
    benchmark.pedantic(run, rounds=min(rounds, 200), warmup_rounds=1)
    if benchmark.stats is None:
        return
    median = statistics.median(benchmark.stats.stats.data)
    benchmark.extra_info.update(
        **facts, flops=done.flops, bytes=done.bytes,
        flops_per_s=done.flops / median, bytes_per_s=done.bytes / median,
        copy_bytes_per_s=ceilings[0], matmul_flops_per_s=ceilings[1],
        roofline_share=roofline_share(done.flops, done.bytes, median, *ceilings),
        device=torch.cuda.get_device_name() if DEVICE == "cuda" else "cpu, one thread", torch=torch.__version__,
        triton=_triton_version(),
    )  # fmt: skip


def _triton_version() -> str:
    try:
        import triton
    except ImportError:
        return "none"
    return triton.__version__
