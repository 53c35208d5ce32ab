"""Trials that really train, inline and in processes; how training's own ends are mapped. Faults: tests/faults."""

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

from gptcore.errors import UserError
from gptcore.loader import from_dict
from search.executors import Inline, Processes
from search.trial import Identity, Limits, TrialSpec
from search.warm import Server


@pytest.fixture
def spec_of(corpus, tmp_path):
    """Makes the specification of a tiny trial from its training settings."""

    def make(limits=Limits(), **train):
        model = {"n_layer": 1, "n_embd": 16, "block_size": 16, "attention": {"kind": "causal", "n_head": 2}}
        train = {"batch_size": 2, "max_iters": 6, "eval_interval": 3, "eval_iters": 2, "warmup_iters": 0,
                 "device": "cpu", "seed": 5} | train  # fmt: skip
        config = {"model": model, "data": {"dataset": corpus}, "train": train}
        key = Identity.of(from_dict(config)).key
        return TrialSpec(key, config, train["seed"], str(tmp_path / key), limits)

    return make


def one(executor, spec):
    executor.start(spec)
    assert executor.running() == [spec.key]
    until = time.perf_counter() + 120
    while not (results := executor.wait(1.0)):
        assert time.perf_counter() < until
    assert executor.running() == [] and executor.wait(0.0) == []
    return results[0]


def test_processes_and_inline_train_the_same(spec_of, tmp_path):
    inline = one(Inline(), spec_of())
    assert inline.state == "done" and [step for step, _ in inline.curve] == [0, 3, 6]
    assert inline.loss == min(loss for _, loss in inline.curve)
    assert inline.tokens == 6 * 2 * 16 and inline.params > 1000 and inline.seconds > 0
    spec = spec_of()
    elsewhere = TrialSpec(spec.key, spec.config, spec.seed, str(tmp_path / "elsewhere"))
    executor = Processes(64)  # so many jobs leave one thread each: equal to the bit
    try:
        result = one(executor, elsewhere)
        # What makes a fork of the warm process safe: it has one thread and no CUDA context.
        warm = Path(f"/proc/{executor._launcher.server.pid}")
        assert len(list((warm / "task").iterdir())) == 1
        assert not [link for link in (warm / "fd").iterdir() if "nvidia" in os.readlink(link)]
    finally:
        executor.close()
    assert (result.state, result.loss, result.curve) == ("done", inline.loss, inline.curve)
    assert (result.tokens, result.params) == (inline.tokens, inline.params)


def test_divergence_and_the_time_limit_of_the_configuration_are_told_apart(spec_of):
    diverged = one(Inline(), spec_of(learning_rate=1e4, grad_clip=0.0, max_iters=100, eval_interval=100))
    assert (diverged.state, diverged.loss) == ("diverged", None) and "limit" in diverged.reason
    slow = one(Inline(), spec_of(max_seconds=1e-3))
    assert (slow.state, slow.loss) == ("timeout", None) and "max_seconds" in slow.reason and slow.curve
    early = one(Inline(), spec_of(max_tokens=64))  # a budget that any machine keeps alike
    assert early.state == "done" and early.tokens == 64


@pytest.mark.parametrize(
    ("error", "state"),
    [
        (MemoryError(), "oom"),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory"), "oom"),
        (torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), "oom"),
        (RuntimeError("shapes cannot be multiplied"), "failed"),
        (ZeroDivisionError("division by zero"), "failed"),
    ],
)  # fmt: skip
def test_what_training_raises_becomes_a_result(spec_of, monkeypatch, error, state):
    def fail(*args, **kwargs):
        raise error

    monkeypatch.setattr("gptcore.train.train", fail)
    result = one(Inline(), spec_of())
    assert (result.state, result.loss) == (state, None)
    assert type(error).__name__ in result.reason and "Traceback" in result.log_tail


def test_a_real_allocation_beyond_the_memory_is_out_of_memory(spec_of, monkeypatch):
    monkeypatch.setattr("gptcore.train.train", lambda *args, **kwargs: torch.empty(2**55))
    assert one(Inline(), spec_of()).state == "oom"


def test_a_configuration_that_is_not_that_of_its_key_is_not_trained(spec_of, monkeypatch):
    spec = spec_of()
    other = TrialSpec(spec.key, spec_of(seed=6).config, 6, spec.folder)
    result = one(Inline(), other)
    assert result.state == "failed" and f"not of {spec.key}" in result.reason
    broken = TrialSpec(spec.key, {"model": {"n_embd": 15}}, 5, spec.folder)
    assert one(Inline(), broken).state == "failed"


def test_the_time_limit_inline(spec_of, monkeypatch):
    def hang(*args, **kwargs):
        try:
            time.sleep(1000)
        except Exception:  # training code that catches too much does not catch the limit
            time.sleep(1000)

    monkeypatch.setattr("gptcore.train.train", hang)
    result = one(Inline(), spec_of(Limits(seconds=0.2)))
    assert (result.state, result.reason) == ("timeout", "no end after 0.2 s")


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_limit_that_strikes_where_nothing_can_be_raised_strikes_again(spec_of, monkeypatch):
    class Slow:
        def __del__(self):
            time.sleep(0.4)

    def hang(*args, **kwargs):
        Slow()
        time.sleep(60)

    monkeypatch.setattr("gptcore.train.train", hang)
    assert one(Inline(), spec_of(Limits(seconds=0.2))).state == "timeout"


def test_limits_that_cannot_be_kept_are_refused(spec_of):
    with pytest.raises(UserError, match="no memory limit"):
        Inline().start(spec_of(Limits(memory_bytes=1)))
    refused = []

    def start():
        try:
            Inline().start(spec_of(Limits(seconds=1.0)))
        except UserError as error:
            refused.append(str(error))

    thread = threading.Thread(target=start)
    thread.start()
    thread.join()
    assert "main thread" in refused[0]
    with pytest.raises(UserError, match="at least 1"):
        Processes(0)
    with pytest.raises(UserError, match="no GPU"):
        Processes(1, gpus=[])


def test_a_trial_begun_before_goes_on_and_gives_the_same_bits(spec_of, monkeypatch, tmp_path):
    """Killed after its first checkpoint, in whichever way: the next attempt ends where an undisturbed one does."""
    plain = one(Inline(), spec_of())
    spec = spec_of()
    spec = TrialSpec(spec.key, spec.config, spec.seed, str(tmp_path / "again"))
    from gptcore.train import Trainer

    save, saved = Trainer._checkpoint, []

    def save_and_die(self, *, best):
        save(self, best=best)
        saved.append(self.progress.step)
        if len(saved) == 2:
            raise OSError("killed")

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_checkpoint", save_and_die)
        assert one(Inline(), spec).state == "failed"
    assert saved == [0, 3]
    again = one(Inline(), spec)
    assert (again.loss, again.curve) == (plain.loss, plain.curve)


def test_who_only_watches_or_waits_imports_no_torch():
    code = "import sys, search.executors, search.ledger, search.export; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=120).returncode == 0


def test_a_warm_process_without_a_coordinator_ends_in_silence():
    """Its end comes from stdin, after the answers to what it was asked."""
    server = Server.__new__(Server)
    theirs, server.answers = os.pipe()
    os.close(theirs)
    server._answer(id=1, pid=2)
    os.close(server.answers)
