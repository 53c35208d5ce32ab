"""Options that say where trials run: what they make, and that what cannot be kept is refused."""

import argparse
import os

import pytest

from gptcore.errors import UserError
from search import executor_choice, ray_executor, slurm_executor
from search.executors import Inline, Processes
from search.trial import Limits


def parsed(*words):
    parser = argparse.ArgumentParser()
    executor_choice.add_arguments(parser)
    return parser.parse_args(words)


def made(tmp_path, *words):
    executor = executor_choice.make_executor(parsed(*words), tmp_path)
    executor.close()
    return executor


def test_processes_are_the_default_and_share_cores_or_gpus(tmp_path):
    executor = made(tmp_path)
    assert isinstance(executor, Processes) and executor.gpus is None
    assert executor.capacity == len(os.sched_getaffinity(0))
    assert executor_choice.limits(parsed()) == Limits()
    assert (made(tmp_path, "--jobs", "3").capacity, made(tmp_path, "--gpus", "0,2,GPU-x").capacity) == (3, 3)
    two_each = made(tmp_path, "--gpus", "0, 1", "--jobs", "4")
    assert (two_each.capacity, two_each.gpus) == (4, ["0", "1"])
    assert isinstance(made(tmp_path, "--executor", "inline"), Inline)


def test_limits_in_either_spelling():
    words = "--seconds-per-trial 90 --memory_per_trial 1.5 --attempts 3".split()
    assert executor_choice.limits(parsed(*words)) == Limits(seconds=90.0, memory_bytes=1_500_000_000, attempts=3)


def test_what_ray_and_slurm_are_asked_for(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(ray_executor, "RayExecutor", lambda *args, **named: calls.append((args, named)))
    monkeypatch.setattr(slurm_executor, "SlurmExecutor", lambda *args, **named: calls.append((args, named)))
    words = "--executor ray --ray-address auto --jobs 5 --gpus-per-trial 0.5 --memory-per-trial 2"
    executor_choice.make_executor(parsed(*words.split()), tmp_path)
    named = {"jobs": 5, "cpus_per_trial": 1, "gpus_per_trial": 0.5, "memory_bytes": 2 * 10**9}
    assert calls.pop() == (("auto",), named)
    words = "--executor slurm --seconds-per-trial 600 --cpus-per-trial 4 --slurm partition=gpu --slurm account=a=b"
    executor_choice.make_executor(parsed(*words.split()), tmp_path)
    named = {"jobs": executor_choice.SLURM_JOBS, "seconds": 600.0, "memory_bytes": None, "cpus_per_trial": 4}
    named |= {"gpus_per_trial": 0, "options": {"partition": "gpu", "account": "a=b"}}
    assert calls.pop() == ((tmp_path / "slurm",), named)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("--jobs 0", "--jobs 0: expected at least 1"),
        ("--executor ray --jobs -1", "--jobs -1"),
        ("--executor inline --jobs 2", "--jobs means nothing to --executor inline: it is for processes and ray"),
        ("--executor inline --gpus 0", "--gpus means nothing to --executor inline"),
        ("--executor inline --memory-per-trial 2", "--memory-per-trial means nothing to --executor inline"),
        ("--executor ray --gpus 0,1", "--gpus means nothing to --executor ray: it is for processes"),
        ("--ray-address auto", "--ray-address means nothing to --executor processes: it is for ray"),
        ("--executor slurm --ray-address auto", "--ray-address means nothing to --executor slurm"),
        ("--cpus-per-trial 2", "--cpus-per-trial means nothing to --executor processes"),
        ("--executor inline --gpus-per-trial 2", "--gpus-per-trial means nothing"),
        ("--executor ray --slurm partition=x", "--slurm means nothing to --executor ray"),
        ("--gpus 0,,1", "--gpus 0,,1: expected numbers"),
        ("--gpus 1,1", "each once"),
        ("--executor ray --cpus-per-trial 0", "--cpus-per-trial 0"),
        ("--executor ray --gpus-per-trial -1", "--gpus-per-trial -1"),
        ("--seconds-per-trial 0", "--seconds-per-trial 0: expected more than 0"),
        ("--seconds-per-trial nan", "--seconds-per-trial nan"),
        ("--memory-per-trial -1", "--memory-per-trial -1"),
        ("--attempts 0", "--attempts 0"),
        ("--executor slurm", "needs --seconds-per-trial"),
        ("--executor slurm --seconds-per-trial 9 --gpus-per-trial 0.5", "whole GPUs"),
        ("--executor slurm --seconds-per-trial 9 --slurm partition", "--slurm partition: expected KEY=VALUE"),
        ("--executor slurm --seconds-per-trial 9 --slurm a=1 --slurm a=2", "--slurm a is given twice"),
    ],
)  # fmt: skip
def test_what_cannot_be_kept_is_refused(tmp_path, words, told):
    with pytest.raises(UserError, match=told):
        executor_choice.make_executor(parsed(*words.split()), tmp_path)
