"""Points of the MLP kernels: every row of the launch table with every activation it serves; of the other types, and of
what keeps or writes less, one activation a form. What a loop is counted to hold is one pass over BK of K and, as the
loops are flattened into one, the end of a tile as well."""

import itertools
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

from .. import mlp_products
from ..gate import COUNTED, SHARED_BYTES, Family, Figures, Lines, Point, common_rules, products_loop, whole
from ..mlp import GROUP
from ..mlp_rows import ROWS, SIGN, SLOPES, SMOOTH, WIDE, Launch, form

ACTIVATIONS = {"sign": SIGN, "smooth": SMOOTH, "gated": ("relu", *SMOOTH)}
DIRECTIONS = ("forward", "backward")
REGISTERS = 65_536  # of a multiprocessor
SMALLEST_SHARED_BYTES = 101_376  # of a block, sm_86 to sm_120 except sm_87, sm_90, sm_100
WORDS = ("M", "N", "K", "x_m", "w_m", "w_half", "out_m", "kept_m", "kept_half")


@dataclass(frozen=True)
class Case:
    arch: int
    direction: str
    activation: str
    gated: bool
    size: str  # last part of the key of a row
    launch: Launch
    dtype: str = "bf16"
    flag: str = ""  # "last": nothing is kept; "again": nothing but what is kept is written; "plain": without bias

    @property
    def name(self) -> str:
        act = f"gated {self.activation}" if self.gated else self.activation
        return f"sm_{self.arch} {self.direction} {act} {self.size} {self.dtype} {self.flag}".rstrip()


def widest_loop(loops: Sequence[Lines], program: Lines) -> Lines:
    """Of products without tensor cores: the loop with most of them. The end of a tile may be a loop of its own."""
    return max(loops, key=lambda lines: sum(line.startswith("FFMA") for line in lines))


def cases() -> list[Case]:
    found = []
    for (arch, direction, kind, size), row in ROWS.items():
        gated = kind == "gated"
        one = ACTIVATIONS[kind][2:3] if kind == "sign" else ACTIVATIONS[kind][:1] if kind == "smooth" else ("gelu",)
        every = ACTIVATIONS[kind] if size in ("short", "long") else (*one, *["silu"] * (arch == 80 and kind != "sign"))
        found += [Case(arch, direction, act, gated, size, row) for act in every]
        if size in ("short", "long"):
            found += [Case(arch, direction, act, gated, size, row, "fp16") for act in one]
            flags = ("last", "again", "plain") if direction == "forward" and kind != "sign" and size == "short" else ()
            found += [Case(arch, direction, one[0], gated, size, row, flag=flag) for flag in flags]
            if gated and size == "short":  # as models have it
                found.append(Case(arch, direction, "silu", gated, size, row, flag="plain"))
        elif size == "any":
            found += [Case(a, direction, one[0], gated, size, WIDE, "fp32") for a in (90, 80)]
    return found


def point_of(case: Case) -> Point:
    row, backward, own = case.launch, case.direction == "backward", form(case.activation, case.gated) == "sign"
    keep, bias = not backward and not own and case.flag != "last", case.flag != "plain"
    out = (not own if backward else True) and case.flag != "again"
    constants: dict[str, Any] = {
        "BM": row.BM, "BN": row.BN, "BK": row.BK, "GROUP": GROUP, "PARTS": row.PARTS, "ACT": case.activation,
        "GATED": case.gated, "BACKWARD": backward, "BIAS": bias, "KEEP": keep, "OUT": out,
        "EXACT": "ieee" if case.dtype == "fp32" else "tf32",
    }  # fmt: skip
    present = {
        "x_ptr": True, "w_ptr": True, "bias_ptr": bias and not backward, "out_ptr": out, "kept_ptr": keep or backward,
        "d_kept_ptr": backward, "sums_ptr": bias and backward,
    }  # fmt: skip
    types = {name: "*fp32" if name == "sums_ptr" else f"*{case.dtype}" for name, given in present.items() if given}
    constants |= {name: None for name, given in present.items() if not given}
    types |= dict.fromkeys(WORDS, "i32")
    return Point(
        case.name, mlp_products.product, case.arch, types, constants, frozenset(types) - {"M"}, asdict(row),
        partial(rules, case), widest_loop if case.dtype == "fp32" else products_loop, COUNTED | {"LDGSTS": "LDGSTS"},
    )  # fmt: skip


def rules(case: Case, figures: Figures) -> dict[str, bool]:
    loop, row, narrow, backward = figures.loop, case.launch, case.dtype != "fp32", case.direction == "backward"
    both = case.gated and not backward  # two products
    shared = SHARED_BYTES[case.arch] if case.arch >= 90 else SMALLEST_SHARED_BYTES
    registers = -(-figures.registers // 8) * 8 * 32 * row.num_warps
    held = common_rules(case.arch, asdict(row), figures) | {
        "shared memory": figures.shared_bytes <= shared,
        "programs of a multiprocessor": registers * row.programs <= REGISTERS
        and (figures.shared_bytes + 1024) * row.programs <= SHARED_BYTES[case.arch] + 1024,
    }
    if narrow:
        # smooth ones take two special functions an element, relu2 backward a root; a tile is found by two divisions
        elements = row.BM * row.BN // (32 * row.num_warps)  # of a thread
        smooth = case.activation in SMOOTH and case.flag != "again"
        held["one exponential an element"] = elements * smooth <= loop["EX2"] <= 1.1 * elements * smooth
        held["no division"] = loop["MUFU"] <= elements * (2.2 if smooth else 1) + 2
    if case.arch >= 90:
        held["tile loads through descriptors"] = loop["UTMALDG"] >= (3 if both else 2) and loop["LDGSTS"] == 0
    if case.arch >= 90 and narrow:
        groups = row.num_warps // 4
        wanted = row.BM // 64 // groups * (row.BK // 16) * (2 if both else 1)
        held["products of warp groups"] = loop["HGMMA"] == wanted and loop["HMMA"] == 0
    if case.arch < 90:
        held["loads past registers"] = loop["LDGSTS"] > 0
        sums = row.PARTS * (2 if case.gated else 1) if backward else 0
        held["stores of 16 bytes"] = loop["STG"] - loop["STG128"] <= sums
        held["tensor cores"] = not narrow or loop["HMMA"] > 0
    return held


def slope_points() -> list[Point]:
    found = []
    for arch, act, dtype in [(90, "relu2", "bf16"), *itertools.product((90, 80), ("gelu",), ("bf16", "fp32"))]:
        types = {"d_ptr": f"*{dtype}", "kept_ptr": f"*{dtype}", "dz_ptr": f"*{dtype}", "sums_ptr": "*fp32"}
        types |= dict.fromkeys(("M", "N", "d_m", "kept_m", "dz_m"), "i32")
        constants = {"BM": SLOPES["BM"], "BN": SLOPES["BN"], "ACT": act, "FROM_OUTPUT": act in SIGN, "BIAS": True}
        found.append(Point(
            f"sm_{arch} slopes {act} {dtype}", mlp_products.slopes, arch, types, constants, frozenset(types) - {"M"},
            SLOPES, partial(slope_rules, arch), whole,
        ))  # fmt: skip
    return found


def slope_rules(arch: int, figures: Figures) -> dict[str, bool]:
    loop = figures.loop
    return common_rules(arch, SLOPES, figures) | {
        "loads of 16 bytes": loop["LDG"] == loop["LDG128"],
        "stores of 16 bytes": loop["STG"] - loop["STG128"] <= 1,  # that of the sums
    }


FAMILY = Family("mlp", (mlp_products,), lambda: [point_of(case) for case in cases()] + slope_points())
