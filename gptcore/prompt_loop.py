"""A conversation with a model: text in, continuation out, and commands that change how tokens are drawn.

    HELLO                the model goes on from the text so far and this line
    (empty line)         it goes on from the text so far
    /temperature 0.5     also /top_k K, /top_p P, /tokens N, /seed N; `off` for no top_k or top_p
    /reset               the text so far is forgotten, and the seed starts over
    /settings, /help, /quit

A line that begins with a slash of its own is written with two. \\n, \\r, \\t and \\\\ stand for a line feed and so on.
The n-th continuation since the start, /reset or /seed draws with seed + n, from 0.
"""

import re
import signal
import threading
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from types import FrameType
from typing import Any

from .errors import UserError
from .registry import nearest
from .sample import Sampling

HELP = "commands: /temperature X, /top_k K|off, /top_p P|off, /tokens N, /seed N, /reset, /settings, /help, /quit"
_VALUES: dict[str, tuple[str, Callable[[str], Any], str]] = {  # command -> (setting, type, what it takes)
    "temperature": ("temperature", float, "a number"),
    "top_k": ("top_k", int, "a whole number, or off"),
    "top_p": ("top_p", float, "a number, or off"),
    "tokens": ("max_new_tokens", int, "a whole number"),
    "seed": ("seed", int, "a whole number"),
}
_OTHERS = ("reset", "settings", "help", "quit")
_OPTIONAL = ("top_k", "top_p")
_ESCAPES = {"n": "\n", "r": "\r", "t": "\t", "\\": "\\"}


@dataclass(frozen=True)
class Settings:
    """How a text is drawn. UserError for a value out of range."""

    temperature: float = 0.8
    top_k: int | None = None
    top_p: float | None = None
    seed: int = 1337
    max_new_tokens: int = 500

    def __post_init__(self) -> None:
        Sampling(self.temperature, self.top_k, self.top_p)
        if self.max_new_tokens < 0:
            raise UserError(f"max_new_tokens must not be negative, but is {self.max_new_tokens}")

    def __str__(self) -> str:
        shown = {name: value for name, value in asdict(self).items() if value is not None}
        return ", ".join(f"{name} {value}" for name, value in shown.items())


class Cancel:
    """While it is entered, Ctrl-C sets `requested`; a second one interrupts as usual."""

    def __init__(self) -> None:
        self.requested = False

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True

    def __enter__(self) -> "Cancel":
        self.in_main = threading.current_thread() is threading.main_thread()
        if self.in_main:
            self._saved = signal.signal(signal.SIGINT, self._note)
        return self

    def __exit__(self, *exception: object) -> None:
        if self.in_main:
            signal.signal(signal.SIGINT, self._saved)


def unescape(text: str) -> str:
    return re.sub(r"\\([nrt\\])", lambda match: _ESCAPES[match[1]], text)


def converse(
    read: Callable[[], str], answer: Callable[[str, str, Settings], str], say: Callable[[str], object],
    settings: Settings, text: str = "",
) -> int:  # fmt: skip
    """Reads lines until /quit or EOFError; how many of them were wrong, of which `say` tells the reason.

    `answer(text so far, what is added, settings)` shows the continuation and returns the whole text with it.
    """
    wrong = turn = 0
    while True:
        try:
            line = read()
        except EOFError:
            return wrong
        try:
            if not line.startswith("/") or line.startswith("//"):
                added = unescape(line[1:] if line.startswith("//") else line)
                text = answer(text, added, replace(settings, seed=settings.seed + turn))
                turn += 1
                continue
            name, _, value = line[1:].strip().partition(" ")
            if name == "quit":
                return wrong
            if name in _VALUES:
                settings = _changed(settings, name, value.strip())
                say(str(settings))
                turn = 0 if name == "seed" else turn
            elif name == "reset":
                text, turn = "", 0
                say("the text so far is forgotten")
            elif name == "settings":
                say(f"{settings}; {len(text):,} characters so far")
            elif name == "help":
                say(HELP)
            else:
                raise UserError(f"no command /{name}{nearest(name, [*_VALUES, *_OTHERS])}; /help lists them")
        except UserError as error:
            wrong += 1
            say(str(error))


def _changed(settings: Settings, name: str, value: str) -> Settings:
    setting, kind, takes = _VALUES[name]
    if value == "off" and name in _OPTIONAL:
        found = None
    else:
        try:
            found = kind(value)
        except ValueError:
            raise UserError(f"/{name} takes {takes}, not {value!r}") from None
    changed: dict[str, Any] = {setting: found}
    return replace(settings, **changed)
