"""The rows of a run as a Markdown page. Pure: text from rows."""

from collections.abc import Iterator, Sequence

from .parts import CHECKS, TIMED
from .store import FACTS, Row
from .targets import Verdict, latest, sizes, verdicts

BANDWIDTH = ("decode", "norms", "rotary", "cross_entropy", "quantised")  # parts that memory bounds


def unequal_digests(rows: Sequence[Row]) -> list[str]:
    """Points whose bits differ between the processes that ran them; those of one process only are named, too."""
    found: dict[tuple[str, str], set[str]] = {}
    runs: dict[tuple[str, str], set[str]] = {}
    for row in rows:
        if row["part"].endswith("determinism") and row["digest"]:
            key = row["point"].rpartition(" run ")[0], row["contestant"]
            found.setdefault(key, set()).add(row["digest"])
            runs.setdefault(key, set()).add(row["run"])
    bad = [" ".join(key) for key, digests in found.items() if len(digests) > 1]
    return bad + [" ".join(key) + " (one process only)" for key, names in runs.items() if len(names) < 2]


def is_red(rows: Sequence[Row]) -> bool:
    return any(r["status"] in ("red", "error", "refused") for r in rows) or bool(unequal_digests(rows))


def _table(header: Sequence[str], lines: Sequence[Sequence[str]]) -> Iterator[str]:
    yield "| " + " | ".join(header) + " |"
    yield "|" + " --- |" * len(header)
    for line in lines:
        yield "| " + " | ".join(cell.replace("|", "/") for cell in line) + " |"
    yield ""


def markdown(rows: Sequence[Row]) -> str:
    lines = ["# Triton kernels on a GPU", ""]
    for name in FACTS:
        seen = sorted({r[name] for r in rows if r[name]})
        lines.append(f"- {name}: {', '.join(seen)}" + (" (several: rows are not comparable)" if len(seen) > 1 else ""))
    clocks = sorted(float(r["sm_clock_hz"]) / 1e9 for r in rows if r["sm_clock_hz"])
    lines += [f"- clock of the multiprocessors while timed: {clocks[0]:.2f} to {clocks[-1]:.2f} GHz"] if clocks else []
    lines += ["", "## Checks", ""]
    lines += _table(("part", "checks", "ok", "red", "error", "skipped"), [
        [part, *(str(len(found) if s is None else sum(r["status"] == s for r in found))
                 for s in (None, "ok", "red", "error", "skipped"))]
        for part in CHECKS if (found := [r for r in rows if r["part"] == part])])  # fmt: skip
    bad = [r for r in rows if r["status"] in ("red", "error") and r["part"] in CHECKS]
    lines += [f"- {r['status']}: {r['part']}, {r['contestant']}, {r['op']} in {r['point']} (seed {r['seed']}): "
              f"error {r['error']}, allowed {r['allowed']}; {r['reason']}" for r in bad]  # fmt: skip
    lines += [f"- other bits in another process: {name}" for name in unequal_digests(rows)]
    lines += ["", "## Targets", "", "Ratios are baseline time over ours, if not said otherwise.", ""]
    lines += _table(("target", "what", "bar", "geometric mean", "worst", "at", "shapes", "verdict"),
                    [_verdict_line(v) for v in verdicts(rows)])  # fmt: skip
    for part in TIMED:
        lines += _times(part, rows)
    gone = [r for r in rows if r["part"] not in CHECKS and r["status"] not in ("ok", "skipped")]
    lines += ["## Not timed", ""]
    lines += dict.fromkeys(f"- {r['status']}: {r['contestant'] or 'all'}, {r['point']}: {r['reason']}" for r in gone)
    lines += dict.fromkeys(f"- skipped: {r['part']}, {r['point']}, {r['contestant']}: {r['reason']}"
                           for r in rows if r["status"] == "skipped")  # fmt: skip
    return "\n".join(lines) + "\n"


def _verdict_line(v: Verdict) -> list[str]:
    sign = "<=" if v.target.at_most else ">="
    shapes = f"{len(v.values)} of {v.planned}"
    if not v.values:
        return [v.target.name, v.target.what, f"{sign} {v.target.bar:.2f}", "", "", "", shapes, v.text]
    at = next(point for point, value in v.values.items() if value == v.worst)
    return [
        v.target.name,
        v.target.what,
        f"{sign} {v.target.bar:.2f}",
        f"{v.mean:.3f}",
        f"{v.worst:.3f}",
        at,
        shapes,
        v.text,
    ]


def _times(part: str, rows: Sequence[Row]) -> Iterator[str]:
    points = latest(rows, part)
    if not points:
        return
    unit = ("GB/s", "bytes_per_s", 1e9) if part in BANDWIDTH else ("TFLOP/s", "flops_per_s", 1e12)
    names = list(dict.fromkeys(name for times in points.values() for name in times))
    yield f"## {part}: median µs (20 % to 80 %), {unit[0]}"
    yield ""
    body = [[point, *(_cell(times.get(name), unit[1], unit[2]) for name in names)] for point, times in points.items()]
    yield from _table(("point", *names), body)
    if part == "step":
        yield from _step_table(points)
    few = [r for times in points.values() for r in times.values() if r["reps"] and int(r["reps"]) < 100]
    late = [r for times in points.values() for r in times.values() if r["host_bound"] not in ("", "0")]
    if few:
        yield f"Fewer than 100 rounds: {len(few)} times, {min(int(r['reps']) for r in few)} at least."
    for r in late:
        yield f"The host was late in {r['host_bound']} of {r['reps']} runs: {r['contestant']}, {r['point']}."
    yield ""


def _step_table(points: dict[str, dict[str, Row]]) -> Iterator[str]:
    lines = []
    for times in points.values():
        for contestant, row in times.items():
            if row["status"] == "ok":
                rate = sizes(row)["B"] * sizes(row)["T"] / float(row["median_s"])
                peak = f"{float(row['value']) / 1e9:.2f}" if row["value"] else ""
                model = ", ".join(filter(None, [row["variant"], row["options"]]))
                lines.append([model, contestant, f"{rate:.0f}", peak])
    yield from _table(("model", "contestant", "tokens/s", "peak memory, GB"), lines)


def _cell(row: Row | None, rate: str, size: float) -> str:
    if row is None:
        return ""
    if row["status"] != "ok":
        return row["status"]
    median, low, high = (float(row[n]) * 1e6 for n in ("median_s", "q20_s", "q80_s"))
    return f"{median:.1f} ({low:.1f} to {high:.1f}), {float(row[rate] or 0) / size:.0f}"


def ceilings(rows: Sequence[Row]) -> tuple[float, float] | None:
    """(bytes a second, operations a second) measured on this device."""
    times = {r["contestant"]: r for r in rows if r["part"] == "ceilings" and r["status"] == "ok"}
    if "copy" not in times or "matmul" not in times:
        return None
    return float(times["copy"]["bytes_per_s"]), float(times["matmul"]["flops_per_s"])


def roofline_share(flops: float, moved: float, seconds: float, bytes_per_s: float, flops_per_s: float) -> float:
    """Achieved rate over what the slower of both ceilings allows at this many operations a byte."""
    return max(flops / flops_per_s, moved / bytes_per_s) / seconds


def roofline_points(rows: Sequence[Row]) -> list[tuple[str, float, float]]:
    """(contestant, operations a byte, operations a second) of times that have both; beside attention only of ours."""
    timed = [r for r in rows if r["part"] in TIMED and r["status"] == "ok" and r["flops_per_s"] and r["bytes_per_s"]
             and not (r["sizes"] and r["provider"] != "triton")]  # fmt: skip
    names = [f"{r['contestant']} {r['kind']}" if r["sizes"] else r["contestant"] for r in timed]
    return [(name, float(r["flops"]) / float(r["bytes"]), float(r["flops_per_s"]))
            for name, r in zip(names, timed, strict=True)]  # fmt: skip


def winners(rows: Sequence[Row]) -> list[str]:
    """Lines for the launch table: the fastest row tried by op, width and kind, beside the committed one."""
    lines = []
    for times in latest(rows, "tune").values():
        good = [r for r in times.values() if r["status"] == "ok"]
        for kind in dict.fromkeys(r["kind"] for r in good):
            tried = sorted((r for r in good if r["kind"] == kind), key=lambda r: float(r["median_s"]))
            committed = next((float(r["median_s"]) for r in tried if not r["launch"]), None)
            best = tried[0]
            if committed is None:
                lines.append(f"# {best['row']} {best['D']} {kind}: the committed row was not timed")
            elif not best["launch"]:
                lines.append(f"# {best['row']} {best['D']} {kind}: the committed row is the fastest")
            else:
                row = f'(90, "{best["row"]}", {best["D"]}, "{kind}"): Launch({", ".join(best["launch"].split("x"))}),'
                lines.append(f"{row}  # {committed / float(best['median_s']):.3f}x of the committed row")
    return lines


def summary(rows: Sequence[Row]) -> str:
    lines = [
        f"{v.target.name:10}{v.text:22}{v.mean:7.3f} worst {v.worst:7.3f} bar {v.target.bar:.2f}  {v.target.what}"
        for v in verdicts(rows)
        if v.values
    ]
    timed = sum(r["part"] in TIMED and r["status"] == "ok" for r in rows)
    return "\n".join([*lines, f"{timed} times"])
