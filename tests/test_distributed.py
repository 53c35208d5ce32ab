"""Two gloo processes train like one: same losses, exact resume, one writer, interchangeable checkpoints."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from test_train import rows, same_state, wait_for_step

from gptcore import checkpoint
from gptcore.constants import read_constants
from gptcore.loader import from_dict
from gptcore.train import train

STEPS = 200
# Sums over sequences are taken in another order: each step perturbs the weights by a few roundings relative to their
# update, which later steps carry on. 8 roundings of fp32 a step, at losses below 4 nats.
TOLERANCE = 8 * torch.finfo(torch.float32).eps * STEPS * 4


def settings(corpus: str, folder, mode: str) -> dict:
    return {
        "model": {
            "n_layer": 2, "n_embd": 16, "block_size": 16, "norm": "rmsnorm",
            "attention": {"n_head": 2, "softmax": {"kind": "softmax", "lobo": "learned"}},
        },
        "data": {"dataset": corpus},
        "train": {
            "out_dir": str(folder), "batch_size": 4, "gradient_accumulation_steps": 4, "max_iters": STEPS,
            "eval_interval": 20, "eval_iters": 3, "log_interval": 1, "warmup_iters": 4, "learning_rate": 0.01,
            "device": "cpu", "parallel": mode,
        },
    }  # fmt: skip


def launch(config: dict, path) -> subprocess.Popen:
    path.write_text(yaml.safe_dump(config))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "gptcore"]
    return subprocess.Popen(
        [*command, "train", str(path), "--quiet"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def kill_9(process: subprocess.Popen, path) -> None:
    """The launcher and its workers, which live in sessions of their own."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and str(path).encode() in _command_line(entry):
            os.kill(int(entry.name), signal.SIGKILL)
    process.communicate()


def _command_line(entry: Path) -> bytes:
    try:
        return (entry / "cmdline").read_bytes()
    except OSError:
        return b""


def finish(process: subprocess.Popen) -> None:
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors


@pytest.mark.parametrize("mode", ["ddp", "fsdp"])
def test_two_processes_are_one(mode, corpus, tmp_path):
    one = train(from_dict(settings(corpus, tmp_path / "one", mode)), quiet=True)
    two, killed = tmp_path / "two", tmp_path / "killed"
    finish(launch(settings(corpus, two, mode), tmp_path / "two.yaml"))

    single, double = rows(one.folder), rows(two)
    assert [r["step"] for r in double] == [str(s) for s in range(STEPS + 1)]  # one writer: each step once
    for a, b in zip(single, double, strict=True):
        for column in ("train_loss", "val_loss"):
            assert bool(a[column]) == bool(b[column])
            assert not a[column] or abs(float(a[column]) - float(b[column])) <= TOLERANCE, (a, b)
    for a, b in zip(read_constants(one.folder), read_constants(two), strict=True):  # sharded or not
        assert (a.step, a.layer, a.head) == (b.step, b.layer, b.head) and abs(a.value - b.value) <= TOLERANCE
    assert set(os.listdir(two)) == set(os.listdir(one.folder)) | {"ppa"}  # the report comes with the command

    process = launch(settings(corpus, killed, mode), tmp_path / "killed.yaml")
    wait_for_step(killed, 50, process)
    kill_9(process, tmp_path / "killed.yaml")
    finish(launch(settings(corpus, killed, mode), tmp_path / "killed.yaml"))
    assert checkpoint.read_run(killed)["resumed_at"] in range(40, STEPS, 20)
    assert rows(killed) == double and same_state(killed, two)
    assert (killed / "constants.csv").read_bytes() == (two / "constants.csv").read_bytes()

    # A checkpoint of two processes continues on one.
    more = settings(corpus, two, mode)
    more["train"].update(max_iters=STEPS + 5, lr_decay_iters=STEPS, init_from="resume")
    assert train(from_dict(more), quiet=True).step == STEPS + 5


def test_sequences_must_divide(corpus, tmp_path, monkeypatch):
    from gptcore.data import find_dataset, open_dataset
    from gptcore.distributed import World
    from gptcore.errors import UserError
    from gptcore.runfolder import Start
    from gptcore.train import Trainer

    config = from_dict(settings(corpus, tmp_path, "ddp"))
    start = Start(config.with_vocab(27))
    with pytest.raises(UserError, match="16 sequences a step cannot be shared equally by 3 processes"):
        Trainer(start, open_dataset(find_dataset(corpus)), tmp_path, "x", "x", World(0, 3, torch.device("cpu")), True)
