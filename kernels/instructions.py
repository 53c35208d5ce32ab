"""Instructions that the kernels issue, from shapes, types and launch rows alone: the parts that all families share.

An instruction of a warp takes a slot of a scheduler, whatever it does. What the algorithm asks of a thread is derived:
arithmetic, where a product that something is added to is one instruction, accesses of 16 bytes, steps of sums over
threads, changes of type. What the compiler adds has a named constant, fitted to a few of the points that
`kernels/golden` keeps for sm_90 and Triton 3.7.1; the others check it. `norms_instructions` and `losses_instructions`
are made of these parts; attention is in `roofline`. Counts go by the names of `gate.COUNTED`; "all" is every
instruction, named or not. Not covered: rotary, mlp products and integers, of which `*_work` has operations and bytes.

An instruction whose predicate is false takes a slot too; what a jump skips does not, but is counted.
"""

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

SIZES = {"bf16": 2, "fp16": 2, "fp32": 4}
NAMES = {2: "bf16", 4: "fp32"}  # types by size, for shapes that know no more
WARP = 32
VECTOR = 16  # bytes of the widest access of a thread
# Fitted to norms of bf16 and fp32 rows of 64, 512 and 4096.
PROGRAM = 46  # arguments, the place of a program and of a thread
ACCESS = 1  # beside each access of 16 bytes: its address, or its cache policy
ROW = 5.3  # a row of a thread in a tensor: its start in 64 bits, and its mask
MEETING = 24  # barriers and addresses of a sum for which warps meet in shared memory
# Held out of what is issued: what fills a program to lines of 128 bytes, and the jump to itself that ends it.
PADDING = 12

Counts = dict[str, float]


def total(*parts: Mapping[str, float], times: float = 1) -> Counts:
    """The sum name by name."""
    found: Counter[str] = Counter()
    for part in parts:
        found.update(part)  # type: ignore[arg-type]
    return {name: times * count for name, count in found.items()}


def plain(instructions: float) -> Counts:
    return {"all": instructions}


def widened(kind: str, numbers: float) -> float:
    """To make fp32 of them: of a pair of bf16 one is shifted, the other moved and shifted."""
    return numbers * {"bf16": 1.5, "fp16": 1.0, "fp32": 0.0}[kind]


def narrowed(kind: str, numbers: float) -> float:
    """From fp32, two an instruction."""
    return numbers / 2 if SIZES[kind] == 2 else 0.0


def fills(kind: str, numbers: float) -> float:
    """Zeros for what a mask leaves out, 8 bytes at a time."""
    return numbers * SIZES[kind] / 8


def vectors(kind: str, numbers: float) -> int:
    return math.ceil(numbers * SIZES[kind] / VECTOR)


def read(kind: str, numbers: int, masked: bool = True) -> Counts:
    """Numbers of a thread, as fp32."""
    loads, zeros = vectors(kind, numbers), masked * fills(kind, numbers)
    wide = loads if numbers * SIZES[kind] >= VECTOR else 0
    return {"LDG": loads, "LDG128": wide, "all": loads * (1 + ACCESS) + zeros + widened(kind, numbers)}


def written(kind: str, numbers: int) -> Counts:
    stores = vectors(kind, numbers)
    wide = stores if numbers * SIZES[kind] >= VECTOR else 0
    return {"STG": stores, "STG128": wide, "all": stores * (1 + ACCESS) + narrowed(kind, numbers)}


@dataclass(frozen=True)
class Threads:
    """A tile of BM rows and BN columns shared out: `vector` neighbours a thread, lanes and warps along rows first."""

    BM: int
    BN: int
    num_warps: int
    vector: int

    @property
    def lanes(self) -> int:
        """Of a warp, along a row."""
        return min(WARP, max(1, self.BN // self.vector))

    @property
    def warps(self) -> int:
        """Along a row."""
        return min(self.num_warps, max(1, self.BN // (self.vector * self.lanes)))

    @property
    def columns(self) -> int:
        """Of a thread."""
        return max(self.vector, self.BN // (self.lanes * self.warps))

    @property
    def rows(self) -> int:
        """Of a thread."""
        return max(1, self.BM // (WARP // self.lanes * (self.num_warps // self.warps)))

    @property
    def numbers(self) -> int:
        return self.rows * self.columns

    def row_sum(self) -> Counts:
        """One number a row from one a row and thread, for all threads of the row."""
        shuffles = self.rows * steps(self.lanes) + steps(self.warps)
        shared = MEETING + 2 * (self.rows + 1) if self.warps > 1 else 0
        return {"SHFL": shuffles, "all": 2 * shuffles + shared}

    def column_sum(self) -> Counts:
        """One number a column from all of a tile; the sum over the rows of a thread is in it."""
        return column_sum(self.BN, self.num_warps, self.columns, WARP // self.lanes, self.num_warps // self.warps,
                          self.numbers)  # fmt: skip


def column_sum(BN: int, num_warps: int, columns: int, lanes: int, warps: int, numbers: int) -> Counts:
    """Of threads that hold `numbers` in so many columns, lanes and warps being those that share a column."""
    held = math.ceil(BN * warps / (WARP * num_warps))  # of a thread, where warps meet
    shuffles = columns * steps(lanes) + held * steps(warps)
    shared = MEETING + 2 * (columns + held) if warps > 1 else 0
    return {"SHFL": shuffles, "all": numbers - columns + 2 * shuffles + shared}


def steps(threads: int) -> int:
    """Of a sum over a power of 2 of them."""
    return threads.bit_length() - 1
