"""The process that touches the GPU: points in on stdin, one JSON object a row out on stdout.

{"environment": ...} comes first, then rows, and {"done": n} after the n-th point. A fault after which the device
context is lost ends the process; whoever started it starts another for the points that are left.
"""

import gc
import hashlib
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import triton

from . import block_checks, checks, contestants, timing, work
from .parts import AnyPoint, point_of
from .plan import Point, split_contestant
from .subjects import subject_of

POINT_SECONDS = 8.0  # of rounds, for one point
CHECKS: dict[str, Callable[[Any, str, str, int], Iterator[dict]]] = {**checks.CHECKS, **block_checks.CHECKS}


def environment(device: str) -> dict[str, str]:
    ptxas = os.environ.get("TRITON_PTXAS_PATH") or f"{Path(triton.__file__).parent}/backends/nvidia/bin/ptxas"
    version = _said(ptxas, "--version").partition(", V")[2].split("\n")[0]
    sources = sorted((Path(__file__).parents[2] / "kernels").glob("*.py"))
    code = hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()[:12]
    found = {"code": code, "torch": torch.__version__, "triton": triton.__version__, "ptxas": version, "device": device}
    if device == "cuda":
        properties = torch.cuda.get_device_properties(0)
        found |= {
            "device": properties.name, "multiprocessors": str(properties.multi_processor_count),
            "l2_bytes": str(properties.L2_cache_size), "cuda": str(torch.version.cuda),
            "driver": _said("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader").strip(),
        }  # fmt: skip
    return found


def _said(*command: str) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=20).stdout
    except (OSError, subprocess.TimeoutExpired):
        return ""


def checked(point: AnyPoint, device: str, seed: int) -> Iterator[dict]:
    for contestant in point.contestants:
        try:
            for row in CHECKS[point.part](point, contestant, device, seed):
                yield {"contestant": contestant, "seed": seed, **row}
        except Exception as error:  # whatever a kernel does, the other points go on
            yield {"contestant": contestant, "seed": seed, "op": point.op, "status": "error", **_why(error)}
            timing.reraise_if_sticky(error)
        if device == "cuda":
            torch.cuda.empty_cache()


def timed(point: AnyPoint, device: str, seed: int, red: set[str], clock, multiprocessors: int,
          now=time.monotonic) -> Iterator[dict]:  # fmt: skip
    """Rows of the contestants. Ours are refused when a check of this run was red, or when what they make here is wrong.

    `red` names what failed before, as `Subject.kernel` does.
    """
    runs: dict[str, timing.Run] = {}
    gates: dict[str, dict] = {}
    subject = subject_of(point)(point, seed, device, multiprocessors)
    told = {"op": point.op, "seed": seed}
    for contestant in point.contestants:
        provider, _, launch, _ = split_contestant(contestant)
        row = told | {"contestant": contestant}
        try:
            if provider == "triton":
                name = subject.kernel(contestant)
                if name in red and not launch:
                    yield row | {"status": "refused", "reason": f"a check of {name} is red"}
                    continue
                error, allowed = subject.gate(contestant)
                gates[contestant] = {"error": error, "allowed": allowed}
                if error > allowed:
                    yield row | gates[contestant] | {"status": "refused", "reason": "wrong on these tensors"}
                    continue
            runs[contestant] = subject.run(contestant)
        except Exception as error:
            yield row | {"status": _gone(contestant), **_why(error)}
            timing.reraise_if_sticky(error)
    with timing.Sensors() as sensors:
        measured = timing.interleaved(runs, clock, POINT_SECONDS, now=now)
    for contestant, found in measured.items():
        row = told | {"contestant": contestant} | gates.get(contestant, {})
        if found.failed:
            yield row | {"status": _gone(contestant), "reason": found.failed}
            continue
        done = subject.work(contestant)
        row |= {"flops": done.flops, "bytes": done.bytes, "exponentials": done.exponentials}
        row |= subject.facts(contestant)
        yield row | {"status": "ok", "seconds": found.seconds, "host_bound": found.host_bound, **sensors.read()}


def _gone(contestant: str) -> str:
    """What it is called that a contestant cannot run: ours must, a baseline may be missing."""
    return "error" if contestant.startswith("triton") else "absent"


def _why(error: Exception) -> dict[str, str]:
    return {"reason": str(error) if isinstance(error, contestants.Absent) else timing.short(error)}


def ceiling(point: Point, clock) -> Iterator[dict]:
    if point.contestants == ("copy",):
        source = torch.empty(point.T // 2, dtype=torch.bfloat16, device="cuda").normal_()
        target = torch.empty_like(source)
        runs: dict[str, timing.Run] = {"copy": lambda: target.copy_(source)}
    else:
        a, b = (torch.randn(point.T, point.T, dtype=torch.bfloat16, device="cuda") for _ in range(2))
        runs = {"matmul": lambda: a @ b}
    for name, found in timing.interleaved(runs, clock, POINT_SECONDS).items():
        done = work.of(point, name, 2)
        yield {"contestant": name, "op": "ceiling", "status": "ok", "seconds": found.seconds, "flops": done.flops,
               "bytes": done.bytes, "host_bound": found.host_bound}  # fmt: skip


def main() -> int:
    unit = json.load(sys.stdin)
    device = unit["device"]
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print must not mix with the rows

    def say(**fields) -> None:
        print(json.dumps(fields), file=out, flush=True)

    if device == "cuda" and not torch.cuda.is_available():
        say(refused="no CUDA device")
        return 2
    facts = environment(device)
    say(environment=facts)
    clock: timing.CudaClock | None = None
    for n, raw in enumerate(unit["points"]):
        point = point_of(raw)
        seed = random.SystemRandom().randrange(2**31)
        try:
            if point.part in CHECKS:
                rows = checked(point, device, seed)
            else:
                # A step is launched while it runs, as in training: the host is part of it.
                clock = clock or timing.CudaClock(hide_host=point.op != "step")
                if isinstance(point, Point) and point.op == "ceiling":
                    rows = ceiling(point, clock)
                else:
                    rows = timed(point, device, seed, set(unit["red"]), clock, int(facts["multiprocessors"]))
            for row in rows:
                say(row=row)
        except Exception as error:
            if timing.is_sticky(error):
                raise
            say(row={"contestant": "", "op": point.op, "status": "error", **_why(error)})
        say(done=n)
        gc.collect()  # graphs and compiled functions hold tensors in cycles
        if device == "cuda":
            torch.cuda.empty_cache()
    return 0


if __name__ == "__main__":
    sys.exit(main())
