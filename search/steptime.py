"""The time of a training step as a cost: measured on this machine, as a ratio to the baseline's step.

Candidate and baseline take their steps in turns in a process of its own, so that what disturbs the machine disturbs
both; the ratio is the median of those of neighbours in time. It is measured once and kept in the ledger, by machine,
so that a resumed search decides the same. Random tokens, the configuration's batch, forward, backward and optimizer;
no data loading, no evaluation.

    python -m search.steptime     reads a JSON list of configurations, the first the baseline, and writes
                                  {"baseline_s": seconds, "ratios": [...]}
"""

import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from gptcore.errors import RunError

from .cost import Costs, violations
from .ledger import Ledger
from .moves import Candidate, Dropped, Generated
from .point import Point

if TYPE_CHECKING:
    from .rounds import Task
    from .space import Space

VERSION = "step time 1"
WARMUP, PAIRS = 5, 25
Measure = Callable[[list[dict]], dict]


class StepTimes:
    """Step times of points, measured where the ledger does not have them."""

    def __init__(self, space: "Space", ledger: Ledger, measure: Measure | None = None):
        self.space, self.ledger, self.measure = space, ledger, measure or _in_process
        self.where = f"{platform.node()} {platform.machine()} {os.cpu_count()} cores {space.baseline.identity}"

    def of_baseline(self) -> Costs:
        """The baseline's costs with its step time."""
        return replace(self.space.baseline_costs, step_time_s=self._of([])[0])

    def priced(self, task: "Task", space: "Space") -> "Task":
        """The task with step times in its costs, without the candidates whose step is too slow."""
        found = list(task.found.candidates)
        times = self._of([task.incumbent.point, *(c.point for c in found)])
        node = replace(task.incumbent, costs=replace(task.incumbent.costs, step_time_s=times[1]))
        kept: list[Candidate] = []
        dropped = list(task.found.dropped_names)
        for candidate, seconds in zip(found, times[2:], strict=True):
            price = replace(candidate.costs, step_time_s=seconds)
            broken = violations(price, space.constraints)
            if broken:
                dropped.append(Dropped(candidate.name, "constraint", "; ".join(broken)))
            else:
                kept.append(replace(candidate, costs=price))
        return replace(task, incumbent=node, found=Generated(tuple(kept), tuple(dropped)))

    def _of(self, points: Sequence[Point]) -> list[float]:
        """Seconds of the baseline and of each point."""
        known = self.ledger.costs(self.where, VERSION)
        wanted = {p.identity: p for p in (self.space.baseline, *points)}
        missing = [p for name, p in wanted.items() if name not in known]
        if missing:
            configs = [p.config.with_vocab(self.space.vocab_size) for p in (self.space.baseline, *missing)]
            found = self.measure([c.model_dump(mode="json") for c in configs])
            base = known.get(self.space.baseline.identity, {"step_time_s": found["baseline_s"]})["step_time_s"]
            new = {
                p.identity: {"step_time_s": base if p == self.space.baseline else base * ratio}
                for p, ratio in zip(missing, found["ratios"][1:], strict=True)
            }
            self.ledger.put_costs(self.where, VERSION, new)
            known |= new
        return [known[p.identity]["step_time_s"] for p in (self.space.baseline, *points)]


def _in_process(configs: list[dict]) -> dict:
    command = [sys.executable, "-m", "search.steptime"]
    from .launch import environment

    done = subprocess.run(command, input=json.dumps(configs), capture_output=True, text=True, env=environment({}))
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no words"])[-1]
        raise RunError(f"the time of a training step cannot be measured: {last}")
    return json.loads(done.stdout.splitlines()[-1])


def _stepper(config: Any) -> Callable[[], None]:
    """A callable that takes one training step."""
    import torch

    from gptcore.losses import make_objective
    from gptcore.model import GPT
    from gptcore.optim import make_optimizer

    t, m = config.train, config.model
    name = t.device if t.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(t.seed)
    model = GPT(m).to(name)
    model.objective = make_objective(t)
    optimizer = make_optimizer(model, t)
    x, y = torch.randint(m.vocab_size, (2, t.batch_size, m.block_size), device=name)

    def step() -> None:
        for _ in range(t.gradient_accumulation_steps):
            with torch.autocast(name.split(":")[0], getattr(torch, t.dtype), enabled=t.dtype != "float32"):
                _, loss = model(x, y)
            loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), t.grad_clip or float("inf"))
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if name.startswith("cuda"):
            torch.cuda.synchronize()

    return step


def _seconds(step: Callable[[], None]) -> float:
    began = time.perf_counter()
    step()
    return time.perf_counter() - began


def main() -> int:
    from gptcore.loader import from_dict

    baseline, *others = [from_dict(config) for config in json.load(sys.stdin)]
    first, ratios, absolute = _stepper(baseline), [1.0], []
    for config in others:
        other = _stepper(config)
        pairs = [(_seconds(first), _seconds(other)) for _ in range(WARMUP + PAIRS)][WARMUP:]
        ratios.append(statistics.median(b / a for a, b in pairs))
        absolute += [a for a, _ in pairs]
    print(json.dumps({"baseline_s": statistics.median(absolute), "ratios": ratios}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
