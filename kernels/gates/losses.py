"""Points of the kernels of cross entropy: every row of the launch table, then other types, row starts and terms."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

from .. import losses_rows
from ..cross_entropy import ROWS, Launch, tile
from ..gate import Family, Figures, Lines, Point, common_rules, counts
from ..linear_cross_entropy import BLOCK, SCALE_WARPS

KERNELS: dict[str, Any] = {
    "forward": losses_rows.forward, "backward": losses_rows.backward, "both": losses_rows.both,
    "scale": losses_rows.scale,
}  # fmt: skip
COUNTED = {
    "EX2": r"MUFU\.EX2", "MUFU": "MUFU", "LDG": "LDG", "LDG128": r"LDG\.(.*\.)?128", "STG": "STG",
    "STG128": r"STG\.(.*\.)?128", "LDS": "LDSM?", "STS": "STSM?", "SHFL": "SHFL", "BAR": "BAR", "LDL": "LDL",
    "STL": "STL", "ISETP": "ISETP",
}  # fmt: skip
PASSES = {"forward": (1, 0), "backward": (0, 1), "both": (1, 1)}  # of the statistics, of the gradient
# Instructions an element, by bytes of it: of the statistics, with a sum of the logits, of the gradient. A
# multiprocessor of an H200 has 12.9 in the time that memory needs for 2 bytes, and 25.8 for 4.
BUDGETS = {2: (6.5, 7.5, 9.25), 4: (6.5, 7.5, 9.25)}
# Bytes that a multiprocessor must have asked for to keep memory busy: 4.8 TB/s over 132 of them, for 0.8 us (estimate).
ON_THEIR_WAY = 29_000
TYPES = {"bf16": 2, "fp16": 2, "fp32": 4}


@dataclass(frozen=True)
class Case:
    arch: int
    op: str
    dtype: str
    V: int
    flag: str = ""  # "odd": rows start anywhere; "padded": V is odd, rows are not; "shaped": all terms

    @property
    def name(self) -> str:
        return f"sm_{self.arch} {self.op} {self.dtype} V{self.V} {self.flag}".rstrip()

    @property
    def launch(self) -> Launch:
        return tile(self.arch, TYPES[self.dtype], self.V)[0]


def cases() -> list[Case]:
    found = []
    for arch, itemsize, widest in ROWS:
        V = min(widest, 50304)
        found += [Case(arch, op, "fp32" if itemsize == 4 else "bf16", V) for op in PASSES]
    for op in PASSES:
        found += [Case(90, op, "fp16", 50304), Case(80, op, "bf16", 50257, "odd")]
        found += [Case(90, op, dtype, 50257, "odd") for dtype in ("bf16", "fp32")]
    found += [Case(90, "both", dtype, 50257, "padded") for dtype in ("bf16", "fp32")]
    return found + [Case(90, op, dtype, 50304, "shaped") for op in ("forward", "both") for dtype in ("bf16", "fp32")]


def hot(op: str, loops: Sequence[Lines], program: Lines) -> Lines:
    """The loops over whole tiles, one after the other: of those that load and store alike, the one with least masks."""
    found: dict[bool, list[tuple[float, int, Lines]]] = {False: [], True: []}
    for i, lines in enumerate(loops):
        c = counts(lines, COUNTED)
        if c["EX2"] and c["LDG128"]:
            found[c["STG"] > 0].append((c["ISETP"] / c["LDG128"], i, lines))
    wanted = [stores for stores, passes in zip((False, True), PASSES[op], strict=True) if passes]
    assert all(found[stores] for stores in wanted), "no loop over whole tiles"
    return [line for stores in wanted for line in min(found[stores])[2]]


def point_of(case: Case) -> Point:
    itemsize, odd = TYPES[case.dtype], case.V % 16 != 0
    row, sizes = tile(case.arch, itemsize, case.V)
    shaped = case.flag == "shaped"
    flags = {**sizes, "ALIGNED": case.flag != "odd", "SMOOTH": shaped, "FOCAL": shaped}
    kernel, types = KERNELS[case.op], {}
    for name in kernel.arg_names:
        if name in ("x_ptr", "dx_ptr"):
            types[name] = "*" + case.dtype
        elif name == "target_ptr":
            types[name] = "*i64"
        elif name.endswith("_ptr"):
            types[name] = "*fp32"
        elif name not in flags:
            types[name] = "fp32" if name in ("smoothing", "gamma", "z") else "i32"
    multiples = {name for name in types if name.endswith("_ptr")}
    multiples |= {"stride"} if case.flag != "odd" else set()
    multiples |= {"V"} if not odd else set()
    return Point(
        case.name, kernel, case.arch, types, {n: flags[n] for n in kernel.arg_names if n in flags},
        frozenset(multiples), asdict(row) | {"num_stages": 1}, partial(rules, case), partial(hot, case.op), COUNTED,
    )  # fmt: skip


def bytes_on_their_way(figures: Figures, launch: Launch) -> int:
    """That the resident threads of a multiprocessor ask for in one pass of a loop."""
    registers = -(-figures.registers // 8) * 8 * 32 * launch.num_warps
    blocks = min(65536 // registers, 64 // launch.num_warps, 32)
    return blocks * launch.num_warps * 32 * launch.REPEAT * 16


def rules(case: Case, figures: Figures) -> dict[str, bool]:
    loop, launch, vector = figures.loop, case.launch, 16 // TYPES[case.dtype]
    statistics, gradient = PASSES[case.op]
    elements = launch.REPEAT * vector
    plain, summed, written = BUDGETS[TYPES[case.dtype]]
    budget = statistics * (summed if case.flag == "shaped" else plain) + gradient * written
    return common_rules(case.arch, {"num_warps": launch.num_warps}, figures) | {
        "16-byte loads": loop["LDG"] == loop["LDG128"] == (statistics + gradient) * launch.REPEAT,
        "16-byte stores": loop["STG"] == loop["STG128"] == gradient * launch.REPEAT,
        # the statistics have one more a thread, for the sum so far
        "one exponential an element": loop["EX2"] == loop["MUFU"] == (statistics + gradient) * elements + statistics,
        "threads do not meet": loop["SHFL"] + loop["LDS"] + loop["STS"] + loop["BAR"] == 0,
        "bytes on their way": bytes_on_their_way(figures, launch) >= ON_THEIR_WAY,
        f"at most {budget} instructions an element": loop["all"] <= budget * elements,
    }


def scale_point(arch: int, dtype: str) -> Point:
    types = {"x_ptr": "*" + dtype, "factor_ptr": "*fp32", "size": "i32"}
    launch = {"num_warps": SCALE_WARPS, "num_stages": 1}

    def held(figures: Figures) -> dict[str, bool]:
        loop, moves = figures.loop, BLOCK * TYPES[dtype] // (32 * SCALE_WARPS * 16)
        return common_rules(arch, launch, figures) | {
            "16-byte loads": loop["LDG128"] == moves == loop["LDG"] - 1,
            "16-byte stores": loop["STG"] == loop["STG128"] == moves,
        }

    return Point(
        f"sm_{arch} scale {dtype}", KERNELS["scale"], arch, types, {"BLOCK": BLOCK}, frozenset(types), launch, held,
        lambda loops, program: program, COUNTED,
    )  # fmt: skip


FAMILY = Family(
    "losses",
    (losses_rows,),
    lambda: [point_of(case) for case in cases()] + [scale_point(arch, dtype) for arch in (90, 80) for dtype in TYPES],
)
