"""A generation in a terminal: every piece of text on the colour of its confidence, with a legend."""

import os
from collections.abc import Callable, Mapping
from typing import TextIO

from ..sample import Sample, StopStrings
from ..tokenizer import Tokenizer
from . import NAMES, Confidence, Decoder, Piece, colour, confidence, ink, pieces, visible

LEVELS = 41
# The ramp for terminals of 256 and of 16 colours: what is nearest in colour alone does not get darker steadily.
RAMPS = {"EIGHT_BIT": (231, 189, 153, 117, 75, 33, 26, 19, 17), "STANDARD": (15, 14, 12, 4)}


def obstacle_to_colour(choice: str, stream: TextIO, environ: Mapping[str, str] = os.environ) -> str | None:
    """Why there are no colours; None where there are. `choice`: auto, always or never.

    `auto` goes by NO_COLOR (no-color.org), then FORCE_COLOR, then whether `stream` is a terminal that knows colours.
    """
    if choice == "always":
        return None
    if choice == "never":
        return "--color never"
    if environ.get("NO_COLOR"):
        return "NO_COLOR is set"
    if environ.get("FORCE_COLOR"):
        return None
    if not stream.isatty():
        return "standard output is not a terminal"
    return "the terminal is of the kind 'dumb'" if environ.get("TERM") == "dumb" else None


class Painter:
    """Paints texts for the terminal at hand, in as many colours as it has."""

    def __init__(self) -> None:
        from rich.color import Color, ColorSystem
        from rich.console import Console
        from rich.style import Style

        # Whether there shall be colours is decided before; rich says how many this terminal knows.
        name = Console(force_terminal=True, no_color=False).color_system
        self.system = ColorSystem.TRUECOLOR if name == "truecolor" else ColorSystem.EIGHT_BIT
        levels = [i / (LEVELS - 1) for i in range(LEVELS)]
        papers = [Color.from_rgb(*colour(level)) for level in levels]
        if name != "truecolor":
            if name == "standard":
                self.system = ColorSystem.STANDARD
            ramp = RAMPS[self.system.name]
            papers = [Color.from_ansi(ramp[round(level * (len(ramp) - 1))]) for level in levels]
        inks = [Color.from_rgb(*ink(paper.get_truecolor())) for paper in papers]
        self.styles = [Style(color=ink, bgcolor=paper) for ink, paper in zip(inks, papers, strict=True)]

    def paint(self, text: str, value: float) -> str:
        """`text` on the colour of a confidence."""
        style = self.styles[round(min(max(value, 0.0), 1.0) * (LEVELS - 1))]
        return style.render(text, color_system=self.system)

    def continuation(self, sample: Sample, prompt: str, tokenizer: Tokenizer, mode: str) -> str:
        """What follows the prompt, in colours. A line feed shows as an arrow before it."""
        found = confidence(sample.steps, mode)
        parts = pieces(tokenizer, sample.tokens, len(sample.text) - len(prompt))
        return "".join(self._piece(piece, found) for piece in parts)

    def _piece(self, piece: Piece, found: Confidence) -> str:
        """A piece of several tokens has the colour of the least sure one."""
        value = min(found.values[piece.first : piece.last + 1])
        lines = piece.text.split("\n")
        shown = ["".join(c if c == " " else visible(c) for c in line) for line in lines]
        shown = [line + NAMES["\n"] for line in shown[:-1]] + shown[-1:]
        return "\n".join(self.paint(line, value) if line else "" for line in shown)

    def legend(self, sample: Sample, mode: str) -> str:
        """What the colours of this sample mean, in one line."""
        found = confidence(sample.steps, mode)
        swatches = "".join(self.paint(f" {words} ", value) for value, words in found.legend)
        return f"{found.title} ({mode}): {swatches}"


class Stream:
    """Shows a text while it grows: whole characters, and nothing that could still become part of a stop string."""

    def __init__(self, tokenizer: Tokenizer, stops: StopStrings, write: Callable[[str], object]):
        self.decoder, self.stops, self.write = Decoder(tokenizer), stops, write
        self.held = max(map(len, stops.strings), default=1) - 1
        self.text, self.shown = "", 0

    def add(self, sample: int, token: int) -> None:
        """The next token of the only sample."""
        self.text += self.decoder.add(token)
        ended = self.stops.cut(self.text)
        self._show(ended if len(ended) < len(self.text) else self.text[: max(0, len(self.text) - self.held)])

    def end(self, text: str) -> None:
        """The text as it is in the end."""
        self._show(text)

    def _show(self, text: str) -> None:
        if len(text) > self.shown:
            self.write(text[self.shown :])
            self.shown = len(text)
