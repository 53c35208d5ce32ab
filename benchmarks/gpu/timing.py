"""Seconds of device work by CUDA events: cold second-level cache, contestants in turns, the host out of the way.

Before each run a buffer larger than the cache is overwritten, then the device sleeps for longer than the host needs to
launch the run, so that the time between the events is the device's alone. A run whose launch took longer than the sleep
is counted as host-bound and reported as such. Without `hide_host` there is no sleep: times hold what the host costs.
"""

import gc
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch

Run = Callable[[], object]
ROUNDS, FEWEST = 100, 20
# Torch says the first of any; Triton, whose launches may meet them first, only what it was.
STICKY = ("CUDA error", "illegal memory access", "misaligned address", "illegal instruction", "device-side assert",
          "unspecified launch failure")  # fmt: skip
SLEEP_HZ = 2e9  # at least the clock of the device, so that it sleeps no shorter than asked


@dataclass
class Timed:
    seconds: list[float] = field(default_factory=list)
    host_bound: int = 0
    failed: str = ""


class CudaClock:
    def __init__(self, hide_host: bool = True):
        self.hide_host = hide_host
        cache = torch.cuda.get_device_properties(0).L2_cache_size
        self.buffer = torch.empty(max(4 * cache, 1 << 28), dtype=torch.int8, device="cuda")
        self.lead_s: dict[str, float] = {}

    def warm(self, name: str, run: Run) -> None:
        """Compiles, and measures how long the host takes to launch."""
        run()
        run()
        launches = []
        for _ in range(3):
            torch.cuda.synchronize()
            began = time.perf_counter()
            run()
            launches.append(time.perf_counter() - began)
        torch.cuda.synchronize()
        self.lead_s[name] = min(2 * min(launches) + 1e-4, 0.02)

    def time(self, name: str, run: Run) -> tuple[float, bool]:
        """(seconds, whether the host was late)."""
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        self.buffer.zero_()
        if self.hide_host:
            torch.cuda._sleep(int(self.lead_s[name] * SLEEP_HZ))
        else:
            torch.cuda.synchronize()
        start.record()
        began = time.perf_counter()
        run()
        late = self.hide_host and time.perf_counter() - began > self.lead_s[name]
        end.record()
        end.synchronize()
        return start.elapsed_time(end) * 1e-3, late


def interleaved(
    runs: dict[str, Run], clock, limit_s: float, rounds: int = ROUNDS, now=time.monotonic
) -> dict[str, Timed]:
    """Times of each contestant. Each round starts with another; a point over its limit ends after FEWEST rounds."""
    timed = {name: Timed() for name in runs}
    alive = []
    for name, run in runs.items():
        try:
            clock.warm(name, run)
            alive.append(name)
        except Exception as error:  # any contestant may fail in any way: the row says how
            timed[name].failed = short(error)
            reraise_if_sticky(error)
    began = now()
    gc.collect()
    gc.disable()
    try:
        for turn in range(rounds):
            if turn >= FEWEST and now() - began > limit_s:
                break
            shift = turn % max(len(alive), 1)
            for name in [*alive[shift:], *alive[:shift]]:
                try:
                    seconds, late = clock.time(name, runs[name])
                except Exception as error:  # out of memory, say: the others go on
                    timed[name].failed = short(error)
                    alive.remove(name)
                    reraise_if_sticky(error)
                    continue
                timed[name].seconds.append(seconds)
                timed[name].host_bound += late
    finally:
        gc.enable()
    return timed


def short(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]


def is_sticky(error: BaseException) -> bool:
    """Whether the device context is lost with it."""
    return any(name in str(error) for name in STICKY)


def reraise_if_sticky(error: BaseException) -> None:
    if is_sticky(error):
        raise error


class Sensors:
    """Clock, temperature and power as nvidia-smi reads them while a point runs."""

    QUERY = "clocks.sm,clocks.mem,temperature.gpu,power.draw"

    def __enter__(self):
        self.process: subprocess.Popen | None = None
        self.lines: list[str] = []
        try:
            command = ["nvidia-smi", f"--query-gpu={self.QUERY}", "--format=csv,noheader,nounits", "-lms", "200"]
            self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        except OSError:
            pass  # no nvidia-smi: the columns stay empty
        return self

    def __exit__(self, *_):
        if self.process is not None:
            self.process.terminate()
            try:
                self.lines = self.process.communicate(timeout=10)[0].splitlines()
            except subprocess.TimeoutExpired:
                self.process.kill()  # the columns stay empty

    def read(self) -> dict[str, float]:
        """The reading at the highest clock: others may lie before and after the work."""
        readings = []
        for line in self.lines:
            try:
                readings.append(tuple(map(float, line.split(","))))
            except ValueError:
                continue  # a value the device does not report
        if not readings:
            return {}
        sm, memory, celsius, watts = max(readings)
        return {"sm_clock_hz": sm * 1e6, "memory_clock_hz": memory * 1e6, "temperature_c": celsius, "power_w": watts}
