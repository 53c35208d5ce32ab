"""Command line of the GPU checks and timings; see the package."""

import argparse
import datetime
import itertools
import re
import signal
import sys
import time
from pathlib import Path

from . import picture, report, store
from .parts import GROUPS, PARTS
from .runner import WORKER, NoDevice, Runner

RESULTS = Path(__file__).parents[1] / "results"


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description="Triton kernels on a GPU.")
    which = f"parts to run, in the order of --list, or {', '.join(GROUPS)} (default: all)"
    parser.add_argument("parts", nargs="*", metavar="PART", help=which)
    parser.add_argument("--list", action="store_true", help="the parts and their points, then stop")
    parser.add_argument("--seconds", type=float, default=550.0, help="for the whole run (default: 550)")
    parser.add_argument("--out", type=Path, help="folder; parts that are not run keep their rows there")
    found = parser.parse_args(argv)
    for name in found.parts:
        if name not in PARTS and name not in GROUPS:
            parser.error(f"no part {name!r}: choose from {', '.join([*PARTS, *GROUPS])}")
    found.parts = list(itertools.chain(*(GROUPS.get(name, (name,)) for name in found.parts)))
    found.parts = [n for n in PARTS if n in found.parts or (not found.parts and PARTS[n].by_itself)]
    return found


def write_pages(folder: Path, rows: list[store.Row]) -> None:
    store.write_atomically(folder / "report.md", report.markdown(rows))
    limits, points = report.ceilings(rows), report.roofline_points(rows)
    if limits and points:
        device = next(r["device"] for r in rows if r["device"])
        title = f"{device}: measured copy {limits[0] / 1e12:.2f} TB/s, matrix product {limits[1] / 1e12:.0f} TFLOP/s"
        store.write_atomically(folder / "roofline.svg", picture.roofline(points, *limits, title))
    lines = report.winners(rows)
    if lines:
        store.write_atomically(folder / "launch_rows.txt", "\n".join(lines) + "\n")


def main(argv: list[str] | None = None, worker=WORKER) -> int:
    began = time.monotonic()
    chosen = arguments(argv)
    if chosen.list:
        for name in chosen.parts:
            points = PARTS[name].points([])
            print(f"{name}: {PARTS[name].help}; {len(points)} points, weight {PARTS[name].weight:g}")
            for point in points:
                print(f"    {point.name}: {', '.join(point.contestants)}")
        return 0
    try:
        facts = Runner.probe(worker)
    except NoDevice as error:
        print(f"{error}: nothing is checked and nothing is timed", file=sys.stderr)
        return 2
    device = re.sub(r"[^a-z0-9]+", "-", facts["device"].lower()).strip("-")
    folder = chosen.out or RESULTS / f"{device}-{datetime.date.today().isoformat()}"
    rows = store.Store(folder, anew=chosen.parts)
    print(f"{', '.join(f'{n} {facts[n]}' for n in store.FACTS if n in facts)}\nrows in {folder}", flush=True)

    def say(line: str) -> None:
        print(line, flush=True)
        try:
            write_pages(folder, rows.rows)
        except Exception as error:  # the pages can be made again from the rows, a measurement cannot
            print(f"no pages for now: {type(error).__name__}: {error}", flush=True)

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that what was started ends, and the pages are written
    try:
        Runner(rows, say, worker, facts=facts).run(chosen.parts, chosen.seconds - (time.monotonic() - began))
    finally:
        write_pages(folder, rows.rows)
    print("\n".join(report.winners(rows.rows)), report.summary(rows.rows), sep="\n")
    for row in rows.rows:
        if row["status"] in ("red", "error", "refused") and row["part"] in chosen.parts:
            print(f"{row['status']}: {row['part']}, {row['contestant']}, {row['point']}, {row['op']}: {row['reason']}")
    return int(report.is_red([r for r in rows.rows if r["part"] in chosen.parts]))


if __name__ == "__main__":
    sys.exit(main())
