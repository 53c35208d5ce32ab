"""Decoding of prompts of unequal lengths side by side, for evaluation: the texts of `sample.generate`, in fewer passes.

All sequences of a group stand at the same position: what the shortest prompt has is fed at once, then token after
token, where a sequence that is still within its prompt takes its next token from there. So nothing is padded, and any
kind of attention and position can take part. `sample.generate` does it where there is no cache, and where a sequence
outgrows the block.
"""

import random
from collections.abc import Iterator, Sequence

import torch

from .errors import RunError
from .model import GPT
from .sample import Sampling, Stop, cache_obstacle, generate
from .scoring import logits_at


@torch.inference_mode()
def generate_together(
    model: GPT, prompts: Sequence[Sequence[int]], *, max_new_tokens: int, sampling: Sampling, seed: int, stop: Stop,
    eot: int | None, vocab_size: int, batch_size: int,
) -> list[list[int]]:  # fmt: skip
    """Up to `max_new_tokens` new tokens for each prompt, ended and drawn as in `generate`. Errors: as there."""
    longest = max(map(len, prompts)) + max_new_tokens
    if cache_obstacle(model) is not None or longest > model.config.block_size:
        return generate(
            model, prompts, max_new_tokens=max_new_tokens, temperature=sampling.temperature, top_k=sampling.top_k,
            top_p=sampling.top_p, seed=seed, stop=stop, eot=eot, vocab_size=vocab_size,
        )  # fmt: skip
    results: list[list[int]] = [[] for _ in prompts]
    was_training = model.training
    model.eval()
    try:
        for group in _groups([len(prompt) for prompt in prompts], max_new_tokens, batch_size):
            streams = [random.Random(f"{seed}/{i}") for i in group]
            _run(model, [prompts[i] for i in group], [results[i] for i in group], streams, sampling,
                 steps=max_new_tokens, stop=stop, eot=eot, vocab_size=vocab_size)  # fmt: skip
    finally:
        model.train(was_training)
    return results


def _groups(lengths: list[int], steps: int, batch_size: int) -> Iterator[list[int]]:
    """Indices of prompts that run together. A shorter one joins if the steps that this adds are fewer than its own."""
    group: list[int] = []
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if group and (len(group) == batch_size or lengths[group[-1]] - lengths[i] > steps):
            yield group
            group = []
        group.append(i)
    if group:
        yield group


def _run(
    model: GPT, prompts: list[Sequence[int]], new: list[list[int]], streams: list[random.Random], sampling: Sampling,
    *, steps: int, stop: Stop, eot: int | None, vocab_size: int,
) -> None:  # fmt: skip
    at = min(map(len, prompts))
    cache = model.new_cache(len(prompts), max(map(len, prompts)) + steps)
    live = set(range(len(prompts))) if steps else set()
    feed = [list(prompt[:at]) for prompt in prompts]
    while live:
        width = len(feed[0])
        drawing = [i for i in sorted(live) if at >= len(prompts[i])]
        places = [i * width + width - 1 for i in drawing] or [0]  # the head is as dear as all layers: only for these
        logits_NV = logits_at(model, torch.tensor(feed, device=model.lm_head.weight.device), places, cache)
        feed = [[prompt[at]] if at < len(prompt) else [0] for prompt in prompts]
        if drawing:
            ids = sampling.choose(logits_NV[:, :vocab_size], [streams[i].random() for i in drawing])
            if min(ids) < 0:
                raise RunError("the logits are not finite: the weights come from a diverged run, or overflow")
            for i, token in zip(drawing, ids, strict=True):
                feed[i] = [token]
                if token != eot:
                    new[i].append(token)
                if token == eot or stop(new[i]) or len(new[i]) == steps:
                    live.discard(i)
        at += 1
