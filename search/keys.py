"""Keys of a terminal, one by one and without echo. Every mode is put back on the way out, whatever the way.

    with Keyboard() as keyboard:
        for key in keyboard.read(1.0): ...      "q", "up", "pgdn", "tab", "enter", "escape", "backspace", "resize" ...

SIGTERM and SIGHUP end the block by SystemExit, so that they are ways out like any other. Ctrl-Z is off: a stopped
program would leave its screen and its modes to the shell. Main thread only, as signals are.
"""

import codecs
import contextlib
import os
import re
import select
import signal
import sys
import termios
from types import FrameType, TracebackType
from typing import Any

NAMED = {
    "\x1b[A": "up", "\x1b[B": "down", "\x1bOA": "up", "\x1bOB": "down", "\x1b[5~": "pgup", "\x1b[6~": "pgdn",
    "\x1b[H": "home", "\x1b[F": "end", "\x1b[1~": "home", "\x1b[4~": "end", "\x1bOH": "home", "\x1bOF": "end",
    "\t": "tab", "\r": "enter", "\n": "enter", "\x1b": "escape", "\x7f": "backspace", "\b": "backspace",
    "\x03": "q", "\x04": "q",
}  # fmt: skip
KEY = re.compile(r"\x1b\[[0-9;]*[A-Za-z~]|\x1bO.|.", re.DOTALL)
BEGUN = re.compile(r"\x1b(\[[0-9;]*|O)?$")  # what may be the start of a longer key
SEQUENCE_S = 0.05  # bytes of one key come closer together than this
ENDS = (signal.SIGTERM, signal.SIGHUP)


class Keyboard:
    """The keyboard of the terminal that standard input is."""

    def __init__(self, fd: int | None = None):
        self.fd = sys.stdin.fileno() if fd is None else fd
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="ignore")
        self._modes: list[Any] = []
        self._handlers: dict[int, Any] = {}
        self._waker: tuple[int, int] = (-1, -1)

    def __enter__(self) -> "Keyboard":
        self._modes = termios.tcgetattr(self.fd)
        for number in ENDS:
            self._handlers[number] = signal.signal(number, _end)
        self._handlers[signal.SIGWINCH] = signal.signal(signal.SIGWINCH, _nothing)
        self._waker = os.pipe()  # a signal writes to it: a change of size is drawn at once
        for end in self._waker:
            os.set_blocking(end, False)
        signal.set_wakeup_fd(self._waker[1], warn_on_full_buffer=False)
        modes = termios.tcgetattr(self.fd)
        modes[3] &= ~(termios.ICANON | termios.ECHO)
        modes[6] = list(modes[6])
        modes[6][termios.VMIN], modes[6][termios.VTIME], modes[6][termios.VSUSP] = 1, 0, b"\0"
        termios.tcsetattr(self.fd, termios.TCSADRAIN, modes)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with contextlib.suppress(termios.error):  # a terminal that is gone has no modes
            termios.tcsetattr(self.fd, termios.TCSADRAIN, self._modes)
        signal.set_wakeup_fd(-1)
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        for end in self._waker:
            os.close(end)

    def read(self, timeout_s: float) -> list[str]:
        """The keys pressed since the last call; waits for one. A terminal that is gone presses `q`."""
        ready, _, _ = select.select([self.fd, self._waker[0]], [], [], timeout_s)
        keys = []
        if self._waker[0] in ready:
            os.read(self._waker[0], 1024)
            keys.append("resize")
        if self.fd in ready:
            text = self._text()
            while BEGUN.search(text) and select.select([self.fd], [], [], SEQUENCE_S)[0]:
                text += self._text()
            keys += [NAMED.get(key, key) for key in KEY.findall(text)]
        return keys

    def _text(self) -> str:
        try:
            found = os.read(self.fd, 1024)
        except OSError:
            found = b""
        return self._decoder.decode(found) if found else "\x04"


def _end(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)


def _nothing(number: int, frame: FrameType | None) -> None:
    pass
