"""Training steps of several models taken in turns: what disturbs the machine disturbs all of them."""

import statistics
import time
from collections.abc import Callable

import torch

Step = Callable[[torch.Tensor, torch.Tensor], object]


def time_steps(benchmark, contestants: dict[str, Step], vocab: int, rounds: int, warmup: int) -> dict[str, list[float]]:
    """name -> seconds of each round, all on the same random batches of 12 x 64 tokens."""
    generator = torch.Generator().manual_seed(0)
    seconds: dict[str, list[float]] = {name: [] for name in contestants}

    def one_round():
        x, y = torch.randint(vocab, (2, 12, 64), generator=generator)
        for name, step in contestants.items():
            began = time.perf_counter()
            step(x, y)
            seconds[name].append(time.perf_counter() - began)

    benchmark.pedantic(one_round, rounds=rounds, warmup_rounds=warmup)
    return {name: values[warmup:] for name, values in seconds.items()}


def ratio(values: list[float], base: list[float]) -> float:
    """Median of the ratios of neighbours in time."""
    return statistics.median(a / b for a, b in zip(values, base, strict=True))
