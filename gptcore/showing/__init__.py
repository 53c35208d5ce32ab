"""How a generation is shown, wherever that is: confidence as a number from 0 to 1, its colour, and names of tokens.

One lightness ramp for terminal, figure and page, from pale (unsure) to dark blue (sure): the "Blues" of ColorBrewer
(colorbrewer2.org), which colour-blind readers and grey prints tell apart by lightness alone.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..errors import DataError
from ..tokenizer import Tokenizer

if TYPE_CHECKING:
    from ..candidates import Step

MODES = ("minmax", "softmax", "rank")
WORST_RANK = 100  # and below: no confidence at all
DRAWN = "#d55e00"  # what marks the drawn token: orange is far from blue for every kind of colour vision

RGB = tuple[int, int, int]
_BLUES = ("f7fbff", "deebf7", "c6dbef", "9ecae1", "6baed6", "4292c6", "2171b5", "08519c", "08306b")
NAMES = {" ": "\u2423", "\n": "\u21b5", "\t": "\u21e5"}
_MARKS = (0.0, 0.25, 0.5, 0.75, 1.0)  # places of a legend


@dataclass(frozen=True)
class Confidence:
    """How sure the model was of each drawn token, from 0 to 1, and what the numbers mean.

    `legend` gives the measured quantity at some confidences; `title` says what it is.
    """

    mode: str
    title: str
    values: tuple[float, ...]
    legend: tuple[tuple[float, str], ...]


def confidence(steps: Sequence["Step"], mode: str) -> Confidence:
    """The confidence of each step.

    minmax: its logit, between the smallest and the largest of these steps. softmax: its probability for the model
    (temperature 1, whole vocabulary). rank: 1 for the likeliest token, falling with the logarithm of the rank to 0 at
    rank 100 and beyond.
    """
    if mode == "softmax":
        title, values = "probability of the drawn token", [step.probability for step in steps]
        legend = [f"{mark:g}" for mark in _MARKS]
    elif mode == "rank":
        title = "rank of the drawn token"
        values = [max(0.0, 1 - math.log(step.rank, WORST_RANK)) for step in steps]
        legend = [f"{WORST_RANK ** (1 - mark):.0f}" for mark in _MARKS]
        legend[0] += "+"
    elif mode == "minmax":
        title, logits = "logit of the drawn token", [step.logit for step in steps]
        low, high = min(logits, default=0.0), max(logits, default=0.0)
        values = [(logit - low) / (high - low) if high > low else 1.0 for logit in logits]
        legend = [f"{low + mark * (high - low):.1f}" for mark in _MARKS]
    else:
        raise ValueError(f"no mode {mode!r}; there are {', '.join(MODES)}")
    return Confidence(mode, title, tuple(values), tuple(zip(_MARKS, legend, strict=True)))


def colour(value: float) -> RGB:
    """The ramp at `value`, cut to 0..1."""
    place = min(max(value, 0.0), 1.0) * (len(_BLUES) - 1)
    below = min(int(place), len(_BLUES) - 2)
    ends = [bytes.fromhex(_BLUES[i]) for i in (below, below + 1)]
    r, g, b = (round(x + (y - x) * (place - below)) for x, y in zip(*ends, strict=True))
    return r, g, b


def ink(paper: RGB) -> RGB:
    """Black or white, whichever stands out more: a contrast (WCAG 2.1) of at least 4.58 on any colour."""
    linear = [c / 255 / 12.92 if c <= 10 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in paper]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    # Equal at sqrt(1.05 * 0.05) - 0.05, where (1.05 / (L + 0.05)) is ((L + 0.05) / 0.05).
    return (0, 0, 0) if luminance > math.sqrt(1.05 * 0.05) - 0.05 else (255, 255, 255)


def hexed(rgb: RGB) -> str:
    return "#{:02x}{:02x}{:02x}".format(*rgb)


def visible(text: str) -> str:
    """`text` with a sign for each space, tab and line feed, and an escape such as \\x1b for what has no shape."""
    return "".join(NAMES.get(c) or (c if c.isprintable() else c.encode("unicode_escape").decode()) for c in text)


def label(tokenizer: Tokenizer, token: int, width: int | None = None) -> str:
    """A token as one visible word of at most `width` characters.

    A token without text of its own (part of a character, an id the tokenizer does not use) is `#id`.
    """
    try:
        text = tokenizer.decode([token])
    except DataError:
        text = ""
    if not text or "\ufffd" in text:
        return f"#{token}"
    name = visible(text)
    return name if width is None or len(name) <= width else name[: width - 1] + "\u2026"


class Decoder:
    """Text of tokens that come one by one, in pieces of whole characters: joined, they are the text of all tokens."""

    def __init__(self, tokenizer: Tokenizer):
        self.tokenizer = tokenizer
        self.waiting: list[int] = []

    def add(self, token: int) -> str:
        """The text that this token completes; "" while the last character is not complete."""
        self.waiting.append(token)
        text = self.tokenizer.decode(self.waiting)
        return "" if text.endswith("\ufffd") else self._give(text)

    def rest(self) -> str:
        """What is left at the end, complete or not."""
        return self._give(self.tokenizer.decode(self.waiting))

    def _give(self, text: str) -> str:
        self.waiting = []
        return text


@dataclass(frozen=True)
class Piece:
    """Text of the tokens `first` to `last`, of whole characters."""

    text: str
    first: int
    last: int


def pieces(tokenizer: Tokenizer, tokens: Sequence[int], characters: int | None = None) -> list[Piece]:
    """The text of `tokens` in the smallest pieces of whole tokens and whole characters, cut after `characters`."""
    decoder, found, first = Decoder(tokenizer), [], 0
    left = characters if characters is not None else len(tokenizer.decode(tokens))
    for i, token in enumerate(tokens):
        text = decoder.add(token)
        if i == len(tokens) - 1 and decoder.waiting:
            text = decoder.rest()
        if text or not decoder.waiting:
            if left > 0:
                found.append(Piece(text[:left], first, i))
            first, left = i + 1, left - len(text)
    return found
