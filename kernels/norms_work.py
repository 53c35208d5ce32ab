"""Bytes and FLOPs of the norms from shapes alone: what the kernels move, the floor, and the chain of torch's operators.

Every tensor counts once in each direction, as if a cache held what a kernel reads again. What is beyond the floor is
small: statistics, parameters, and partial rows of their gradients; but rows longer than `norms.LONGEST` are read again
for those gradients, by a kernel of their own. FLOPs are additions and multiplications of a number, roots left out. The
chain is what a model without these kernels runs: the sum, torch's fused norm, and backward torch's kernel of dx, its
kernel of the parameters' gradients, which reads all again, and the sum of the two gradients of a residual.
"""

from dataclasses import dataclass

from .norms import LONGEST, table_row
from .roofline import Work


@dataclass(frozen=True)
class Norm:
    M: int  # rows
    N: int  # width
    centred: bool = False  # layer norm
    parameters: int = 1  # weight, weight and bias, or none
    size: int = 2  # bytes of a number of x and its gradient
    out_size: int = 2  # of the norm and its gradient
    added_size: int = 0  # of what is added to x; 0 without a residual sum

    @property
    def sum_size(self) -> int:
        return max(self.size, self.added_size)


def floor_bytes(op: str, norm: Norm) -> int:
    """What `forward` or `backward` cannot but read and write: rows, without statistics and parameters."""
    n = norm
    if op == "forward":
        each = n.size + n.out_size + (n.added_size + n.sum_size if n.added_size else 0)
    elif op == "backward":
        second = n.added_size if n.added_size != n.size else 0  # the same gradient in another type
        each = n.out_size + n.sum_size + n.size + (n.sum_size + second if n.added_size else 0)
    else:
        raise ValueError(f"op {op!r} is neither forward nor backward")
    return n.M * n.N * each


def partial_rows(norm: Norm, multiprocessors: int) -> int:
    """What the backward pass leaves of each parameter for `total`."""
    op = "backward" if norm.N <= LONGEST else "parameters"
    row = table_row(90, op, norm.N, norm.sum_size, norm.out_size)
    return min(-(-norm.M // row.BM), row.programs * multiprocessors)


def norm_work(op: str, norm: Norm, multiprocessors: int = 132) -> Work:
    """Of the kernels here, with parameters of 4 bytes."""
    n, added = norm, norm.added_size > 0
    numbers, statistics = n.M * n.N, 4 * n.M * (1 + n.centred)
    moved = floor_bytes(op, n) + statistics + 4 * n.N * n.parameters
    if op == "forward":
        # sum of squares (2), times 1 / rms; mean (2); weight, bias; residual
        return Work(numbers * (3 + 2 * n.centred + n.parameters + added), moved, 0)
    if n.parameters:
        moved += 2 * 4 * n.N * n.parameters * partial_rows(n, multiprocessors)
        moved += 4 * n.N  # the weight is read, and of both the gradient is written
        if n.N > LONGEST:
            moved += numbers * (n.sum_size + n.out_size) + statistics
    # n, sum of g n (2), dx (3); n centred, sum and subtraction of the mean of g; dy w, sum of dy n (2); sum of dy
    flops = 6 + 3 * n.centred + (0, 3, 4)[n.parameters] + added
    return Work(numbers * flops, moved, 0)


def chain_bytes(op: str, norm: Norm) -> int:
    """Of the chain of torch's operators, likewise without statistics and parameters."""
    n = norm
    if op == "forward":
        each = n.sum_size + n.out_size + (n.size + n.added_size + n.sum_size if n.added_size else 0)
    else:
        reads = n.out_size + n.sum_size
        each = reads * (1 + (n.parameters > 0)) + n.sum_size
        if n.added_size:
            casts = sum(n.sum_size + size for size in (n.size, n.added_size) if size != n.sum_size)
            each += 3 * n.sum_size + casts
    return n.M * n.N * each
