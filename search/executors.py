"""Where trials run: in this process, or each in a process group of its own with limits on time and memory.

An executor starts trials and hands back results; it knows no ledger. Times are monotonic, so no clock that is set back
or forth ends a trial. Memory is the resident memory of the process group, looked at a few times a second: an address
space limit would count what torch and CUDA reserve and never use. A growth faster than that is the kernel's to stop.
"""

import json
import math
import os
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, Protocol

from gptcore.errors import RunError, UserError

from .launch import Child, Fresh, Launcher, Warm
from .trial import REUSABLE, State, TrialResult, TrialSpec
from .worker import LOG, RESULT, SPEC, TAIL_BYTES, WORK, run_trial

MEMORY_INTERVAL_S = 0.2


class Executor(Protocol):
    @property
    def capacity(self) -> int:
        """How many trials may be started and not yet handed back."""

    def start(self, spec: TrialSpec) -> None:
        """Starts a trial. Nothing that goes wrong with a trial raises: it becomes a result."""

    def wait(self, timeout_s: float) -> list[TrialResult]:
        """The results since the last call; waits for one until `timeout_s`."""

    def running(self) -> list[str]:
        """Keys of the trials that were started and not yet handed back."""

    def close(self) -> None:
        """Kills what runs. What it had saved is where the next attempt goes on."""


ALARM_EVERY_S = 0.5


class OutOfTime(BaseException):
    """Not an Exception, so that no one on the way takes it for a failure of what it interrupts."""


class Inline:
    """One trial at a time, in this process: `start` returns when it has ended. No memory limit.

    For a debugger, and where processes cannot be had. Time is limited by a timer signal, so on the main thread only.
    """

    capacity = 1

    def __init__(self) -> None:
        self._results: list[TrialResult] = []

    def start(self, spec: TrialSpec) -> None:
        assert not self._results
        if spec.limits.memory_bytes is not None:
            raise UserError("trials that run inline have no memory limit; run them as processes")
        began = time.monotonic()
        try:
            with _time_limit(spec.limits.seconds):
                result = run_trial(spec)
        except OutOfTime:
            words = f"no end after {spec.limits.seconds:g} s"
            result = TrialResult(spec.key, "timeout", None, reason=words, seconds=time.monotonic() - began)
        self._results.append(_judged(result))

    def wait(self, timeout_s: float) -> list[TrialResult]:
        results, self._results = self._results, []
        return results

    def running(self) -> list[str]:
        return [result.key for result in self._results]

    def close(self) -> None:
        self._results.clear()


@contextmanager
def _time_limit(seconds: float | None) -> Iterator[None]:
    if seconds is None:
        yield
        return
    if threading.current_thread() is not threading.main_thread():
        raise UserError("a time limit of an inline trial needs the main thread; run trials as processes")

    def stop(number: int, frame: object) -> None:
        raise OutOfTime

    before = signal.signal(signal.SIGALRM, stop)
    # Again and again: what is raised in a callback of the garbage collector, or in __del__, goes nowhere.
    signal.setitimer(signal.ITIMER_REAL, seconds, ALARM_EVERY_S)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@dataclass(slots=True)
class Job:
    spec: TrialSpec
    slot: int
    child: Child
    began: float
    stopped: tuple[State, str] | None = None


class Processes:
    """Up to `jobs` trials at a time, each in its own process group, on its share of the cores.

    `gpus` are device numbers (or UUIDs) as CUDA_VISIBLE_DEVICES takes them: job i uses number i modulo their count.
    `start_up`: forks of one warm process, or a fresh interpreter each. `work` is what a worker does with a trial.
    """

    def __init__(
        self, jobs: int, gpus: Sequence[int | str] | None = None, *, start_up: Literal["warm", "fresh"] = "warm",
        work: str = WORK,
    ):  # fmt: skip
        if jobs < 1:
            raise UserError(f"{jobs} jobs: at least 1")
        self.capacity = jobs
        self.gpus = None if gpus is None else [str(gpu) for gpu in gpus]
        if self.gpus == []:
            raise UserError("no GPU is named; leave `gpus` out to use what there is")
        self.threads = max(1, _cores() // jobs)
        self._launcher: Launcher = Warm(work) if start_up == "warm" else Fresh(work)
        self._jobs: dict[str, Job] = {}
        self._ready: list[TrialResult] = []
        self._next_look = 0.0

    def start(self, spec: TrialSpec) -> None:
        assert spec.key not in self.running() and len(self.running()) < self.capacity
        if spec.limits.memory_bytes is not None and not Path("/proc/self/stat").exists():
            raise UserError("a memory limit needs /proc, which this system does not have")
        folder = Path(spec.folder)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            found = _result(spec)
            if found is not None and found.state in REUSABLE:  # of a worker whose coordinator did not live to hear it
                self._ready.append(_judged(found))
                return
            (folder / RESULT).unlink(missing_ok=True)
            (folder / SPEC).write_text(spec.to_json() + "\n")
            slot = min(set(range(self.capacity)) - {job.slot for job in self._jobs.values()})
            env = {"OMP_NUM_THREADS": str(self.threads)}
            if self.gpus:
                env["CUDA_VISIBLE_DEVICES"] = self.gpus[slot % len(self.gpus)]
            child = self._launcher.start(spec, env)
        except OSError as error:
            raise RunError(f"cannot start a trial in {folder}: {error.strerror or error}") from error
        self._jobs[spec.key] = Job(spec, slot, child, time.monotonic())

    def wait(self, timeout_s: float) -> list[TrialResult]:
        until = time.monotonic() + timeout_s
        while not self._ready and self._jobs:
            left = until - time.monotonic()
            self._launcher.watch(max(0.0, min(left, MEMORY_INTERVAL_S)))
            self._enforce()
            for job in [job for job in self._jobs.values() if job.child.code is not None]:
                del self._jobs[job.spec.key]
                self._ready.append(_outcome(job))
            if left <= 0:
                break
        results, self._ready = self._ready, []
        return results

    def running(self) -> list[str]:
        return [*self._jobs, *(result.key for result in self._ready)]

    def close(self) -> None:
        self._launcher.close()
        self._jobs.clear()
        self._ready.clear()

    def _enforce(self) -> None:
        now = time.monotonic()
        look = now >= self._next_look and any(job.spec.limits.memory_bytes for job in self._jobs.values())
        resident = _resident_by_group() if look else {}
        if look:
            self._next_look = now + MEMORY_INTERVAL_S
        for job in self._jobs.values():
            limits, child = job.spec.limits, job.child
            if child.pid is None or child.began is None or job.stopped is not None:
                continue
            used = resident.get(child.pid, 0)
            if limits.seconds is not None and now - child.began > limits.seconds:
                job.stopped = "timeout", f"no end after {limits.seconds:g} s"
            elif limits.memory_bytes is not None and used > limits.memory_bytes:
                job.stopped = "oom", f"{used / 2**20:.0f} MiB of memory, {limits.memory_bytes / 2**20:.0f} are allowed"
            if job.stopped is not None:
                self._launcher.kill(child)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _resident_by_group() -> dict[int, int]:
    """Bytes of resident memory by process group."""
    total: dict[int, int] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                # After the name, which may hold anything: state, parent, group, ..., and as the 22nd the pages.
                words = Path(f"/proc/{entry}/stat").read_text().rpartition(")")[2].split()
            except OSError:  # gone meanwhile
                continue
            total[int(words[2])] = total.get(int(words[2]), 0) + int(words[21]) * os.sysconf("SC_PAGE_SIZE")
    return total


def _result(spec: TrialSpec) -> TrialResult | None:
    """The complete result of this very trial in its folder, if there is one."""
    try:
        result = TrialResult.of_mapping(json.loads((Path(spec.folder) / RESULT).read_text()))
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None
    return result if result.key == spec.key else None


def _judged(result: TrialResult) -> TrialResult:
    """A result whose loss is a number, or that says why it is none."""
    if result.state == "done" and (result.loss is None or not math.isfinite(result.loss)):
        return replace(result, state="diverged", loss=None, reason=f"the validation loss is {result.loss}")
    return result


def _outcome(job: Job) -> TrialResult:
    """A complete result counts, however its process went away after it; else what the exit code says."""
    tail = _tail(Path(job.spec.folder) / LOG)
    found = _result(job.spec)
    if found is not None:
        return _judged(found if found.state == "done" else replace(found, log_tail=found.log_tail or tail))
    seconds = time.monotonic() - (job.child.began or job.began)
    state, reason = job.stopped or ("failed", _words(job.child.code or 0, tail))
    return TrialResult(job.spec.key, state, None, reason=reason, log_tail=tail, seconds=round(seconds, 3))


def _words(code: int, tail: str) -> str:
    if code == 0:
        return "the worker ended without a result"
    if code < 0:
        name = signal.Signals(-code).name
        guess = ", not by us: by the kernel, for lack of memory?" if name == "SIGKILL" else ""
        return f"the worker was killed by {name}{guess}"
    last = next((line for line in reversed(tail.splitlines()) if line.strip()), "")
    return f"the worker ended with exit code {code}" + (f": {last.strip()[:300]}" if last else "")


def _tail(log: Path) -> str:
    try:
        with open(log, "rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - TAIL_BYTES))
            return file.read().decode(errors="replace")
    except OSError:
        return ""
