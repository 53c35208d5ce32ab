"""A generation as one HTML file: its text by confidence, and its heatmap. No network, no script, no time stamp.

Every token tells its numbers where the pointer rests on it. The page is well-formed XML, too, apart from its style.
"""

from collections.abc import Mapping, Sequence
from html import escape

from ..sample import Sample
from ..tokenizer import Tokenizer
from . import DRAWN, MODES, NAMES, Confidence, Piece, colour, confidence, hexed, ink, label, pieces, visible
from .heatmap import MARKS, Cell, Heatmap, heatmap

LEVELS = 24  # steps of the colour ramp
_WIDTH_PX = 1112  # of the page; a narrower window scrolls the bands
_POLICY = "default-src 'none'; style-src 'unsafe-inline'"  # nothing is fetched, whatever a model may write
_STYLE = """
:root { color-scheme: light dark; --paper: #fbfbfa; --ink: #1b222d; --soft: #5d6878; --rule: #d5dae2; --sheet: #fff; }
@media (prefers-color-scheme: dark) {
  :root { --paper: #11151b; --ink: #e6eaf0; --soft: #9aa5b5; --rule: #2b323d; --sheet: #181d25; }
}
* { box-sizing: border-box; }
body { max-width: 1160px; margin: 0 auto; padding: 24px; background: var(--paper); color: var(--ink);
  font: 15px/1.5 system-ui, "Segoe UI", Roboto, Helvetica, Arial, sans-serif; }
h1 { margin: 0 0 4px; font-size: 21px; } h2 { margin: 30px 0 6px; font-size: 18px; }
p { max-width: 60em; margin: 0 0 10px; } .soft, dl { color: var(--soft); font-size: 13.5px; }
a { color: inherit; } dl { display: flex; flex-wrap: wrap; gap: 2px 20px; margin: 0; }
dl div { display: flex; gap: 6px; } dd { margin: 0; color: var(--ink); overflow-wrap: anywhere; }
.text, table, .legend { font-family: ui-monospace, "DejaVu Sans Mono", Menlo, Consolas, monospace; }
.text { padding: 12px 14px; border: 1px solid var(--rule); border-radius: 8px; background: var(--sheet);
  font-size: 15px; line-height: 1.7; white-space: pre-wrap; overflow-wrap: anywhere; }
.text span { padding: 2px 0; } .text i { color: var(--soft); font-style: normal; }
.legend { display: none; margin: 8px 0 0; font-size: 13px; }
.legend b { padding: 2px 8px; box-shadow: inset 0 0 0 1px var(--rule); font-weight: 400; }
label { margin: 0 16px 0 4px; cursor: pointer; font-size: 14px; } .choose { margin-bottom: 10px; }
.bands { overflow-x: auto; } table { margin: 0 0 16px; border-collapse: collapse; font-size: 12.5px; }
caption { text-align: left; color: var(--soft); font-size: 12px; }
td { min-width: 22px; height: 22px; padding: 0 4px; border: 1px solid var(--paper); text-align: center;
  white-space: pre; cursor: default; }
th { position: sticky; left: 0; padding: 0 6px 0 0; background: var(--paper); color: var(--soft); font-weight: 400;
  text-align: right; white-space: nowrap; }
thead th { position: static; padding: 0; text-align: center; font-size: 11px; }
tr.drawn td { border-bottom: 5px solid var(--paper); }
"""


def build_page(
    sample: Sample, prompt: str, tokenizer: Tokenizer, *, title: str, facts: Mapping[str, str],
    links: Sequence[str] = (), mode: str = "softmax",
) -> str:  # fmt: skip
    """The page of a recorded generation. `facts` says how it came about, `links` names files beside the page."""
    grid = heatmap(sample, tokenizer)
    found = {name: confidence(sample.steps, name) for name in MODES}
    rows = "".join(f"<div><dt>{_text(name)}</dt><dd>{_text(value)}</dd></div>" for name, value in facts.items())
    files = ", ".join(f'<a href="{_text(name)}">{_text(name)}</a>' for name in links)
    chosen = {mode: ' checked="checked"'}
    buttons = "".join(
        f'<input type="radio" name="mode" id="by-{name}"{chosen.get(name, "")}/>'
        f'<label for="by-{name}">{_text(found[name].title)}</label>'
        for name in MODES
    )
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"/>'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}"/>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"/>'
        f"<title>{_text(title)}</title>\n<style>{_STYLE}{_ramp()}</style></head>\n<body>"
        f"<h1>{_text(title)}</h1>\n<dl>{rows}</dl>\n"
        f'<section><h2>Text</h2>\n<div class="choose">{buttons}\n'
        f'<div class="text">{_prompt(prompt)}{_spans(sample, prompt, tokenizer, found)}</div>\n'
        f"{''.join(map(_legend, found.values()))}</div></section>\n"
        f"<section><h2>Candidates by step</h2>\n{_heatmap(grid, tokenizer)}</section>\n"
        f'<p class="soft">All numbers: {files}</p></body></html>\n'
    )


def _text(value: object) -> str:
    return escape(str(value), quote=True)


def _level(value: float) -> int:
    return round(min(max(value, 0.0), 1.0) * LEVELS)


def _ramp() -> str:
    """A class for each level: h of the heatmap, and one letter a mode, which holds while that mode is chosen."""
    rules = [f"#by-{mode}:checked ~ .of-{mode} {{ display: block; }}" for mode in MODES]
    for level in range(LEVELS + 1):
        paper = colour(level / LEVELS)
        places = [f".h{level}", *(f"#by-{mode}:checked ~ .text .{mode[0]}{level}" for mode in MODES)]
        rules.append(f"{', '.join(places)} {{ background: {hexed(paper)}; color: {hexed(ink(paper))}; }}")
    return "\n".join([*rules, f".d {{ outline: 2.5px solid {DRAWN}; outline-offset: -2.5px; }}\n"])


def _lines(text: str) -> str:
    """Text with an arrow before each line break, and escapes for what has no shape."""
    lines = ("".join(c if c == " " else _text(visible(c)) for c in line) for line in text.split("\n"))
    return f"{NAMES[chr(10)]}<br/>".join(lines)


def _prompt(prompt: str) -> str:
    return f'<i title="prompt">{_lines(prompt)}</i>' if prompt else ""


def _spans(sample: Sample, prompt: str, tokenizer: Tokenizer, found: Mapping[str, Confidence]) -> str:
    def span(piece: Piece) -> str:
        steps = range(piece.first, piece.last + 1)
        classes = " ".join(f"{mode[0]}{_level(min(found[mode].values[i] for i in steps))}" for mode in MODES)
        told = "; ".join(
            f"step {i + 1}: {label(tokenizer, s.token)}, probability {s.probability:.3g}, rank {s.rank}"
            for i, s in ((i, sample.steps[i]) for i in steps)
        )
        return f'<span class="{classes}" title="{_text(told)}">{_lines(piece.text)}</span>'

    return "".join(map(span, pieces(tokenizer, sample.tokens, len(sample.text) - len(prompt))))


def _legend(found: Confidence) -> str:
    swatches = "".join(
        f'<b style="background:{hexed(colour(value))};color:{hexed(ink(colour(value)))}">{_text(words)}</b>'
        for value, words in found.legend
    )
    return f'<p class="legend of-{found.mode}">{_text(found.title)}: {swatches}</p>\n'


def _heatmap(grid: Heatmap, tokenizer: Tokenizer) -> str:
    width = int((_WIDTH_PX - 60) / max(23.0, 7.6 * grid.widest + 9))
    marks = "".join(f'<td class="h{_level(mark**0.5)}">{mark:g}</td>' for mark in MARKS)
    bands = "".join(_band(first, columns, grid.rows, tokenizer) for first, columns in grid.bands(width))
    return (
        '<p class="soft">A column is a step: above, the token that was drawn; below, the likeliest by rank. Colour: '
        "probability for the model (temperature 1, whole vocabulary). The drawn token has a frame.</p>\n"
        f'<table><tbody><tr><th scope="row">probability</th>{marks}<td class="d">drawn</td></tr></tbody></table>\n'
        f'<div class="bands">{bands}</div>\n'
    )


def _band(first: int, columns: Sequence[tuple[Cell, ...]], rows: int, tokenizer: Tokenizer) -> str:
    numbers = (f'<th scope="col">{n if n % 5 == 0 or n == 1 else ""}</th>' for n in range(first, first + len(columns)))
    lines = [f"<thead><tr><th>step</th>{''.join(numbers)}</tr></thead>\n<tbody>"]
    for row in range(rows):
        cells = "".join(
            _cell(column[row], first + x, row, tokenizer) if row < len(column) else "<td></td>"
            for x, column in enumerate(columns)
        )
        name, of = ("drawn", ' class="drawn"') if row == 0 else (f"rank {row}", "")
        lines.append(f'<tr{of}><th scope="row">{name}</th>{cells}</tr>\n')
    return f"<table>{''.join(lines)}</tbody></table>\n"


def _cell(cell: Cell, step: int, row: int, tokenizer: Tokenizer) -> str:
    where = f"rank {row}" if row else "drawn"
    told = f"step {step}, {where}: {label(tokenizer, cell.token)}, probability {cell.probability:.3g}"
    frame = " d" if row and cell.drawn else ""
    return f'<td class="h{_level(cell.probability**0.5)}{frame}" title="{_text(told)}">{_text(cell.name)}</td>'
