"""The bars of the design and how far the measured ratios are from them.

A ratio is baseline time over our time, so that more is better. A target is met when its worst shape is, met in the mean
when only the geometric mean is; both are stated. Shapes that were not timed on both sides make it incomplete.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from .block_plan import COMPILED_WIDTHS, NORM_WIDTHS
from .stats import geometric_mean
from .store import Row

Times = dict[str, Row]  # contestant -> row


@dataclass(frozen=True)
class Target:
    name: str
    what: str
    part: str
    bar: float
    value: Callable[[Times], float | None]  # of one point; None: not measured
    where: Callable[[Row], bool] = lambda row: True
    at_most: bool = False


@dataclass(frozen=True)
class Verdict:
    target: Target
    values: dict[str, float]  # point -> value
    planned: int

    @property
    def worst(self) -> float:
        return (max if self.target.at_most else min)(self.values.values())

    @property
    def mean(self) -> float:
        return geometric_mean(list(self.values.values()))

    @property
    def text(self) -> str:
        if not self.values:
            return "not measured"
        below = self.target.at_most
        good = [(x <= self.target.bar) if below else (x >= self.target.bar) for x in (self.worst, self.mean)]
        verdict = "met" if good[0] else "met in the mean" if good[1] else "missed"
        return verdict + ("" if len(self.values) == self.planned else ", incomplete")


def seconds(times: Times, contestant: str) -> float | None:
    row = times.get(contestant)
    return float(row["median_s"]) if row and row["status"] == "ok" else None


def ratio(ours: str, baseline: str) -> Callable[[Times], float | None]:
    def value(times):
        a, b = seconds(times, baseline), seconds(times, ours)
        return a / b if a and b else None

    return value


def _width(D: int) -> Callable[[Row], bool]:
    return lambda row: row["D"] == str(D)


def _against(name: str, what: str, part: str, ours: str, *bars: tuple[str, float, int | None]) -> Iterator[Target]:
    for baseline, bar, D in bars:
        text = f"{what} over {baseline}" + (f", D{D}" if D else "")
        yield Target(name, text, part, bar, ratio(ours, baseline), _width(D) if D else lambda row: True)


SOFTMAX, CONSMAX = "triton:softmax", "triton:consmax"
FLASH, CUDNN = "sdpa-flash", "sdpa-cudnn"


def _long(row: Row) -> bool:
    return int(row["T"]) >= 4096


def attention_targets() -> list[Target]:
    found = [
        *(Target("headline", f"ConSmax forward over {base}, T >= 4k", "forward", bar, ratio(CONSMAX, base), _long)
          for base, bar in ((SOFTMAX, 1.10), (FLASH, 1.35))),
        *_against("P1", "softmax forward", "forward", SOFTMAX, (FLASH, 1.10, None), (CUDNN, 0.90, 64),
                  (CUDNN, 0.70, 128)),
        *_against("P2", "softmax backward", "backward", SOFTMAX, (FLASH, 0.95, None), (CUDNN, 0.62, None)),
        *_against("P3", "ConSmax forward", "forward", CONSMAX, (SOFTMAX, 1.10, None), (FLASH, 1.35, None),
                  (CUDNN, 1.05, 64), (CUDNN, 0.85, 128)),
        *_against("P4", "ConSmax backward", "backward", CONSMAX, (SOFTMAX, 1.03, None), (FLASH, 1.05, None),
                  (CUDNN, 0.68, None)),
        *_against("P5", "ConSmax forward and backward", "training", CONSMAX, (FLASH, 1.15, None)),
        Target("P5", "time with gradients of beta and gamma over without", "training", 1.02,
               ratio("triton:consmax!frozen", CONSMAX), at_most=True),
        *_against("P6", "relu forward", "forward", "triton:relu", (CONSMAX, 1.05, 64)),
        *_against("P6", "polymax forward", "forward", "triton:polymax", (CONSMAX, 1.05, 64)),
    ]  # fmt: skip
    return found


def decode_targets() -> list[Target]:
    def large(row):
        return 4 * int(row["B"]) * int(row["K"]) * int(row["S"]) * int(row["D"]) >= 256e6

    def short(row):
        return row["B"] == "1" and int(row["S"]) <= 8192

    return [
        *_against("P8", "ConSmax decode", "decode", CONSMAX, (FLASH, 1.0, None), (CUDNN, 1.0, None)),
        Target("P8", "ConSmax decode over triton:softmax, B 1, S <= 8k", "decode", 1.10, ratio(CONSMAX, SOFTMAX),
               short),
        Target("P8", "ConSmax decode over triton:softmax, elsewhere", "decode", 0.99, ratio(CONSMAX, SOFTMAX),
               lambda row: not short(row)),
        *(Target("P8", f"{kind} decode, share of copy bandwidth, >= 256 MB", "decode", 0.80, copy_share(kind), large)
          for kind in (CONSMAX, SOFTMAX)),
    ]  # fmt: skip


def copy_share(contestant: str) -> Callable[[Times], float | None]:
    def value(times):
        row, copy = times.get(contestant), times.get("copy")
        if not (row and copy and row["status"] == "ok"):
            return None
        return float(row["bytes_per_s"]) / float(copy["bytes_per_s"])

    return value


def sizes(row: Row) -> dict[str, int]:
    """Of a point beside attention, by name."""
    return {name: int(size) for name, _, size in (word.partition("=") for word in row["sizes"].split())}


def share(contestant: str) -> Callable[[Times], float | None]:
    """What its row holds as a value."""

    def value(times):
        row = times.get(contestant)
        return float(row["value"]) if row and row["status"] == "ok" and row["value"] else None

    return value


OURS, COMPILE = "triton", "compile"
COMPILED = "torch.compile"


def _inputs(low: int, high: int, *, plain: bool = False) -> Callable[[Row], bool]:
    """Products with a sum over so many inputs."""

    def where(row):
        width = sizes(row).get("K") or sizes(row)["C"]
        return low <= width <= high and (row["variant"] == "none") == plain

    return where


def _of(*kinds: str) -> Callable[[Row], bool]:
    return lambda row: row["kind"] in kinds


def _norms(mode: str, widths: Sequence[int]) -> Callable[[Row], bool]:
    return lambda row: row["mode"] == mode and sizes(row)["N"] in widths


def block_targets() -> list[Target]:
    compiled, narrow = ratio(OURS, COMPILE), (1, 1024)
    ternary = "ternary decode, M 1 to 16"
    return [
        Target("P9", "GEMM alone over cuBLAS", "products", 0.88, ratio(OURS, "mm"), _inputs(1, 1 << 31, plain=True)),
        *(Target("P9", f"linear + activation over {COMPILED}, {text}", "products", bar, compiled, _inputs(*span))
          for text, bar, span in (("K <= 1024", 1.10, narrow), ("K 2048", 1.0, (2048, 2048)),
                                  ("K 4096", 0.93, (4096, 4096)))),
        Target("P10", f"MLP forward and backward over {COMPILED}, C <= 1024", "mlp", 1.03, compiled, _inputs(*narrow)),
        *(Target("P11", f"norms {mode}, share of copy bandwidth", "norms", bar, copy_share(OURS),
                 _norms(mode, NORM_WIDTHS)) for mode, bar in (("forward", 0.90), ("backward", 0.80))),
        *(Target("P11", f"norms {mode} over {COMPILED}", "norms", 1.0, compiled, _norms(mode, COMPILED_WIDTHS))
          for mode in ("forward", "backward")),
        Target("P12", "cross entropy, share of copy bandwidth", "cross_entropy", 0.85, copy_share(OURS)),
        Target("P12", f"cross entropy over {COMPILED}", "cross_entropy", 1.2, compiled),
        Target("P13", f"head and loss, time over that of {COMPILED}", "linear_ce", 1.05, ratio(COMPILE, OURS),
               at_most=True),
        Target("P13", "head and loss, memory beside dX and dW over 256 MB", "block_memory", 1.0, share(OURS),
               _of("linear_cross_entropy"), at_most=True),
        Target("P14", "rotary in place, share of copy bandwidth", "rotary", 0.85, copy_share("triton!in-place"),
               _of("rotary")),
        Target("quantised", "int8 product over torch's, scaled", "quantised", 1.0, ratio(OURS, "int-mm"),
               _of("int8_linear")),
        Target("quantised", "int8 product over bf16", "quantised", 1.0, ratio(OURS, "bf16"), _of("int8_linear")),
        Target("quantised", f"{ternary}, over bf16", "quantised", 1.0, ratio(OURS, "bf16"), _of("ternary_linear")),
        Target("quantised", f"{ternary}, share of copy bandwidth", "quantised", 0.5, copy_share(OURS),
               _of("ternary_linear")),
        Target("quantised", f"rounding and tables over {COMPILED}", "quantised", 1.0, compiled,
               _of("fake_quantise", "lut", "pwl")),
        Target("step", f"training step with kernels over {COMPILED}", "step", 1.10, compiled),
        Target("step", f"training step with kernels and {COMPILED} over {COMPILED} alone", "step", 1.10,
               ratio("triton!compile", COMPILE)),
    ]  # fmt: skip


def latest(rows: Sequence[Row], part: str) -> dict[str, Times]:
    """point -> its rows by contestant; of several the last."""
    found: dict[str, Times] = {}
    for row in rows:
        if row["part"] == part:
            found.setdefault(row["point"], {})[row["contestant"]] = row
    return found


def verdict(target: Target, rows: Sequence[Row]) -> Verdict:
    copies = latest(rows, "ceilings")
    ceilings = {name: row for times in copies.values() for name, row in times.items() if row["status"] == "ok"}
    values, planned = {}, 0
    for point, times in latest(rows, target.part).items():
        if not target.where(next(iter(times.values()))):
            continue
        planned += 1
        value = target.value(times | ceilings)
        if value is not None:
            values[point] = value
    return Verdict(target, values, planned)


def window_values(rows: Sequence[Row], contestant: str) -> dict[str, float]:
    """point with a window -> time over (share of the operations) x (time without one)."""
    points = latest(rows, "window")
    found = {}
    for point, times in points.items():
        row = times.get(contestant)
        if row is None or row["window"] == "0" or row["status"] != "ok":
            continue
        for others in points.values():
            full = others.get(contestant)
            if full and full["window"] == "0" and full["D"] == row["D"] and full["status"] == "ok":
                share = float(row["flops"]) / float(full["flops"])
                found[point] = float(row["median_s"]) / (share * float(full["median_s"]))
    return found


def verdicts(rows: Sequence[Row]) -> list[Verdict]:
    found = [verdict(target, rows) for target in attention_targets() + decode_targets() + block_targets()]
    for contestant in (CONSMAX, SOFTMAX):
        target = Target("P7", f"{contestant}, window time over its share of the full time", "window", 1.25,
                        lambda times: None, at_most=True)  # fmt: skip
        values = window_values(rows, contestant)
        planned = sum(any(r["window"] != "0" for r in times.values()) for times in latest(rows, "window").values())
        found.append(Verdict(target, values, planned))
    return sorted(found, key=lambda v: v.target.name)
