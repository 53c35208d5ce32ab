"""Runs yosys passes in a process of its own: a file with one pass a line, and a CPU limit (s).

The library is native code that ends its process on an error; and only this process imports it. The limit, which abc
inherits, ends both where nobody is left to do so, because the parent was killed.
"""

import resource
import sys

from pyosys import libyosys as ys  # type: ignore[import-not-found]


def main(script: str, limit_s: int) -> None:
    resource.setrlimit(resource.RLIMIT_CPU, (limit_s, limit_s))
    design = ys.Design()
    with open(script) as file:
        for line in file.read().splitlines():
            ys.run_pass(line, design)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
