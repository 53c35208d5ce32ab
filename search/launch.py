"""How a worker process is started, watched and killed: each in a fresh interpreter, or forked from a warm one.

A fresh interpreter costs 3 to 4 CPU-seconds before the first step, nearly all of it the import of torch; a fork of the
process of `search.warm`, which has imported it, a tenth of that.
"""

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from .trial import TrialSpec
from .warm import ended, kill_group
from .worker import LOG, SPEC

POLL_S = 0.02
ORPHAN_S = 2.0  # for an orphan to vanish
CLOSE_S = 10.0  # for the server to kill its workers


@dataclass(slots=True)
class Child:
    """A worker: `pid`, also that of its process group, and `began` (monotonic) once it runs; `code` once it ended."""

    number: int
    pid: int | None = None
    began: float | None = None
    code: int | None = None


class Launcher(Protocol):
    def start(self, spec: TrialSpec, env: dict[str, str]) -> Child: ...

    def watch(self, timeout_s: float) -> None:
        """Brings the children up to date; returns early when one of them changed, or after a while."""

    def kill(self, child: Child) -> None:
        """Kills the whole group, now; `watch` notices."""

    def close(self) -> None:
        """Kills all that runs."""


def _python(module: str, *arguments: str) -> list[str]:
    return [sys.executable, "-m", module, *arguments]


def environment(changes: dict[str, str]) -> dict[str, str]:
    """This process's, with the packages of this program importable whatever the working directory."""
    paths = [str(Path(__file__).resolve().parents[1]), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in paths if path), **changes}


class Fresh:
    """`python -m search.worker` for each trial."""

    def __init__(self, work: str):
        self.work = work
        self.children: list[Child] = []
        self.lifeline, self.held = os.pipe()

    def start(self, spec: TrialSpec, env: dict[str, str]) -> Child:
        folder = Path(spec.folder)
        command = _python("search.worker", "--work", self.work, "--lifeline", str(self.lifeline))
        with open(folder / SPEC, "rb") as source, open(folder / LOG, "wb") as log:
            process = subprocess.Popen(
                command, stdin=source, stdout=log, stderr=log, start_new_session=True, env=environment(env),
                pass_fds=(self.lifeline,),
            )  # fmt: skip
        process.returncode = 0  # it is waited for here, and not by subprocess's own clean-up
        child = Child(process.pid, process.pid, time.monotonic())
        self.children.append(child)
        return child

    def watch(self, timeout_s: float) -> None:
        if not self._reap():
            time.sleep(min(timeout_s, POLL_S))
            self._reap()

    def _reap(self) -> bool:
        before = len(self.children)
        for child in self.children:
            child.code = ended(child.number)
        self.children = [child for child in self.children if child.code is None]
        return len(self.children) < before

    def kill(self, child: Child) -> None:
        if child.code is None:
            kill_group(child.number)

    def close(self) -> None:
        for child in self.children:
            self.kill(child)
        while self.children:
            self.watch(POLL_S)
        for number in (self.lifeline, self.held):
            os.close(number)


class Warm:
    """Forks of one process that `python -m search.warm` started; started anew should it die."""

    def __init__(self, work: str):
        self.work = work
        self.children: dict[int, Child] = {}
        self.server: subprocess.Popen | None = None
        self.buffer = b""
        self.count = 0

    def start(self, spec: TrialSpec, env: dict[str, str]) -> Child:
        child = self.children[self.count] = Child(self.count)
        self.count += 1
        folder = Path(spec.folder).absolute()
        request = {"id": child.number, "spec": spec.to_json(), "log": str(folder / LOG), "env": env}
        if self.server is None:
            self.buffer = b""
            self.server = subprocess.Popen(
                _python("search.warm", "--work", self.work), stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                start_new_session=True, env=environment({}), bufsize=0,
            )  # fmt: skip
        self._send(request)
        return child

    def _send(self, request: dict) -> None:
        assert self.server is not None and self.server.stdin is not None
        text = memoryview(json.dumps(request).encode() + b"\n")
        try:
            while text:
                text = text[self.server.stdin.write(text) :]
        except BrokenPipeError:
            self._lost()

    def watch(self, timeout_s: float) -> None:
        if self.server is None:
            time.sleep(min(timeout_s, POLL_S))
            return
        assert self.server.stdout is not None
        if not select.select([self.server.stdout], [], [], timeout_s)[0]:
            return
        received = os.read(self.server.stdout.fileno(), 65536)
        if not received:
            return self._lost()
        *lines, self.buffer = (self.buffer + received).split(b"\n")
        for line in lines:
            answer = json.loads(line)
            child = self.children[answer["id"]]
            if "pid" in answer:
                child.pid, child.began = answer["pid"], time.monotonic()
            else:
                child.code = answer["code"]
                del self.children[child.number]

    def _lost(self) -> None:
        """The server has died, and its children, who watch it, die too; an orphan must not outlive this call."""
        self._end_server()
        until = time.monotonic() + ORPHAN_S
        for child in self.children.values():
            while child.pid is not None and _alive(child.pid) and time.monotonic() < until:
                kill_group(child.pid)
                time.sleep(POLL_S)
            child.code = -signal.SIGKILL
        self.children.clear()

    def kill(self, child: Child) -> None:
        if self.server is not None and child.code is None:
            self._send({"kill": child.number})

    def close(self) -> None:
        if self.server is not None and any(child.pid is not None for child in self.children.values()):
            assert self.server.stdin is not None
            self.server.stdin.close()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.server.wait(CLOSE_S)
        if self.server is not None:
            self._lost()

    def _end_server(self) -> None:
        assert self.server is not None
        for pipe in (self.server.stdin, self.server.stdout):
            if pipe is not None:
                pipe.close()
        if self.server.returncode is None:
            kill_group(self.server.pid)
            self.server.wait()
        self.server = None


def _alive(pid: int) -> bool:
    """Whether it runs; a dead process that no one has collected does not."""
    try:
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in ("Z", "X")
    except ProcessLookupError:
        return False
    except FileNotFoundError:
        return not Path("/proc/self").exists()
