"""What a search costs beside its trials, in CPU time of one core.

candidates   5,000 distinct candidates, generated and priced with nothing remembered, along a random walk:
             layers (moves of single layers), global (knobs of the whole model), machine (those and the chip's),
             everything. Target: 5 s.
decisions    greedy with a hundred candidates a round and an executor that takes no time, from the round on in which
             the study has 1,000 trials; a whole round, with its parts. Target: 50 ms a decision. `measure` is what
             its trials take to be entered, claimed, finished and read, and grows with their number.
"""

import functools
import gc
import random
import statistics
import sys
import time
from contextlib import contextmanager

import pytest

import search.greedy
import search.rounds
from search.lab import Lab
from search.ledger import Ledger
from search.moves import candidates
from search.rounds import Decider
from search.space import from_mapping
from search.study import Search
from search.trial import TrialResult

COUNT, ROUNDS, ENOUGH = 5000, 3, 1000
LAYER = {
    "attention.n_head": ["x2", "x0.5"], "attention.softmax": {"choices": ["softmax", "consmax", "softermax"]},
    "norm": {"choices": ["rmsnorm", "layernorm"]}, "mlp.activation": {"choices": ["silu", "gelu", "relu"]},
}  # fmt: skip
LAYERS = {"layers": {"duplicate": True, "remove": True, "change": LAYER}}
GLOBAL = {
    "model.n_layer": ["+1", "-1"], "model.n_embd": ["+16", "-16"], "model.block_size": ["x2", "x0.5"],
    "model.bits.weight": {"choices": [8, 6, 4]}, "model.bits.activation": {"choices": [8, 16]},
    **{f"model.{name}": steps for name, steps in LAYER.items()},
}  # fmt: skip
CHIP = {
    "hardware.array.rows, hardware.array.columns": ["x2", "x0.5"], "hardware.vector.lanes": ["x2", "x0.5"],
    "hardware.sram.capacity_bytes": ["x2", "x0.5"], "hardware.weights": {"choices": ["on_chip", "off_chip"]},
    "hardware.array.dataflow": {"choices": ["output_stationary", "weight_stationary"]},
}  # fmt: skip
SPACES = {
    "layers": {**LAYERS, "model.n_embd": ["+16", "-16"]}, "global": GLOBAL, "machine": {**GLOBAL, **CHIP},
    "everything": {**LAYERS, **GLOBAL, **CHIP},
}  # fmt: skip


def space(moves, **more):
    model = {
        "n_layer": 8, "n_embd": 128, "block_size": 128, "vocab_size": 84, "attention": {"n_head": 4},
        "mlp": {"kind": "swiglu"}, "norm": {"kind": "rmsnorm"}, "position": {"kind": "rotary"},
    }  # fmt: skip
    raw = {"baseline": {"model": model}, "hardware": "edge-sky130", "cost": "area_m2", "moves": moves, **more}
    return from_mapping(raw)


def forget():
    """What a fresh process has not seen."""
    for name, module in list(sys.modules.items()):
        if name.split(".")[0] in ("search", "ppa"):
            for value in vars(module).values():
                if isinstance(value, functools._lru_cache_wrapper):
                    value.cache_clear()
            for memory in ("_known", "_sound", "_texts", "_repeated"):
                getattr(module, memory, {}).clear()
    gc.collect()


def walk(found_in):
    rng, point, found = random.Random(1), found_in.baseline, []
    seen = {point.key}
    while len(found) < COUNT:
        new = candidates(found_in, point, seen).candidates
        found += new
        seen |= {c.point.key for c in new}
        point = rng.choice(new or found).point
    return found[:COUNT]


@pytest.mark.parametrize("name", SPACES)
def test_candidates(benchmark, name):
    found_in, times = space(SPACES[name]), []

    def run():
        forget()
        began = time.process_time()
        found = walk(found_in)
        times.append(time.process_time() - began)
        assert len({c.point.key for c in found}) == COUNT

    benchmark.pedantic(run, rounds=ROUNDS, iterations=1)
    benchmark.extra_info["cpu_s"] = statistics.median(times)
    print(f"\n{name}: {COUNT:,} candidates in {statistics.median(times):.2f} s of CPU (target 5)")


class Instant:
    """Losses in closed form with a little noise; every layer with consmax helps, so that there is always a move."""

    capacity = 16

    def __init__(self):
        self.results = []

    def start(self, spec):
        model = spec.config["model"]
        layers = model["layers"] or [{**model, "repeat": model["n_layer"]}]
        mixed = sum(x["repeat"] * (x["attention"]["softmax"]["kind"] == "consmax") for x in layers)
        loss = 3 + 8 / model["n_embd"] - 0.05 * mixed + random.Random(spec.key).gauss(0, 0.002)
        self.results.append(TrialResult(spec.key, "done", loss, ((10, loss),), tokens=10))

    def wait(self, timeout_s):
        found, self.results = self.results, []
        return found

    def running(self):
        return [result.key for result in self.results]

    def close(self):
        self.results.clear()


class Parts:
    """CPU time of functions, by name, while they run."""

    def __init__(self):
        self.seconds: dict[str, float] = {}

    @contextmanager
    def timed(self, name):
        began = time.process_time()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.process_time() - began

    def wrap(self, monkeypatch, owner, name):
        real = getattr(owner, name)

        @functools.wraps(real)
        def wrapped(*args, **kwargs):
            with self.timed(name):
                return real(*args, **kwargs)

        monkeypatch.setattr(owner, name, wrapped)


def test_decisions(benchmark, tmp_path, monkeypatch):
    parts, marks = Parts(), []
    parts.wrap(monkeypatch, search.greedy, "candidates")
    parts.wrap(monkeypatch, search.rounds, "decide")
    parts.wrap(monkeypatch, Lab, "measure")
    parts.wrap(monkeypatch, Decider, "record")
    long = space(
        SPACES["everything"], seeds={"first": 1, "min": 2, "max": 3}, train={"max_iters": 10}, budget={"rounds": 9}
    )

    def run():
        with Ledger(tmp_path / "ledger.sqlite") as ledger:
            ledger.lead(long.name, long.identity, "", settings=long.settings())
            one = Search(long, ledger, Instant(), tmp_path)

            def say(line):
                if line.startswith("round") and " candidates" not in line:
                    marks.append((one.lab.trials, time.process_time(), dict(parts.seconds)))

            one.lab.say = say
            one.run()

    benchmark.pedantic(run, rounds=1, iterations=1)
    later = [(a, b) for a, b in zip(marks, marks[1:], strict=False) if a[0] >= ENOUGH]
    assert len(later) >= 2, f"only {marks[-1][0]} trials"
    whole = statistics.median(b[1] - a[1] for a, b in later)
    trials = statistics.median(b[0] - a[0] for a, b in later)
    print(f"\na round with {later[0][0][0]:,} to {later[-1][1][0]:,} trials: {1e3 * whole:.0f} ms of CPU (target 50)")
    print(f"of these, for {trials:.0f} new trials a decision, in ms:")
    for name in ("candidates", "measure", "decide", "record"):
        each = statistics.median(b[2].get(name, 0.0) - a[2].get(name, 0.0) for a, b in later)
        benchmark.extra_info[f"{name}_ms"] = 1e3 * each
        print(f"  {name:12} {1e3 * each:6.1f}")
