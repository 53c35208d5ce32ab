"""What `make bench` measured as a Markdown table and a roofline picture beside the JSON, and its ratios to another.

python -m benchmarks.kernel_table NEW.json [BASE.json]
"""

import json
import sys
from pathlib import Path

from benchmarks.gpu.picture import roofline
from benchmarks.gpu.stats import geometric_mean
from benchmarks.gpu.store import write_atomically

Entry = dict  # of pytest-benchmark


def entries(path: Path) -> dict[str, Entry]:
    """name -> what was timed with its work counted; other benchmarks are left out."""
    found = {e["name"]: e for e in json.loads(path.read_text())["benchmarks"]}
    return {name: e for name, e in found.items() if "flops" in e["extra_info"]}


def series(entry: Entry) -> str:
    return f"{entry['extra_info']['path']}, {entry['extra_info']['op']}"


def table(found: dict[str, Entry]) -> str:
    lines = ["# Attention kernels and references", ""]
    facts = sorted({tuple(e["extra_info"][n] for n in ("device", "torch", "triton")) for e in found.values()})
    lines += [f"- {device}, torch {torch}, triton {triton}" for device, torch, triton in facts]
    for op in dict.fromkeys(e["group"] for e in found.values()):
        group = sorted((e for e in found.values() if e["group"] == op), key=lambda e: e["stats"]["median"])
        yardstick = next((e["stats"]["median"] for e in group if e["extra_info"]["path"] == "sdpa"), None)
        lines += ["", f"## {'forward and backward' if op == 'both' else op}", "", group[0]["extra_info"]["point"], ""]
        lines += [
            "| path | kind | median µs | quartiles | least | rounds | to sdpa | GFLOP/s | GB/s | of the roofline |"
        ]
        lines += ["|" + " --- |" * 10]
        for e in group:
            info, stats = e["extra_info"], e["stats"]
            ratio = f"{stats['median'] / yardstick:.2f}" if yardstick else ""
            cells = (
                info["path"], info["kind"], f"{stats['median'] * 1e6:.1f}",
                f"{stats['q1'] * 1e6:.1f} to {stats['q3'] * 1e6:.1f}", f"{stats['min'] * 1e6:.1f}",
                str(stats["rounds"]), ratio,
                f"{info['flops_per_s'] / 1e9:.1f}", f"{info['bytes_per_s'] / 1e9:.2f}", f"{info['roofline_share']:.1%}",
            )  # fmt: skip
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def picture(found: dict[str, Entry]) -> str:
    info = next(iter(found.values()))["extra_info"]
    limits = info["copy_bytes_per_s"], info["matmul_flops_per_s"]
    title = f"{info['device']}: measured copy {limits[0] / 1e9:.1f} GB/s, matrix product {limits[1] / 1e9:.0f} GFLOP/s"
    points = [
        (series(e), e["extra_info"]["flops"] / e["extra_info"]["bytes"], e["extra_info"]["flops_per_s"])
        for e in found.values()
    ]
    return roofline(points, *limits, title)


def comparison(new: dict[str, Entry], base: dict[str, Entry]) -> list[str]:
    """New over old, medians and least times: below 1 is faster."""
    lines, ratios = [], []
    for what in ("device", "torch", "triton", "point"):
        before, now = ({e["extra_info"][what] for e in found.values()} for found in (base, new))
        if before != now:
            lines.append(f"different {what}: {', '.join(sorted(before))} then, {', '.join(sorted(now))} now")
    for name in sorted(new.keys() & base.keys()):
        ratios.append(new[name]["stats"]["median"] / base[name]["stats"]["median"])
        least = new[name]["stats"]["min"] / base[name]["stats"]["min"]
        lines.append(f"{ratios[-1]:7.3f} {least:7.3f}  {name}")
    lines += [f"  only new {name}" for name in sorted(new.keys() - base.keys())]
    lines += [f"  only old {name}" for name in sorted(base.keys() - new.keys())]
    if ratios:
        lines.append(
            f"{geometric_mean(ratios):7.3f}  geometric mean of {len(ratios)} medians, {max(ratios):.3f} the slowest"
        )
    return lines


def main(arguments: list[str]) -> int:
    if len(arguments) not in (1, 2):
        print("usage: python -m benchmarks.kernel_table NEW.json [BASE.json]", file=sys.stderr)
        return 2
    for path in arguments:
        if not Path(path).is_file() or not Path(path).stat().st_size:
            print(
                f"no results in {path!r}; make bench writes them, make bench-compare needs BASE=FILE", file=sys.stderr
            )
            return 2
    new = entries(Path(arguments[0]))
    if not new:
        print(f"nothing in {arguments[0]} was timed", file=sys.stderr)
        return 1
    if len(arguments) == 2:
        print("\n".join(comparison(new, entries(Path(arguments[1])))))
        return 0
    page, drawing = (Path(arguments[0]).with_suffix(suffix) for suffix in (".md", ".svg"))
    write_atomically(page, table(new))
    write_atomically(drawing, picture(new))
    print(f"{page} and {drawing}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
