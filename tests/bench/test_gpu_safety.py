"""What must not cost the GPU benchmark its rows: a contestant that fails late, pages, processes that do not die."""

import os
import signal
import subprocess
import sys
import time

from test_gpu_runs import fake

from benchmarks.gpu import __main__ as command
from benchmarks.gpu import parts, plan, runner, store, timing


class Clock:
    def __init__(self):
        self.runs = 0

    def warm(self, name, run):
        run()

    def time(self, name, run):
        self.runs += 1
        run()
        return 1e-3, False


def test_a_contestant_that_fails_late_costs_its_own_times():
    clock = Clock()

    def fails():
        if clock.runs > 25:
            raise RuntimeError("CUDA out of memory. Tried to allocate")

    timed = timing.interleaved({"good": lambda: None, "bad": fails, "other": lambda: None}, clock, 60.0, rounds=40)
    assert "out of memory" in timed["bad"].failed
    assert [len(timed[name].seconds) for name in ("good", "other")] == [40, 40]
    assert not timed["good"].failed


def test_errors_after_which_the_context_is_lost():
    lost = ("Triton Error [CUDA]: misaligned address", "CUDA error: an illegal memory access was encountered")
    assert all(timing.is_sticky(RuntimeError(text)) for text in lost)
    kept = ("CUDA out of memory. Tried to allocate 2 GiB", "out of resource: shared memory", "Triton Error [CUDA]: out")
    assert not any(timing.is_sticky(RuntimeError(text)) for text in kept)


def test_pages_that_cannot_be_made_do_not_end_a_run(tmp_path, monkeypatch, capsys):
    points = [plan.Point("fake", "forward", ("triton:relu",), 1, 1, 1, T, T, 64, 64) for T in (1, 2)]
    for name in ("fake", "fake_too"):
        monkeypatch.setitem(parts.PARTS, name, plan.Part("", lambda rows: points, 1.0))
    calls = []

    def write(folder, rows):
        calls.append(len(rows))
        if len(calls) == 1:
            raise ValueError("a geometric mean needs positive values")

    monkeypatch.setattr(command, "write_pages", write)
    command.main(["fake", "fake_too", "--out", str(tmp_path / "out")], worker=fake(tmp_path))
    assert calls == [2, 4, 4] and len(store.read(tmp_path / "out" / "rows.csv")) == 4
    assert "no pages for now: ValueError: a geometric mean" in capsys.readouterr().out


def test_processes_that_do_not_die_are_left_together(monkeypatch):
    """A kernel that hangs keeps its process in the driver; 14 such may not cost 14 times the wait."""
    monkeypatch.setattr(runner, "DYING", 0.5)
    monkeypatch.setattr(runner.os, "killpg", lambda pid, number: None)
    stubborn = [runner.Unit([]) for _ in range(4)]
    for unit in stubborn:
        unit.process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(30)"], start_new_session=True)
    began = time.monotonic()
    try:
        runner.kill_all(stubborn)
        assert time.monotonic() - began < 1.5
    finally:
        monkeypatch.undo()
        for unit in stubborn:
            os.killpg(unit.process.pid, signal.SIGKILL)
            unit.process.wait()
