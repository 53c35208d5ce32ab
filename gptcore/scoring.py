"""Log-likelihoods of token sequences: in batches, sorted by length, with what sequences have in common computed once.

A pair is (context, continuation), token ids; the score is the sum of the log-probabilities of the continuation in nats,
and whether each of its tokens is the likeliest one. Contexts that do not fit are cut on the left, as the
lm-evaluation-harness does with Hugging Face models; a continuation longer than block_size is scored in `windows`.

Two savings against one full pass per pair. Pairs with the same context (the choices of a question) share it: it is fed
once, its decode state is copied for each of them, and only what differs is fed then. And logits are computed only where
a score needs them, which for a vocabulary of 50,000 is most of the arithmetic of a small model.

Legend: B pairs, N scored tokens, V vocabulary.
"""

import copy
import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor

from .errors import RunError
from .model import GPT, Cache
from .sample import cache_obstacle

MAX_LOGITS = 2**26  # of one pass: 256 MiB of float32
Pair = tuple[Sequence[int], Sequence[int]]
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Likelihood:
    """Log-probability of a continuation in nats, and whether greedy decoding would produce it."""

    nats: float
    greedy: bool


@dataclass(frozen=True)
class _Row:
    owner: int
    context: tuple[int, ...]
    target: tuple[int, ...]

    @property
    def length(self) -> int:
        return len(self.context) + len(self.target) - 1  # the last token is only predicted


def windows(tokens: Sequence[int], start: int, block_size: int, least_context: int = 1) -> Iterator[Pair]:
    """Pairs that predict every token once, none longer than `block_size` inputs, the first from the token `start`.

    After the first, each pair has `least_context` tokens before the first one that it predicts, and the last pair is
    filled up with context. The same windows as `get_rolling_token_windows` of the harness, context and target disjoint.
    """
    assert 1 <= least_context <= block_size
    done = min(block_size, len(tokens))
    if done:
        yield [start], tokens[:done]
    while done < len(tokens):
        end = min(done + block_size - least_context + 1, len(tokens))
        yield tokens[max(0, end - block_size - 1) : done], tokens[done:end]
        done = end


@torch.inference_mode()
def score(
    model: GPT, pairs: Sequence[Pair], *, batch_size: int = 32, share: bool = True, progress: Progress | None = None
) -> list[Likelihood]:
    """The likelihood of each pair, in their order. `progress` gets (pairs scored, pairs) now and then.

    `share` allows to compute common contexts once; it changes nothing but rounding. An empty continuation has
    probability 1. ValueError for an empty context; RunError when the logits are not finite.
    """
    block_size = model.config.block_size
    nats, greedy = [0.0] * len(pairs), [True] * len(pairs)
    rows = [row for i, pair in enumerate(pairs) for row in _rows(i, pair, block_size)]
    share = share and cache_obstacle(model) is None
    uses = Counter(row.context for row in rows) if share else Counter()

    def order(row: _Row):
        """Shared contexts by their own length, all else by the length of the pair, the longest first: little to fill
        up, and what does not fit in memory fails at once. Rows of one context stay side by side."""
        shared = uses[row.context] > 1
        return not shared, -len(row.context) if shared else -row.length, row.context, -row.length

    rows.sort(key=order)
    was_training = model.training
    model.eval()
    try:
        done = 0
        for batch in _batches(rows, batch_size, model.lm_head.out_features):
            for row, (value, best) in zip(batch, _pass(model, batch, share), strict=True):
                nats[row.owner] += value
                greedy[row.owner] &= best
            done += len(batch)
            if progress is not None:
                progress(done, len(rows))
    finally:
        model.train(was_training)
    return [Likelihood(*both) for both in zip(nats, greedy, strict=True)]


def _rows(owner: int, pair: Pair, block_size: int) -> Iterator[_Row]:
    context, target = pair
    if not len(context):
        raise ValueError(f"pair {owner} has an empty context: a model needs a token to start from")
    if len(target) > block_size:
        for before, part in windows(target, context[-1], block_size):
            yield _Row(owner, tuple(before), tuple(part))
    elif len(target):
        yield _Row(owner, tuple(context[-(block_size + 1 - len(target)) :]), tuple(target))


def _batches(rows: list[_Row], batch_size: int, vocab: int) -> Iterator[list[_Row]]:
    batch: list[_Row] = []
    logits = 0
    for row in rows:
        if batch and (len(batch) == batch_size or logits + len(row.target) * vocab > MAX_LOGITS):
            yield batch
            batch, logits = [], 0
        batch.append(row)
        logits += len(row.target) * vocab
    if batch:
        yield batch


def _pass(model: GPT, batch: list[_Row], share: bool) -> list[tuple[float, bool]]:
    """(log-probability, greedy) of each row of one batch."""
    contexts = [context for context, _ in groupby(row.context for row in batch)]
    common = min(map(len, contexts)) - 1  # so that at least one token of every row is left to predict from
    rest = max(row.length for row in batch) - common
    if not share or len(contexts) * common + len(batch) * rest > 0.8 * len(batch) * (common + rest):
        return _predict(model, batch, 0, None)
    cache = model.new_cache(len(contexts), common + rest)
    assert cache is not None
    logits_at(model, padded(model, [context[:common] for context in contexts]), [0], cache)
    which = {context: i for i, context in enumerate(contexts)}
    index = torch.tensor([which[row.context] for row in batch], device=model.lm_head.weight.device)
    # A copy whose tensors have one line per row instead of one per context; the first dimension of all is the batch.
    lines = {id(tensor): tensor.index_select(0, index) for tensor in cache.tensors()}
    return _predict(model, batch, common, copy.deepcopy(cache, lines))


def _predict(model: GPT, batch: list[_Row], fed: int, cache: Cache | None) -> list[tuple[float, bool]]:
    """Feeds what is left of each row after its first `fed` tokens, which `cache` has seen."""
    inputs_BT = padded(model, [(row.context + row.target[:-1])[fed:] for row in batch])
    width = inputs_BT.shape[1]
    places = [i * width + len(row.context) - 1 - fed + k for i, row in enumerate(batch) for k in range(len(row.target))]
    logits_NV = logits_at(model, inputs_BT, places, cache).float()
    targets_N = torch.tensor([token for row in batch for token in row.target], device=logits_NV.device)
    chosen_N = logits_NV.gather(1, targets_N[:, None])[:, 0] - logits_NV.logsumexp(1)
    if not math.isfinite(chosen_N.sum().item()):
        raise RunError("the logits are not finite: the weights come from a diverged run, or overflow in this dtype")
    best_N = logits_NV.argmax(1) == targets_N
    sizes = [len(row.target) for row in batch]
    parts = zip(chosen_N.double().split(sizes), best_N.split(sizes), strict=True)
    return [(values.sum().item(), bool(best.all())) for values, best in parts]


def padded(model: GPT, rows: Sequence[Sequence[int]]) -> Tensor:
    """Rows as one tensor, shorter ones filled up on the right, where a causal model does not look."""
    width = max(map(len, rows))
    return torch.tensor([[*row, *[0] * (width - len(row))] for row in rows], device=model.lm_head.weight.device)


def logits_at(model: GPT, idx_BT: Tensor, places: list[int], cache: Cache | None) -> Tensor:
    """Logits (N, V) at these places of the flattened batch. The head is computed for them alone.

    Not where the model has a function behind its head, which may look at all places: then all are computed.
    """
    if model.softmax_output is not None:
        return model(idx_BT, cache=cache)[0].flatten(0, 1)[places]

    def pick(_module, inputs):
        return (inputs[0].flatten(0, 1)[places][None],)

    handle = model.lm_head.register_forward_pre_hook(pick)
    try:
        return model(idx_BT, cache=cache)[0][0]
    finally:
        handle.remove()
