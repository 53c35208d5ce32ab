"""Ahead-of-time compilation of the attention kernels, without a GPU: what every row of the launch table costs.

    python -m kernels.aot write [PATTERN ...]   # compile points whose name has a PATTERN (none: all), keep the figures
    python -m kernels.aot check [PATTERN ...]   # compile them, hold them against the budgets and what was kept

Beside the figures of all points stands a digest of the code that they are figures of, so that a test that compiles
nothing can tell whether they are those of this code.

A figure is what cuobjdump and nvdisasm of the Triton wheel say: registers, stack, shared memory, and how often each
instruction stands in the hot loop, the loop of tiles without masked keys. Signatures carry the facts that the
launcher's specialisation finds on real inputs: pointers and strides are multiples of 16. Times are not covered, nor is
whether ptxas compiled correctly: both need a GPU. Must not run with TRITON_INTERPRET set.
"""

import ast
import collections
import hashlib
import itertools
import json
import re
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from . import attention_backward, attention_decode, attention_forward, attention_tiles
from .attention_reference import KINDS
from .launch_table import OPS, OWN_ROWS, ROWS, WIDE_ROWS, Launch, table_row

SHARED_BYTES = {90: 232_448, 80: 166_912}  # of one block
GOLDEN = Path(__file__).parent / "golden" / f"triton-{triton.__version__}.json"
DIGEST = GOLDEN.with_suffix(".sha256")
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
COUNTED = ("HGMMA", "HMMA", "UTMALDG", "FFMA", "FMUL", "FADD", "FMNMX", "SHFL", "FSEL", "LDL", "STL")


@dataclass(frozen=True)
class Point:
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


@dataclass(frozen=True)
class Figures:
    registers: int
    stack_bytes: int  # of a thread; where registers are spilled to
    shared_bytes: int
    num_warps: int
    wide_addresses: bool  # 64-bit products in address arithmetic
    loop: dict[str, int]  # instructions of one pass of the hot loop, "all" their sum


def points() -> list[Point]:
    """Every row of the launch table with every kind it serves; then the other types, and the flags, of the two kinds
    with exponentials."""
    found = [Point(arch, op, kind, D, table_row(arch, op, D, kind)) for arch, op, D in ROWS for kind in KINDS]
    for op, kind, D in itertools.product(OPS, ("softmax", "consmax"), (32, 64, 128, 256)):
        wide, middle = WIDE_ROWS[op, D], D in (64, 128)
        found += [Point(arch, op, kind, D, wide, "fp32") for arch in (90, 80) if arch == 90 or middle]
        found += [Point(90, op, kind, D, table_row(90, op, D, kind), "fp16")] * middle
        for flag in FLAGS:
            own = (90, op, D, flag) in OWN_ROWS or (op, D, "bf16", flag) in SPILLS
            if flag and has(op, kind, flag) and (middle or own):
                found.append(Point(90, op, kind, D, table_row(90, op, D, kind, [flag]), flag=flag))
    return found


def has(op: str, kind: str, flag: str) -> bool:
    """Whether a flag makes a difference."""
    belongs = {"clamp": kind == "consmax", "lobo": (op, kind) == ("forward", "softmax"), "d_bias": op == "d_queries"}
    return belongs.get(flag, True)


def source(point: Point) -> ASTSource:
    row, kind = point.launch, point.kind
    flags = {
        "D": point.D, "E": point.D, "BD": point.D, "BE": point.D, "BM": row.BM, "BN": row.BN, "KIND": kind, "POWER": 2,
        "CAUSAL": True, "WINDOW": False, "CAP": False, "BIAS": False, "D_BIAS": False, "ALIBI": False,
        "HEAD": kind == "consmax", "CLAMP": False, "BY_KEYS": False, "LOG_KEYS": False,
        "LENGTHS": False,
        "EXACT": "ieee" if point.dtype == "fp32" else "tf32", "PAIRS": point.arch >= 90 and point.dtype != "fp32",
    } | FLAGS[point.flag]  # fmt: skip
    kernel = KERNELS[point.op]
    absent = {name for name, flag in OPTIONAL.items() if not flags[flag]}
    signature, constants, facts = {}, {}, {}
    for place, name in enumerate(kernel.arg_names):
        if name in flags or name in absent:
            signature[name], constants[name] = "constexpr", flags.get(name)
        elif name.endswith("_ptr"):
            signature[name] = "*" + (point.dtype if name in NARROW else "fp32")
            facts[(place,)] = [["tt.divisibility", 16]]
        elif name in WHOLE:
            signature[name] = "i32"
        elif re.fullmatch(r"[a-z_]+_[bhts]", name):
            signature[name] = "i32"
            facts[(place,)] = [["tt.divisibility", 16]]
        else:
            signature[name] = "fp32"
    return ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=facts)


def compile_point(point: Point) -> Figures:
    options = {"num_warps": point.launch.num_warps, "num_stages": point.launch.num_stages}
    binary = triton.compile(source(point), target=GPUTarget("cuda", point.arch, 32), options=options)
    report, sass = _disassembled(binary)
    return Figures(
        registers=_number(r"REG:(\d+)", report), stack_bytes=_number(r"STACK:(\d+)", report),
        shared_bytes=binary.metadata.shared, num_warps=binary.metadata.num_warps,
        wide_addresses="mul.wide" in binary.asm["ptx"] or "mad.wide" in binary.asm["ptx"]
        or "mul.lo.s64" in binary.asm["ptx"] or "mad.lo.s64" in binary.asm["ptx"],
        loop=hot_loop(sass, point.dtype != "fp32"),
    )  # fmt: skip


def _disassembled(binary) -> tuple[str, str]:
    tools = f"{Path(triton.__file__).parent}/backends/nvidia/bin"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as cubin:
        cubin.write(binary.asm["cubin"])
        cubin.flush()
        calls = [f"{tools}/cuobjdump", "-res-usage", cubin.name], [f"{tools}/nvdisasm", "-c", cubin.name]
        report, sass = (subprocess.run(c, capture_output=True, text=True, check=True).stdout for c in calls)
    return report, sass


def _number(pattern: str, text: str) -> int:
    found = re.search(pattern, text)
    assert found is not None, f"no {pattern!r} in what cuobjdump reports"
    return int(found[1])


def hot_loop(sass: str, tensor_cores: bool = True) -> dict[str, int]:
    """Instructions of the innermost loop of matrix products with the fewest selects and compares."""
    lines: list[str] = []
    labels: dict[str, int] = {}
    for line in sass.splitlines():
        if label := re.match(r"\s*(\.L_x_\d+):", line):
            labels[label[1]] = len(lines)
        elif instruction := re.match(r"^\s+/\*[0-9a-f]{4,}\*/\s+(.*?);", line):
            lines.append(re.sub(r"^@!?U?P\w+\s+", "", instruction[1].strip()))
    spans = []
    for end, line in enumerate(lines):
        jump = re.match(r"BRA\b.*?`\((\.L_x_\d+)\)", line)
        if jump and labels.get(jump[1], end + 1) <= end:
            spans.append((labels[jump[1]], end))
    loops: list[tuple[int, int, dict[str, int]]] = []
    for start, end in spans:
        inner = any(start <= a and b <= end and (a, b) != (start, end) for a, b in spans)
        names = [line.split()[0] for line in lines[start : end + 1]]
        counts = collections.Counter(name.split(".")[0] for name in names)
        products = counts["HGMMA"] + counts["HMMA"] if tensor_cores else counts["FFMA"] > 100
        if inner or not products:
            continue
        kept = {name: counts[name] for name in COUNTED}
        kept["FMNMX"] += counts["FMNMX3"]
        kept["EX2"] = sum(name.startswith("MUFU.EX2") for name in names)
        kept["MUFU"] = counts["MUFU"]
        kept["all"] = len(names)
        loops.append((counts["FSEL"] + counts["SEL"] + counts["ISETP"], len(loops), kept))
    assert loops, "no loop of matrix products"
    return min(loops)[2]


def broken(point: Point, figures: Figures) -> list[str]:
    """What a point must hold and does not."""
    loop, exponential, tensor_cores = figures.loop, point.kind in ("softmax", "consmax"), point.dtype != "fp32"
    spilled = SPILLS.get((point.op, point.D, point.dtype, point.flag), 0)
    # 16 rows of queries are too few for the products of a warp group
    warp_groups = point.arch >= 90 and point.op != "decode" and tensor_cores
    chooses = point.flag == "softcap" or (point.flag == "clamp" and point.op.startswith("d_"))
    rules = {
        "spills": figures.stack_bytes <= spilled and (loop["LDL"] + loop["STL"] == 0 or spilled > 0),
        "shared memory": figures.shared_bytes <= SHARED_BYTES[point.arch],
        "registers": figures.registers <= 255,
        "warps": figures.num_warps == point.launch.num_warps,
        "64-bit addresses": figures.wide_addresses,
        "tile loads through descriptors": point.arch < 90 or loop["UTMALDG"] >= 2,
        "products of warp groups": not warp_groups or (loop["HGMMA"] > 0 and loop["HMMA"] == 0),
        # the other kinds select by the sign of the score, a soft cap divides, a clamp stops gradients
        "no select": not exponential or point.op == "decode" or not tensor_cores or chooses or loop["FSEL"] == 0,
    }
    scores = point.launch.BM * point.launch.BN // (32 * figures.num_warps)  # of a thread
    if point.kind == "consmax" and tensor_cores and point.flag != "softcap":
        # Warps without rows of their own (16 a warp) may repeat the scores of another.
        rows = point.launch.BN if point.op == "d_keys" else point.launch.BM
        repeated = scores * max(1, 16 * figures.num_warps // rows)
        once = loop["EX2"] % scores == 0 and scores <= loop["EX2"] <= repeated
        rules["one exponential a score"] = once and loop["EX2"] == loop["MUFU"]
        # with a flag, sums are also those of bias, slopes and free scores
        statistic = loop["FMNMX"] + (loop["FADD"] if not point.flag else 0) + max(loop["SHFL"] - 2, 0)
        rules["no row statistic"] = point.op == "decode" or statistic == 0
    budget = BUDGETS.get((point.arch, point.op, point.kind, point.D, point.flag)) if tensor_cores else None
    rules[f"at most {budget} instructions"] = budget is None or loop["all"] <= budget
    return [rule for rule, holds in rules.items() if not holds]


def changed(point: Point, figures: Figures, golden: dict[str, dict]) -> list[str]:
    """Figures more than 5 % off what was written for this Triton; nothing for a version without a file."""
    if not golden:
        return []
    if point.name not in golden:
        return ["not in the golden file"]
    then, now = golden[point.name], asdict(point.launch) | asdict(figures)
    pairs = {name: (then[name], now[name]) for name in now if name != "loop"}
    pairs |= {name: (then["loop"][name], now["loop"][name]) for name in now["loop"]}
    return [f"{name} was {a}, is {b}" for name, (a, b) in pairs.items() if abs(a - b) > 0.05 * a]


def read_golden() -> dict[str, dict]:
    return json.loads(GOLDEN.read_text()) if GOLDEN.exists() else {}


def code_digest() -> str:
    """SHA-256 of what the kernels are compiled from, without comments, docstrings and layout."""
    text = ""
    for module in (attention_tiles, attention_forward, attention_backward, attention_decode):
        tree = ast.parse(Path(str(module.__file__)).read_text())
        for node in ast.walk(tree):
            body = getattr(node, "body", None)
            if isinstance(body, list) and body and isinstance(body[0], ast.Expr):
                if isinstance(body[0].value, ast.Constant) and isinstance(body[0].value.value, str):
                    del body[0]
        text += ast.dump(tree)
    return hashlib.sha256(text.encode()).hexdigest()


def main(mode: str, patterns: list[str]) -> int:
    golden, failures, count = read_golden(), 0, 0
    for point in points():
        if patterns and not any(re.search(pattern, point.name) for pattern in patterns):
            continue
        figures = compile_point(point)
        faults = broken(point, figures) + (changed(point, figures, golden) if mode == "check" else [])
        failures, count = failures + bool(faults), count + 1
        print(point.name, asdict(figures), *faults, sep="; ", flush=True)
        if mode == "write":
            golden[point.name] = asdict(point.launch) | asdict(figures)
            GOLDEN.parent.mkdir(exist_ok=True)
            GOLDEN.write_text(_text(golden))
    if mode == "write" and not patterns:
        DIGEST.write_text(code_digest() + "\n")
    print(f"{count - failures} points hold, {failures} do not")
    return int(failures > 0 or count == 0)


def _text(golden: dict[str, dict]) -> str:
    """One point a line, so that a change shows as one."""
    return "{\n" + ",\n".join(f"{json.dumps(name)}: {json.dumps(golden[name])}" for name in sorted(golden)) + "\n}\n"


if __name__ == "__main__":
    assert set(OPS) == set(KERNELS)
    if len(sys.argv) < 2 or sys.argv[1] not in ("write", "check"):
        sys.exit(__doc__)
    sys.exit(main(sys.argv[1], sys.argv[2:]))
