"""The process that touches the GPU: points in on stdin, one JSON object a row out on stdout.

{"environment": ...} comes first, then rows, and {"done": n} after the n-th point. A fault after which the device
context is lost ends the process; whoever started it starts another for the points that are left.
"""

import hashlib
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import torch
import triton

from . import checks, contestants, timing
from .plan import Point, kernel_name, split_contestant
from .work import of

POINT_SECONDS = 8.0  # of rounds, for one point


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


def checked(point: Point, device: str, seed: int) -> Iterator[dict]:
    for contestant in point.contestants:
        try:
            for row in checks.CHECKS[point.part](point, contestant, device, seed):
                yield {"contestant": contestant, "seed": seed, **row}
        except Exception as error:  # whatever a kernel does, the other points go on
            yield {"contestant": contestant, "seed": seed, "op": point.op, "status": "error", **_why(error)}
            timing.reraise_if_sticky(error)
        if device == "cuda":
            torch.cuda.empty_cache()


def timed(point: Point, device: str, seed: int, red: set[str], clock, multiprocessors: int,
          now=time.monotonic) -> Iterator[dict]:  # fmt: skip
    """Rows of the contestants. Ours are refused when a check of this run was red, or when what they make here is wrong.

    `red` names what failed before, by `kernel_name`.
    """
    runs: dict[str, timing.Run] = {}
    gates: dict[str, dict] = {}
    everything = contestants.new_tensors(point, "consmax", seed, device)
    itemsize = contestants.DTYPES[point.dtype].itemsize
    told = {"op": point.op, "seed": seed}
    for contestant in point.contestants:
        provider, kind, launch, _ = split_contestant(contestant)
        row = told | {"contestant": contestant}
        try:
            named = contestants.of_kind(everything, kind)
            call = contestants.function(point, contestant, multiprocessors)
            if provider == "triton":
                name = kernel_name(kind, max(point.D, point.E), point.variant, point.dtype)
                if name in red and not launch:
                    yield row | {"status": "refused", "reason": f"a check of {name} is red"}
                    continue
                splits = point.splits or contestants.decode_splits(point, multiprocessors)
                error, allowed = checks.gate(point, contestant, named, splits)
                gates[contestant] = {"error": error, "allowed": allowed}
                if error > allowed:
                    yield row | gates[contestant] | {"status": "refused", "reason": "wrong on these tensors"}
                    continue
            runs[contestant] = contestants.callable_of(call, point, named, contestant)
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
        work = of(point, contestant, itemsize)
        row |= {"flops": work.flops, "bytes": work.bytes, "exponentials": work.exponentials}
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
        work = of(point, name, 2)
        yield {"contestant": name, "op": "ceiling", "status": "ok", "seconds": found.seconds, "flops": work.flops,
               "bytes": work.bytes, "host_bound": found.host_bound}  # fmt: skip


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
    clock = None
    for n, raw in enumerate(unit["points"]):
        point = Point(**{**raw, "contestants": tuple(raw["contestants"])})
        seed = random.SystemRandom().randrange(2**31)
        try:
            if point.part in checks.CHECKS:
                rows = checked(point, device, seed)
            else:
                clock = clock or timing.CudaClock()
                if point.op == "ceiling":
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
        if device == "cuda":
            torch.cuda.empty_cache()
    return 0


if __name__ == "__main__":
    sys.exit(main())
