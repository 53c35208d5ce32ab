"""Tile sizes, warps and stages of every attention kernel by head width: committed, so that no first call measures.

Every row is compiled ahead of time for sm_90a and sm_80 by `kernels.aot`, whose figures are in `kernels/golden`. None
was timed on a GPU: the rows are those that compile without spills, within shared memory, with the largest tiles.
`D` is the wider of both head widths, rounded up to a power of 2. What needs more registers has rows of its own: some
kinds; `clamp`; `bias`, whose tiles of scores come through shared memory; 4-byte types, which use no tensor cores.
"""

from collections.abc import Iterator, Sequence
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

# Rows of single kinds and flags, which come first: of a kind with a flag, then of a flag, then of a kind. Flags were
# compiled for sm_90 only.
OWN_ROWS: dict[tuple[int, str, int, str], Launch] = {
    (90, "forward", 32, "bias"): Launch(128, 64, 8, 3),
    (90, "forward", 64, "bias"): Launch(128, 64, 8, 3),
    (90, "forward", 128, "bias"): Launch(128, 64, 8, 2),
    (90, "forward", 256, "bias"): Launch(128, 32, 8, 2),
    (90, "d_queries", 128, "d_bias"): Launch(128, 32, 8, 2),
    (90, "d_queries", 256, "d_bias"): Launch(64, 16, 4, 2),
    (90, "d_queries", 256, "clamp"): Launch(128, 16, 8, 2),
    (90, "d_keys", 128, "softmax alibi"): Launch(32, 64, 8, 2),
    (90, "d_keys", 64, "bias"): Launch(32, 128, 8, 2),
    (90, "d_keys", 128, "bias"): Launch(32, 64, 8, 2),
    # 37 % fewer instructions a score: all 8 warps have scores of their own. Softmax would spill.
    (90, "d_keys", 128, "consmax"): Launch(32, 128, 8, 2),
    # The logarithm of softplus needs registers.
    (90, "forward", 128, "softplus"): Launch(128, 64, 8, 2),
    (90, "forward", 256, "softplus"): Launch(128, 32, 8, 2),
    (90, "d_keys", 128, "softplus"): Launch(32, 64, 8, 2),
}

# (op, D) -> launch of 4-byte types, on any architecture. Backward and decode of width 256 spill, at any size.
WIDE_ROWS: dict[tuple[str, int], Launch] = {
    ("forward", 32): Launch(64, 64, 8, 1),
    ("forward", 64): Launch(32, 32, 8, 1),
    ("forward", 128): Launch(16, 32, 8, 1),
    ("forward", 256): Launch(32, 32, 8, 1),
    ("d_queries", 32): Launch(32, 32, 8, 1),
    ("d_queries", 64): Launch(16, 32, 8, 1),
    ("d_queries", 128): Launch(16, 16, 8, 1),
    ("d_queries", 256): Launch(16, 16, 8, 1),
    ("d_keys", 32): Launch(32, 32, 8, 1),
    ("d_keys", 64): Launch(16, 32, 8, 1),
    ("d_keys", 128): Launch(16, 16, 8, 1),
    ("d_keys", 256): Launch(16, 16, 8, 1),
    ("decode", 32): Launch(16, 64, 8, 1),
    ("decode", 64): Launch(16, 64, 8, 1),
    ("decode", 128): Launch(16, 16, 8, 1),
    ("decode", 256): Launch(16, 16, 8, 1),
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


def table_row(architecture: int, op: str, D: int, kind: str, flags: Sequence[str] = (), itemsize: int = 2) -> Launch:
    if itemsize > 2:
        return WIDE_ROWS[op, D]
    names = [f"{kind} {flag}" for flag in flags] + [*flags, kind]
    own = (OWN_ROWS[architecture, op, D, name] for name in names if (architecture, op, D, name) in OWN_ROWS)
    return next(own, ROWS[architecture, op, D])


def launch(capability: int, op: str, D: int, kind: str, itemsize: int, flags: Sequence[str] = ()) -> Launch:
    """The row for an architecture, e.g. 90, and flags, e.g. `bias`."""
    if op in _forced:
        return _forced[op]
    return table_row(90 if capability == 90 else 80, op, max(D, 32), kind, flags, itemsize)
