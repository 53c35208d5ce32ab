"""What a model considered at each step of a generation: the one record that colours, heatmaps and files read.

Legend: N sequences of one step, V vocabulary, K candidates.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from .sample import Sampling


@dataclass(frozen=True)
class Candidate:
    """A token that could have come next.

    `probability` is the model's own, over the whole vocabulary at temperature 1; `sampling` the one that it was drawn
    with, after temperature, top_k and top_p: 0 for what they leave out, 1 for what a greedy step takes.
    """

    token: int
    probability: float
    sampling: float


@dataclass(frozen=True)
class Step:
    """The token that was drawn, with the same two probabilities, and the likeliest `candidates`, likeliest first.

    `logit` is as the model gives it. `rank` is 1 more than the number of tokens with a larger logit.
    """

    token: int
    logit: float
    probability: float
    sampling: float
    rank: int
    candidates: tuple[Candidate, ...]


class Recorder:
    """Watches a generation: keeps the steps of each prompt, with `k` candidates each, and which ended by `eot`.

    k=None keeps no steps. `on_token(prompt, token)` is called for each token of a text as it is drawn.
    """

    def __init__(self, prompts: int, k: int | None, eot: int | None, on_token: Callable[[int, int], object] | None):
        self.k, self.eot, self.on_token = k, eot, on_token
        self.steps: list[list[Step]] = [[] for _ in range(prompts)]
        self.ended: set[int] = set()

    def __call__(self, prompts: Sequence[int], ids: Sequence[int], logits_NV: Tensor, sampling: "Sampling") -> None:
        """One step: the token `ids[n]` was drawn for `prompts[n]` from `logits_NV[n]`."""
        found = steps(ids, logits_NV, sampling, self.k) if self.k is not None else []
        for n, (prompt, token) in enumerate(zip(prompts, ids, strict=True)):
            if token == self.eot:
                self.ended.add(prompt)
                continue
            if found:
                self.steps[prompt].append(found[n])
            if self.on_token is not None:
                self.on_token(prompt, token)


def steps(ids: Sequence[int], logits_NV: Tensor, sampling: "Sampling", k: int) -> list[Step]:
    """The record of one step of N sequences; k=0 keeps the drawn tokens alone."""
    logits = logits_NV.double()
    ids_N1 = torch.tensor(ids, device=logits.device)[:, None]
    rank_N = (logits > logits.gather(-1, ids_N1)).sum(-1) + 1
    model_NV = logits.softmax(-1)
    if sampling.is_greedy:
        drawn_NV = torch.zeros_like(model_NV).scatter(-1, ids_N1, 1.0)
    else:
        drawn_NV = sampling.probabilities(logits_NV)
    shown_NK = torch.cat([ids_N1, logits.topk(min(k, logits.shape[-1])).indices], -1)
    columns = [t.gather(-1, shown_NK).tolist() for t in (logits, model_NV, drawn_NV)]
    found = []
    for tokens, rank, logit, p, q in zip(shown_NK.tolist(), rank_N.tolist(), *columns, strict=True):
        rest = tuple(map(Candidate, tokens[1:], p[1:], q[1:]))
        found.append(Step(tokens[0], logit[0], p[0], q[0], rank, rest))
    return found
