"""Instructions of the norms, forward and backward, from what `norms_work.Norm` says and the launch row alone.

A program of the forward pass is one tile. One of the backward pass sets out, goes over its tiles, and sums its rows. So
`forward` and `backward` are held against whole programs, in which the tile stands once, and `Backward.tile` also
against the loop over tiles.

Within 10 % of what is counted, but 11 to 16 % below it backward with a fp32 stream and a bf16 norm, where there is no
bias or a tile is copied ahead. Not covered: rows longer than `norms.LONGEST`; fp16, which widens a number in 1
instruction instead of 1.5; stores of statistics beyond one each. Of the named counts the shuffles of a row of 2048 are
2 too few forward, and the loads of rows of 16 are 2 too many backward.
"""

from dataclasses import dataclass

from .instructions import ACCESS, NAMES, PROGRAM, ROW, VECTOR, Counts, Threads, plain, read, total, written
from .norms import LONGEST, Launch, table_row
from .norms_work import Norm, partial_rows

SET_OUT = 31  # of a backward program beside its sums: arguments, and addresses of the partial rows; fitted
TILES = 31  # of its loop: the next tile, and strides again in 64 bits; fitted
DIVISIONS = 60  # of a row number behind three strides, by two sizes; fitted to one point of `heads`


@dataclass(frozen=True)
class Backward:
    once: Counts  # of a program
    tile: Counts

    @property
    def program(self) -> Counts:
        return total(self.once, self.tile)


def _row(op: str, norm: Norm) -> Launch:
    if norm.N > LONGEST:
        raise ValueError(f"no count of rows of {norm.N}, only up to {LONGEST}")
    return table_row(90, op, norm.N, norm.size if op == "forward" else norm.sum_size, norm.out_size)


def _threads(row: Launch, norm: Norm) -> Threads:
    numbers = row.BM * row.BN // (32 * row.num_warps)
    narrowest = min(norm.size, norm.added_size or norm.size, norm.out_size)
    return Threads(row.BM, row.BN, row.num_warps, min(numbers, VECTOR // narrowest))


def _starts(t: Threads, tensors: int, heads: bool) -> Counts:
    """Of rows of so many tensors. `heads`: rows behind three strides, otherwise behind one."""
    return plain(t.rows * (tensors * ROW * (3 if heads else 1) + DIVISIONS * heads))


def forward(norm: Norm, heads: bool = False) -> Counts:
    t = _threads(_row("forward", norm), norm)
    x, y, out, n = NAMES[norm.size], NAMES.get(norm.added_size), NAMES[norm.out_size], t.numbers
    parts = [read(x, n), written(out, n)]
    arithmetic: float = 2 * n  # squares, times 1 / rms
    statistics = 1 + norm.centred
    if y:
        parts += [read(y, n), written(NAMES[norm.sum_size], n)]
        # Two numbers of bf16 are added as a pair, which rounds like their sum: only that is widened.
        arithmetic += n / 2 - 1.5 * n if x == y == "bf16" else n
    if norm.centred:
        arithmetic += 3 * n  # sum, difference, and zeros beyond the row
    if norm.parameters:
        arithmetic += n  # the bias is added by the product with the weight
        parts += [read("fp32", n)] * norm.parameters
    parts += [t.row_sum()] * statistics
    kept = {"MUFU": t.rows, "STG": statistics, "all": 2 * t.rows + statistics * 3}
    return total(*parts, _starts(t, 4 if y else 2, heads), kept, plain(PROGRAM + arithmetic))


def backward(norm: Norm, heads: bool = False) -> Backward:
    row = _row("backward", norm)
    t, added, w = _threads(row, norm), norm.added_size > 0, min(norm.parameters, 1)
    n, chunks, statistics = t.numbers, -(-norm.N // row.BN), 1 + norm.centred
    s, dx, out = NAMES[norm.sum_size], NAMES[norm.size], NAMES[norm.out_size]
    masked = row.BM > 1 or norm.N % row.BN != 0
    passes = 2 * chunks if chunks > 1 else 1  # a long row is read again
    tile = [read(s, n, masked), read(out, n, masked), *[read("fp32", n, masked)] * w] * passes
    normalised = n * (1 + norm.centred + w)  # x - m, times 1 / rms; dy times the weight
    gradients = n * (2 + norm.centred + norm.parameters)  # dx: g - n dot, - shift, times 1 / rms; dw, db
    tile += [t.row_sum()] * statistics
    tile += [written(dx, n)] * chunks
    if added:
        tile += [read(s, n, masked)] * chunks
    if norm.added_size not in (0, norm.size):
        tile += [written(NAMES[norm.added_size], n)] * chunks
    if row.num_stages > 1:  # the copies of the first tile stand before the loop; all are loaded from shared memory
        copies = total(*tile)["LDG"] + t.rows * statistics
        tile += [plain(copies * (2 + ACCESS))]
    tile += [_starts(t, 3 + added, heads), {"LDG": t.rows * statistics}]
    tile += [plain(TILES + passes * normalised + chunks * (n * statistics + gradients) + 2 * t.rows * statistics)]
    sums, stores = norm.parameters * chunks, -(-row.BN // (4 * 32 * row.num_warps))
    once = total(*[t.column_sum()] * sums, plain(SET_OUT + sums * (n + 3 * stores)))  # zeros for the sums
    wide = sums * stores if row.BN >= 4 * 32 * row.num_warps else 0
    return Backward(once | {"STG": sums * stores, "STG128": wide}, total(*tile))


def slots(op: str, norm: Norm, multiprocessors: int = 132) -> float:
    """Issue slots of a call. Left out is `norms_kernels.total`, below 1 % from 2000 rows on."""
    row, tiles = _row(op, norm), -(-norm.M // _row(op, norm).BM)
    if op == "forward":
        return tiles * row.num_warps * forward(norm)["all"]
    made = backward(norm)
    return row.num_warps * (partial_rows(norm, multiprocessors) * made.once["all"] + tiles * made.tile["all"])
