"""Time of a training step, as ratios to the yardstick, all contestants interleaved in one process on one thread.

4 layers, width 128, 4 heads, block 64, batch 12, fp32. Ours is the trainer's own update with all its bookkeeping.
"""

import statistics
import time

import pytest
import torch
from yardstick import PlainGPT, PlainStep

VOCAB = 65
OURS = {
    "softmax": {},
    "consmax": {"attention": {"n_head": 4, "softmax": {"kind": "consmax"}}},
    "softermax": {"attention": {"n_head": 4, "softmax": {"kind": "softermax"}}},
    "rmsnorm": {"norm": {"kind": "rmsnorm"}},
    "swiglu (equal parameters)": {"mlp": {"kind": "swiglu"}},
    "relu": {"mlp": {"kind": "mlp", "activation": "relu"}},
    "squared_relu": {"mlp": {"kind": "mlp", "activation": "squared_relu"}},
    "rotary": {"position": {"kind": "rotary"}},
}
TARGETS = ("softmax", "consmax")  # few models at a time, or each finds the others' data in the cache
PLAIN = "plain nanoGPT style"
ROUNDS, WARMUP = 100, 10


@pytest.fixture
def make_step(make_trainer):
    """name -> callable that takes one training step; names outside OURS are the yardstick."""

    def make(name: str):
        if name in OURS:
            trainer = make_trainer(name, OURS[name])
            return lambda x, y: trainer._update(x, y, 1e-3)
        torch.manual_seed(0)
        return PlainStep(PlainGPT(VOCAB, 64, 4, 4, 128), fused="fused" in name)

    return make


@pytest.mark.parametrize("names", [TARGETS, tuple(OURS)], ids=["targets", "variants"])
def test_training_step(benchmark, make_step, names):
    contestants = {name: make_step(name) for name in (PLAIN, PLAIN + ", fused AdamW", *names)}
    generator = torch.Generator().manual_seed(0)
    seconds: dict[str, list[float]] = {name: [] for name in contestants}

    def one_round():
        x, y = torch.randint(VOCAB, (2, 12, 64), generator=generator)
        for name, step in contestants.items():
            began = time.perf_counter()
            step(x, y)
            seconds[name].append(time.perf_counter() - began)

    benchmark.pedantic(one_round, rounds=ROUNDS, warmup_rounds=WARMUP)
    timed = {name: values[WARMUP:] for name, values in seconds.items()}
    print(f"\n{'step':32}{'median ms':>10}{'min ms':>9}{'to plain':>10}{'to our softmax':>16}")
    for name, values in timed.items():
        to_plain, to_softmax = (_ratio(values, timed[base]) for base in (PLAIN, "softmax"))
        benchmark.extra_info[name] = {"to_plain": round(to_plain, 3), "to_softmax": round(to_softmax, 3)}
        milliseconds = f"{statistics.median(values) * 1e3:10.1f}{min(values) * 1e3:9.1f}"
        print(f"{name:32}{milliseconds}{to_plain:10.3f}{to_softmax:16.3f}")


def _ratio(values: list[float], base: list[float]) -> float:
    """Median of the ratios of neighbours in time: what disturbs the machine disturbs both."""
    return statistics.median(a / b for a, b in zip(values, base, strict=True))
