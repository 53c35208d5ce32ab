"""Sampling: continues tokens (`generate`) or text (`continue_text`, `sample_text`) with a model.

A key/value cache is used wherever the model can keep one, and the output does not depend on it.

Legend: B sequences, T tokens fed at once, V vocabulary.
"""

import math
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .candidates import Recorder, Step
from .checkpoint import load_model
from .errors import CheckpointError, RunError, UserError
from .model import GPT, Cache
from .tokenizer import Tokenizer, from_meta

# Sequences of one pass are limited so that the prefill logits (B, T, V) stay within 1 GiB of float32.
MAX_LOGITS = 2**28

Stop = Callable[[list[int]], bool]
# Sees each step: the prompts whose texts still grow, their new tokens, and the logits (N, V) these were drawn from.
Watch = Callable[[Sequence[int], Sequence[int], Tensor, "Sampling"], None]


@dataclass(frozen=True)
class Sampling:
    """How one token is drawn from logits: temperature, then the `top_k` likeliest, then the nucleus of mass `top_p`.

    Temperature 0 takes the likeliest token. The nucleus (arXiv 1904.09751) is the smallest set of the likeliest
    remaining tokens whose mass is at least `top_p`, never empty. Errors: UserError for a value out of range.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < math.inf:
            raise UserError(f"temperature must be 0 (greedy) or a positive number, not {self.temperature}")
        if self.top_k is not None and self.top_k < 1:
            raise UserError(f"top_k must be at least 1, not {self.top_k}; leave it out to keep every token")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise UserError(f"top_p must be above 0 and at most 1, not {self.top_p}")

    @property
    def is_greedy(self) -> bool:
        return self.temperature == 0 or self.top_k == 1

    def probabilities(self, logits_BV: Tensor) -> Tensor:
        """What tokens are drawn from (B, V), float64; exactly 0 for tokens left out. Not for temperature 0."""
        logits = logits_BV.double()
        # The maximum comes off first: a tiny temperature then sends all others to -inf instead of the first to inf.
        scaled = (logits - logits.amax(-1, keepdim=True)) / self.temperature
        if self.top_k is not None and self.top_k < scaled.shape[-1]:
            kept, index = scaled.topk(self.top_k)
            scaled = torch.full_like(scaled, -math.inf).scatter(-1, index, kept)
        p = scaled.softmax(-1)
        if self.top_p is None or self.top_p == 1:
            return p
        ranked, index = p.sort(dim=-1, descending=True, stable=True)
        before = ranked.cumsum(-1) - ranked  # mass of the likelier tokens: 0 for the first, which so always stays
        ranked = ranked.masked_fill(before >= self.top_p, 0.0)
        return torch.zeros_like(p).scatter(-1, index, ranked / ranked.sum(-1, keepdim=True))

    def choose(self, logits_BV: Tensor, uniform_B: Sequence[float]) -> list[int]:
        """One token a row, by inverting the distribution function at `uniform_B` in [0, 1).

        A row whose largest logit is not finite gives -1.
        """
        if self.is_greedy:
            ids_B = logits_BV.argmax(-1)
        else:
            cdf_BV = self.probabilities(logits_BV).cumsum(-1)
            u_B1 = torch.tensor(uniform_B, dtype=cdf_BV.dtype, device=cdf_BV.device)[:, None]
            # right=True: the first token whose mass lies above u, so a token of probability 0 is never drawn.
            ids_B = torch.searchsorted(cdf_BV, u_B1 * cdf_BV[:, -1:], right=True)[:, 0]
        return torch.where(logits_BV.amax(-1).isfinite(), ids_B, -1).tolist()


def context_start(n: int, block_size: int, hop: int) -> int:
    """Index of the first of `n` tokens that the model sees when it predicts token `n`.

    0 while all fit; then the smallest multiple of `hop` that leaves at most `block_size` tokens. hop=1 is the crop to
    the last `block_size` tokens of nanoGPT.

    Why not always hop=1: when the window moves, every token gets another position, and the states of all layers but
    the first change even with relative positions, because they were mixed from tokens that are gone now. A cache that
    merely drops its oldest entry is therefore another model, and the exact way, a new prefill, costs as much as no
    cache. Moving by `hop` pays for one prefill with `hop` cheap steps, and being a function of the length alone, it
    gives the same text with a cache and without.
    """
    return 0 if n <= block_size else math.ceil((n - block_size) / hop) * hop


class _Context:
    """Logits at the end of sequences that grow by a token between calls, under the policy of `context_start`."""

    def __init__(self, model: GPT, *, hop: int, longest: int, use_cache: bool):
        self.model, self.hop, self.use_cache = model, hop, use_cache
        self.block_size = model.config.block_size
        self.length = min(self.block_size, longest)
        self.start = 0
        self.cache: Cache | None = None

    def logits_BV(self, rows: list[list[int]]) -> Tensor:
        n = len(rows[0])
        start = context_start(n, self.block_size, self.hop)
        fed_from = n - 1
        if self.cache is None or start != self.start:
            self.cache = self.model.new_cache(len(rows), self.length) if self.use_cache else None
            self.start = fed_from = start
        idx_BT = torch.tensor([row[fed_from:] for row in rows], device=self.model.lm_head.weight.device)
        return self.model(idx_BT, cache=self.cache)[0][:, -1]


def generate(
    model: GPT,
    prompts: Tensor | Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int | None = None,
    stop: Stop | None = None,
    eot: int | None = None,
    vocab_size: int | None = None,
    use_cache: bool = True,
    hop: int | None = None,
    watch: Watch | None = None,
) -> list[list[int]]:
    """Up to `max_new_tokens` new tokens for each prompt, without the prompt; see `Sampling` for how they are drawn.

    `prompts` are token ids (B, T), or lists, which may differ in length. A sequence ends at the token `eot`, which is
    not returned, or as soon as `stop(its new tokens)` is true. Only ids below `vocab_size` are drawn (default: all; a
    padded vocabulary has ids without text). Sequences longer than block_size go on with the context of
    `context_start`, which moves by `hop` (default: a quarter of block_size).

    Prompt i draws from a random stream of its own that depends on (seed, i) alone: neither the other prompts nor the
    device change it, and a longer text begins with the shorter one. Only rounding in the model can make a difference.
    Without a seed every call differs. `watch` sees every step, also the token `eot`, and changes nothing.

    Errors: UserError for a sampling value out of range; ValueError for prompts that are empty or not of this
    vocabulary; RunError when the logits are not finite.
    """
    sampling = Sampling(temperature, top_k, top_p)
    block_size, model_vocab = model.config.block_size, model.lm_head.out_features
    hop = max(1, block_size // 4) if hop is None else hop
    if not 1 <= hop <= block_size:
        raise UserError(f"hop must be between 1 and block_size {block_size}, not {hop}")
    if max_new_tokens < 0:
        raise UserError(f"max_new_tokens must not be negative, but is {max_new_tokens}")
    lists: list[list[int]] = prompts.tolist() if isinstance(prompts, Tensor) else [list(p) for p in prompts]
    for i, prompt in enumerate(lists):
        if not prompt:
            raise ValueError(f"prompt {i} is empty: the model needs a token to start from")
        if not 0 <= min(prompt) <= max(prompt) < model_vocab:
            raise ValueError(f"prompt {i} has token ids outside 0..{model_vocab - 1}")
    seed = random.SystemRandom().getrandbits(63) if seed is None else seed

    results: list[list[int]] = [[] for _ in lists]
    was_training = model.training
    model.eval()
    try:
        for group in _groups(lists, max_new_tokens, block_size, model_vocab):
            rows = [lists[i] for i in group]
            longest = len(rows[0]) + max_new_tokens
            context = _Context(model, hop=hop, longest=longest, use_cache=use_cache)
            streams = [random.Random(f"{seed}/{i}") for i in group]
            new = [results[i] for i in group]
            _run(context, group, rows, new, streams, sampling, steps=max_new_tokens, stop=stop, eot=eot,
                 vocab_size=vocab_size, watch=watch)  # fmt: skip
    finally:
        model.train(was_training)
    return results


@torch.inference_mode()
def _run(
    context: _Context, group: list[int], rows: list[list[int]], new: list[list[int]], streams: list[random.Random],
    sampling: Sampling, *, steps: int, stop: Stop | None, eot: int | None, vocab_size: int | None, watch: Watch | None,
) -> None:  # fmt: skip
    """Extends rows of equal length, and `new` likewise, where a row stops growing once it has ended."""
    live = set(range(len(rows)))
    for _ in range(steps):
        logits_BV = context.logits_BV(rows)[:, :vocab_size]
        ids = sampling.choose(logits_BV, [stream.random() for stream in streams])
        if min(ids) < 0:
            raise RunError("the logits are not finite: the weights come from a diverged run, or overflow in this dtype")
        if watch is not None:
            at = sorted(live)
            watch([group[i] for i in at], [ids[i] for i in at], logits_BV[at], sampling)
        for i, token in enumerate(ids):
            rows[i].append(token)  # ended rows too: all keep the same length
            if i in live and token != eot:
                new[i].append(token)
            if token == eot or (i in live and stop is not None and stop(new[i])):
                live.discard(i)
        if not live:
            break


def _groups(prompts: list[list[int]], steps: int, block_size: int, vocab: int) -> Iterator[list[int]]:
    """Indices of prompts that run together: equal lengths, and not more than MAX_LOGITS allows."""
    by_length: dict[int, list[int]] = {}
    for i, prompt in enumerate(prompts):
        by_length.setdefault(len(prompt), []).append(i)
    for length, members in by_length.items():
        size = max(1, MAX_LOGITS // (min(block_size, length + steps) * vocab))
        for at in range(0, len(members), size):
            yield members[at : at + size]


def cache_obstacle(model: GPT) -> str | None:
    """Why `model` decodes without a cache; None when it has one."""
    weight = model.lm_head.weight
    blocks: Any = model.transformer.h
    for i, block in enumerate(blocks):
        if block.attn.new_cache(1, 1, weight.dtype, weight.device) is None:
            return f"attention {block.attn.config.kind!r} of layer {i} keeps no state between tokens"
    return None


class StopStrings:
    """Ends a sequence once its new text contains one of `strings`; `cut` then removes what begins there.

    Errors: UserError for an empty string.
    """

    def __init__(self, tokenizer: Tokenizer, strings: Sequence[str]):
        if "" in strings:
            raise UserError("a stop string must not be empty")
        self.tokenizer, self.strings = tokenizer, tuple(strings)
        # A token holds at least a byte and a character at most four, so a string that ends in the newest token lies
        # within so many tokens; decoding more would make long texts quadratic.
        self.tail = 4 * max(map(len, self.strings), default=0)

    def __call__(self, tokens: list[int]) -> bool:
        if not self.strings:
            return False
        text = self.tokenizer.decode(tokens[-self.tail :])
        return any(string in text for string in self.strings)

    def cut(self, text: str) -> str:
        """`text` up to the first stop string in it."""
        found = [at for at in map(text.find, self.strings) if at >= 0]
        return text[: min(found)] if found else text


@dataclass(frozen=True)
class Sample:
    """One continuation: `text` is the prompt and what follows, up to a stop string; `tokens` all that were drawn.

    `ended` is "length", "eot", "stop" or "cancelled". `steps` belong to `tokens`, where they were recorded.
    """

    text: str
    tokens: tuple[int, ...]
    ended: str
    steps: tuple[Step, ...] = ()


@dataclass(frozen=True)
class Samples:
    """Continuations of one prompt, and the time that they took together."""

    prompt: str
    samples: tuple[Sample, ...]
    elapsed_s: float

    @property
    def texts(self) -> list[str]:
        return [sample.text for sample in self.samples]

    @property
    def tokens(self) -> int:
        """How many were drawn."""
        return sum(len(sample.tokens) for sample in self.samples)

    @property
    def tokens_per_s(self) -> float:
        return self.tokens / self.elapsed_s


def continue_text(
    model: GPT,
    tokenizer: Tokenizer,
    start: str,
    *,
    num_samples: int = 1,
    max_new_tokens: int,
    stop: Sequence[str] = (),
    candidates: int | None = None,
    on_token: Callable[[int, int], object] | None = None,
    cancelled: Callable[[], bool] = lambda: False,
    **sampling: Any,
) -> Samples:
    """`num_samples` continuations of one prompt, each ended by a stop string (cut off) or the end-of-text token.

    An empty prompt means the end-of-text token, or a line feed where the vocabulary has no such token.
    `candidates=K` records every step with its K likeliest tokens. `on_token(sample, token)` is called as tokens are
    drawn; all ends after the token at which `cancelled()` is true. `sampling`: temperature, top_k, top_p, seed,
    use_cache, hop of `generate`. Errors: as there; UserError for a prompt that the vocabulary does not cover;
    CheckpointError for a tokenizer with more tokens than the model.
    """
    if tokenizer.vocab_size > model.lm_head.out_features:
        raise CheckpointError(
            f"the tokenizer {tokenizer.name!r} has {tokenizer.vocab_size} tokens but the model only "
            f"{model.lm_head.out_features}: they do not belong together"
        )
    stops, eot = StopStrings(tokenizer, stop), tokenizer.eot
    prompt = [eot] if not start and eot is not None else tokenizer.encode(start or "\n")
    seen = Recorder(num_samples, candidates, eot, on_token)
    began = time.perf_counter()
    found = generate(
        model, [prompt] * num_samples, max_new_tokens=max_new_tokens, stop=lambda new: stops(new) or cancelled(),
        eot=eot, vocab_size=tokenizer.vocab_size, watch=seen, **sampling,
    )  # fmt: skip
    elapsed_s = time.perf_counter() - began

    def ended(i: int) -> str:
        if i in seen.ended:
            return "eot"
        if stops(found[i]):
            return "stop"
        return "length" if len(found[i]) == max_new_tokens else "cancelled"

    samples = (
        Sample(start + stops.cut(tokenizer.decode(tokens)), tuple(tokens), ended(i), tuple(seen.steps[i]))
        for i, tokens in enumerate(found)
    )
    return Samples(start, tuple(samples), elapsed_s)


def sample_text(folder: str | Path, *, start: str = "\n", device: str = "auto", **options: Any) -> list[str]:
    """Texts from the model of a run folder; `options` are those of `continue_text`."""
    from .distributed import pick_device

    loaded = load_model(folder, device=str(pick_device(device)))
    return continue_text(loaded.model, from_meta(loaded.tokenizer_meta), start, **options).texts
