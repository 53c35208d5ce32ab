"""Pieces of HTML that the pages are made of. Text is escaped here and nowhere else.

A number is `<data value="...">text</data>`: the value as in the document, in SI units, and as people read it. Pages are
well-formed XML too, apart from style and script, so that a test (or a program) can parse them.
"""

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from ..figure import GRADES
from .units import digits, figure, interval, percent, ratio

_HERE = Path(__file__).parent
STYLE = (_HERE / "page.css").read_text(encoding="utf-8")
SCRIPT = (_HERE / "page.js").read_text(encoding="utf-8")
# Nothing is fetched, whatever a name in a report may say.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
GRADE_MEANING = {
    "measured": "on the real thing, by its owner or a published measurement of it",
    "synthesised": "by us, from RTL that equals its bit-accurate model",
    "published": "by somebody else: a paper, a data sheet, a standard",
    "estimate": "by reasoning, which its source states",
}
assert set(GRADE_MEANING) == set(GRADES)
_MARKS = {"measured": "\u25cf", "synthesised": "\u25d5", "published": "\u25d1", "estimate": "\u25cb"}


def text(value: Any) -> str:
    """Anything as text that is safe in an element and in an attribute."""
    return escape(str(value), quote=True)


def number(value: float, unit: str = "", significant: int = 3, shown: str | None = None) -> str:
    """A number; `shown` replaces how it is read, for numbers in the scale of another."""
    return f'<data value="{value!r}">{text(figure(value, unit, significant) if shown is None else shown)}</data>'


def share(value: float) -> str:
    """A share (0..1) in percent."""
    return number(value, shown=percent(value))


def whole(value: int) -> str:
    """An exact count with separators."""
    return number(value, shown=f"{value:,}")


def ends(quantity: Mapping[str, float], unit: str = "") -> str:
    """[low, high] in the scale of the value; nothing where the value is exact."""
    if quantity["low"] == quantity["high"]:
        return ""
    low, high = interval(quantity, unit)
    return f'<span class="iv">[{number(quantity["low"], shown=low)}, {number(quantity["high"], shown=high)}]</span>'


def quantity(found: Mapping[str, float], unit: str = "") -> str:
    """121 uJ [50.0, 307]."""
    return f"{number(found['value'], unit)} {ends(found, unit)}".rstrip()


def factor(found: Mapping[str, float]) -> str:
    """x0.913 [0.850, 0.951]."""
    low, high = ratio(found["low"]), ratio(found["high"])
    told = number(found["value"], shown=f"\u00d7{ratio(found['value'])}")
    if low == high:
        return told
    return (
        f'{told} <span class="iv">[{number(found["low"], shown=low)}, {number(found["high"], shown=high)}]</span>'
    )  # fmt: skip


def spread(value: float) -> str:
    """How far a constant may be off; a dash where nobody has said."""
    return "\u2013" if value == 1 else f"\u00d7\u00f7{number(value, shown=digits(value))}"


def badge(grade: str) -> str:
    """The grade of a number, by word and mark: colour alone would not do."""
    return f'<span class="badge g-{text(grade)}"><i aria-hidden="true">{_MARKS.get(grade, "")}</i> {text(grade)}</span>'


def whisker_row(name: str, found: Mapping[str, Any], unit: str, drawn: str, note: str) -> str:
    """A row of a card: name, value, interval as a figure and in numbers, grade."""
    return (
        f'<tr><th scope="row" title="{text(note)}">{text(name)}</th><td class="v">{number(found["value"], unit)}</td>'
        f'<td class="i">{ends(found, unit)}</td><td class="w">{drawn}</td>'
        f'<td class="g">{badge(found["grade"])}</td></tr>'
    )


def table(
    head: Sequence[str], rows: Iterable[Sequence[str]], *, caption: str, kinds: str = "t", style: str = ""
) -> str:  # fmt: skip
    """Cells are HTML. `kinds` says of each column whether it holds text (t) or numbers (n); numbers where it ends. The
    first column heads its row.
    """
    kinds = kinds.ljust(len(head), "n")
    cells = "".join(
        f'<th scope="col" class="{kind}">{cell}</th>' for kind, cell in zip(kinds, head, strict=True)
    )  # fmt: skip
    lines = [
        f'<tr><th scope="row">{row[0]}</th>'
        + "".join(f'<td class="{kind}">{cell}</td>' for kind, cell in zip(kinds[1:], row[1:], strict=True))
        + "</tr>"
        for row in rows
    ]
    return (
        f'<div class="wide"><table class="{style}"><caption>{text(caption)}</caption><thead><tr>{cells}</tr></thead>\n'
        f"<tbody>{chr(10).join(lines)}</tbody></table></div>"
    )


def behind(title: str, body: str, *, opened: bool = False) -> str:
    """Something that one may want to see: the table behind a figure."""
    return f"<details{' open=' + chr(34) * 2 if opened else ''}><summary>{text(title)}</summary>{body}</details>"


def panel(identity: str, title: str, lead: str, body: str) -> str:
    """A section of the page; `lead` is a sentence of HTML."""
    lead = f'<p class="lead">{lead}</p>' if lead else ""
    return (
        f'<section id="{identity}" aria-labelledby="{identity}-h"><h2 id="{identity}-h">{text(title)}</h2>{lead}{body}'
        "</section>\n"
    )


def document(title: str, body: str) -> str:
    """The file: no resource outside it."""
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8"/>\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}"/>\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1"/>\n'
        '<meta name="color-scheme" content="light dark"/>\n'
        f"<title>{text(title)}</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n{body}\n"
        f"<script>\n{SCRIPT}</script>\n</body>\n</html>\n"
    )
