"""Warm start of a grown model from its parent: the same function where one exists, what fits where none does.

    width    new coordinates of the residual stream carry zeros, or the mean of the old ones (for norms that subtract
             it), or copies of old ones (where the width is multiplied); the stream is multiplied so that the mean
             square behind a norm's eps stays exactly as it was (LEMON, arXiv 2310.07999; Gesmundo, Maile, 2308.06103)
    heads    new ones, and new entries of old ones, are not read by the projection; 1/sqrt(D) is made up for
    hidden   new units are not read by the projection down (Net2Net, arXiv 1511.05641)
    depth    a new layer adds nothing at first; its other weights are those of the layer before it (bert2BERT,
             arXiv 2110.07143)

Which of these hold for a kind of norm or position is found by asking its module, and what came of it is measured on
random tokens in the end, never assumed. Not covered: optimizer states, which start anew.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .config import GPTConfig, difference
from .errors import UserError
from .growing.assemble import Assembly
from .growing.strategy import STRATEGIES
from .model import GPT

TOLERANCE = 1e-5
SEQUENCES, LONGEST = 2, 256  # of the tokens that the difference is measured on


@dataclass(frozen=True)
class Grown:
    """`difference` is max |logits(child) - logits(parent)| / max(1, max |logits(parent)|) on random tokens of the
    shorter context; `copied` the share of the parent's parameters that live on, perhaps times a factor."""

    weights: dict[str, Tensor]
    difference: float
    copied: float
    preserved: bool
    words: str


def grow(weights: Mapping[str, Tensor], parent: GPTConfig, child: GPTConfig, *, seed: int) -> Grown:
    """Weights (a state dict) of a `child` from those of its `parent`; `seed` draws what is new.

    Any pair of valid configurations will do; UserError when the vocabularies differ.
    """
    if parent.vocab_size != child.vocab_size or parent.vocab_size is None:
        raise UserError(
            f"a model with {child.vocab_size} tokens cannot grow from one with {parent.vocab_size}: give both the same "
            "model.vocab_size, or train from scratch"
        )
    with torch.random.fork_rng(devices=[]):
        old = GPT(parent)
        dtype = next(iter(weights.values())).dtype
        dtype = dtype if dtype == torch.float64 else torch.float32
        old.to(dtype).load_state_dict(dict(weights))
        old.eval()
        best: tuple[float, Assembly] | None = None
        least: Assembly | None = None
        for strategy in STRATEGIES:
            if not strategy.fits(parent.n_embd, child.n_embd):
                continue
            torch.manual_seed(seed)
            tried = Assembly(old, GPT(child).to(dtype).eval(), strategy)
            gap = logit_difference(old, tried.new)
            # A strategy that norms stand against says that of them; the one that met least tells what is in the way.
            least = tried if least is None or len(set(tried.notes)) < len(set(least.notes)) else least
            if best is None or gap < best[0] or math.isnan(best[0]):
                best = gap, tried
            if gap <= TOLERANCE / 10:
                break
    assert best is not None and least is not None
    gap, found = best
    preserved = gap <= TOLERANCE
    state = {name: value.detach().clone() for name, value in found.new.state_dict().items()}
    count = sum(p.numel() for p in old.parameters())
    return Grown(state, gap, found.used / count, preserved, _words(parent, child, found, gap, least))


@torch.no_grad()
def logit_difference(old: GPT, new: GPT) -> float:
    """As `Grown.difference`; both models in evaluation mode."""
    assert old.config.vocab_size is not None
    length = min(old.config.block_size, new.config.block_size, LONGEST)
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(old.config.vocab_size, (SEQUENCES, length), generator=generator)
    expected, found = old(tokens)[0].double(), new(tokens)[0].double()
    return float((found - expected).abs().max() / expected.abs().max().clamp_min(1.0))


def _words(parent: GPTConfig, child: GPTConfig, found: Assembly, gap: float, least: Assembly) -> str:
    changes = [
        f"{path} {_shown(a)} -> {_shown(b)}"
        for path, (a, b) in difference(parent, child).items()
        if not path.startswith("layers.") and path != "layers"
    ]
    if parent.layer_configs() != child.layer_configs() and not changes:
        changes = ["layers changed"]
    what = ", ".join(changes[:4]) + (f" and {len(changes) - 4} more" if len(changes) > 4 else "") or "nothing changes"
    if gap <= TOLERANCE:
        how = "; ".join(found.how())
        return f"{what}: the same function to {gap:.1e}" + (f" ({how})." if how else ".")
    why = "; ".join(least.why()) or "what changed has no map that leaves the function as it is"
    return f"{what}: not the same function (logits differ by {gap:.1e}): {why}."


def _shown(value: Any) -> str:
    return "null" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


__all__ = ["Grown", "grow", "logit_difference"]
