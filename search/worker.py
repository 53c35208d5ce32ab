"""One trial in a process of its own: `python -m search.worker < FOLDER/trial.json` writes FOLDER/result.json.

The exit code is 0 only when that file was written, which happens at once or not at all. With `--lifeline FD` the worker
and all that it started end as soon as the other end of that pipe is closed, that is when whoever started it dies.
"""

import argparse
import contextlib
import csv
import importlib
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .score import task_scores
from .trial import Identity, State, TrialResult, TrialSpec

if TYPE_CHECKING:
    from gptcore.config import Config

RESULT, LOG, SPEC = "result.json", "worker.log", "trial.json"
WORK = "search.worker:run_trial"
TAIL_BYTES = 4096
OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "cannot allocate memory", "not enough memory")


def preload() -> None:
    """Imports what a trial will import, sooner or later; a process that forks workers does it once for all."""
    for name in ("gptcore.train", "torch._dynamo"):  # the latter by the first optimizer step
        importlib.import_module(name)
    from gptcore.loader import from_dict

    from_dict({})  # finds and imports every kind there is


def run_trial(spec: TrialSpec) -> TrialResult:
    """Trains in this process. Whatever a configuration makes training do becomes a result; only signals get through.

    A run that its own `max_seconds` stopped is a timeout: its loss would depend on the speed of the machine.
    """
    began = time.monotonic()
    try:
        result = _train(spec)
    except Exception as error:  # a variant may fail in any way: it fails its trial, not the search
        words = " ".join(str(error).split())
        lost = isinstance(error, MemoryError) or any(sign in words.lower() for sign in OUT_OF_MEMORY)
        reason = f"{type(error).__name__}: {words}"[:500]
        log = traceback.format_exc()[-TAIL_BYTES:]
        result = TrialResult(spec.key, "oom" if lost else "failed", None, reason=reason, log_tail=log)
    return replace(result, seconds=round(time.monotonic() - began, 3))


def _train(spec: TrialSpec) -> TrialResult:
    from gptcore.errors import RunError
    from gptcore.loader import from_dict
    from gptcore.prepare import ensure_prepared

    config = from_dict(spec.config)
    ensure_prepared(config.data.dataset)
    found = Identity.of(config, spec.parent[0] if spec.parent else None, spec.tasks).key
    if found != spec.key:
        raise RunError(
            f"the configuration is that of trial {found}, not of {spec.key}: another version of the program, or the "
            f"data set {config.data.dataset} holds other tokens here than where the search runs"
        )
    changes = {"out_dir": spec.folder, "pause_at": spec.pause_at}
    config = config.model_copy(update={"train": config.train.model_copy(update=changes)})
    from gptcore.checkpoint import read_run  # with torch: only now, when the configuration is known to be good
    from gptcore.train import train

    weights, words = _grown(spec.parent[1], config) if spec.parent else (None, "")
    run = train(config, name=spec.key, quiet=True, weights=weights)
    if run.status == "interrupted":
        raise KeyboardInterrupt
    about, curve = read_run(run.folder), tuple(_curve(run.folder))
    state: State = "pruned" if run.status == "paused" else "done"
    if run.status == "diverged" or run.best_loss is None:
        state = "diverged"
    elif run.status == "stopped" and run.reason.endswith("max_seconds"):
        state = "timeout"
    loss = run.best_loss if state == "done" else None
    scores = task_scores(run.folder, spec.tasks) if state == "done" and spec.tasks else {}
    return TrialResult(
        spec.key, state, loss, curve, run.reason, tokens=about["tokens"], params=about["parameters"], scores=scores,
        words=words,
    )  # fmt: skip


def _grown(parent: str, config: "Config") -> tuple[dict[str, Any], str]:
    """The weights of the parent's last checkpoint in the shape of this configuration, and how they got there."""
    from gptcore.checkpoint import read_newest
    from gptcore.config import GPTConfig
    from gptcore.errors import RunError
    from gptcore.grow import grow

    found = read_newest(Path(parent))
    if found is None:
        raise RunError(f"the trial to grow from left no checkpoint in {parent}; a warm start needs its folder here")
    before = GPTConfig.model_validate(found.payload["model_config"])
    assert before.vocab_size is not None
    grown = grow(found.payload["model"], before, config.with_vocab(before.vocab_size).model, seed=config.train.seed)
    return grown.weights, grown.words


def _curve(folder: Path) -> Iterator[tuple[int, float]]:
    with open(folder / "metrics.csv", encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            if row["val_loss"]:
                yield int(row["step"]), float(row["val_loss"])


def find_work(name: str) -> Callable[[TrialSpec], TrialResult]:
    """The function `module:name` that turns a trial into its result."""
    module, _, function = name.partition(":")
    return getattr(importlib.import_module(module), function)


def attend(text: str, work: str, lifeline: int | None) -> int:
    """Does the trial that `text` describes in this process, which is for nothing else; the exit code."""
    if lifeline is not None:
        threading.Thread(target=_end_with, args=(lifeline,), daemon=True).start()
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
        file.write("500")  # when the machine runs out of memory, this process goes and not the coordinator
    if "torch" in sys.modules and os.environ.get("OMP_NUM_THREADS", "").isdigit():
        sys.modules["torch"].set_num_threads(int(os.environ["OMP_NUM_THREADS"]))  # forked: read too late otherwise
    spec = TrialSpec.from_json(text)
    result = find_work(work)(spec)
    from gptcore.files import write_atomically

    Path(spec.folder).mkdir(parents=True, exist_ok=True)
    write_atomically(Path(spec.folder) / RESULT, result.to_json().encode())
    return 0


def _end_with(lifeline: int) -> None:
    with contextlib.suppress(OSError):
        while os.read(lifeline, 1):
            pass
    os.killpg(0, signal.SIGKILL)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m search.worker", description=__doc__)
    parser.add_argument("--work", default=WORK, help="module:function that turns a trial into its result")
    parser.add_argument("--lifeline", type=int, help="file descriptor of a pipe; the worker ends when it closes")
    args = parser.parse_args()
    return attend(sys.stdin.read(), args.work, args.lifeline)


if __name__ == "__main__":
    sys.exit(main())
