"""Runs parts within a time limit: processes for the GPU's work, their rows into the store, what was cut off by name."""

import json
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict

from . import store
from .parts import JUDGES, PARTS, AnyPoint, kernel_of, units

WORKER = (sys.executable, "-m", "benchmarks.gpu.worker")
DYING, ANSWER = 20.0, 120.0  # seconds: for processes to end, for the first answer
Say = Callable[[str], None]


class NoDevice(Exception):
    """The worker found nothing to run on."""


class Unit:
    """Points of one process; a new process takes what a dead one left."""

    def __init__(self, points: Sequence[AnyPoint]):
        self.points = list(points)
        self.process: subprocess.Popen | None = None
        self.pending = b""

    def start(self, worker: Sequence[str], device: str, red: list) -> None:
        self.log = tempfile.TemporaryFile()
        self.process = subprocess.Popen(worker, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.log,
                                        start_new_session=True)  # fmt: skip
        self.seen: set[str] = set()  # contestants of the first point that have a row
        assert self.process.stdin is not None
        points = [asdict(p) for p in self.points]
        try:
            self.process.stdin.write(json.dumps({"points": points, "device": device, "red": red}).encode())
            self.process.stdin.close()
        except BrokenPipeError:
            pass  # it died at once, which its exit code will say

    def last_words(self) -> str:
        self.log.seek(0)
        lines = self.log.read().decode(errors="replace").strip().splitlines()
        return lines[-1][:300] if lines else ""

    def kill(self) -> None:
        if self.process is not None and self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)  # its own session: compilers it started, too


def kill_all(units: Sequence[Unit]) -> None:
    """At once, and within DYING seconds: whose driver waits for a kernel that hangs is left, the rows matter more."""
    for unit in units:
        unit.kill()
    end = time.monotonic() + DYING
    for unit in units:
        if unit.process is not None:
            try:
                unit.process.wait(timeout=max(end - time.monotonic(), 0.0))
            except subprocess.TimeoutExpired:
                pass


def red_kernels(rows: Sequence[store.Row], code: str) -> list[str]:
    """Our kernels that a check found wrong, as they are now: rows of other versions of the code do not count."""
    return sorted({kernel_of(r) for r in rows if r["status"] == "red" and r["part"] in JUDGES and r["code"] == code})


class Runner:
    def __init__(self, rows: store.Store, say: Say, worker: Sequence[str] = WORKER, device: str = "cuda",
                 facts: dict[str, str] | None = None, now: Callable[[], float] = time.monotonic):  # fmt: skip
        self.rows, self.say, self.worker, self.device, self.now = rows, say, worker, device, now
        self.facts = facts or {}

    @staticmethod
    def probe(worker: Sequence[str] = WORKER, device: str = "cuda") -> dict[str, str]:
        """Facts of the device and of the versions."""
        unit = Unit([])
        unit.start(worker, device, [])
        assert unit.process is not None
        assert unit.process.stdout is not None
        try:
            unit.process.wait(timeout=ANSWER)  # what it says fits into the pipe
        except subprocess.TimeoutExpired:
            kill_all([unit])
            raise NoDevice(f"the worker did not answer in {ANSWER:.0f} s") from None
        found = [json.loads(line) for line in unit.process.stdout.read().decode().splitlines()]
        if not found or "environment" not in found[0]:
            raise NoDevice(found[0]["refused"] if found else f"the worker says {unit.last_words()!r}")
        return found[0]["environment"]

    def run(self, names: Sequence[str], seconds: float) -> None:
        """Parts in order; each may take its share by weight of the time that is left when it begins."""
        end = self.now() + seconds
        for place, name in enumerate(names):
            left = sum(PARTS[n].weight for n in names[place:])
            share = max(end - self.now(), 0.0) * PARTS[name].weight / left
            began = self.now()
            self.part(name, self.now() + share)
            found = [r["status"] for r in self.rows.rows if r["part"] == name]
            counts = ", ".join(f"{found.count(s)} {s}" for s in dict.fromkeys(found))
            self.say(f"{name}: {self.now() - began:.0f} of {share:.0f} s; {counts}")

    def part(self, name: str, deadline: float) -> None:
        part = PARTS[name]
        waiting = [Unit(points) for points in units(part.points(self.rows.rows), part.parallel)]
        running: list[Unit] = []
        red = red_kernels(self.rows.rows, self.facts.get("code", ""))
        with selectors.DefaultSelector() as selector:
            try:
                while waiting or running:
                    while waiting and len(running) < min(part.parallel, os.cpu_count() or 1):
                        unit = waiting.pop(0)
                        unit.start(self.worker, self.device, red)
                        assert unit.process is not None and unit.process.stdout is not None
                        selector.register(unit.process.stdout, selectors.EVENT_READ, unit)
                        running.append(unit)
                    if self.now() >= deadline:
                        break
                    for key, _ in selector.select(min(1.0, max(deadline - self.now(), 0.0))):
                        unit = key.data
                        data = os.read(key.fd, 1 << 20)
                        self._take(unit, data)
                        if not data:
                            selector.unregister(key.fileobj)
                            running.remove(unit)
                            waiting += self._ended(unit)
            finally:
                kill_all(running)
        for unit in running + waiting:
            for n, point in enumerate(unit.points):
                seen = unit.seen if unit in running and n == 0 else set()
                self._mark(point, seen, "skipped", "the time of its part was over")

    def _take(self, unit: Unit, data: bytes) -> None:
        *lines, unit.pending = (unit.pending + data).split(b"\n")
        for line in lines:
            found = json.loads(line)
            if "refused" in found:
                raise NoDevice(found["refused"])
            if "environment" in found:
                self.facts = found["environment"]
            elif "row" in found:
                unit.seen.add(found["row"]["contestant"])
                self.rows.add(store.make(unit.points[0], found["row"], self.facts))
            else:
                unit.points.pop(0)
                unit.seen = set()

    def _ended(self, unit: Unit) -> list[Unit]:
        """What is left of a process that ended: nothing, or a unit without the point it died of."""
        assert unit.process is not None
        code = unit.process.wait()
        if not unit.points:
            return []
        words = unit.last_words()
        self._mark(unit.points[0], unit.seen, "error", f"the process ended with {code}: {words}")
        return [Unit(unit.points[1:])] if unit.points[1:] else []

    def _mark(self, point: AnyPoint, seen: set[str], status: str, reason: str) -> None:
        for contestant in point.contestants:
            if contestant not in seen:
                row = {"contestant": contestant, "op": point.op, "status": status, "reason": reason}
                self.rows.add(store.make(point, row, self.facts))
