"""Decoding of prompts of unequal lengths side by side, for evaluation: the texts of `sample.generate`, in fewer passes.

Where the model allows it, sequences of a group have their own positions (`ragged`). Elsewhere all stand at the same
one: what the shortest prompt has is fed at once, then token after token, where a sequence that is still within its
prompt takes its next token from there; so nothing is padded, and any kind of attention and position can take part.
`sample.generate` does it where there is no cache, and where a sequence outgrows the block.
"""

import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .errors import RunError
from .model import GPT
from .ragged import Ragged, can_be_ragged
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
        ragged = can_be_ragged(model)
        for group in _groups([len(prompt) for prompt in prompts], math.inf if ragged else max_new_tokens, batch_size):
            streams = [random.Random(f"{seed}/{i}") for i in group]
            members = [prompts[i] for i in group]
            new = _New([results[i] for i in group], streams, sampling, max_new_tokens, stop, eot, vocab_size)
            # On a CPU a pass costs a tenth more with own positions than without; lengths that are alike cost less.
            apart = len(members[0]) - len(members[-1]) > max_new_tokens / 8
            (_run_ragged if ragged and apart else _run)(model, members, new)
    finally:
        model.train(was_training)
    return results


def _groups(lengths: list[int], steps: float, batch_size: int) -> Iterator[list[int]]:
    """Indices of prompts that run together. A shorter one joins if the steps that this adds are fewer than its own."""
    group: list[int] = []
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if group and (len(group) == batch_size or lengths[group[-1]] - lengths[i] > steps):
            yield group
            group = []
        group.append(i)
    if group:
        yield group


@dataclass
class _New:
    """The new tokens of a group, and how they come about."""

    tokens: list[list[int]]
    streams: list[random.Random]
    sampling: Sampling
    steps: int
    stop: Stop
    eot: int | None
    vocab_size: int

    def __post_init__(self) -> None:
        self.live = set(range(len(self.tokens))) if self.steps else set()

    def draw(self, logits_NV: Tensor, members: Sequence[int]) -> list[int]:
        """A token for each of these; who has ended is no longer live."""
        ids = self.sampling.choose(logits_NV[:, : self.vocab_size], [self.streams[i].random() for i in members])
        if min(ids) < 0:
            raise RunError("the logits are not finite: the weights come from a diverged run, or overflow")
        for i, token in zip(members, ids, strict=True):
            new = self.tokens[i]
            if token != self.eot:
                new.append(token)
            if token == self.eot or self.stop(new) or len(new) == self.steps:
                self.live.discard(i)
        return ids


def _run_ragged(model: GPT, prompts: list[Sequence[int]], new: _New) -> None:
    if not new.live:
        return
    ragged, rows = Ragged(model, prompts, new.steps), list(range(len(prompts)))
    while True:
        members = [i for i in rows if i in new.live]
        drawn = dict(zip(members, new.draw(ragged.logits_BV[[rows.index(i) for i in members]], members), strict=True))
        if not new.live:
            return
        if 2 * len(new.live) <= len(rows):  # a copy of the cache, for half of the arithmetic from now on
            ragged.keep([row for row, i in enumerate(rows) if i in new.live])
            rows = [i for i in rows if i in new.live]
        ragged.step([drawn.get(i, 0) for i in rows])


def _run(model: GPT, prompts: list[Sequence[int]], new: _New) -> None:
    at = min(map(len, prompts))
    cache = model.new_cache(len(prompts), max(map(len, prompts)) + new.steps)
    feed = [list(prompt[:at]) for prompt in prompts]
    while new.live:
        width = len(feed[0])
        drawing = [i for i in sorted(new.live) if at >= len(prompts[i])]
        places = [i * width + width - 1 for i in drawing] or [0]  # the head is as dear as all layers: only for these
        logits_NV = logits_at(model, torch.tensor(feed, device=model.lm_head.weight.device), places, cache)
        feed = [[prompt[at]] if at < len(prompt) else [0] for prompt in prompts]
        if drawing:
            for i, token in zip(drawing, new.draw(logits_NV, drawing), strict=True):
                feed[i] = [token]
        at += 1
