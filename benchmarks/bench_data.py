"""How long a training step waits for its data: batches are gathered ahead by a thread, so it should be nothing."""

import time

from gptcore.data import Prefetcher

STEPS, WARMUP = 100, 10


def test_waiting_for_data(benchmark, make_trainer):
    trainer = make_trainer("data", {})
    waited, worked = [], []
    with Prefetcher(trainer._batch, 0, trainer.where.device) as batches:

        def step():
            began = time.perf_counter()
            x, y = next(batches)
            ready = time.perf_counter()
            trainer._update(x, y, 1e-3)
            waited.append(ready - began)
            worked.append(time.perf_counter() - ready)

        benchmark.pedantic(step, rounds=STEPS, warmup_rounds=WARMUP)
    share = sum(waited[WARMUP:]) / (sum(waited[WARMUP:]) + sum(worked[WARMUP:]))
    benchmark.extra_info["share_waiting"] = round(share, 5)
    print(f"\nwaiting for data: {share:.4%} of a training step (4 layers, width 128, batch 12 x 64, one thread)")
