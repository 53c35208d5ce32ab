"""Costs, gains and moves as people read them, on the page and in the figures. Prefixes exist only here."""

from collections.abc import Mapping

from ppa.page.elements import number, text
from ppa.page.units import SPACE, digits, figure, scale

from ..paired import Interval
from ..view_records import Point, Score, StudyView, cost_names

_COSTS = {
    "params": ("parameters", ""), "area_m2": ("area", "m2"), "energy_per_token_j": ("energy per token", "J"),
    "latency_s": ("latency", "s"), "step_time_s": ("measured step time", "s"), "flops": ("FLOPs", "FLOP"),
    "bytes": ("bytes moved", "B"),
}  # fmt: skip
_SCORES = {
    "loss": "validation loss, nats", "exp(-loss)": "probability of a token", "bits_per_byte": "loss, bits a byte"
}  # fmt: skip
MEASURED = {
    "none": "not measured", "selection": "at selection", "fresh": "on fresh seeds, not confirmed",
    "confirmed": "confirmed on fresh seeds", "start": "the start",
}  # fmt: skip


def cost_title(cost: str) -> tuple[str, str]:
    """(title, unit); another cost is called by its name, whose end is its unit."""
    if cost in _COSTS:
        return _COSTS[cost]
    name, _, unit = cost.rpartition("_")
    unit = {"s": "s", "j": "J", "m2": "m2", "bytes": "B"}.get(unit, "") if name else ""
    return (name if unit else cost).replace("_", " "), unit


def score_title(score: Score) -> str:
    """What stands at an axis of scores."""
    if score.start is None:
        return f"gain over the start, {score.unit}"
    return _SCORES.get(score.name, score.unit)


def rule_title(view: StudyView) -> str:
    """The cost that decides, in words."""
    titles = [cost_title(name)[0] for name in cost_names(view.settings)]
    if view.settings.get("cost", {}).get("weights"):
        return f"weighted mean of {', '.join(titles)}"
    return ", then ".join(titles) or "cost"


def called(name: str) -> str:
    """The name of a move."""
    return name.replace("->", "\u2192")


def places_for(value: float) -> int:
    """Decimals that show a gain: four, more for a small one."""
    places = 4
    while value and abs(value) < 50 * 10.0**-places and places < 9:
        places += 1
    return places


def signed(value: float, places: int | None = None) -> str:
    """+0.0519; a real minus sign."""
    shown = f"{value:+.{places_for(value) if places is None else places}f}"
    return shown.replace("-", "\u2212") if float(shown) else shown.lstrip("+-")


def gain_words(gain: Interval, unit: str = "") -> str:
    """+0.0519 [+0.0112, +0.0926] nats, as text."""
    places = places_for(gain.mean)
    ends = (
        "" if gain.low is None or gain.high is None else f" [{signed(gain.low, places)}, {signed(gain.high, places)}]"
    )
    return f"{signed(gain.mean, places)}{ends}{SPACE if unit else ''}{unit}"


def gain_cell(gain: Interval, unit: str = "") -> str:
    """The same as HTML."""
    places = places_for(gain.mean)
    best = number(gain.mean, shown=f"{signed(gain.mean, places)}{SPACE if unit else ''}{unit}")
    if gain.low is None or gain.high is None or gain.low == gain.high:
        return best
    low, high = (number(end, shown=signed(end, places)) for end in (gain.low, gain.high))
    return f'{best} <span class="iv">[{low}, {high}]</span>'


def score_words(score: Score, gain: Interval) -> str:
    """The score at a gain, with its interval, as text."""
    if score.start is None:
        return gain_words(gain, score.unit)
    ends = ""
    if gain.low is not None and gain.high is not None and gain.low != gain.high:
        low, high = sorted((score.at(gain.low), score.at(gain.high)))
        ends = f" [{low:.4f}, {high:.4f}]"
    return f"{score.at(gain.mean):.4f}{ends}"


def cost_words(cost: str, costs: Mapping[str, float], intervals: Mapping[str, tuple[float, float]]) -> str:
    """121 uJ [50.0, 307], as text."""
    unit, value = cost_title(cost)[1], costs[cost]
    low, high = intervals.get(cost, (value, value))
    factor, _ = scale(value, unit)
    ends = f" [{digits(low / factor)}, {digits(high / factor)}]" if low != high else ""
    return f"{figure(value, unit)}{ends}"


def percent_change(before: float, after: float) -> str:
    """-8.1 %, as HTML. Nothing where it began at zero."""
    if not before:
        return ""
    share = after / before - 1
    size = f"{100 * abs(share):.1f}" if abs(share) >= 5e-4 else "<0.1"
    shown = f"{'+' if share > 0 else chr(0x2212)}{size}"
    return number(share, shown=f"{shown}{SPACE}%") if share else "unchanged"


def change_cell(view: StudyView, change: float | tuple[float, ...] | None) -> str:
    """A change of the cost that decides, as HTML: in its unit, or relative to the start."""
    if change is None:
        return "\u2013"
    if isinstance(change, tuple):
        names = cost_names(view.settings)
        parts = [_amount(c, cost_title(name)[1]) for name, c in zip(names, change, strict=False)]
        return f"({', '.join(parts)})"
    if view.settings.get("cost", {}).get("name"):
        return _amount(change, cost_title(cost_names(view.settings)[0])[1])
    return number(change, shown=f"{signed(100 * change, 2)}{SPACE}%") if change else "0"


def _amount(change: float, unit: str) -> str:
    sign = "\u2212" if change < 0 else "+"
    return number(change, shown=f"{sign}{figure(abs(change), unit)}") if change else "0"


def ratio_cell(view: StudyView, ratio: float | None) -> str:
    """Gain per unit of added cost, in the scale of the start's cost; per 1 % of it where costs are relative."""
    names, unit = cost_names(view.settings), text(view.score.unit)
    if ratio is None or view.start is None:
        return "\u2013"
    if not view.settings["cost"].get("name"):
        return number(ratio, shown=f"{digits(ratio / 100)} {unit} per %")
    factor, name = scale(view.start.costs[names[0]], cost_title(names[0])[1])
    per = name if names[0] != "params" else f"{name} parameters".strip()
    return number(ratio, shown=f"{digits(ratio * factor)} {unit} per {text(per)}")


def point_words(view: StudyView, point: Point, cost: str) -> str:
    """What a mark of a chart is, in a line."""
    where = f"round {point.round}: {called(point.name)}" if point.round else called(point.name)
    found = ""
    if point.gain is not None and point.measured != "start":
        on = f"{MEASURED[point.measured]}, {point.gain.seeds} seeds"
        found = f" \u00b7 gain {signed(point.gain.mean)} {view.score.unit} over the start, {on}"
    title, shown = cost_title(cost)[0], cost_words(cost, point.costs, point.intervals)
    estimate = score_words(view.score, point.gain) if point.gain else ""
    return f"{where} \u00b7 {title} {shown} \u00b7 {score_title(view.score)} {estimate}{found}"
