"""Numbers in the form that people read. SI prefixes, decimal (1 k = 1e3); only for showing."""

_PREFIXES = ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))
_SMALL = ((1.0, ""), (1e-3, "m"), (1e-6, "u"), (1e-9, "n"), (1e-12, "p"), (1e-15, "f"), (1e-18, "a"))


def si(value: float, unit: str = "") -> str:
    """Four significant digits with a decimal prefix: si(291648307200, 'FLOP') is '291.6 GFLOP'."""
    prefixes = (*_PREFIXES, *_SMALL) if unit and 0 < value < 1 else _PREFIXES
    for factor, prefix in prefixes:
        if value >= factor * 0.99995:
            scaled = value / factor
            digits = 3 if scaled < 9.9995 else 2 if scaled < 99.995 else 1
            return f"{scaled:.{digits}f} {prefix}{unit}".rstrip()
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return f"{text} {unit}".rstrip()
