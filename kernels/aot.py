"""Ahead-of-time compilation of the kernels, without a GPU: what every row of the launch tables costs.

    python -m kernels.aot write FAMILY [PATTERN ...]   # compile points whose name has a PATTERN (or all), keep figures
    python -m kernels.aot check FAMILY [PATTERN ...]   # compile them, hold them against their rules and what was kept

FAMILY is the name of a module of `kernels.gates`, or `all`. Beside the figures of all points of a family stands a
digest of the code that they are figures of, so that a test that compiles nothing can tell whether they are those of
this code. Must not run with TRITON_INTERPRET set.
"""

import importlib
import pkgutil
import re
import sys
from dataclasses import asdict

from . import gates
from .gate import Family, broken, changed, compile_point, kept

NAMES = tuple(module.name for module in pkgutil.iter_modules(gates.__path__))


def family(name: str) -> Family:
    return importlib.import_module(f"{gates.__name__}.{name}").FAMILY


def run(mode: str, family: Family, patterns: list[str]) -> tuple[int, int]:
    """Compiles points, prints what they cost and what they break: (those that hold, those that do not)."""
    golden, failures, count = family.read_golden(), 0, 0
    points = family.points()
    if mode == "write" and not patterns:
        golden = {}
    for point in points:
        if patterns and not any(re.search(pattern, point.name) for pattern in patterns):
            continue
        figures = compile_point(point)
        faults = broken(point, figures) + (changed(point, figures, golden) if mode == "check" else [])
        failures, count = failures + bool(faults), count + 1
        print(family.name, point.name, asdict(figures), *faults, sep="; ", flush=True)
        if mode == "write":
            golden[point.name] = kept(point, figures)
            family.write_golden(golden)
    if mode == "write" and not patterns:
        family.digest.write_text(family.code_digest() + "\n")
    return count - failures, failures


def main(mode: str, name: str, patterns: list[str]) -> int:
    results = [run(mode, family(n), patterns) for n in (NAMES if name == "all" else (name,))]
    good, bad = (sum(counts) for counts in zip(*results, strict=True))
    print(f"{good} points hold, {bad} do not")
    return int(bad > 0 or good == 0)


if __name__ == "__main__":
    if len(sys.argv) < 3 or sys.argv[1] not in ("write", "check") or sys.argv[2] not in (*NAMES, "all"):
        sys.exit(f"{__doc__}\nFamilies: {', '.join(NAMES)}")
    sys.exit(main(sys.argv[1], sys.argv[2], sys.argv[3:]))
