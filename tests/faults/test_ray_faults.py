"""Trials on a Ray cluster of two nodes: they spread, and whatever dies, hangs or lies becomes a result."""

import importlib.util
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from test_worker_faults import FAKE, collect, gone, one, pids_of, spec_for, wait_for

from gptcore.errors import RunError, UserError
from search import ray_executor
from search.ledger import Ledger
from search.ray_executor import RayExecutor
from search.records import NewTrial
from search.trial import ENDED, Identity, Limits, TrialSpec

pytestmark = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed: extra `ray`")

ROOT = Path(__file__).parents[2]
NODE = {"num_cpus": 2, "object_store_memory": 80 * 2**20, "memory": 2**30}
SOON = {"health_check_period_ms": 500, "health_check_failure_threshold": 4}  # a dead node is one after 2 s, not 15
TOKEN = "0123456789abcdef" * 4
# Writes into the folder of the trial on which node it runs, and waits there for another line.
TWICE = """

def twice(spec):
    mark = Path(spec.folder) / "starts"
    with open(mark, "a") as file:
        print(os.environ["RAY_RAYLET_PID"], file=file)
    while len(mark.read_text().splitlines()) == 1:
        time.sleep(0.05)
    return TrialResult(spec.key, "done", 1.0 + spec.seed)
"""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """Two nodes on the loopback interface, with a token; this process is connected to the head node."""
    home = tmp_path_factory.mktemp("home")
    (home / "fake_work.py").write_text(FAKE + TWICE)
    settings = {
        "PYTHONPATH": str(home), "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN,
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_USAGE_STATS_ENABLED": "0",
    }  # fmt: skip
    before = {name: os.environ.get(name) for name in settings}
    handler = signal.getsignal(signal.SIGTERM)
    os.environ.update(settings)
    import ray
    from ray.cluster_utils import Cluster

    started = Cluster(initialize_head=True, head_node_args={**NODE, "include_dashboard": False, "_system_config": SOON})
    started.add_node(**NODE)
    yield started
    ray.shutdown()
    started.shutdown()
    signal.signal(signal.SIGTERM, handler)  # Ray sets its own
    for name, value in before.items():
        os.environ.pop(name) if value is None else os.environ.update({name: value})


@pytest.fixture(scope="module")
def shared(cluster):
    """Most of these tests share one executor, after which it must still work."""
    executor = RayExecutor(cluster.address, work="fake_work:run")
    yield executor
    executor.close()


def nodes_alive():
    import ray

    return sum(node["Alive"] for node in ray.nodes())


def drain(ledger, executor, keys, on_wait=lambda: None):
    """What the coordinator does with trials, until all of `keys` have ended."""
    until = time.perf_counter() + 120
    while keys - {trial.key for trial in ledger.trials("study", ENDED)}:
        assert time.perf_counter() < until
        while len(executor.running()) < executor.capacity and (specs := ledger.claim("study", 1)):
            executor.start(specs[0])
        for result in executor.wait(0.2):
            ledger.finish("study", result)
        on_wait()


def enter(ledger, tmp_path, count):
    """Enters trials of two attempts; their folders by key."""
    new = [
        NewTrial(Identity(f"{i:064d}"[::-1], i, 10), {}, str(tmp_path / str(i)), Limits(attempts=2))
        for i in range(count)
    ]
    ledger.lead("study", "hash", "space: {}")
    ledger.add("study", new)
    return {trial.identity.key: Path(trial.folder) for trial in new}


def starts(folder):
    return (folder / "starts").read_text().splitlines() if (folder / "starts").exists() else []


def parent(pid):
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


@pytest.mark.parametrize(
    ("act", "config", "state", "reason"),
    [
        ("die", {"signal": "SIGKILL"}, "failed", "killed by SIGKILL, not by us"),
        ("exit", {"code": 0}, "failed", "ended without a result"),
        ("raise", {}, "failed", "exit code 1: RuntimeError: no such luck"),
        ("nan", {}, "diverged", "loss is nan"),
    ],
)
def test_how_a_worker_ends_comes_back_with_its_log(shared, tmp_path, act, config, state, reason):
    result = one(shared, spec_for(tmp_path, act, **config))
    assert (result.state, result.loss) == (state, None)
    assert reason in result.reason and "(on " in result.reason
    assert act == "nan" or f"about to {act}" in result.log_tail


def test_limits_are_kept_on_the_node(shared, tmp_path):
    grow = spec_for(tmp_path, "grow", limits=Limits(seconds=100.0, memory_bytes=200 * 2**20))
    hang = spec_for(tmp_path, "hang with child", limits=Limits(seconds=1.0))
    for spec in (grow, hang, spec_for(tmp_path, "report")):
        shared.start(spec)
    results = {result.key: result for result in collect(shared, 3)}
    assert results[grow.key].state == "oom" and "200 are allowed" in results[grow.key].reason
    assert results[hang.key].state == "timeout"
    seen = eval(results["key-report"].reason)
    assert seen == {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    wait_for(lambda: all(gone(pid) for pid in pids_of(hang)))


def test_a_killed_ray_worker_is_a_failure_and_takes_its_trial_along(shared, tmp_path):
    spec = spec_for(tmp_path, "hang with child")
    shared.start(spec)
    wait_for((Path(spec.folder) / "pids").exists)
    os.kill(parent(parent(pids_of(spec)[0])), signal.SIGKILL)  # trial, process it was forked from, Ray worker
    result = collect(shared, 1)[0]
    assert result.state == "failed" and "the Ray worker it ran in died" in result.reason
    wait_for(lambda: all(gone(pid) for pid in pids_of(spec)))


def test_what_no_node_can_hold_is_refused(cluster, shared, tmp_path):
    with pytest.raises(UserError, match=r"asks for 3 CPU, 0 GPU\. The nodes have: 2 CPU.*; 2 CPU"):
        RayExecutor(cluster.address, cpus_per_trial=3)  # 4 in all, but on no node
    with pytest.raises(UserError, match="asks for 1 CPU, 1 GPU"):
        RayExecutor(cluster.address, gpus_per_trial=1)
    with pytest.raises(UserError, match="2 GB"):
        shared.start(spec_for(tmp_path, "finish", limits=Limits(memory_bytes=2 * 10**9)))
    assert shared.running() == [] and shared.capacity == 4
    assert RayExecutor(cluster.address, memory_bytes=700 * 2**20).capacity == 2  # one a node
    assert RayExecutor(cluster.address, jobs=3).capacity == 3
    with pytest.raises(UserError, match="cannot use one of its own"):
        RayExecutor()


DRIVER = """
import sys
from search.ray_executor import RayExecutor
from search.trial import TrialSpec
try:
    executor = RayExecutor(sys.argv[1], work="fake_work:run")
except Exception as error:
    sys.exit(f"{type(error).__name__}: {error}")
executor.start(TrialSpec("key", {"act": "hang with child"}, 1, sys.argv[2]))
while True:
    executor.wait(1.0)
"""


def driver(cluster, folder, **changes):
    path = os.pathsep.join([str(ROOT), os.environ["PYTHONPATH"]])
    env = {name: value for name, value in {**os.environ, "PYTHONPATH": path, **changes}.items() if value is not None}
    command = [sys.executable, "-c", DRIVER, cluster.address, str(folder)]
    return subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True)


def test_without_the_token_no_one_gets_in(cluster, tmp_path):
    nobody = str(tmp_path)  # no token in the home folder either
    wrong = driver(cluster, tmp_path, RAY_AUTH_TOKEN="f" * 64)
    none = driver(cluster, tmp_path, RAY_AUTH_TOKEN=None, RAY_AUTH_MODE=None, HOME=nobody)
    for process in (wrong, none):
        _, told = process.communicate(timeout=120)
        assert process.returncode == 1
        assert f"UserError: the Ray cluster at {cluster.address} does not accept" in told and "RAY_AUTH_TOKEN" in told
    assert not (tmp_path / "pids").exists()


def test_trials_of_a_killed_coordinator_end(cluster, tmp_path):
    process = driver(cluster, tmp_path)
    wait_for((tmp_path / "pids").exists)
    process.kill()
    process.communicate()
    wait_for(lambda: all(gone(int(word)) for word in (tmp_path / "pids").read_text().split()))


def test_close_ends_what_runs(cluster, shared, tmp_path):
    executor = RayExecutor(cluster.address, work="fake_work:run")
    spec = spec_for(tmp_path, "hang with child")
    executor.start(spec)
    wait_for((Path(spec.folder) / "pids").exists)
    executor.close()
    assert executor.running() == []
    wait_for(lambda: all(gone(pid) for pid in pids_of(spec)))


def test_what_waits_for_nodes_that_have_gone_fails_after_a_while(shared, tmp_path, monkeypatch):
    spec = spec_for(tmp_path, "hang")
    shared.start(spec)
    wait_for((Path(spec.folder) / "pids").exists)
    with monkeypatch.context() as patch:
        patch.setattr(ray_executor, "_nodes", lambda: [])
        assert shared.wait(0.1) == [] and shared.capacity == 1  # another node may come
        patch.setattr(ray_executor, "PATIENCE_S", 0.0)
        result = collect(shared, 1)[0]
        with pytest.raises(RunError, match="none is left.\nA node that could has gone. Start one"):
            shared.start(spec_for(tmp_path, "finish"))
    assert result.state == "failed" and "asks for 1 CPU, 0 GPU. The nodes have: none is left" in result.reason
    wait_for(lambda: all(gone(pid) for pid in pids_of(spec)))
    assert one(shared, spec_for(tmp_path, "finish")).state == "done"


def test_trials_use_both_nodes_and_those_of_a_lost_one_run_again_on_the_other(cluster, shared, tmp_path):
    executor = RayExecutor(cluster.address, work="fake_work:twice")
    (second,) = cluster.worker_nodes
    lost, hit = str(second.all_processes["raylet"][0].process.pid), set()

    def let_go_or_remove():
        """With four trials under way the second node is removed; all others may end."""
        under_way = {folder for folder in folders.values() if starts(folder)}
        if not hit and len(under_way) == 4:
            hit.update(folder for folder in under_way if starts(folder) == [lost])
            cluster.remove_node(second, allow_graceful=False)
        for folder in under_way - hit:
            if hit and len(starts(folder)) == 1:
                with open(folder / "starts", "a") as file:
                    file.write("go\n")

    with Ledger(tmp_path / "ledger.db") as ledger:
        folders = enter(ledger, tmp_path, 6)
        drain(ledger, executor, set(folders), let_go_or_remove)
        trials = {trial.key: trial for trial in ledger.trials("study")}
    assert len(hit) == 2
    for key, folder in folders.items():
        trial, again = trials[key], folder in hit
        assert (trial.state, trial.attempts, trial.loss) == ("done", 1 + again, 1.0 + trial.seed)
        assert starts(folder)[0] != lost or (again and starts(folder)[1] not in (lost, "go"))
    wait_for(lambda: executor.capacity == 2)


@pytest.mark.slow
def test_when_no_node_is_left_that_could_the_trial_fails(cluster, shared, tmp_path, monkeypatch):
    large = cluster.add_node(**NODE | {"num_cpus": 3})
    executor = RayExecutor(cluster.address, cpus_per_trial=3, work="fake_work:run")
    running, waiting = spec_for(tmp_path, "hang"), spec_for(tmp_path, "finish")
    executor.start(running)
    wait_for((Path(running.folder) / "pids").exists)
    executor.start(waiting)
    cluster.remove_node(large, allow_graceful=False)
    wait_for(lambda: nodes_alive() == len(cluster.list_all_nodes()))
    lost = collect_one(executor)
    assert (lost.key, lost.state) == (running.key, "failed") and "the node it ran on is lost" in lost.reason
    assert executor.wait(0.1) == []  # another node may come
    monkeypatch.setattr(ray_executor, "PATIENCE_S", 0.0)
    gave_up = collect_one(executor)
    assert (gave_up.key, gave_up.state) == (waiting.key, "failed")
    assert "asks for 3 CPU" in gave_up.reason and "has gone" in gave_up.reason
    assert executor.running() == [] and executor.capacity == 1
    with pytest.raises(RunError, match="Start one"):
        executor.start(TrialSpec("another", {"act": "finish"}, 1, str(tmp_path)))


def collect_one(executor):
    while not (results := executor.wait(1.0)):
        pass
    (result,) = results
    return result
