"""Decoding of sequences of unequal lengths side by side, one token each a pass, where the model allows it.

Prompts are read at once, filled up on the right, where a causal model does not look. Their keys and values then move to
the right end of the cache, so that all sequences end in the same place. From there on each has its own positions, and
what lies before its first token gets no weight: by a bias of the scores where weights are normalised, by values of zero
where every weight stands alone.

Not for attention whose state is something else than keys and values, positions that bias scores, scores or weights that
are rounded, weights that depend on the number of keys, and GPUs (their kernels take a bias by head, not by sequence).
"""

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from .attention.causal import HeadedAttention
from .cache import KVCache
from .masking import CausalMask
from .model import GPT, Cache
from .scoring import logits_at, padded
from .softmax import MASKED, Normalised, Scoring, Softmax, Standalone


def can_be_ragged(model: GPT) -> bool:
    """Whether `Ragged` gives what each sequence would get alone."""
    if model.lm_head.weight.device.type != "cpu":
        return False
    blocks: Any = model.transformer.h
    return all(_suits(block.attn) and not model.position.at(i).has_bias for i, block in enumerate(blocks))


def _suits(attn: Any) -> bool:
    if type(attn).forward is not HeadedAttention.forward or attn._rounds:
        return False
    softmax = attn.softmax
    known = isinstance(softmax, (Normalised, Standalone)) or type(softmax).attend is Softmax.attend
    return known and not softmax.ordered and _ignores_what_is_masked(attn)


@torch.inference_mode()
def _ignores_what_is_masked(attn: Any) -> bool:
    """Asks the weighting itself: the same with keys in front that count for nothing as without them."""
    dtype, H, fill = attn.c_proj.weight.dtype, attn.H, 64
    draw = torch.Generator().manual_seed(0)
    sizes = ((1, attn.D), (5, attn.D), (5, attn.E))
    q, k, v = (torch.randn(2, H, n, width, generator=draw).to(dtype) for n, width in sizes)
    front = k.new_zeros(2, H, fill, attn.D), v.new_zeros(2, H, fill, attn.E)
    bias = _bias([fill, fill], 5 + fill, k) if _needs_bias(attn) else None

    def attend(k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
        mask = CausalMask(1, k.shape[2], attn.config.window)
        return attn.softmax.attend(q, k, v, Scoring(mask, 0.5, 0.0, attn.config.softcap, bias))

    alone = attend(k, v, None)
    beside = attend(torch.cat([front[0], k], 2), torch.cat([front[1], v], 2), bias)
    # Sums of 5 values of about 1, rounded in either order; 64 keys that count, even a little, are far beyond that.
    error = 16 * torch.finfo(dtype).eps
    return torch.allclose(alone, beside, rtol=error, atol=error)


def _needs_bias(attn: Any) -> bool:
    return not isinstance(attn.softmax, Standalone)


def _bias(fill: Sequence[int], S: int, like: Tensor) -> Tensor:
    """(B, 1, 1, S): nothing where a sequence has keys, far below any score before them."""
    before = torch.arange(S) < torch.tensor(fill)[:, None]
    none = max(MASKED, torch.finfo(like.dtype).min)
    return like.new_zeros(before.shape).masked_fill_(before, none)[:, None, None]


def _all_of(attn: Any, batch: int, length: int, like: Tensor) -> KVCache:
    """A cache that also keeps what a window has left behind: sequences move within it."""
    return KVCache(batch, attn.K, length, attn.D, attn.E, like.dtype, like.device)


class Ragged:
    """The decode state of prompts of unequal lengths, the longest first; `steps` tokens follow at most."""

    def __init__(self, model: GPT, prompts: Sequence[Sequence[int]], steps: int):
        self.model = model
        lengths = [len(prompt) for prompt in prompts]
        assert lengths == sorted(lengths, reverse=True)
        self.fill = [lengths[0] - n for n in lengths]
        shape, like = (len(prompts), lengths[0] + steps), model.lm_head.weight
        blocks: Any = model.transformer.h
        self.cache = Cache([_all_of(block.attn, *shape, like) for block in blocks])
        places = [i * lengths[0] + n - 1 for i, n in enumerate(lengths)]
        self.logits_BV = logits_at(model, padded(model, prompts), places, self.cache)
        for tensor in self.cache.tensors():
            for row, fill in enumerate(self.fill):
                if fill:
                    kept = tensor[row, :, : lengths[row]].clone()
                    tensor[row, :, fill : lengths[0]] = kept
                    tensor[row, :, :fill] = 0.0

    def keep(self, rows: Sequence[int]) -> None:
        """Goes on with these alone."""
        index = torch.tensor(rows, device=self.model.lm_head.weight.device)
        chosen = {id(tensor): tensor.index_select(0, index) for tensor in self.cache.tensors()}
        self.cache = copy.deepcopy(self.cache, chosen)
        self.fill = [self.fill[row] for row in rows]

    def step(self, tokens: Sequence[int]) -> None:
        """Feeds a token to each; `logits_BV` are then those of the next."""
        idx_B1 = torch.tensor(tokens, device=self.model.lm_head.weight.device)[:, None]
        with self._positions():
            self.logits_BV = self.model(idx_B1, cache=self.cache)[0][:, -1]

    @contextmanager
    def _positions(self) -> Iterator[None]:
        whole = self.model.position
        self.model.position = _Model(whole, self)
        try:
            yield
        finally:
            self.model.position = whole

    def apart(self, function: Callable[..., Any], start: int, *tensors: Tensor) -> list[Any]:
        """`function(parts of the tensors, start)` of those that are equally long, with their own start."""
        bounds = [i for i, fill in enumerate(self.fill) if i == 0 or fill != self.fill[i - 1]] + [len(self.fill)]
        return [function(*(t[a:b] for t in tensors), start - self.fill[a]) for a, b in pairwise(bounds)]


class _Model(nn.Module):
    """In place of the positions of a model: each sequence has its own."""

    def __init__(self, whole: Any, ragged: Ragged):
        super().__init__()
        self.whole, self._ragged = whole, ragged
        self.acts_on = whole.acts_on(whole.config)
        self._bias: Tensor | None = None

    def embed(self, x_BTC: Tensor, start: int) -> Tensor:
        acts = "embedding" in self.acts_on
        return torch.cat(self._ragged.apart(self.whole.embed, start, x_BTC)) if acts else x_BTC

    def at(self, layer: int) -> "_Layer":
        return _Layer(self, self.whole.at(layer), layer, self._ragged)

    def bias(self, S: int, like: Tensor) -> Tensor:
        if self._bias is None:
            self._bias = _bias(self._ragged.fill, S, like)
        return self._bias


class _Layer:
    """What the attention of a layer asks of positions."""

    def __init__(self, model: _Model, position: Any, layer: int, ragged: Ragged):
        self._model, self._position, self._ragged = model, position, ragged
        blocks: Any = ragged.model.transformer.h
        self.has_bias = any(ragged.fill) and _needs_bias(blocks[layer].attn)

    def rotate(self, q_BHTD: Tensor, k_BKTD: Tensor, start: int) -> tuple[Tensor, Tensor]:
        if "rotation" not in self._model.acts_on:
            return q_BHTD, k_BKTD
        q, k = zip(*self._ragged.apart(self._position.rotate, start, q_BHTD, k_BKTD), strict=True)
        return torch.cat(q), torch.cat(k)

    def rotate_projection(self, qkv_BTC: Tensor, heads: int, key_heads: int, width: int, start: int) -> None:
        return None  # every row turns by its own angles

    def bias(self, heads: int, T: int, S: int, start: int, like: Tensor) -> Tensor:
        return self._model.bias(S, like)

    def slopes(self, heads: int) -> None:
        return None


__all__ = ["Ragged", "can_be_ragged"]
