"""What attention costs a GPU, from shapes alone: work of an operator, instructions of a tile, least times.

Floating-point operations follow the convention of published attention figures: 2 (D + E) a pair of query and key
forward, 2.5 times that backward (five products for two, although the split kernels here make seven); half of all pairs
when causal. Bytes are those of every tensor read or written once, as if caches held what is used again. Instructions
are of `launch_table`'s tiles on sm_90 with 2-byte types, for softmax and consmax, as `kernels/golden` has them counted.

Not covered: soft cap, bias, ALiBi, windows; what tiles on the diagonal compute and mask; products and exponentials of
the decode kernel's unused rows; overlap, which decides how near a kernel comes to the longest of the least times.

Legend: B batch, H query heads, K key/value heads, T queries, S keys, D head width, E value width.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from .launch_table import Launch

# exponentials of a pair of query and key: forward, and in both kernels of the backward pass together
EXPONENTIALS = {
    "softmax": (1, 2), "consmax": (1, 2), "sigmoid": (1, 2), "softplus": (1, 3), "relu": (0, 0), "relu2": (0, 0),
    "polymax": (0, 0),
}  # fmt: skip
KERNELS: dict[str, Sequence[str]] = {"forward": ("forward",), "backward": ("d_queries", "d_keys")}


@dataclass(frozen=True)
class Work:
    flops: float
    bytes: int
    exponentials: float


@dataclass(frozen=True)
class Gpu:
    """Limits of the whole device."""

    flops_s: float  # dense bf16 or fp16 products
    bytes_s: float  # of its memory
    exponentials_s: float
    warp_instructions_s: float  # one a clock and scheduler, of which a multiprocessor has 4


# H200 SXM: 132 multiprocessors at 1.83 GHz (NVIDIA/cudnn-frontend PR #650 for that clock), of 4096 FLOP, 16
# exponentials and 4 instructions a clock each; 4.8 TB/s are the data sheet's.
H200 = Gpu(132 * 1.83e9 * 4096, 4.8e12, 132 * 1.83e9 * 16, 132 * 1.83e9 * 4)


def pairs(T: int, S: int, causal: bool) -> float:
    """Of query and key in sight; a query sees half of the last T keys when causal."""
    return T * (S - T / 2) if causal else float(T * S)


def attention_work(
    op: str, kind: str, B: int, H: int, K: int, T: int, S: int, D: int, E: int, causal: bool, itemsize: int
) -> Work:
    """`op` is forward, backward or decode."""
    seen = B * H * pairs(T, S, causal)
    forward, backward = EXPONENTIALS[kind]
    queries, outputs, keys, values, row = B * H * T * D, B * H * T * E, B * K * S * D, B * K * S * E, 4 * B * H * T
    if op in ("forward", "decode"):
        moved = itemsize * (queries + keys + values + outputs) + row * (op == "forward" and kind == "softmax")
        return Work(2 * (D + E) * seen, moved, forward * seen)
    if op != "backward":
        raise ValueError(f"op {op!r} is none of forward, backward, decode")
    # the row sum of dO O is of kinds with exponentials; softmax writes it, reads it, and reads its statistic twice
    rows = {"softmax": 4 * row, "consmax": row}.get(kind, 0)
    read = queries + keys + values + outputs * (2 if kind in ("softmax", "consmax") else 1)
    return Work(5 * (D + E) * seen, itemsize * (read + queries + keys + values) + rows, backward * seen)


# Instructions of a loop besides its arithmetic: barriers, tile loads and the loop itself, and for every product of a
# warp group the moves of its descriptor; a tile of queries brings two numbers a row in d_keys of softmax. Fitted to
# the counts of consmax (the first two) and softmax of Triton 3.7.1.
LOOP, DESCRIPTOR, ROW_LOADS = 62, 3.2, 32


def tile_instructions(kernel: str, kind: str, D: int, E: int, launch: Launch) -> dict[str, float]:
    """Instructions of a warp for one tile without masks, by name; `all` is their sum and what no name counts.

    A thread holds `scores` of the tile, of 2 rows in the forward pass; a warp has 16 rows, and warps beyond the rows of
    the tile compute scores that another has too.
    """
    if kind not in ("softmax", "consmax") or kernel not in ("forward", "d_queries", "d_keys"):
        raise ValueError(f"no count of {kernel} {kind}")
    rows, step = (launch.BN, launch.BM) if kernel == "d_keys" else (launch.BM, launch.BN)
    repeated = max(1, 16 * launch.num_warps // rows)
    scores = repeated * launch.BM * launch.BN // (32 * launch.num_warps)
    softmax = kind == "softmax"
    named = dict.fromkeys(("FFMA", "FMUL", "FADD", "FMNMX", "SHFL", "EX2", "HGMMA"), 0)
    named |= {"FFMA": scores, "EX2": scores}
    packs = scores / 2  # to 2-byte weights, two an instruction
    if kernel == "forward":
        named["HGMMA"] = D // 16 + step // 16
        if softmax:  # row maximum and sum over a thread's scores, then over 4 threads; the output rescaled
            named["FFMA"] += 2
            named["EX2"] += 2
            named["FMUL"] = scores + launch.BM * E // (32 * launch.num_warps)
            named["FMNMX"] = named["FADD"] = (scores - 2) + 4 + 2
            named["SHFL"] = 8
    else:
        products = 1 if kernel == "d_queries" else 2
        named["HGMMA"] = repeated * (D + E) // 16 + products * step // 16
        named["FMUL"] = scores
        named["FADD"] = scores if softmax else 0
        packs *= products
    control = LOOP + DESCRIPTOR * named["HGMMA"] + (ROW_LOADS if softmax and kernel == "d_keys" else 0)
    return named | {"all": sum(named.values()) + packs + control}


def warp_instructions(
    op: str, kind: str, B: int, H: int, T: int, S: int, D: int, E: int, causal: bool, launches: dict[str, Launch]
) -> float:
    """Issue slots of forward or backward, `launches` by kernel."""
    total = 0.0
    for kernel in KERNELS[op]:
        row = launches[kernel]
        tiles = B * H * pairs(T, S, causal) / (row.BM * row.BN)
        total += tiles * row.num_warps * tile_instructions(kernel, kind, D, E, row)["all"]
    return total


def least_times_s(work: Work, gpu: Gpu, instructions: float = 0.0) -> dict[str, float]:
    """Seconds that each resource needs at its limit; the longest bounds the operator."""
    return {
        "tensor cores": work.flops / gpu.flops_s, "memory": work.bytes / gpu.bytes_s,
        "exponentials": work.exponentials / gpu.exponentials_s, "issue": instructions / gpu.warp_instructions_s,
    }  # fmt: skip
