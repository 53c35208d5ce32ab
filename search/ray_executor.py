"""Trials on the machines of a Ray cluster, or of a cluster of this machine alone that is started for the purpose.

Ray core only (https://docs.ray.io/en/latest/ray-core/walkthrough.html). Each trial is one task with no retries, since
the ledger counts attempts; inside the task it runs as everywhere else (search.executors.Processes): a process group of
its own, forked from a process of that Ray worker that has imported torch, with its limits on time and memory enforced
on its node. Its result and the end of its log come back as the value of the task, so nodes need not share a file
system. They need this package, Python and Ray of the same version, and the data sets; the folder of a trial is made on
the node under the same path as here. A checkpoint is found again by the next attempt only where that path is shared.

Connections and tokens: search.ray_connection.

Not covered: the coordinator runs on a node of the cluster, and ends with the head node (the same command resumes); a
cluster that starts nodes on demand must have one that can hold a trial when the search begins; `ray://` addresses.
"""

import contextlib
import functools
import json
import math
import os
import socket
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from gptcore.errors import RunError, UserError

from .executors import Processes
from .ray_connection import connect
from .trial import State, TrialResult, TrialSpec
from .worker import TAIL_BYTES, WORK

CLOSE_S = 10.0
PATIENCE_S = 60.0  # for a node to come back, when none is left that can hold a trial


@dataclass(frozen=True, slots=True)
class Ask:
    """What a trial takes of one node."""

    cpus: int
    gpus: float
    memory_bytes: int

    def fits(self, resources: Mapping[str, float]) -> int:
        """How many such trials a node with these resources holds at a time."""
        need = {"CPU": self.cpus, "GPU": self.gpus, "memory": self.memory_bytes}
        return min(math.floor(resources.get(name, 0.0) / amount + 1e-6) for name, amount in need.items() if amount)

    def __str__(self) -> str:
        return _amounts(self.cpus, self.gpus, self.memory_bytes)


@dataclass(slots=True)
class Submitted:
    spec: TrialSpec
    ask: Ask
    began: float
    homeless: float | None = None  # since when no node could hold it


class RayExecutor:
    """`address` is HOST:PORT, "auto" for the cluster of which this machine is a node, None for one of its own.

    `jobs` is the most trials at a time, by default as many as the nodes hold. `memory_bytes` is what a trial is given
    room for (its own limit where that is higher). UserError where no node can hold a trial.
    """

    def __init__(
        self, address: str | None = None, *, jobs: int | None = None, cpus_per_trial: int = 1,
        gpus_per_trial: float = 0, memory_bytes: int | None = None, work: str = WORK,
    ):  # fmt: skip
        if jobs is not None and jobs < 1:
            raise UserError(f"{jobs} jobs: at least 1")
        if cpus_per_trial < 1:
            raise UserError(f"{cpus_per_trial} CPUs for a trial: at least 1")
        if gpus_per_trial < 0 or (gpus_per_trial > 1 and gpus_per_trial != int(gpus_per_trial)):
            raise UserError(f"{gpus_per_trial:g} GPUs for a trial: a share of one, or a whole number")
        self.jobs, self.work = jobs, work
        self._ask = Ask(cpus_per_trial, gpus_per_trial, memory_bytes or 0)
        self._running: dict[Any, Submitted] = {}
        self._ready: list[TrialResult] = []
        self._held: set[Ask] = set()
        self._ours = connect(address)
        try:
            self._find_room(self._ask)
        except UserError:
            self.close()
            raise

    @property
    def capacity(self) -> int:
        """What the nodes there are now hold, whoever else uses them; 1 when all have gone, so that `start` says so."""
        held = sum(self._ask.fits(node["Resources"]) for node in _nodes())
        return max(1, held if self.jobs is None else min(held, self.jobs))

    def start(self, spec: TrialSpec) -> None:
        """RunError when no node is left that can hold a trial and none has come back after a minute."""
        import ray

        assert spec.key not in self.running()
        ask = replace(self._ask, memory_bytes=max(self._ask.memory_bytes, spec.limits.memory_bytes or 0))
        self._find_room(ask)
        spec = replace(spec, folder=str(Path(spec.folder).absolute()))
        task = ray.remote(_task()).options(
            name=spec.key, num_cpus=ask.cpus, num_gpus=ask.gpus, memory=ask.memory_bytes or None, max_retries=0,
            scheduling_strategy="SPREAD",
        )  # fmt: skip
        root = str(Path(__file__).resolve().parents[1])
        ref = task.remote(root, spec.to_json(), self.work, ask.cpus, ask.gpus, os.getcwd())
        self._running[ref] = Submitted(spec, ask, time.monotonic())

    def wait(self, timeout_s: float) -> list[TrialResult]:
        import ray

        if self._running:
            if not self._ready:
                ray.wait(list(self._running), num_returns=1, timeout=timeout_s)
            ended, _ = ray.wait(list(self._running), num_returns=len(self._running), timeout=0)
            for ref in ended:
                self._ready.append(_outcome(ref, self._running.pop(ref)))
            self._abandon()
        results, self._ready = self._ready, []
        return results

    def running(self) -> list[str]:
        return [*(job.spec.key for job in self._running.values()), *(result.key for result in self._ready)]

    def close(self) -> None:
        import ray

        for ref in self._running:
            ray.cancel(ref, force=True)  # ends the Ray worker, and with it, by its pipe, all that it started
        if self._running:
            ray.wait(list(self._running), num_returns=len(self._running), timeout=CLOSE_S)
        self._running.clear()
        self._ready.clear()
        if self._ours:
            ray.shutdown()
            self._ours = False

    def _find_room(self, ask: Ask) -> None:
        until = time.monotonic() + PATIENCE_S
        while not any(ask.fits(node["Resources"]) for node in _nodes()):
            if ask not in self._held:
                raise UserError(f"{_no_room(ask)}\nAsk for less, or start a larger node.")
            if time.monotonic() > until:
                raise RunError(f"{_no_room(ask)}\nA node that could has gone. Start one, and run the same again.")
            time.sleep(0.5)
        self._held.add(ask)

    def _abandon(self) -> None:
        """Fails what would wait for ever for a node that has gone."""
        import ray

        nodes, now = _nodes(), time.monotonic()
        for ref, job in list(self._running.items()):
            if any(job.ask.fits(node["Resources"]) for node in nodes):
                job.homeless = None
                continue
            job.homeless = job.homeless or now
            if now - job.homeless >= PATIENCE_S:
                ray.cancel(ref, force=True)
                del self._running[ref]
                words = f"{_no_room(job.ask)} The one that could has gone."
                self._ready.append(TrialResult(job.spec.key, "failed", None, reason=words))


def _task() -> Callable[..., str]:
    """The function that Ray runs. Nested, it travels as code, and can so find this package on a node."""

    def trial(root: str, *arguments: Any) -> str:
        import sys

        if root not in sys.path:
            sys.path.insert(0, root)
        from search.ray_executor import attend_on_node

        return attend_on_node(*arguments)

    return trial


def attend_on_node(text: str, work: str, cpus: int, gpus: float, folder: str) -> str:
    """Does a trial in a Ray worker; its result as JSON. `folder` is the coordinator's, for relative names of data."""
    with contextlib.suppress(OSError):
        os.chdir(folder)
    executor = _processes(work)
    executor.threads = cpus
    executor.gpus = [os.environ.get("CUDA_VISIBLE_DEVICES", "") if gpus else ""]  # those that Ray has given this task
    executor.start(TrialSpec.from_json(text))
    while not (results := executor.wait(1.0)):
        pass
    (result,) = results
    if result.state != "done":
        result = replace(result, reason=f"{result.reason} (on {socket.gethostname()})")
    return result.to_json()


@functools.cache
def _processes(work: str) -> Processes:
    """One for all trials of a Ray worker, which does one at a time: the import of torch is paid once."""
    return Processes(1, work=work)


def _outcome(ref: Any, job: Submitted) -> TrialResult:
    import ray

    try:
        return TrialResult.of_mapping(json.loads(ray.get(ref)))
    except ray.exceptions.RayError as error:
        state: State = "oom" if isinstance(error, ray.exceptions.OutOfMemoryError) else "failed"
        seconds = round(time.monotonic() - job.began, 3)
        tail = str(error)[-TAIL_BYTES:]
        return TrialResult(job.spec.key, state, None, reason=_reason(error), log_tail=tail, seconds=seconds)


def _reason(error: Exception) -> str:
    from ray import exceptions

    cause = getattr(error, "cause", None) or error  # of what the task itself raised
    words = " ".join(str(cause).split())[:400]
    if isinstance(error, exceptions.OutOfMemoryError):
        return f"its node ran short of memory, and Ray killed the worker: {words}"
    if isinstance(error, exceptions.NodeDiedError | exceptions.LocalRayletDiedError):
        return f"the node it ran on is lost: {words}"
    if isinstance(error, exceptions.WorkerCrashedError):
        return f"the Ray worker it ran in died: {words}"
    return f"{type(cause).__name__}: {words}"


def _nodes() -> list[dict[str, Any]]:
    import ray

    return [node for node in ray.nodes() if node["Alive"]]


def _amounts(cpus: float, gpus: float, memory_bytes: float) -> str:
    memory = f", {memory_bytes / 1e9:.3g} GB" if memory_bytes else ""
    return f"{cpus:g} CPU, {gpus:g} GPU{memory}"


def _no_room(ask: Ask) -> str:
    have = [node["Resources"] for node in _nodes()]
    shown = "; ".join(_amounts(h.get("CPU", 0), h.get("GPU", 0), h.get("memory", 0)) for h in have) or "none is left"
    return f"no node of the Ray cluster can hold a trial, which asks for {ask}. The nodes have: {shown}."
