"""What a kernel compiles to, without a GPU, and what it must hold: the machinery behind `kernels.aot`.

A point is one kernel at one row of its launch table, one type and one set of flags. Its figures are what cuobjdump and
nvdisasm of the Triton wheel say: registers, stack, shared memory, and how often each instruction stands in the loop
that a point calls hot. Types carry the facts that the launcher's specialisation finds on real inputs: which arguments
are multiples of 16. Not covered: times, and whether ptxas compiled correctly; both need a GPU.
"""

import ast
import collections
import hashlib
import json
import re
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

SHARED_BYTES = {90: 232_448, 80: 166_912}  # of one block
FOLDER = Path(__file__).parent / "golden" / f"triton-{triton.__version__}"
# What is counted: a name, and the mnemonics it stands for, as regular expressions of what comes before modifiers.
COUNTED = {
    "HGMMA": "HGMMA", "HMMA": "HMMA", "IGMMA": "IGMMA", "IMMA": "IMMA", "UTMALDG": "UTMALDG", "EX2": r"MUFU\.EX2",
    "MUFU": "MUFU", "LDG": "LDG", "LDG128": r"LDG\.(.*\.)?128", "STG": "STG", "STG128": r"STG\.(.*\.)?128",
    "LDS": "LDSM?", "STS": "STSM?", "LDL": "LDL", "STL": "STL", "SHFL": "SHFL",
}  # fmt: skip
PRODUCTS = ("HGMMA", "HMMA", "IGMMA", "IMMA")
Lines = list[str]  # of machine code, predicates removed


@dataclass(frozen=True)
class Figures:
    registers: int
    stack_bytes: int  # of a thread; where registers are spilled to
    shared_bytes: int
    num_warps: int
    wide_addresses: bool  # 64-bit products in address arithmetic
    loop: dict[str, int]  # instructions of one pass of the hot loop, "all" their sum


def longest_loop(loops: Sequence[Lines], program: Lines) -> Lines:
    """The longest of the innermost loops; the whole program where there is none."""
    return max(loops, key=len, default=program)


def whole(loops: Sequence[Lines], program: Lines) -> Lines:
    return program


def products_loop(loops: Sequence[Lines], program: Lines, tensor_cores: bool = True) -> Lines:
    """The innermost loop of matrix products with the fewest selects and compares."""
    found: list[tuple[int, int, Lines]] = []
    for lines in loops:
        counts = collections.Counter(line.split()[0].split(".")[0] for line in lines)
        if sum(counts[name] for name in PRODUCTS) if tensor_cores else counts["FFMA"] > 100:
            found.append((counts["FSEL"] + counts["SEL"] + counts["ISETP"], len(found), lines))
    assert found, "no loop of matrix products"
    return min(found)[2]


fma_loop = partial(products_loop, tensor_cores=False)  # of products without tensor cores


@dataclass(frozen=True)
class Point:
    name: str
    kernel: Any  # a jit function
    arch: int  # 90 or 80
    types: Mapping[str, str]  # of the arguments that are no constants, e.g. "*bf16"
    constants: Mapping[str, Any]
    multiples: frozenset[str]  # arguments that are multiples of 16
    launch: Mapping[str, int]  # num_warps, num_stages, and the sizes of the tile
    rules: Callable[[Figures], dict[str, bool]]  # what must hold
    hot: Callable[[Sequence[Lines], Lines], Lines] = longest_loop
    counted: Mapping[str, str] = field(default_factory=COUNTED.copy)


@dataclass(frozen=True)
class Family:
    """Points that are kept together. `modules` hold all code that they are compiled from."""

    name: str
    modules: tuple[ModuleType, ...]
    points: Callable[[], list[Point]]

    @property
    def golden(self) -> Path:
        return FOLDER / f"{self.name}.json"

    @property
    def digest(self) -> Path:
        return FOLDER / f"{self.name}.sha256"

    def read_golden(self) -> dict[str, dict]:
        """Figures by point; none for a version of Triton without a file."""
        return json.loads(self.golden.read_text()) if self.golden.exists() else {}

    def write_golden(self, golden: dict[str, dict]) -> None:
        """One point a line, so that a change shows as one."""
        lines = (f"{json.dumps(name)}: {json.dumps(golden[name])}" for name in sorted(golden))
        self.golden.parent.mkdir(parents=True, exist_ok=True)
        self.golden.write_text("{\n" + ",\n".join(lines) + "\n}\n")

    def code_digest(self) -> str:
        """SHA-256 of what the kernels are compiled from, without comments, docstrings and layout."""
        text = ""
        for module in self.modules:
            tree = ast.parse(Path(str(module.__file__)).read_text())
            for node in ast.walk(tree):
                body = getattr(node, "body", None)
                if isinstance(body, list) and body and isinstance(body[0], ast.Expr):
                    if isinstance(body[0].value, ast.Constant) and isinstance(body[0].value.value, str):
                        del body[0]
            text += ast.dump(tree)
        return hashlib.sha256(text.encode()).hexdigest()


def compile_point(point: Point) -> Figures:
    names, kernel = {*point.types, *point.constants}, point.kernel
    assert names == set(kernel.arg_names), f"{point.name}: {names ^ set(kernel.arg_names)}"
    held_back = {p.name for p in kernel.params if p.do_not_specialize}
    assert not held_back & point.multiples, f"{point.name}: the launcher does not look at {held_back & point.multiples}"
    source = ASTSource(
        fn=kernel, signature={name: point.types.get(name, "constexpr") for name in kernel.arg_names},
        constexprs=dict(point.constants),
        attrs={(i,): [["tt.divisibility", 16]] for i, name in enumerate(kernel.arg_names) if name in point.multiples},
    )  # fmt: skip
    options = {"num_warps": point.launch["num_warps"], "num_stages": point.launch["num_stages"]}
    binary = triton.compile(source, target=GPUTarget("cuda", point.arch, 32), options=options)
    report, sass = _disassembled(binary)
    return Figures(
        registers=_number(r"REG:(\d+)", report), stack_bytes=_number(r"STACK:(\d+)", report),
        shared_bytes=binary.metadata.shared, num_warps=binary.metadata.num_warps,
        wide_addresses=any(f"{op}.{kind}" in binary.asm["ptx"] for op in ("mul", "mad") for kind in ("wide", "lo.s64")),
        loop=counts(point.hot(*program_of(sass)), point.counted),
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


def program_of(sass: str) -> tuple[list[Lines], Lines]:
    """(innermost loops, all instructions)."""
    lines: Lines = []
    labels: dict[str, int] = {}
    for line in sass.splitlines():
        if label := re.match(r"\s*(\.L_x_\d+):", line):
            labels[label[1]] = len(lines)
        elif instruction := re.match(r"^\s+/\*[0-9a-f]{4,}\*/\s+(.*?);", line):
            lines.append(re.sub(r"^@!?U?P\w+\s+", "", instruction[1].strip()))
    spans = []
    for end, line in enumerate(lines):
        jump = re.match(r"BRA\b.*?`\((\.L_x_\d+)\)", line)
        # a program ends in a jump to itself
        if jump and labels.get(jump[1], end) < end:
            spans.append((labels[jump[1]], end))
    inner = [s for s in spans if not any(s[0] <= a and b <= s[1] and (a, b) != s for a, b in spans)]
    return [lines[start : end + 1] for start, end in inner], lines


def counts(lines: Lines, counted: Mapping[str, str]) -> dict[str, int]:
    mnemonics = [line.split()[0] for line in lines]
    kept = {}
    for name, pattern in counted.items():
        one = re.compile(f"(?:{pattern})(?:\\..*)?")
        kept[name] = sum(one.fullmatch(mnemonic) is not None for mnemonic in mnemonics)
    return kept | {"all": len(lines)}


def common_rules(arch: int, launch: Mapping[str, int], figures: Figures, spills: int = 0) -> dict[str, bool]:
    """What every point must hold; `spills`: bytes a thread may spill."""
    return {
        "spills": figures.stack_bytes <= spills and (figures.loop["LDL"] + figures.loop["STL"] == 0 or spills > 0),
        "shared memory": figures.shared_bytes <= SHARED_BYTES[arch],
        "registers": figures.registers <= 255,
        "warps": figures.num_warps == launch["num_warps"],
        "64-bit addresses": figures.wide_addresses,
    }


def broken(point: Point, figures: Figures) -> list[str]:
    """What a point must hold and does not."""
    return [rule for rule, holds in point.rules(figures).items() if not holds]


def kept(point: Point, figures: Figures) -> dict[str, Any]:
    """A line of the golden file."""
    return dict(point.launch) | asdict(figures)


def changed(point: Point, figures: Figures, golden: dict[str, dict]) -> list[str]:
    """Figures more than 5 % off what was written for this Triton; nothing for a version without a file."""
    if not golden:
        return []
    if point.name not in golden:
        return ["not in the golden file"]
    then, now = golden[point.name], kept(point, figures)
    pairs = {name: (then.get(name, 0), now[name]) for name in now if name != "loop"}
    pairs |= {name: (then["loop"].get(name, 0), now["loop"][name]) for name in now["loop"]}
    return [f"{name} was {a}, is {b}" for name, (a, b) in pairs.items() if abs(a - b) > 0.05 * a]
