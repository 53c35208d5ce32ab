"""A process that has imported everything and forks a worker for each trial: start-up is paid once, not per trial.

    python -m search.warm --work module:function

Requests come as JSON lines on stdin: {"id", "spec", "log", "env"} starts a worker, {"kill": id} ends one. Answers go to
stdout: {"id", "pid"} when it runs, {"id", "code"} when it has ended and all its process group with it. This
process computes nothing, so it has no second thread and no CUDA context that a fork would break, and what a worker does
to its memory no other can see. At the end of stdin, and so at the death of the coordinator, all workers are killed;
they watch a pipe to this process for the case that it is this process that dies.
"""

import argparse
import contextlib
import importlib
import json
import os
import select
import signal
import sys
import traceback
from typing import Any, NoReturn

from .worker import WORK, attend


class Server:
    """Forks workers and waits for them; see above for what it reads and writes."""

    def __init__(self, work: str):
        self.work = work
        self.requests, self.answers = os.dup(0), os.dup(1)
        for number in (0, 1):  # what a library prints must not get among the answers
            os.dup2(os.open(os.devnull, os.O_RDWR), number)
        self.lifeline, self.held = os.pipe()
        self.ended, self.wake = os.pipe()
        os.set_blocking(self.ended, False)
        os.set_blocking(self.wake, False)
        self.running: dict[int, int] = {}  # pid -> id
        signal.signal(signal.SIGCHLD, lambda number, frame: None)
        signal.set_wakeup_fd(self.wake, warn_on_full_buffer=False)
        signal.signal(signal.SIGINT, signal.SIG_IGN)

    def run(self) -> None:
        buffer = b""
        while True:
            ready, _, _ = select.select([self.requests, self.ended], [], [])
            if self.ended in ready:
                os.read(self.ended, 4096)
                self._reap()
            if self.requests in ready:
                received = os.read(self.requests, 65536)
                if not received:
                    break
                *lines, buffer = (buffer + received).split(b"\n")
                for line in lines:
                    self._obey(json.loads(line))
        for pid in self.running:
            kill_group(pid)
            os.waitpid(pid, 0)

    def _obey(self, request: dict[str, Any]) -> None:
        if "kill" in request:
            for pid, number in self.running.items():
                if number == request["kill"]:
                    kill_group(pid)
            return
        pid = os.fork()
        if not pid:
            self._become_worker(request)
        self.running[pid] = request["id"]
        self._answer(id=request["id"], pid=pid)

    def _become_worker(self, request: dict[str, Any]) -> NoReturn:
        code = 1
        try:
            os.setsid()
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            signal.signal(signal.SIGINT, signal.default_int_handler)
            for number in (self.requests, self.answers, self.held, self.ended, self.wake):
                os.close(number)
            log = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666)
            os.dup2(log, 1)
            os.dup2(log, 2)
            os.environ.update(request["env"])
            code = attend(request["spec"], self.work, self.lifeline)
        except SystemExit as error:
            code = error.code if isinstance(error.code, int) else 1
        except BaseException:  # nothing may return into the server's loop
            traceback.print_exc()
        finally:
            with contextlib.suppress(Exception):
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(code)

    def _reap(self) -> None:
        for pid in list(self.running):
            code = ended(pid)
            if code is not None:
                self._answer(id=self.running.pop(pid), code=code)

    def _answer(self, **words: int) -> None:
        with contextlib.suppress(BrokenPipeError):  # the coordinator is dead: stdin will say so, and end all
            os.write(self.answers, json.dumps(words).encode() + b"\n")


def ended(pid: int) -> int | None:
    """Exit code of a child that leads a process group (minus the signal that killed it), None while it runs.

    What is left of the group is killed before the number is given back to the system.
    """
    if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
        return None
    kill_group(pid)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def kill_group(pid: int) -> None:
    """Kills a child and its process group (of which it may not have become the leader yet).

    The group first, which takes all of it at once: who is killed here between the two must not leave members that
    nothing ends any more, as their lifeline was their leader's.
    """
    for kill in (os.killpg, os.kill):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            kill(pid, signal.SIGKILL)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m search.warm", description=__doc__)
    parser.add_argument("--work", default=WORK)
    work = parser.parse_args().work
    server = Server(work)
    try:
        getattr(importlib.import_module(work.partition(":")[0]), "preload", lambda: None)()
    except Exception as error:  # each worker will meet it again and report it as the reason of its trial
        print(f"cannot import ahead ({type(error).__name__}: {error})", file=sys.stderr)
    server.run()
    return 0


if __name__ == "__main__":
    sys.exit(main())
