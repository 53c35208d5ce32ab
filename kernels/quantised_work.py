"""What quantised operators cost a GPU, from shapes alone, fused and as the chain of torch operators that they replace.

Bytes are those of every tensor read or written once; a chain reads and writes each intermediate in full. Products count
2 operations a pair, whatever the width of the numbers. Not covered: scales, ranges and tables, which are small; copies
of operands that tensor descriptors cannot address; parts of sums, which few tokens have.

Legend: M tokens, N outputs, K inputs; itemsizes in bytes.
"""

import math

from .roofline import Work

SIZES = {"bf16": 2, "fp16": 2, "fp32": 4, "int32": 4, "int8": 1}
# Bytes an element of the chains in plain torch, eager, by type: every operator's inputs and outputs, counted by a test.
CHAINS = {
    "symmetric": {2: 74, 4: 80}, "affine": {2: 82, 4: 88},  # fake_quantise of rows
    "lut": {2: 192, 4: 180}, "pwl": {2: 400, 4: 388}, "backward": {2: 68, 4: 56},  # of both activations
}  # fmt: skip


def int8_linear_work(M: int, N: int, K: int, out: str = "bf16") -> Work:
    return Work(2 * M * N * K, M * K + N * K + SIZES[out] * M * N, 0)


def int8_linear_chain_bytes(M: int, N: int, K: int, out: str = "bf16") -> int:
    """A product to int32, then to fp32, times either scale; for int8 over its step, rounded, clamped; to the output."""
    passes = 8 + 8 + 8 + (8 + 8 + 8 if out == "int8" else 0) + (0 if out == "fp32" else 4 + SIZES[out])
    return M * K + N * K + 4 * M * N + passes * M * N


def ternary_linear_work(M: int, N: int, K: int, out: str = "bf16", itemsize: int = 1) -> Work:
    """A quarter of a byte a weight; tokens of `itemsize` bytes."""
    return Work(2 * M * N * K, itemsize * M * K + N * math.ceil(K / 4) + SIZES[out] * M * N, 0)


def fake_quantise_work(size: int, itemsize: int, dim: int | None) -> Work:
    """A row's range is found while it is read; that of a whole tensor needs a pass of its own."""
    return Work(0, size * itemsize * (2 if dim is not None else 3), 0)


def quantise_rows_work(size: int, itemsize: int) -> Work:
    return Work(0, size * (itemsize + 1), 0)


def fixed_point_work(size: int, itemsize: int, op: str, function: str = "gelu") -> Work:
    """`op` forward: x in, y out; backward: x and dy in, dx out."""
    if op not in ("forward", "backward"):
        raise ValueError(f"op {op!r} is neither forward nor backward")
    # gelu: that of the density, and one in the error function
    exponentials = {"gelu": 2}.get(function, 1) if op == "backward" else 0
    return Work(0, size * itemsize * (2 if op == "forward" else 3), exponentials * size)
