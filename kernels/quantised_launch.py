"""Tile sizes, warps and stages of the quantised kernels: committed, so that no first call measures.

Every row is compiled ahead of time for sm_90a and sm_80 by `kernels.aot`, whose figures are in `kernels/golden`. None
was timed on a GPU: the rows are those that compile without spills and within shared memory, with the largest tiles.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import triton
from torch import Tensor

from . import devices


@dataclass(frozen=True)
class Product:
    """A tile of BM tokens, BN outputs and BK bytes of a row of weights."""

    BM: int
    BN: int
    BK: int
    num_warps: int
    num_stages: int


@dataclass(frozen=True)
class Block:
    """Elements of a program of an element-wise kernel; for rows, of a row that is held at once."""

    BLOCK: int
    num_warps: int
    num_stages: int = 1


# (architecture, op) -> launch; sm_80 rows also serve what comes between and after. `decode` rows are for few tokens,
# `rounded` ones for results in int8, whose epilogue needs registers.
ROWS: dict[tuple[int, str], Product] = {
    (90, "int8"): Product(128, 256, 128, 8, 4),
    (90, "int8 rounded"): Product(128, 128, 128, 8, 4),
    (90, "int8 decode"): Product(16, 128, 128, 4, 4),
    (90, "ternary int8"): Product(256, 128, 128, 8, 3),
    (90, "ternary int8 decode"): Product(16, 128, 128, 4, 4),
    (90, "ternary 2-byte"): Product(64, 64, 32, 4, 2),
    (90, "ternary 4-byte"): Product(16, 32, 32, 4, 1),
    (80, "int8"): Product(128, 128, 64, 8, 3),
    (80, "int8 rounded"): Product(128, 128, 64, 8, 3),
    (80, "int8 decode"): Product(16, 64, 128, 4, 4),
    (80, "ternary int8"): Product(64, 128, 64, 8, 2),
    (80, "ternary int8 decode"): Product(16, 64, 128, 4, 3),
    (80, "ternary 2-byte"): Product(64, 64, 32, 4, 2),
    (80, "ternary 4-byte"): Product(16, 32, 32, 4, 1),
}
# op -> launch, on any architecture
BLOCKS: dict[str, Block] = {
    "combine": Block(1024, 4), "row sums": Block(4096, 4), "element": Block(2048, 4), "range": Block(8192, 8),
}  # fmt: skip
FEW = 32  # tokens that the decode rows serve


def product_row(x: Tensor, op: str) -> Product:
    return ROWS[devices.table_of(x), op]


def options(row: Product | Block) -> Mapping[str, int]:
    """Of the launcher."""
    return {"num_warps": row.num_warps, "num_stages": row.num_stages}


def row_block(N: int, itemsize: int) -> Block:
    """Elements of a row that one program holds: all of it up to 16384, then parts, in two passes."""
    size = min(max(triton.next_power_of_2(N), 16), 16384)
    return Block(size, max(4, min(16, size * itemsize // 2048)))
