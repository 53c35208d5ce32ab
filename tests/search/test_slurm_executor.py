"""Trials as jobs of submitit, on its local executor: results, limits, jobs that die; the states of a real Slurm."""

import importlib.util
import os
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from gptcore.errors import UserError
from search.slurm_executor import SlurmExecutor, _outcome
from search.trial import Limits, TrialResult, TrialSpec

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("submitit") is None, reason="submitit is not installed: extra `slurm`"
)
PATIENCE_S = 120
FAKE = '''
"""What the configuration of a trial says, in place of training."""
import os, time
from pathlib import Path
from search.trial import TrialResult

def run(spec):
    folder = Path(spec.folder)
    print("about to", spec.config["act"], flush=True)
    (folder / "pids.tmp").write_text(f"{os.getpid()} {os.environ['SUBMITIT_LOCAL_JOB_ID']}")
    os.replace(folder / "pids.tmp", folder / "pids")
    if spec.config["act"] == "hang":
        time.sleep(1000)
    if spec.config["act"] == "exit":
        os._exit(0)
    return TrialResult(spec.key, "done", 1.5, ((0, 2.0), (10, 1.5)), reason=os.environ["OMP_NUM_THREADS"])
'''


@pytest.fixture
def executor(tmp_path, monkeypatch):
    (tmp_path / "fake_work.py").write_text(FAKE)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parents[2]), str(tmp_path)]))
    made = SlurmExecutor(tmp_path / "slurm", jobs=3, seconds=600.0, work="fake_work:run", cluster="local")
    yield made
    made.close()


def spec_for(folder, act, **limits):
    return TrialSpec(f"key-{act}", {"act": act}, 1, str(folder / act), Limits(**limits))


def collect(executor, count):
    until, results = time.perf_counter() + PATIENCE_S, []
    while len(results) < count and time.perf_counter() < until:
        results += executor.wait(1.0)
    assert len(results) == count and executor.running() == []
    return {result.key: result for result in results}


def wait_for(condition):
    until = time.perf_counter() + PATIENCE_S
    while not condition():
        assert time.perf_counter() < until
        time.sleep(0.02)


def gone(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return True


def test_results_and_limits_come_back_through_submitit(executor, tmp_path):
    for spec in (spec_for(tmp_path, "finish"), spec_for(tmp_path, "hang", seconds=1.0), spec_for(tmp_path, "exit")):
        executor.start(spec)
    assert set(executor.running()) == {"key-finish", "key-hang", "key-exit"}
    results = collect(executor, 3)
    assert results["key-finish"] == TrialResult("key-finish", "done", 1.5, ((0, 2.0), (10, 1.5)), reason="1")
    assert (results["key-hang"].state, results["key-hang"].reason) == ("timeout", "no end after 1 s")
    assert results["key-exit"].reason == "the worker ended without a result"
    assert "about to exit" in results["key-exit"].log_tail


def test_a_job_that_dies_is_a_failure_and_close_cancels(executor, tmp_path, monkeypatch):
    import submitit

    monkeypatch.setattr(submitit.core.core.Job, "_results_timeout_s", 0)  # for a result that will never come
    killed, cancelled = spec_for(tmp_path / "a", "hang"), spec_for(tmp_path / "b", "hang")
    folders = [Path(killed.folder), Path(cancelled.folder)]
    executor.start(killed)
    wait_for((folders[0] / "pids").exists)
    trial, job = (int(word) for word in (folders[0] / "pids").read_text().split())
    (task,) = Path(f"/proc/{job}/task/{job}/children").read_text().split()
    os.kill(int(task), 9)
    result = collect(executor, 1)[killed.key]
    assert result.state == "failed" and f"the Slurm job {job} ended as" in result.reason
    wait_for(lambda: gone(trial))
    executor.start(cancelled)
    wait_for((folders[1] / "pids").exists)
    trial = int((folders[1] / "pids").read_text().split()[0])
    executor.close()
    assert executor.running() == []
    wait_for(lambda: gone(trial))


@pytest.mark.parametrize(
    ("slurm", "state"),
    [
        ("TIMEOUT", "timeout"), ("DEADLINE", "timeout"), ("OUT_OF_MEMORY", "oom"),
        ("NODE_FAIL", "failed"), ("CANCELLED by 1000", "failed"), ("PREEMPTED", "failed"), ("FAILED", "failed"),
    ],
)  # fmt: skip
def test_states_of_slurm(slurm, state):
    from submitit.core.utils import FailedJobError, UncompletedJobError

    job = SimpleNamespace(job_id="17", state=slurm, exception=lambda: UncompletedJobError("no output"))
    result = _outcome("key", job, time.monotonic())
    assert (result.state, result.loss, result.reason) == (state, None, f"the Slurm job 17 ended as {slurm}")
    job.exception = lambda: FailedJobError("Traceback\n  File x\nModuleNotFoundError: No module named 'search'\n---")
    assert _outcome("key", job, time.monotonic()).reason.endswith(": ModuleNotFoundError: No module named 'search'")


def test_without_slurm_or_submitit_the_user_is_told(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="cannot submit to Slurm from here.*srun"):
        SlurmExecutor(tmp_path, jobs=1, seconds=60.0)
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(UserError, match="not installed"):
        SlurmExecutor(tmp_path, jobs=1, seconds=60.0)
