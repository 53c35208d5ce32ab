"""What cross entropy costs a GPU, from shapes alone: bytes, operations, and memory beyond what goes in and comes out.

Bytes are those of every tensor that a kernel reads or writes once, as if caches held what is used again; a matrix
product reads both operands and writes its result, and also reads it where it adds to it. Exponentials are one an
element of the statistics and one of the gradient. Matrix products are counted in full, 2 operations a
multiplication; element-wise arithmetic is not counted.

Legend: N rows, V vocabulary, C width of the stream, itemsize and weight_itemsize bytes of logits (and x) and weight.
"""

from .linear_cross_entropy import beside_bytes, chunk_rows, padded
from .roofline import Work

ROW = 8 + 4 + 16  # bytes: target, loss, and what is left for the gradient


def cross_entropy_work(N: int, V: int, itemsize: int) -> Work:
    """Forward and backward: logits read, read again, and replaced; what a row leaves is written and read."""
    return Work(0.0, 3 * N * V * itemsize + N * (2 * ROW), 2.0 * N * V)


def chain_bytes(N: int, V: int, itemsize: int) -> int:
    """Of torch's operators one by one, from logits to their gradient, leaving out what is of the size of a row.

    A cast to fp32 (unless they are), log-softmax, the loss's gradient (zeros, of which one a row is set), that of
    log-softmax (reads two, writes one), a cast back.
    """
    casts = 2 * (itemsize + 4) if itemsize < 4 else 0
    return N * V * (casts + 2 * 4 + 4 + 3 * 4)


def linear_work(N: int, C: int, V: int, itemsize: int, weight_itemsize: int) -> Work:
    """The fused form, forward and backward, with what comes from behind not 1; dW read and written for every chunk."""
    rows = chunk_rows(N, C, V, itemsize, weight_itemsize)
    chunks = -(-N // rows)
    logits, stream, weight = N * V * itemsize, N * C * itemsize, V * C * itemsize
    moved = stream + chunks * weight + logits  # logits = x W^T
    moved += 3 * logits + N * ROW  # their gradient in place
    moved += logits + chunks * weight + stream  # dX
    moved += logits + stream + (1 + 2 * chunks) * 4 * V * C  # dW from zero
    moved += 2 * stream + V * C * (4 + weight_itemsize)  # scaled
    if weight_itemsize != itemsize:
        moved += V * C * (weight_itemsize + itemsize)  # its copy
    return Work(6.0 * N * C * V, moved, 2.0 * N * V)


def linear_extra_bytes(N: int, C: int, V: int, itemsize: int, weight_itemsize: int, chunk: int | None = None) -> int:
    """Most memory that the fused form takes at once beside inputs, dX, and dW in the type of the weight."""
    rows = min(chunk or chunk_rows(N, C, V, itemsize, weight_itemsize), N)
    forward = rows * padded(V) * itemsize + 4 * N + beside_bytes(C, V, itemsize, weight_itemsize)
    backward = 4 * V * C if weight_itemsize < 4 else 0  # the sum, while dW is made of it
    return max(forward, backward)


def chain_extra_bytes(N: int, V: int) -> int:
    """The same of layer, cast to fp32 and loss one by one: log-softmax, the loss's gradient and its own, if nobody else
    holds the logits."""
    return 3 * 4 * N * V
