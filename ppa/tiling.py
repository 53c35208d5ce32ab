"""Tiling: how a matrix product is cut so that its working set fits the SRAM, and what then moves to and from DRAM.

(m x k)(k x n) runs over tiles of A (tile_m x tile_k), of B (tile_k x tile_n) and of 32-bit partial sums
(tile_m x tile_n). Each is held twice, so that one arrives or leaves while the array works on the other; what is in the
SRAM as a whole is held once. Tiles are multiples of the array, or the whole dimension, so no cell idles but at the rim.
What is kept while the rest streams past it decides what DRAM sees:

    sums    A is read n / tile_n times, B m / tile_m times (counts rounded up)
    a       tile_m rows of A, all of k: A is read once, B m / tile_m times
    b       tile_n columns of B, all of k: B is read once, A n / tile_n times

Partial sums never leave the chip: spilling them moves 8 bytes for each sum and step of k. The choice is the least DRAM
traffic of this space, exactly (tests compare with an exhaustive search); hence it never falls as the product or its
bits grow and never rises with the SRAM. Not covered: reuse between products, DRAM pages, tiles of uneven shape.
"""

from dataclasses import dataclass
from functools import lru_cache
from math import sqrt
from typing import Literal

SUM_BITS = 32
Kept = Literal["sums", "a", "b"]


@dataclass(frozen=True, slots=True)
class Tiling:
    """A choice. `fits` is False where even the smallest tiles do not fit; the traffic is then that of the smallest.

    `first_tile_bytes` must have arrived from DRAM before the array can begin: the operands of its first fold, as deep
    as a tile.
    """

    tile_m: int
    tile_k: int
    tile_n: int
    dram_read_bytes: int
    dram_written_bytes: int
    first_tile_bytes: int
    fits: bool
    kept: Kept


@lru_cache(maxsize=1 << 16)
def choose(
    m: int, k: int, n: int, a_bits: int, b_bits: int, out_bits: int, sram_bytes: int, rows: int, columns: int,
    a_off_chip: bool, b_off_chip: bool, out_off_chip: bool,
) -> Tiling:  # fmt: skip
    """The tiling of (m x k)(k x n) of least DRAM traffic. Operands that are on chip cost none, but their tiles room."""
    room = 8 * sram_bytes  # footprints are in bits
    a_bytes = (m * k * a_bits + 7) // 8 if a_off_chip else 0
    b_bytes = (k * n * b_bits + 7) // 8 if b_off_chip else 0
    m0, k0, n0 = min(m, rows), min(k, rows), min(n, columns)

    def size(kept: Kept, tile_m: int, tile_k: int, tile_n: int) -> int:
        a_deep, b_deep = k if kept == "a" else tile_k, k if kept == "b" else tile_k
        return (
            tile_m * a_deep * a_bits * (1 if tile_m == m and a_deep == k else 2)
            + b_deep * tile_n * b_bits * (1 if b_deep == k and tile_n == n else 2)
            + tile_m * tile_n * SUM_BITS * (1 if tile_m == m and tile_n == n else 2)
        )

    def tiling(kept: Kept, tile_m: int, tile_n: int, read_bytes: int, fits: bool = True) -> Tiling:
        """What room is left deepens the tiles (fewer sums to take up again), then widens what streams."""
        tile_k = k0
        if size(kept, m, k, n) <= room:
            tile_m, tile_k, tile_n = m, k, n
        elif fits:
            a_width = 0 if kept == "a" else tile_m * a_bits
            b_width = 0 if kept == "b" else tile_n * b_bits
            if size(kept, tile_m, k, tile_n) <= room:
                tile_k = k
            elif (spare := room - size(kept, tile_m, k0, tile_n)) > 0:
                tile_k += spare // (2 * (a_width + b_width)) // rows * rows
            if kept == "a" and tile_n < n:
                spare, width = room - size(kept, tile_m, tile_k, tile_n), 2 * (tile_k * b_bits + tile_m * SUM_BITS)
                tile_n = n if size(kept, tile_m, tile_k, n) <= room else tile_n + spare // width // columns * columns
            if kept == "b" and tile_m < m:
                spare, width = room - size(kept, tile_m, tile_k, tile_n), 2 * (tile_k * a_bits + tile_n * SUM_BITS)
                tile_m = m if size(kept, m, tile_k, tile_n) <= room else tile_m + spare // width // rows * rows
        first = (m0 * tile_k * a_bits + 7) // 8 * a_off_chip + (tile_k * n0 * b_bits + 7) // 8 * b_off_chip
        written = (m * n * out_bits + 7) // 8 if out_off_chip else 0
        return Tiling(tile_m, tile_k, tile_n, read_bytes, written, first, fits, kept)

    # One operand, or all the sums, in the SRAM as a whole: everything moves once.
    compulsory = a_bytes + b_bytes
    if size("a", m, k0, n0) <= room:
        return tiling("a", m, n0, compulsory)
    if size("b", m0, k0, n) <= room:
        return tiling("b", m0, n, compulsory)
    if size("sums", m, k0, n) <= room or size("sums", m, k, n) <= room:
        return tiling("sums", m, n, compulsory)

    found: list[tuple[int, Kept, int, int]] = []
    spare = room - 2 * k0 * n0 * b_bits
    if tile := spare // (2 * (k * a_bits + n0 * SUM_BITS)) // rows * rows if spare > 0 else 0:
        found.append((a_bytes + b_bytes * -(-m // tile), "a", tile, n0))
    spare = room - 2 * k0 * m0 * a_bits
    if tile := spare // (2 * (k * b_bits + m0 * SUM_BITS)) // columns * columns if spare > 0 else 0:
        found.append((a_bytes * -(-n // tile) + b_bytes, "b", m0, tile))
    if not found or min(found)[0] > compulsory:
        bound = min(found)[0] if found else None
        if m * columns <= n * rows:  # the walk is over the dimension of fewer tiles
            if cut := _keep_sums(m, n, k0, a_bits, b_bits, room, rows, columns, a_bytes, b_bytes, bound):
                found.append((cut[0], "sums", cut[1], cut[2]))
        elif cut := _keep_sums(n, m, k0, b_bits, a_bits, room, columns, rows, b_bytes, a_bytes, bound):
            found.append((cut[0], "sums", cut[2], cut[1]))
    if not found:
        return tiling("sums", m0, n0, a_bytes * -(-n // n0) + b_bytes * -(-m // m0), fits=False)
    read_bytes, kept, tile_m, tile_n = min(found)
    return tiling(kept, tile_m, tile_n, read_bytes)


def _keep_sums(
    m: int, n: int, k0: int, a_bits: int, b_bits: int, room: int, rows: int, columns: int, a_bytes: int, b_bytes: int,
    bound: int | None,
) -> tuple[int, int, int] | None:  # fmt: skip
    """Traffic, tile_m and tile_n of the best tiling keeping sums, at the least tile_k; None where none beats `bound`.

    A is read a bytes, B b bytes each time. Cutting m in p tiles leaves a tile_n such that the traffic is at least
    a n (c p + d m) / (room p - e m) + b p, where c, d, e are of the footprint. That is convex in p, so a walk from
    its minimum to either side may end where it exceeds the best found.
    """
    c, d, e = 2 * k0 * b_bits, 2 * SUM_BITS, 2 * k0 * a_bits
    n0 = min(n, columns)
    top = (room - c * n0) // (d * n0 + e)
    top = m if top >= m else top // rows * rows
    if top <= 0:
        return None
    p_min, p_max = -(-m // top), -(-m // rows)
    # the derivative is 0 where (room p - e m)^2 = a n m (c e + d room) / b
    centre = (e * m + sqrt(a_bytes * n * m * (c * e + d * room) / b_bytes)) / room if b_bytes else p_max
    middle = min(max(int(centre) + 1, p_min), p_max)
    best = None
    p, step = middle, 1
    while True:
        outside = not p_min <= p <= p_max
        if outside or bound and a_bytes * n * (c * p + d * m) > (bound - b_bytes * p) * (room * p - e * m):
            if step < 0:
                return best
            p, step = middle - 1, -1
            continue
        steps = -(-m // (p * rows))  # the least that cut m in at most p
        p, tile = -(-m // (steps * rows)), min(steps * rows, m)
        tile_n = (room - e * tile) // (c + d * tile)
        tile_n = n if tile_n >= n else tile_n // columns * columns
        read_bytes = a_bytes * -(-n // tile_n) + b_bytes * p
        if bound is None or read_bytes < bound:
            bound, best = read_bytes, (read_bytes, tile, tile_n)
        p = -(-m // ((steps - 1) * rows)) if step > 0 and steps > 1 else p + step
