"""Ray on this machine alone: nothing but loopback listens, real training gives the same bits; who is refused, and how.

Faults, and a cluster of two nodes: tests/faults/test_ray_faults.py.
"""

import importlib.metadata
import importlib.util
import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from gptcore.errors import RunError, UserError
from search.ray_connection import _refuse_exposed, connect
from search.ray_executor import Ask, RayExecutor

ROOT = Path(__file__).parents[2]
needs_ray = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed: extra `ray`")
LISTENS = """
import json, os
from pathlib import Path
from search.ray_executor import RayExecutor

def family():
    parents = {}
    for entry in filter(str.isdigit, os.listdir("/proc")):
        try:
            parents[int(entry)] = int(Path("/proc", entry, "stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            pass
    mine = {os.getpid()}
    while more := {pid for pid, parent in parents.items() if parent in mine} - mine:
        mine |= more
    return mine

def listening():
    links = set()
    for pid in family():
        for link in Path(f"/proc/{pid}/fd").iterdir():
            try:
                links.add(os.readlink(link))
            except OSError:
                pass
    rows = [row.split() for name in ("tcp", "tcp6") for row in Path("/proc/net", name).read_text().splitlines()[1:]]
    return sorted({row[1].rpartition(":")[0] for row in rows if row[3] == "0A" and f"socket:[{row[9]}]" in links})

executor = RayExecutor(jobs=1)
import ray
from ray._private.authentication.authentication_utils import is_token_auth_enabled
told = {"capacity": executor.capacity, "listening": listening(), "processes": len(family())}
told |= {"token": is_token_auth_enabled(), "dashboard": bool(ray._private.worker._global_node.webui_url)}
executor.close()
print(json.dumps(told | {"left": len(family()), "home": os.listdir(Path.home())}))
"""
TRAINS = """
import json, os, sys
from gptcore.loader import from_dict
from search.executors import Inline
from search.ray_executor import RayExecutor
from search.trial import Identity, TrialSpec

def spec(folder, data):
    model = {"n_layer": 1, "n_embd": 16, "block_size": 16, "attention": {"kind": "causal", "n_head": 2}}
    train = {"batch_size": 2, "max_iters": 6, "eval_interval": 3, "eval_iters": 2, "warmup_iters": 0, "device": "cpu"}
    config = {"model": model, "data": {"dataset": data}, "train": train}
    return TrialSpec(Identity.of(from_dict(config)).key, config, 0, os.path.abspath(folder))

told = {}
corpus, name = sys.argv[1], os.path.relpath(sys.argv[1])
executors = {"ray": RayExecutor(), "inline": Inline()}
for where, executor, data in (("ray", "ray", corpus), ("relative", "ray", name), ("missing", "ray", "no_such_data"),
                              ("inline", "inline", corpus)):
    executors[executor].start(spec(where, data))
    while not (ended := executors[executor].wait(1.0)):
        pass
    told[where] = json.loads(ended[0].to_json())
executors["ray"].close()
print(json.dumps(told))
"""


def in_process(code, folder, *arguments):
    """What a program prints that has no setting of Ray's around it, and an empty home folder."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    env |= {"PYTHONPATH": str(ROOT), "HOME": str(folder)}
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(command, env=env, cwd=folder, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@needs_ray
def test_a_cluster_of_its_own_is_for_this_machine_and_user_alone(tmp_path):
    told = in_process(LISTENS, tmp_path)
    v4, mapped, v6 = "0100007F", "0000000000000000FFFF00000100007F", "0" * 24 + "01000000"
    assert told["listening"] and set(told["listening"]) <= {v4, mapped, v6}
    assert told["token"] and not told["dashboard"] and told["capacity"] == 1
    assert told["processes"] > 4 and told["left"] == 1
    assert told["home"] == []  # the token is nowhere on disk


@needs_ray
@pytest.mark.slow
def test_trials_train_the_same_on_ray(corpus, tmp_path):
    told = in_process(TRAINS, tmp_path, corpus)
    assert told["ray"]["state"] == told["relative"]["state"] == "done"
    for name in ("loss", "curve", "tokens", "params"):
        assert told["ray"][name] == told["relative"][name] == told["inline"][name]
    missing = told["missing"]
    assert missing["state"] == "failed"
    assert (
        "there is no data set 'no_such_data'" in missing["reason"]
        and f"(on {socket.gethostname()})" in missing["reason"]
    )


@pytest.mark.parametrize(
    ("ask", "fits"),
    [
        (Ask(1, 0, 0), 4), (Ask(3, 0, 0), 1), (Ask(5, 0, 0), 0), (Ask(1, 1, 0), 2), (Ask(1, 0.1, 0), 4),
        (Ask(1, 0, 10**9), 3), (Ask(1, 0, 4 * 10**9), 0), (Ask(2, 0.3, 10**9), 2),
    ],
)  # fmt: skip
def test_how_many_trials_a_node_holds(ask, fits):
    assert ask.fits({"CPU": 4.0, "GPU": 2.0, "memory": 3e9, "node:x": 1.0}) == fits
    assert Ask(1, 0.1, 0).fits({"CPU": 99.0, "GPU": 0.3}) == 3 and ask.fits({}) == 0


@pytest.fixture
def bare(monkeypatch, tmp_path):
    """No token, no cluster, and no Ray imported; what `connect` sets is forgotten."""
    monkeypatch.setattr(os, "environ", {"HOME": str(tmp_path), "RAY_TMPDIR": str(tmp_path)})
    monkeypatch.delitem(sys.modules, "ray", raising=False)
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "2.60.0")
    return tmp_path


def closed_port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def test_another_machine_is_used_with_a_token_only(bare):
    for address in ("192.0.2.7:6379", "cluster.example:6379"):
        with pytest.raises(UserError, match=f"{address} can be used with a token only.\nSet RAY_AUTH_MODE=token"):
            connect(address)
    os.environ["RAY_ADDRESS"] = "192.0.2.7:6379"
    with pytest.raises(UserError, match="with a token only"):
        connect("auto")
    os.environ |= {"RAY_AUTH_MODE": "disabled", "RAY_AUTH_TOKEN": "secret"}  # there, and switched off
    with pytest.raises(UserError, match="with a token only"):
        connect("192.0.2.7:6379")


def test_a_cluster_without_token_that_others_reach_is_left(monkeypatch):
    ray = SimpleNamespace(nodes=lambda: nodes, shutdown=lambda: left.append(True))
    monkeypatch.setitem(sys.modules, "ray", ray)
    left, nodes = [], [{"Alive": True, "NodeManagerAddress": "127.0.0.1"}]
    _refuse_exposed()
    nodes += [{"Alive": False, "NodeManagerAddress": "192.0.2.1"}, {"Alive": True, "NodeManagerAddress": "192.0.2.7"}]
    with pytest.raises(UserError, match="listens at 192.0.2.7 without a token"):
        _refuse_exposed()
    assert left == [True]


def test_what_cannot_be_connected_to_is_told_at_once(bare, monkeypatch):
    port = closed_port()
    with pytest.raises(RunError, match=f"no Ray cluster answers at 127.0.0.1:{port}"):
        connect(f"127.0.0.1:{port}")
    assert "RAY_AUTH_MODE" not in os.environ  # no token, none asked for: the cluster may have none
    for address in ("ray://127.0.0.1:10001", "6379", "localhost", "host:port"):
        with pytest.raises(UserError, match="expected HOST:PORT or auto"):
            connect(address)
    with pytest.raises(UserError, match="no Ray cluster runs here: start one"):
        connect("auto")
    (bare / "ray").mkdir()
    (bare / "ray" / "ray_current_cluster").write_text(f"127.0.0.1:{port}\n")  # one that has died
    with pytest.raises(RunError, match=f"no Ray cluster answers at 127.0.0.1:{port}"):
        connect("auto")
    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(is_initialized=lambda: False))
    os.environ.pop("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER")
    with pytest.raises(
        UserError, match="Ray was imported before RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER, RAY_AUTH_MODE, RAY_"
    ):
        connect(None)


def test_ray_that_is_missing_or_too_old(bare, monkeypatch):
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "2.51.1")
    with pytest.raises(UserError, match="Ray 2.51.1 has no token authentication: 2.52 or later"):
        connect(None)

    def missing(name):
        raise importlib.metadata.PackageNotFoundError

    monkeypatch.setattr(importlib.metadata, "version", missing)
    with pytest.raises(UserError, match="pip install 'gptcore\\[ray\\]'"):
        connect(None)


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"jobs": 0}, "0 jobs"),
        ({"cpus_per_trial": 0}, "0 CPUs for a trial"),
        ({"gpus_per_trial": 1.5}, "1.5 GPUs for a trial"),
        ({"gpus_per_trial": -1}, "-1 GPUs"),
    ],
)
def test_wrong_amounts(wrong, told):
    with pytest.raises(UserError, match=told):
        RayExecutor(**wrong)
