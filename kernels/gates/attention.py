"""Points of the attention kernels: every row of the launch table with every kind, type and flag that it serves."""

import itertools
import re
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

from .. import attention_backward, attention_decode, attention_forward, attention_tiles
from ..attention_reference import KINDS
from ..gate import Family, Figures, Point, common_rules, fma_loop, products_loop
from ..launch_table import OPS, OWN_ROWS, ROWS, WIDE_ROWS, Launch, table_row

KERNELS: dict[str, Any] = {
    "forward": attention_forward.forward, "d_queries": attention_backward.d_queries,
    "d_keys": attention_backward.d_keys, "decode": attention_decode.decode,
}  # fmt: skip
BUDGETS = {  # instructions of one pass of the hot loop, by architecture, op, kind, width and flag
    (90, "forward", "softmax", 128, ""): 580, (90, "forward", "consmax", 128, ""): 300,
    (90, "d_queries", "consmax", 128, ""): 340,
    # Those of consmax are missed by 4 and 3 with a clamp, which takes half an instruction a score forward (minima of
    # pairs), and three backward (compare, select, and the sum that beta's gradient needs).
    (90, "forward", "consmax", 128, "clamp"): 304, (90, "d_queries", "consmax", 128, "clamp"): 343,
}  # fmt: skip
# Bytes a thread may spill where no tile does without; products of 4-byte types hold whole rows of 256 in registers.
SPILLS = {
    ("d_queries", 256, "fp32", ""): 512, ("d_keys", 256, "fp32", ""): 1024, ("decode", 256, "fp32", ""): 256,
    ("d_keys", 256, "bf16", "bias"): 16, ("d_keys", 256, "bf16", "clamp"): 8, ("d_keys", 256, "bf16", "window"): 8,
}  # fmt: skip
NARROW = ("q_ptr", "k_ptr", "v_ptr", "o_ptr", "do_ptr", "dq_ptr", "dk_ptr", "dv_ptr")
WHOLE = ("H", "G", "T", "S", "window", "split")
FLAGS: dict[str, dict[str, bool]] = {
    "": {}, "window": {"WINDOW": True}, "softcap": {"CAP": True}, "bias": {"BIAS": True}, "alibi": {"ALIBI": True},
    "d_bias": {"BIAS": True, "D_BIAS": True}, "full": {"CAUSAL": False}, "lobo": {"HEAD": True},
    "clamp": {"CLAMP": True},
}  # fmt: skip
OPTIONAL = {"bias_ptr": "BIAS", "slope_ptr": "ALIBI", "head_ptr": "HEAD", "top_ptr": "CLAMP", "lengths_ptr": "LENGTHS"}
NAMED = ("HGMMA", "HMMA", "UTMALDG", "FFMA", "FMUL", "FADD", "SHFL", "FSEL", "LDL", "STL", "MUFU")
COUNTED = {name: name for name in NAMED} | {"FMNMX": "FMNMX3?", "EX2": r"MUFU\.EX2"}


@dataclass(frozen=True)
class Case:
    arch: int
    op: str
    kind: str
    D: int
    launch: Launch
    dtype: str = "bf16"
    flag: str = ""  # one of FLAGS

    @property
    def name(self) -> str:
        return f"sm_{self.arch} {self.op} {self.kind} D{self.D} {self.dtype} {self.flag}".rstrip()


def cases() -> list[Case]:
    """Every row of the launch table with every kind it serves; then the other types, and the flags, of the two kinds
    with exponentials."""
    found = [Case(arch, op, kind, D, table_row(arch, op, D, kind)) for arch, op, D in ROWS for kind in KINDS]
    for op, kind, D in itertools.product(OPS, ("softmax", "consmax"), (32, 64, 128, 256)):
        wide, middle = WIDE_ROWS[op, D], D in (64, 128)
        found += [Case(arch, op, kind, D, wide, "fp32") for arch in (90, 80) if arch == 90 or middle]
        found += [Case(90, op, kind, D, table_row(90, op, D, kind), "fp16")] * middle
        for flag in FLAGS:
            own = (90, op, D, flag) in OWN_ROWS or (op, D, "bf16", flag) in SPILLS
            if flag and has(op, kind, flag) and (middle or own):
                found.append(Case(90, op, kind, D, table_row(90, op, D, kind, [flag]), flag=flag))
    return found


def has(op: str, kind: str, flag: str) -> bool:
    """Whether a flag makes a difference."""
    belongs = {"clamp": kind == "consmax", "lobo": (op, kind) == ("forward", "softmax"), "d_bias": op == "d_queries"}
    return belongs.get(flag, True)


def point_of(case: Case) -> Point:
    row, kind = case.launch, case.kind
    flags = {
        "D": case.D, "E": case.D, "BD": case.D, "BE": case.D, "BM": row.BM, "BN": row.BN, "KIND": kind, "POWER": 2,
        "CAUSAL": True, "WINDOW": False, "CAP": False, "BIAS": False, "D_BIAS": False, "ALIBI": False,
        "HEAD": kind == "consmax", "CLAMP": False, "BY_KEYS": False, "LOG_KEYS": False,
        "LENGTHS": False,
        "EXACT": "ieee" if case.dtype == "fp32" else "tf32", "PAIRS": case.arch >= 90 and case.dtype != "fp32",
    } | FLAGS[case.flag]  # fmt: skip
    kernel = KERNELS[case.op]
    absent = {name for name, flag in OPTIONAL.items() if not flags[flag]}
    types, constants, multiples = {}, {}, set()
    for name in kernel.arg_names:
        if name in flags or name in absent:
            constants[name] = flags.get(name)
        elif name.endswith("_ptr"):
            types[name] = "*" + (case.dtype if name in NARROW else "fp32")
            multiples.add(name)
        elif name in WHOLE:
            types[name] = "i32"
        elif re.fullmatch(r"[a-z_]+_[bhts]", name):
            types[name] = "i32"
            multiples.add(name)
        else:
            types[name] = "fp32"
    return Point(
        case.name, kernel, case.arch, types, constants, frozenset(multiples), asdict(row), partial(rules, case),
        products_loop if case.dtype != "fp32" else fma_loop, COUNTED,
    )  # fmt: skip


def rules(case: Case, figures: Figures) -> dict[str, bool]:
    loop, exponential, tensor_cores = figures.loop, case.kind in ("softmax", "consmax"), case.dtype != "fp32"
    # 16 rows of queries are too few for the products of a warp group
    warp_groups = case.arch >= 90 and case.op != "decode" and tensor_cores
    chooses = case.flag == "softcap" or (case.flag == "clamp" and case.op.startswith("d_"))
    spills = SPILLS.get((case.op, case.D, case.dtype, case.flag), 0)
    held = common_rules(case.arch, asdict(case.launch), figures, spills) | {
        "tile loads through descriptors": case.arch < 90 or loop["UTMALDG"] >= 2,
        "products of warp groups": not warp_groups or (loop["HGMMA"] > 0 and loop["HMMA"] == 0),
        # the other kinds select by the sign of the score, a soft cap divides, a clamp stops gradients
        "no select": not exponential or case.op == "decode" or not tensor_cores or chooses or loop["FSEL"] == 0,
    }
    scores = case.launch.BM * case.launch.BN // (32 * figures.num_warps)  # of a thread
    if case.kind == "consmax" and tensor_cores and case.flag != "softcap":
        # Warps without rows of their own (16 a warp) may repeat the scores of another.
        rows = case.launch.BN if case.op == "d_keys" else case.launch.BM
        repeated = scores * max(1, 16 * figures.num_warps // rows)
        once = loop["EX2"] % scores == 0 and scores <= loop["EX2"] <= repeated
        held["one exponential a score"] = once and loop["EX2"] == loop["MUFU"]
        # with a flag, sums are also those of bias, slopes and free scores
        statistic = loop["FMNMX"] + (loop["FADD"] if not case.flag else 0) + max(loop["SHFL"] - 2, 0)
        held["no row statistic"] = case.op == "decode" or statistic == 0
    budget = BUDGETS.get((case.arch, case.op, case.kind, case.D, case.flag)) if tensor_cores else None
    held[f"at most {budget} instructions"] = budget is None or loop["all"] <= budget
    return held


assert set(OPS) == set(KERNELS)
FAMILY = Family(
    "attention",
    (attention_tiles, attention_forward, attention_backward, attention_decode),
    lambda: [point_of(case) for case in cases()],
)
