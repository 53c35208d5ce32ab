"""Costs and times in the units that people read. SI prefixes, decimal; only for showing."""

_UNITS = {"energy_per_token_j": "J", "latency_s": "s", "step_time_s": "s", "flops": "FLOP", "bytes": "B", "params": ""}
_PREFIXES = {-15: "f", -12: "p", -9: "n", -6: "u", -3: "m", 0: "", 3: "k", 6: "M", 9: "G", 12: "T", 15: "P"}


def human(name: str, value: float | None) -> str:
    """Four digits and a unit; areas in mm2 (um2 below 0.01 mm2), parameters as a count."""
    if value is None:
        return "-"
    if name == "area_m2":
        return f"{value * 1e6:.4g} mm2" if value >= 1e-8 else f"{value * 1e12:.4g} um2"
    if value == 0 or name == "params" and abs(value) < 1e5:
        return f"{value:,.0f} {_UNITS.get(name, '')}".rstrip()
    power = 0
    while power > -15 and abs(value) < 0.99995 * 10.0**power:
        power -= 3
    while power < 15 and abs(value) >= 999.95 * 10.0**power:
        power += 3
    return f"{value / 10.0**power:.4g} {_PREFIXES[power]}{_UNITS.get(name, '')}".rstrip()


def clock(seconds: float | None) -> str:
    """`1 h 05 min`, `2 min 05 s`, `12 s`; `-` for what is not known."""
    if seconds is None:
        return "-"
    minutes, s = divmod(round(seconds), 60)
    hours, m = divmod(minutes, 60)
    return f"{hours} h {m:02} min" if hours else f"{m} min {s:02} s" if m else f"{s} s"
