"""Costs and times in the units that people read."""

from gptcore.units import si

_UNITS = {"energy_per_token_j": "J", "latency_s": "s", "step_time_s": "s", "flops": "FLOP", "bytes": "B"}


def human(name: str, value: float | None) -> str:
    """Four digits and a unit; areas in mm2 (um2 below 0.01 mm2), parameters as a count below 1e5."""
    if value is None:
        return "-"
    if name == "area_m2":
        return f"{value * 1e6:.4g} mm2" if value >= 1e-8 else f"{value * 1e12:.4g} um2"
    if name == "params" and value < 1e5:
        return f"{value:,.0f}"
    return si(value, _UNITS.get(name, ""))


def clock(seconds: float | None) -> str:
    """`1 h 05 min`, `2 min 05 s`, `12 s`; `-` for what is not known."""
    if seconds is None:
        return "-"
    minutes, s = divmod(round(seconds), 60)
    hours, m = divmod(minutes, 60)
    return f"{hours} h {m:02} min" if hours else f"{m} min {s:02} s" if m else f"{s} s"


def count(number: int, word: str) -> str:
    """`1 run`, `2 runs`."""
    return f"{number:,} {word}{'' if number == 1 else 's'}"
