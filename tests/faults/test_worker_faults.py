"""Workers that die, hang, grow, lie or lose their coordinator, started afresh and forked from a warm process."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from search.executors import Processes
from search.trial import Limits, TrialResult, TrialSpec

PATIENCE_S = 120
FAKE = '''
"""A worker that does what the configuration of its trial says, in place of training."""
import os, signal, subprocess, sys, threading, time
from pathlib import Path
from search.trial import TrialResult

def run(spec):
    act, folder = spec.config["act"], Path(spec.folder)
    print("about to", act, flush=True)
    if act == "finish":
        return TrialResult(spec.key, "done", 1.5, ((0, 2.0), (10, 1.5)), seconds=0.1, tokens=7, params=3)
    if act == "report":
        seen = {name: os.environ.get(name) for name in ("OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES")}
        return TrialResult(spec.key, "done", 1.0, reason=repr(seen))
    if act == "nan":
        return TrialResult(spec.key, "done", float("nan"), ((0, 2.0), (10, float("nan"))))
    if act == "die":
        os.kill(os.getpid(), getattr(signal, spec.config["signal"]))
    if act == "exit":
        os._exit(spec.config["code"])
    if act == "raise":
        raise RuntimeError("no such luck")
    if act == "garbage":
        (folder / "result.json").write_text('{"key": "' + spec.key + '", "state": "do')
        os._exit(0)
    if act == "foreign":
        (folder / "result.json").write_text(TrialResult("another", "done", 1.0).to_json())
        os._exit(0)
    if act == "chatter":
        sys.stdout.write("x" * 100_000 + "the end")
        sys.stdout.flush()
        os._exit(7)
    if act == "grow":
        held = []
        while True:
            held.append(bytearray(b"x" * 2**22))
            time.sleep(0.002)
    if act in ("hang", "hang with child"):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        pids = [os.getpid()]
        if act == "hang with child":
            code = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(1000)"
            pids.append(subprocess.Popen([sys.executable, "-c", code]).pid)
        (folder / "pids.tmp").write_text(" ".join(map(str, pids)))
        os.replace(folder / "pids.tmp", folder / "pids")
        while True:
            time.sleep(1000)
    raise AssertionError(act)
'''


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder on PYTHONPATH with the fake worker as module `fake_work`."""
    folder = tmp_path_factory.mktemp("home")
    (folder / "fake_work.py").write_text(FAKE)
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = str(folder)
    yield folder
    os.environ.pop("PYTHONPATH") if before is None else os.environ.update(PYTHONPATH=before)


@pytest.fixture(scope="module", params=["fresh", "warm"])
def start_up(request):
    return request.param


@pytest.fixture(scope="module")
def shared(home, start_up):
    """Executors are for many trials: most of these tests share one, after which it must still work."""
    executor = Processes(4, start_up=start_up, work="fake_work:run")
    yield executor
    executor.close()


def spec_for(folder, act, *, limits=Limits(), **config):
    return TrialSpec(f"key-{act}", {"act": act, **config}, 1, str(folder / f"trial-{act}"), limits)


def one(executor, spec) -> TrialResult:
    executor.start(spec)
    return collect(executor, 1)[0]


def collect(executor, count):
    until, results = time.perf_counter() + PATIENCE_S, []
    while len(results) < count and time.perf_counter() < until:
        results += executor.wait(1.0)
    assert len(results) == count and executor.running() == []
    return results


def wait_for(condition):
    until = time.perf_counter() + PATIENCE_S
    while not condition():
        assert time.perf_counter() < until
        time.sleep(0.01)


def gone(pid):
    """Whether a process has ended, be it that no one has collected it yet."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return True


def pids_of(spec):
    return [int(word) for word in (Path(spec.folder) / "pids").read_text().split()]


def test_a_good_worker(shared, tmp_path):
    result = one(shared, spec_for(tmp_path, "finish"))
    assert result == TrialResult("key-finish", "done", 1.5, ((0, 2.0), (10, 1.5)), seconds=0.1, tokens=7, params=3)


@pytest.mark.parametrize(
    ("act", "config", "state", "reason"),
    [
        ("die", {"signal": "SIGKILL"}, "failed", "killed by SIGKILL, not by us"),
        ("die", {"signal": "SIGSEGV"}, "failed", "killed by SIGSEGV"),
        ("exit", {"code": 0}, "failed", "ended without a result"),
        ("exit", {"code": 3}, "failed", "exit code 3: about to exit"),
        ("raise", {}, "failed", "exit code 1: RuntimeError: no such luck"),
        ("garbage", {}, "failed", "ended without a result"),
        ("foreign", {}, "failed", "ended without a result"),
        ("nan", {}, "diverged", "loss is nan"),
    ],
)
def test_how_a_worker_ends_is_recorded_with_its_reason(shared, tmp_path, act, config, state, reason):
    result = one(shared, spec_for(tmp_path, act, **config))
    assert (result.state, result.loss) == (state, None)
    assert reason in result.reason
    assert act == "nan" or f"about to {act}" in result.log_tail


def test_the_end_of_a_long_log_is_kept(shared, tmp_path):
    result = one(shared, spec_for(tmp_path, "chatter"))
    assert len(result.log_tail) == 4096 and result.log_tail.endswith("xthe end")


def test_a_hung_worker_is_killed_with_all_it_started(shared, tmp_path, monkeypatch):
    spec = spec_for(tmp_path, "hang with child", limits=Limits(seconds=1000.0))
    shared.start(spec)
    wait_for(lambda: (shared.wait(0.01), (Path(spec.folder) / "pids").exists())[1])
    assert len(pids_of(spec)) == 2 and not any(gone(pid) for pid in pids_of(spec))
    real = time.monotonic
    monkeypatch.setattr(time, "monotonic", lambda: real() + 1001.0)
    result = collect(shared, 1)[0]
    assert (result.state, result.reason) == ("timeout", "no end after 1000 s")
    wait_for(lambda: all(gone(pid) for pid in pids_of(spec)))


def test_a_worker_that_grows_is_killed(shared, tmp_path):
    result = one(shared, spec_for(tmp_path, "grow", limits=Limits(seconds=PATIENCE_S, memory_bytes=200 * 2**20)))
    assert result.state == "oom" and "200 are allowed" in result.reason


def test_one_bad_worker_does_not_harm_the_others(shared, tmp_path):
    specs = [
        spec_for(tmp_path, "hang", limits=Limits(seconds=1.0)),
        spec_for(tmp_path, "die", signal="SIGKILL"),
        spec_for(tmp_path, "finish"),
        spec_for(tmp_path, "exit", code=0),
    ]
    for spec in specs:
        shared.start(spec)
    states = {result.key: result.state for result in collect(shared, 4)}
    assert states == {"key-hang": "timeout", "key-die": "failed", "key-finish": "done", "key-exit": "failed"}


def test_a_stale_result_is_not_taken_for_that_of_this_attempt(shared, tmp_path):
    spec = spec_for(tmp_path, "exit", code=0)
    Path(spec.folder).mkdir()
    (Path(spec.folder) / "result.json").write_text(TrialResult(spec.key, "timeout", None, reason="before").to_json())
    assert one(shared, spec).reason == "the worker ended without a result"


def test_a_good_result_that_no_one_heard_of_is_not_worked_for_again(shared, tmp_path):
    spec = spec_for(tmp_path, "exit", code=0)  # would fail
    Path(spec.folder).mkdir()
    (Path(spec.folder) / "result.json").write_text(TrialResult(spec.key, "done", 1.25).to_json())
    assert one(shared, spec) == TrialResult(spec.key, "done", 1.25)


def test_a_clock_that_jumps_ends_no_trial(shared, tmp_path, monkeypatch):
    steps = iter(range(10**6))
    monkeypatch.setattr(time, "time", lambda: 2e9 + 1e7 * next(steps))  # four months ahead at each look
    result = one(shared, spec_for(tmp_path, "finish", limits=Limits(seconds=PATIENCE_S)))
    assert result.state == "done"


def test_close_kills_whole_groups(home, start_up, tmp_path):
    executor = Processes(1, start_up=start_up, work="fake_work:run")
    spec = spec_for(tmp_path, "hang with child")
    executor.start(spec)
    wait_for(lambda: (executor.wait(0.01), (Path(spec.folder) / "pids").exists())[1])
    executor.close()
    assert executor.running() == []
    wait_for(lambda: all(gone(pid) for pid in pids_of(spec)))


COORDINATOR = """
import sys
from search.executors import Processes
from search.trial import TrialSpec
executor = Processes(1, start_up=sys.argv[1], work="fake_work:run")
executor.start(TrialSpec("key", {"act": "hang with child"}, 1, sys.argv[2]))
while True:
    executor.wait(1.0)
"""


def test_workers_of_a_killed_coordinator_end(home, start_up, tmp_path):
    path = [str(Path(__file__).parents[2]), str(home)]
    coordinator = subprocess.Popen(
        [sys.executable, "-c", COORDINATOR, start_up, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path)},
    )
    wait_for((tmp_path / "pids").exists)
    coordinator.send_signal(signal.SIGKILL)
    coordinator.wait()
    wait_for(lambda: all(gone(int(word)) for word in (tmp_path / "pids").read_text().split()))


def test_a_killed_warm_process_fails_its_trials_and_is_replaced(home, tmp_path):
    executor = Processes(2, start_up="warm", work="fake_work:run")
    spec = spec_for(tmp_path, "hang with child")
    executor.start(spec)
    wait_for(lambda: (executor.wait(0.01), (Path(spec.folder) / "pids").exists())[1])
    executor._launcher.server.kill()
    wait_for(lambda: all(gone(pid) for pid in pids_of(spec)))  # by themselves: no one has told the executor yet
    assert [result.state for result in collect(executor, 1)] == ["failed"]
    assert one(executor, spec_for(tmp_path, "finish")).state == "done"
    executor.close()


KILLER = """
import os, sys
from search import warm
for name in ("kill", "killpg"):
    def kill_and_die(pid, number, kill=getattr(os, name)):
        kill(pid, number)
        os._exit(0)
    setattr(os, name, kill_and_die)
warm.kill_group(int(sys.argv[1]))
"""


def test_who_kills_a_group_may_die_over_it(home, tmp_path):
    """As a Ray worker and its warm process do, both at once, when a trial is cancelled."""
    executor = Processes(1, start_up="warm", work="fake_work:run")
    spec = spec_for(tmp_path, "hang with child")
    executor.start(spec)
    wait_for(lambda: (executor.wait(0.01), (Path(spec.folder) / "pids").exists())[1])
    path = os.pathsep.join([str(Path(__file__).parents[2]), os.environ["PYTHONPATH"]])
    os.kill(executor._launcher.server.pid, signal.SIGSTOP)  # so that it cannot make up for it
    subprocess.run(
        [sys.executable, "-c", KILLER, str(pids_of(spec)[0])], env={**os.environ, "PYTHONPATH": path}, check=True
    )
    wait_for(lambda: all(gone(pid) for pid in pids_of(spec)))
    os.kill(executor._launcher.server.pid, signal.SIGCONT)
    executor.close()


def test_jobs_share_cores_and_take_gpus_in_turn(home, start_up, tmp_path):
    executor = Processes(3, gpus=[4, "GPU-x"], start_up=start_up, work="fake_work:run")
    cores = len(os.sched_getaffinity(0))
    for i in range(3):
        executor.start(TrialSpec(f"key-{i}", {"act": "report"}, 1, str(tmp_path / str(i))))
    seen = {result.key: eval(result.reason) for result in collect(executor, 3)}
    assert [seen[f"key-{i}"]["CUDA_VISIBLE_DEVICES"] for i in range(3)] == ["4", "GPU-x", "4"]
    assert {found["OMP_NUM_THREADS"] for found in seen.values()} == {str(max(1, cores // 3))}
    executor.close()
