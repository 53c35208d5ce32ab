"""Time of a training step, as ratios to the yardstick, all contestants interleaved in one process on one thread.

4 layers, width 128, 4 heads, block 64, batch 12, fp32. Ours is the trainer's own update with all its bookkeeping.
"""

import statistics

import pytest
import torch
from conftest import VOCAB
from interleaved import ratio, time_steps
from yardstick import PlainGPT, PlainStep

OURS = {"softmax": {}, "consmax": {"attention": {"n_head": 4, "softmax": {"kind": "consmax"}}}}
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


def test_training_step(benchmark, make_step):
    contestants = {name: make_step(name) for name in (PLAIN, PLAIN + ", fused AdamW", *OURS)}
    timed = time_steps(benchmark, contestants, VOCAB, ROUNDS, WARMUP)
    print(f"\n{'step':32}{'median ms':>10}{'min ms':>9}{'to plain':>10}{'to our softmax':>16}")
    for name, values in timed.items():
        to_plain, to_softmax = (ratio(values, timed[base]) for base in (PLAIN, "softmax"))
        benchmark.extra_info[name] = {"to_plain": round(to_plain, 3), "to_softmax": round(to_softmax, 3)}
        milliseconds = f"{statistics.median(values) * 1e3:10.1f}{min(values) * 1e3:9.1f}"
        print(f"{name:32}{milliseconds}{to_plain:10.3f}{to_softmax:16.3f}")
