"""One operator, synthesised and held against its model: python -m ppa.synth.check NAME ... --liberty FILE [--fast]"""

import argparse
import sys
import time
from pathlib import Path

from gptcore.errors import RunError, UserError

from .. import rtl
from . import flow, liberty, netlist


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m ppa.synth.check", description=__doc__)
    parser.add_argument("names", nargs="+", metavar="NAME", help="operators of ppa.rtl.names()")
    parser.add_argument("--liberty", type=Path, required=True, metavar="FILE")
    parser.add_argument("--fast", action="store_true", help="the fast point")
    parser.add_argument("--cycles", type=int, help="default 128, or what the operator says")
    args = parser.parse_args()
    library = liberty.load(args.liberty)
    failed = 0
    for name in args.names:
        start = time.monotonic()
        operator = rtl.make(name)
        done = flow.synthesise(operator, library, args.liberty, "fast" if args.fast else "relaxed")
        result = netlist.run(netlist.compile_netlist(done.netlist, library), operator, cycles=args.cycles)
        print(
            f"{name}: {done.area_um2:.1f} um2 ({done.sequential_area_um2:.1f} flip-flops), {sum(done.cells.values())} "
            f"cells, {done.delay_ps:.0f} ps, {result.mismatches} mismatches in {result.vectors} vectors"
            f"{' (exhaustive)' if result.exhaustive else ''}, {time.monotonic() - start:.1f} s", flush=True,
        )  # fmt: skip
        if result.mismatches:
            print(f"  first: {result.first}")
            failed += 1
    return 1 if failed else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (UserError, RunError) as error:
        print(f"check: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
