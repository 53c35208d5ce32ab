"""Ctrl-C once lets the current step finish; twice stops at once."""

import signal
import threading
from types import FrameType


class Interrupt:
    """Context manager that notes SIGINT and SIGTERM in `requested` instead of raising, the first time."""

    def __init__(self) -> None:
        self.requested = False
        self._saved: dict[int, object] = {}

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            for handled in self._saved:  # whatever follows must not disturb the way out
                signal.signal(handled, signal.SIG_IGN)
            raise KeyboardInterrupt
        self.requested = True

    def __enter__(self) -> "Interrupt":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._saved[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._saved.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
