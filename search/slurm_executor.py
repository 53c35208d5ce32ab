"""Trials as Slurm jobs, one each, submitted through submitit (https://github.com/facebookincubator/submitit).

A job runs its trial as everywhere else (search.executors.Processes), with its limits enforced on the node and its
result as the value that submitit hands back. The folder of the search and the data must be on a file system that all
nodes share, and this package and Python under the same path. Attempts are counted by the ledger: a job is not requeued.

Run so far against submitit's local executor only, never on a real Slurm: its states are mapped from the documentation
of sacct (https://slurm.schedmd.com/sacct.html). When a job dies without a result, submitit may take minutes to notice.
"""

import json
import math
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from gptcore.errors import RunError, UserError

from .executors import Processes
from .trial import State, TrialResult, TrialSpec
from .worker import TAIL_BYTES, WORK

STATES: dict[str, State] = {"TIMEOUT": "timeout", "DEADLINE": "timeout", "OUT_OF_MEMORY": "oom"}  # the rest is failed
POLL_S = 0.2
MARGIN_S, MARGIN_BYTES = 300.0, 2**29  # Slurm's limits are wider: its end of a job has no words, and loses the log


class SlurmExecutor:
    """Up to `jobs` Slurm jobs at a time; `folder` is for what submitit writes, `options` are those of sbatch.

    `seconds` and `memory_bytes` are the limits of a trial. `cluster` is "local" to try it without Slurm.
    """

    def __init__(
        self, folder: Path, *, jobs: int, seconds: float, memory_bytes: int | None = None, cpus_per_trial: int = 1,
        gpus_per_trial: int = 0, options: Mapping[str, str] = {}, work: str = WORK, cluster: str = "slurm",
    ):  # fmt: skip
        try:
            import submitit
        except ModuleNotFoundError:
            raise UserError("submitit is not installed: pip install 'gptcore[slurm]'") from None
        self.capacity, self.work, self.cpus = jobs, work, cpus_per_trial
        asked: dict[str, Any] = {"timeout_min": math.ceil((seconds + MARGIN_S) / 60), "gpus_per_node": gpus_per_trial}
        if memory_bytes is not None:
            asked["mem_gb"] = math.ceil((memory_bytes + MARGIN_BYTES) / 2**30)
        try:
            self._submitit = submitit.AutoExecutor(folder, cluster=cluster, slurm_max_num_timeout=0)
            self._submitit.update_parameters(
                name="trial", nodes=1, tasks_per_node=1, cpus_per_task=cpus_per_trial,
                slurm_additional_parameters=dict(options), **asked,
            )  # fmt: skip
        except (RuntimeError, ValueError, NameError) as error:
            raise UserError(f"cannot submit to Slurm from here: {error}") from error
        self._jobs: dict[str, tuple[Any, float]] = {}

    def start(self, spec: TrialSpec) -> None:
        import submitit

        assert spec.key not in self._jobs
        spec = replace(spec, folder=str(Path(spec.folder).absolute()))
        try:
            job = self._submitit.submit(attend_in_job, spec.to_json(), self.work, self.cpus)
        except (submitit.core.utils.FailedJobError, submitit.core.utils.FailedSubmissionError, OSError) as error:
            raise RunError(f"Slurm does not take the trial {spec.key}: {' '.join(str(error).split())[:400]}") from error
        self._jobs[spec.key] = job, time.monotonic()

    def wait(self, timeout_s: float) -> list[TrialResult]:
        until = time.monotonic() + timeout_s
        while not (ended := [key for key, (job, _) in self._jobs.items() if job.done()]) and self._jobs:
            if (left := until - time.monotonic()) <= 0:
                break
            time.sleep(min(POLL_S, left))
        return [_outcome(key, *self._jobs.pop(key)) for key in ended]

    def running(self) -> list[str]:
        return list(self._jobs)

    def close(self) -> None:
        for job, _ in self._jobs.values():
            job.cancel(check=False)
        self._jobs.clear()


def attend_in_job(text: str, work: str, cpus: int) -> str:
    """Does a trial on the node of its job; its result as JSON."""
    executor = Processes(1, start_up="fresh", work=work)
    executor.threads = cpus
    executor.start(TrialSpec.from_json(text))
    while not (results := executor.wait(1.0)):
        pass
    return results[0].to_json()


def _outcome(key: str, job: Any, began: float) -> TrialResult:
    from submitit.core.utils import FailedJobError

    error = job.exception()
    if error is None:
        return TrialResult.of_mapping(json.loads(job.result()))
    state = job.state
    reason = f"the Slurm job {job.job_id} ended as {state}"
    if isinstance(error, FailedJobError):
        lines = [line for line in str(error).splitlines() if "Error: " in line]  # of the traceback that it holds
        reason += f": {lines[-1].strip()[:300]}" if lines else ""
    seconds = round(time.monotonic() - began, 3)
    end = STATES.get(state.partition(" ")[0], "failed")  # as in: CANCELLED by 1000
    return TrialResult(key, end, None, reason=reason, log_tail=str(error)[-TAIL_BYTES:], seconds=seconds)
