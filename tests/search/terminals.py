"""A program in a terminal of its own: presses keys, reads the screen, and tells whether the terminal was restored."""

import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
LIMIT_S = 30
CODES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


def environment():
    env = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR")}
    return {**env, "PYTHONPATH": str(ROOT), "TERM": "xterm-256color"}


class Terminal:
    """Runs Python code. A context manager."""

    def __init__(self, code, *args, lines=24, columns=100):
        self.master, self.slave = pty.openpty()
        fcntl.ioctl(self.slave, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
        self.before, self.said = termios.tcgetattr(self.slave), ""
        self.process = subprocess.Popen(
            [sys.executable, "-c", code, *map(str, args)], stdin=self.slave, stdout=self.slave, stderr=self.slave,
            env=environment(), cwd=ROOT, start_new_session=True,
        )  # fmt: skip

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.process.kill()
        self.process.wait()
        os.close(self.master), os.close(self.slave)

    def _read(self):
        if select.select([self.master], [], [], 0.05)[0]:
            self.said += os.read(self.master, 65536).decode(errors="replace")
            return True
        return False

    def press(self, keys):
        os.write(self.master, keys.encode())

    def until(self, pattern, keys=""):
        """Presses keys; what was drawn since the cursor was last at the top, as soon as the pattern is in it."""
        self.press(keys)
        deadline = time.monotonic() + LIMIT_S
        screen = ""
        while time.monotonic() < deadline:
            self._read()
            screen = CODES.sub("", self.said.rpartition("\x1b[H")[2])
            if re.search(pattern, screen):
                return screen
        raise AssertionError(f"{pattern!r} is not on the screen:\n{screen}")

    def end(self):
        """The exit code, once the program has ended and all that it wrote is in `said`."""
        deadline = time.monotonic() + LIMIT_S
        while self.process.poll() is None:
            self._read()
            assert time.monotonic() < deadline, self.said
        while self._read():
            pass
        return self.process.returncode

    @property
    def restored(self):
        """The modes are what they were, the cursor is shown, and the screen is the one of before."""
        said = self.said
        cursor = said.rfind("\x1b[?25h") > said.rfind("\x1b[?25l")
        screen = said.rfind("\x1b[?1049l") > said.rfind("\x1b[?1049h") or "\x1b[?1049h" not in said
        return cursor and screen and termios.tcgetattr(self.slave) == self.before

    @property
    def text(self):
        return CODES.sub("", self.said)
