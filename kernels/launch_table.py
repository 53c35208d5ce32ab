"""Tile sizes, warps and stages of every attention kernel by head width: committed, so that no first call measures.

Every row is compiled ahead of time for sm_90a and sm_80 by `kernels.aot`, whose figures are in `kernels/golden`. None
was timed on a GPU: the rows are those that compile without spills, within shared memory, with the largest tiles.
`D` is the wider of both head widths, rounded up to a power of 2. Kinds that need more registers have rows of their own.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

OPS = ("forward", "d_queries", "d_keys", "decode")


@dataclass(frozen=True)
class Launch:
    BM: int
    BN: int
    num_warps: int
    num_stages: int


# (architecture, op, D) -> launch of 2-byte types. sm_80 rows also serve what comes between and after.
ROWS: dict[tuple[int, str, int], Launch] = {
    (90, "forward", 32): Launch(128, 128, 8, 3),
    (90, "forward", 64): Launch(128, 128, 8, 3),
    (90, "forward", 128): Launch(128, 128, 8, 2),
    (90, "forward", 256): Launch(128, 64, 8, 2),
    (90, "d_queries", 32): Launch(128, 64, 8, 3),
    (90, "d_queries", 64): Launch(128, 64, 8, 3),
    (90, "d_queries", 128): Launch(128, 64, 8, 2),
    (90, "d_queries", 256): Launch(128, 32, 8, 2),
    (90, "d_keys", 32): Launch(64, 128, 8, 2),
    (90, "d_keys", 64): Launch(64, 128, 8, 2),
    (90, "d_keys", 128): Launch(64, 64, 8, 2),
    (90, "d_keys", 256): Launch(16, 64, 8, 2),
    (90, "decode", 32): Launch(16, 128, 4, 3),
    (90, "decode", 64): Launch(16, 128, 4, 3),
    (90, "decode", 128): Launch(16, 64, 4, 3),
    (90, "decode", 256): Launch(16, 32, 4, 3),
    (80, "forward", 32): Launch(128, 64, 8, 2),
    (80, "forward", 64): Launch(128, 64, 8, 2),
    (80, "forward", 128): Launch(64, 64, 8, 2),
    (80, "forward", 256): Launch(64, 32, 8, 1),
    (80, "d_queries", 32): Launch(64, 32, 8, 2),
    (80, "d_queries", 64): Launch(64, 64, 8, 2),
    (80, "d_queries", 128): Launch(64, 32, 8, 2),
    (80, "d_queries", 256): Launch(32, 32, 8, 1),
    (80, "d_keys", 32): Launch(64, 64, 8, 2),
    (80, "d_keys", 64): Launch(32, 64, 8, 2),
    (80, "d_keys", 128): Launch(32, 64, 8, 2),
    (80, "d_keys", 256): Launch(32, 32, 8, 1),
    (80, "decode", 32): Launch(16, 64, 4, 2),
    (80, "decode", 64): Launch(16, 64, 4, 2),
    (80, "decode", 128): Launch(16, 32, 4, 2),
    (80, "decode", 256): Launch(16, 32, 4, 1),
}

# Rows of single kinds, which come first.
OWN_ROWS: dict[tuple[int, str, int, str], Launch] = {
    # 37 % fewer instructions a score: all 8 warps have scores of their own. Softmax would spill.
    (90, "d_keys", 128, "consmax"): Launch(32, 128, 8, 2),
    # The logarithm of softplus needs registers.
    (90, "forward", 128, "softplus"): Launch(128, 64, 8, 2),
    (90, "forward", 256, "softplus"): Launch(128, 32, 8, 2),
    (90, "d_keys", 128, "softplus"): Launch(32, 64, 8, 2),
}

_forced: dict[str, Launch] = {}


@contextmanager
def forced(**launches: Launch) -> Iterator[None]:
    """Other tiles for the ops named, e.g. small ones for the interpreter."""
    before = dict(_forced)
    _forced.update(launches)
    try:
        yield
    finally:
        _forced.clear()
        _forced.update(before)


def table_row(architecture: int, op: str, D: int, kind: str) -> Launch:
    return OWN_ROWS.get((architecture, op, D, kind), ROWS[architecture, op, D])


def launch(capability: int, op: str, D: int, kind: str, itemsize: int) -> Launch:
    """The row for an architecture, e.g. 90; 4-byte types get half the keys and queries of the row, untried by `aot`."""
    if op in _forced:
        return _forced[op]
    row = table_row(90 if capability == 90 else 80, op, max(D, 32), kind)
    if itemsize <= 2:
        return row
    return Launch(max(row.BM // 2, 16), max(row.BN // 2, 16), row.num_warps, 1)
