"""Numbers as people read them: three significant digits, a prefix, an interval in the scale of its value.

Prefixes are decimal. Seconds, joules, watts take small ones (m, u, n, ...); areas are in mm2 or um2; counts, ratios and
rates take none below 1. Everywhere else values are in SI units.
"""

from collections.abc import Mapping

_LARGE = ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))
_SMALL = ((1.0, ""), (1e-3, "m"), (1e-6, "\u00b5"), (1e-9, "n"), (1e-12, "p"), (1e-15, "f"), (1e-18, "a"))
_TAKES_SMALL = frozenset({"s", "J", "W", "m", "J/B", "J/FLOP", "J/op", "s/element"})
_AREA = ((1e-8, 1e-6, "mm\u00b2"), (0.0, 1e-12, "\u00b5m\u00b2"))  # from, unit, name
SPACE = "\u202f"  # narrow, and does not break


def scale(value: float, unit: str) -> tuple[float, str]:
    """(factor, unit with prefix) in which a value has one to three digits before the point, where there is one."""
    size = abs(value)
    if unit == "m2":
        return next((factor, name) for least, factor, name in _AREA if size >= least)
    steps = [*_LARGE, *_SMALL] if unit in _TAKES_SMALL else [*_LARGE, (1.0, "")]
    if not size:
        return 1.0, unit
    factor, prefix = next(((f, p) for f, p in steps if size >= f * 0.9995), steps[-1])
    return factor, prefix + unit


def digits(value: float, significant: int = 3) -> str:
    """Significant digits without an exponent; whole numbers from 1000 on have separators."""
    if not value:
        return "0"
    if float(value).is_integer() and abs(value) < 10**significant:
        return f"{value:.0f}"
    text = f"{value:.{significant}g}"
    rounded = float(text)
    if abs(rounded) >= 10 ** (significant - 1):
        return f"{value:,.0f}"
    if abs(rounded) < 1e-4:
        return text
    places = significant
    while abs(rounded) >= 10 ** (significant - places):
        places -= 1
    while abs(rounded) < 10 ** (significant - places - 1):
        places += 1
    return f"{value:.{places}f}"


def figure(value: float, unit: str = "", significant: int = 3) -> str:
    """figure(1.2138e-4, 'J') is '121 uJ', with a Greek mu."""
    factor, name = scale(value, unit)
    return f"{digits(value / factor, significant)}{SPACE if name else ''}{name}"


def interval(quantity: Mapping[str, float], unit: str = "") -> tuple[str, str]:
    """The ends of a quantity in the scale of its value, without the unit."""
    factor, _ = scale(quantity["value"], unit)
    return digits(quantity["low"] / factor), digits(quantity["high"] / factor)


def ratio(value: float) -> str:
    """Three digits after the point where a factor is near 1, since there the difference matters."""
    return f"{value:.3f}" if 0.1 <= value < 9.9995 else digits(value)


def ratio_text(found: Mapping[str, float]) -> str:
    """x0.913 [0.850, 0.951]; without the interval where it has no width."""
    text = f"\u00d7{ratio(found['value'])}"
    ends = ratio(found["low"]), ratio(found["high"])
    return text if ends[0] == ends[1] else f"{text} [{ends[0]}, {ends[1]}]"


def percent(share: float) -> str:
    """A share (0..1) in percent; '<0.1 %' for next to nothing."""
    if 0 < abs(share) < 0.0005:
        return f"<0.1{SPACE}%"
    return f"{100 * share:.1f}{SPACE}%" if share else f"0{SPACE}%"
