"""Instructions of the cross-entropy kernels: of a pass of their loops over whole tiles, and of a call.

A thread has REPEAT vectors of 16 bytes of a row in a pass. The statistics take a maximum, an exponential and a sum of
each number, the gradient an exponential, two products that are added to, and a compare and a difference for the target.

A call counts the ends of rows, which are no whole tile, as parts of a pass. Left out is what a row does once: targets,
the sum over threads, its loss; some 300 instructions, 5 % of a row of 50,304 in bf16 (an estimate).

Legend: N rows, V vocabulary.
"""

from .cross_entropy import tile
from .instructions import SIZES, Counts, fills, narrowed, widened

LOOP = 9  # its end in 64-bit numbers, pointers that move; fitted to the statistics of bf16 and 50,304
POINTER = 2  # of each access of the gradient; fitted to the gradient of bf16 and 50,304


def statistics_pass(kind: str, V: int, smooth: bool = False) -> Counts:
    """`smooth`: with the sum of the logits, which label smoothing needs. One exponential more is of the sum so far."""
    n, loads = _numbers(kind, V)
    arithmetic = n + (n + 1) + (n + 1) + n * (1 + smooth) + 1  # maximum, times log2(e), exponential, sums, rescaling
    return {"EX2": n + 1, "LDG": loads, "LDG128": loads, "all": arithmetic + loads + widened(kind, n) + LOOP}


def gradient_pass(kind: str, V: int) -> Counts:
    n, moves = _numbers(kind, V)
    arithmetic = 2 * n + n + n + n  # products, exponential, compare, difference
    masks = 2 * fills(kind, n)  # rows that are ignored read nothing
    changes = widened(kind, n) + narrowed(kind, n)
    named = {"EX2": n, "LDG": moves, "LDG128": moves, "STG": moves, "STG128": moves}
    return named | {"all": arithmetic + masks + changes + 2 * moves * (1 + POINTER) + LOOP}


def slots(op: str, N: int, V: int, kind: str) -> float:
    """Issue slots of `forward`, `backward`, or `both` in one launch, as the head's loss has it."""
    row, sizes = tile(90, SIZES[kind], V)
    passes = {"forward": (1, 0), "backward": (0, 1), "both": (1, 1)}
    if op not in passes:
        raise ValueError(f"op {op!r} is none of {', '.join(passes)}")
    statistics, gradient = passes[op]
    each = statistics * statistics_pass(kind, V)["all"] + gradient * gradient_pass(kind, V)["all"]
    return N * row.num_warps * each * V / (row.REPEAT * sizes["LANES"] * sizes["VECTOR"])


def _numbers(kind: str, V: int) -> tuple[int, int]:
    """(of a thread in a pass, its vectors)."""
    row, sizes = tile(90, SIZES[kind], V)
    return row.REPEAT * sizes["VECTOR"], row.REPEAT
