"""Points of the norms: every width on both architectures in 2- and 4-byte types, with all that a norm can have.

Those are the sum, weight and bias of `add_layer_norm`; `rms_norm` stands beside some of them, once `bare` of a weight.
`heads` are rows behind three strides, as a query-key norm has them; `long` are rows that are not held in registers.
Type `amp` is that of autocast: a stream of fp32, branches and results of bf16. `last` is a sum that nobody reads again,
so that it gets no gradient of its own. All norms of GPT-2's width under autocast are there as models launch them.
"""

from collections.abc import Callable
from typing import Any

from .. import norms_kernels as kernels
from ..gate import COUNTED as COMMON
from ..gate import Family, Figures, Point, common_rules, whole
from ..norms import LONGEST, Launch, table_row

WIDTHS = (64, 128, 256, 512, 1024, 2048, 4096, 8192, LONGEST)
LONG = 50304
REGISTERS = 65_536  # of a multiprocessor
COUNTED = COMMON | {
    "LDG64": r"LDG\.(?:.*\.)?64", "STG64": r"STG\.(?:.*\.)?64", "LDGSTS": "LDGSTS",
    "LDGSTS128": r"LDGSTS\.(?:.*\.)?128",
}  # fmt: skip
STREAM, BRANCH = ("x_ptr", "sum_ptr", "ds_ptr", "dx_ptr"), ("y_ptr", "out_ptr", "dy_ptr", "dz_ptr")


def points() -> list[Point]:
    found = []
    for op in ("forward", "backward"):
        found += [_point(90, op, LONGEST, "bf16", "rms")]
        found += [_point(90, op, N, "bf16", "rms", heads=True) for N in (64, 128)]
        found += [_point(90, op, N, "bf16", "add_layer") for N in (16, *WIDTHS)]
        found += [_point(90, op, N, "amp", "add_layer") for N in (768, 1024, 4096, 8192, LONGEST)]
        found += [_point(80, op, N, "amp", "add_layer") for N in (1024, LONGEST)]
        found += [_point(arch, op, N, "fp32", "add_layer") for arch in (90, 80) for N in WIDTHS]
        found += [_point(80, op, N, "bf16", "add_layer") for N in WIDTHS]
        found += [_point(90, op, 768, "amp", kind) for kind in ("layer", "rms", "add_rms")]
    for op in ("forward", "backward", "parameters"):
        found += [_point(90, f"long_{op}", LONG, "bf16", kind) for kind in ("add_layer", "rms")]
    found += [_point(90, "backward", 768, "amp", kind, last=True) for kind in ("add_layer", "add_rms")]
    bare = _point(90, "backward", 1024, "bf16", "rms", parameters=False)
    return [*found, bare, *(_total(arch, both) for arch in (90, 80) for both in (True, False))]


def _point(
    arch: int, op: str, N: int, dtype: str, kind: str, heads: bool = False, parameters: bool = True, last: bool = False
) -> Point:  # fmt: skip
    sizes = {"bf16": (2, 2), "amp": (4, 2), "fp32": (4, 4)}[dtype]
    centred, added = "layer" in kind, "add" in kind
    row, kernel = table_row(arch, op.removeprefix("long_"), N, *sizes), getattr(kernels, op)
    there = {"y_ptr": added, "sum_ptr": added, "ds_ptr": added and not last, "dz_ptr": added and dtype == "amp",
             "b_ptr": centred, "mean_ptr": centred, "w_ptr": parameters}  # fmt: skip
    constants: dict[str, Any] = {"N": N, "BM": row.BM, "BN": row.BN, "CHUNKS": -(-N // row.BN), "CENTRED": centred,
                 "STAGES": row.num_stages, "W_GRAD": parameters, "B_GRAD": centred}  # fmt: skip
    constants |= dict.fromkeys(name for name, present in there.items() if not present)
    # What the launcher finds: rows that follow each other have one stride, and their statistics are adjacent.
    constants |= {"r_1": 1} if heads else {"r_0": 1, "n1": 1, "n2": 1}
    constants = {name: value for name, value in constants.items() if name in kernel.arg_names}
    types = {name: _type(name, dtype) for name in kernel.arg_names if name not in constants}
    multiples = frozenset(name for name in types if name.endswith("_ptr") or name[1:2] == "_")
    name = f"sm_{arch} {op} {kind} N{N} {dtype}{' heads' * heads}{' bare' * (not parameters)}{' last' * last}"
    rules = _rules(arch, op, row, sizes, centred)
    return Point(name, kernel, arch, types, constants, multiples, row.options(), rules, whole, COUNTED)


def _type(name: str, dtype: str) -> str:
    if name in STREAM + BRANCH:
        return {"amp": "*fp32" if name in STREAM else "*bf16"}.get(dtype, f"*{dtype}")
    return "*fp32" if name.endswith("_ptr") else "fp32" if name == "eps" else "i32"


def _rules(
    arch: int, op: str, row: Launch, sizes: tuple[int, int], centred: bool
) -> Callable[[Figures], dict[str, bool]]:
    """All accesses are of 128 bits, but loads of statistics, one for each row that a thread has a part of, stores of
    statistics and of partial rows with less than 4 numbers a thread, and all of 16-bit numbers where a thread has 4
    beside as many of fp32. As many programs as are launched fit on a multiprocessor."""
    numbers = row.BM * row.BN // (32 * row.num_warps)  # of a thread
    rows = min(row.BM, max(1, numbers * min(sizes) // 16))
    loads, stores = (0, 1) if "forward" in op else (rows, int(row.BN < 4 * 32 * row.num_warps))
    halves = numbers * min(sizes) < 16
    copied = "LDG" if row.num_stages == 1 else "LDGSTS"  # to registers, or to shared memory ahead of time

    def narrow(loop: dict[str, int], name: str) -> int:
        return loop[name] - loop[name + "128"] - halves * loop.get(name + "64", 0)

    def rules(figures: Figures) -> dict[str, bool]:
        loop, statistics = figures.loop, 1 + centred
        threads = 32 * row.num_warps * row.programs
        return common_rules(arch, row.options(), figures) | {
            "wide loads": loop[copied + "128"] > 0 and narrow(loop, copied) <= statistics * loads * row.num_stages,
            "no other loads": loop["LDG"] == 0 or copied == "LDG",
            "wide stores": loop["STG128"] > 0 and narrow(loop, "STG") <= statistics * stores,
            "all programs at once": threads * (-(-figures.registers // 8) * 8) <= REGISTERS,
        }

    return rules


def _total(arch: int, both: bool) -> Point:
    row = table_row(arch, "total", 0, 4, 4)
    options = row.options() | {"BP": row.BM}
    del options["BM"]
    types = {"part_ptr": "*fp32", "first_ptr": "*fp32", "second_ptr": "*fp32", "P": "i32", "N": "i32"}
    constants: dict[str, Any] = {"BP": row.BM, "BN": row.BN}
    if not both:
        del types["second_ptr"]
        constants["second_ptr"] = None

    def rules(figures: Figures) -> dict[str, bool]:
        wide = figures.loop["LDG128"] > 0 and figures.loop["LDG"] == figures.loop["LDG128"]
        return common_rules(arch, options, figures) | {"wide loads": wide}

    name = f"sm_{arch} total of {'two' if both else 'one'}"
    multiples = frozenset(types) - {"P"}
    return Point(name, kernels.total, arch, types, constants, multiples, options, rules, whole)


FAMILY = Family("norms", (kernels,), points)
