"""Decoding with the key/value cache against recomputing the context, as ratios of interleaved times, on one thread.

6 layers, width 384, 6 heads, fp32, one sequence, random weights. Recomputing is done as well as it can be: one pass
over the context with the head at its last position alone. The target is 5 times the tokens/s at 256 tokens. The times
count only while both give the same logits. The ratios go into results/sampling.json.
"""

import json
import platform
import statistics
import time
from pathlib import Path

import pytest
import torch
from interleaved import ratio

from gptcore.candidates import Recorder
from gptcore.config import GPTConfig
from gptcore.files import write_atomically
from gptcore.model import GPT
from gptcore.sample import generate
from gptcore.scoring import logits_at

RESULTS = Path(__file__).parent / "results" / "sampling.json"
CONTEXT, STEPS, ROUNDS, TARGET = 256, 8, 12, 5.0


def make_model(vocab_size: int) -> GPT:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    values = {
        "n_layer": 6, "n_embd": 384, "block_size": 2 * CONTEXT, "vocab_size": vocab_size, "attention": {"n_head": 6}
    }  # fmt: skip
    return GPT(GPTConfig.model_validate(values)).eval()


@pytest.mark.parametrize("vocab_size", [65, 50304])
@torch.inference_mode()
def test_decode_step_at_256_tokens(benchmark, vocab_size):
    """One token after 256, by the cache and by recomputing, in turns."""
    model = make_model(vocab_size)
    tokens_BT = torch.randint(vocab_size, (1, CONTEXT + STEPS), generator=torch.Generator().manual_seed(1))
    seconds: dict[str, list[float]] = {"cache": [], "recompute": []}

    def timed(name, *arguments):
        began = time.perf_counter()
        logits = logits_at(*arguments)
        seconds[name].append(time.perf_counter() - began)
        return logits

    def one_round():
        cache = model.new_cache(1)
        assert cache is not None
        logits_at(model, tokens_BT[:, :CONTEXT], [CONTEXT - 1], cache)
        for n in range(CONTEXT, CONTEXT + STEPS):
            fast = timed("cache", model, tokens_BT[:, n : n + 1], [0], cache)
            slow = timed("recompute", model, tokens_BT[:, : n + 1], [n], None)
            torch.testing.assert_close(fast, slow, rtol=1e-3, atol=1e-4)

    benchmark.pedantic(one_round, rounds=ROUNDS, warmup_rounds=1)
    seconds = {name: values[STEPS:] for name, values in seconds.items()}
    found = ratio(seconds["recompute"], seconds["cache"])
    rates = {name: 1 / statistics.median(values) for name, values in seconds.items()}
    benchmark.extra_info["cache_over_recompute"] = found
    _record(f"step at {CONTEXT} tokens, vocabulary {vocab_size}", {"cache_over_recompute": round(found, 2)})
    fast, slow = (f"{rates[name]:.1f}" for name in seconds)
    print(f"\nvocabulary {vocab_size:,}: cache {fast}, recompute {slow} tokens/s: {found:.1f} times, target {TARGET:g}")
    assert found >= TARGET


def test_whole_generation(benchmark):
    """256 tokens from a prompt of one: half the context on average."""
    ways = {"cache": {}, "recompute": {"use_cache": False}}
    found = _compare(benchmark, make_model(65), ways, new_tokens=CONTEXT, rounds=3)
    gain = ratio(found["recompute"], found["cache"])
    _record(f"{CONTEXT} tokens from 1", {"cache_over_recompute": round(gain, 2)})
    print(f"\n{CONTEXT} tokens from 1: cache {gain:.1f} times as fast as recomputing")


@pytest.mark.parametrize("vocab_size", [65, 50304])
def test_price_of_recording(benchmark, vocab_size):
    """Time with 10 candidates a step recorded, for colours and heatmaps, to time without."""
    ways = {"plain": {}, "recorded": {"watch": Recorder(1, 10, None, None)}}
    found = _compare(benchmark, make_model(vocab_size), ways, new_tokens=32, rounds=20)
    price = ratio(found["recorded"], found["plain"])
    _record(f"10 candidates, vocabulary {vocab_size}", {"recorded_over_plain": round(price, 3)})
    print(f"\nvocabulary {vocab_size:,}: recording takes {price:.3f} times the time")


def _compare(benchmark, model: GPT, ways: dict[str, dict], *, new_tokens: int, rounds: int) -> dict[str, list[float]]:
    """Seconds of each round of each way, which all give the same text."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}

    def one_round():
        texts = []
        for name, options in ways.items():
            began = time.perf_counter()
            texts.append(generate(model, [[1]], max_new_tokens=new_tokens, seed=1, **options))
            seconds[name].append(time.perf_counter() - began)
        assert all(text == texts[0] for text in texts)

    generate(model, [[1]], max_new_tokens=4)
    benchmark.pedantic(one_round, rounds=rounds)
    return seconds


def _record(name: str, values: dict) -> None:
    content = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    content[name] = {**values, "torch": torch.__version__, "machine": platform.machine()}
    write_atomically(RESULTS, (json.dumps(dict(sorted(content.items())), indent=1) + "\n").encode())
