"""Estimates a second, on one core, over configurations that are all different: what the inner loop of a search does.

    grid       every combination of width, heads, softmax, norm, activation, mlp size and cache width, 12 equal layers
    schedules  12 layers, each drawn at random from those of the grid: no two configurations have the same layers
    cold       nothing remembered: every part of every configuration is priced anew

A search moves in such a space one step at a time, so parts come again: an attention beside another mlp, a layer at
another place. They are remembered (ppa/estimate.py); the first figure includes pricing each of them once.
"""

import itertools
import random

import pytest

import ppa.estimate
from gptcore.loader import from_dict
from ppa.estimate import estimate

ROUNDS = 3
LAYER = {
    "n_head": (4, 8), "n_kv_head": (2, 4), "softmax": ("softmax", "consmax", "softermax", "relumax"),
    "norm": ("rmsnorm", "layernorm"), "activation": ("gelu", "silu", "relu"), "hidden": (2, 3, 4, 6),
}  # fmt: skip
WIDTHS = (128, 192, 256, 320, 384)


def layer(width, n_head, n_kv_head, softmax, norm, activation, hidden):
    return {
        "attention": {"kind": "causal", "n_head": n_head, "n_kv_head": n_kv_head, "softmax": {"kind": softmax}},
        "norm": {"kind": norm},
        "mlp": {"kind": "mlp", "hidden_size": hidden * width, "activation": {"kind": activation}},
    }


def model(width, **rest):
    return from_dict({"model": {"n_layer": 12, "n_embd": width, "block_size": 256, "vocab_size": 4096, **rest}})


def grid():
    return [model(width, **layer(width, *values)) for width in WIDTHS for values in itertools.product(*LAYER.values())]


def schedules(count=1000):
    rng = random.Random(5)
    choices = list(itertools.product(*LAYER.values()))
    return [
        model(width := rng.choice(WIDTHS), layers=[layer(width, *rng.choice(choices)) for _ in range(12)])
        for _ in range(count)
    ]


def run(configs, cold):
    ppa.estimate._known.clear()
    for config in configs:
        if cold:
            ppa.estimate._known.clear()
        estimate(config, "edge-asap7")


@pytest.mark.parametrize("case", ["grid", "schedules", "cold"])
def test_estimates_a_second(benchmark, case):
    configs = {"grid": grid, "schedules": schedules, "cold": lambda: grid()[::10]}[case]()
    assert len({c.model_dump_json() for c in configs}) == len(configs)
    run(configs[:50], cold=False)
    benchmark.pedantic(run, args=(configs, case == "cold"), rounds=ROUNDS, iterations=1)
    if benchmark.stats:
        rate = len(configs) / benchmark.stats["median"]
        benchmark.extra_info["estimates_per_s"] = rate
        print(f"\n{case}: {rate:,.0f} estimates a second over {len(configs):,} distinct configurations")
