"""Attention with any weighting of the family, in plain torch, differentiated by autograd: the truth for the kernels.

    score(t, s)  = cap(scale q_t k_s) + bias(t, s) - slope (t + S - T - s),   cap(x) = softcap tanh(x / softcap)
    output(t)    = sum over the keys s in sight of weight(score(t, s)) v_s

`softmax` covers softermax (base 2) and the extra term exp(lobo) of the sum. Row-wise divisors and the sigmoid's
bias -ln(keys) count the keys that a query sees. A query that sees no key gets zeros. Slopes are those of
ALiBi (arXiv 2108.12409), one a head. Any floating type.
Not covered: dropout, and windows of attention that is not causal.

Legend: B batch, H query heads, K key/value heads, G = H / K, T queries (the last T of S tokens when causal), S keys,
D head width, E value width.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

KINDS = ("softmax", "consmax", "sigmoid", "relu", "relu2", "polymax", "softplus")
ROW_SUMS = ("softmax",)  # kinds with a row statistic


@dataclass(frozen=True)
class Weighting:
    """How scores become weights. What a kind has no use for is left at its default.

    softmax, consmax: powers of `base`; consmax bounds s - beta by `clamp`. The others: curve(s + shift) / divisor;
    sigmoid with `log_keys` adds -ln(keys), `by_keys` divides by them. polymax: s^power + y right of 0, a line from
    (x_intercept, 0) to (0, y) left of it.
    """

    kind: str = "softmax"
    base: float = math.e
    clamp: float | None = None
    shift: float = 0.0
    divisor: float = 1.0
    by_keys: bool = False
    log_keys: bool = False
    power: int = 2
    x_intercept: float = -100.0
    y_intercept: float = 1.0

    def __post_init__(self):
        if self.kind not in KINDS:
            raise ValueError(f"kind {self.kind!r} is none of {', '.join(KINDS)}")
        if self.power not in (1, 2, 3, 4):
            raise ValueError(f"power {self.power} is none of 1, 2, 3, 4")


def live_TS(T: int, S: int, causal: bool, window: int | None, device=None) -> Tensor:
    """True where a query may see a key; query t is token t + S - T when causal."""
    if not causal:
        return torch.ones(T, S, dtype=torch.bool, device=device)
    distance = torch.arange(T, device=device)[:, None] + (S - T) - torch.arange(S, device=device)
    return (distance >= 0) & (distance < (window or S + T))


def curve(weighting: Weighting, x: Tensor) -> Tensor:
    """The elementwise kinds."""
    if weighting.kind == "sigmoid":
        return torch.sigmoid(x)
    if weighting.kind == "relu":
        return F.relu(x)
    if weighting.kind == "relu2":
        return F.relu(x).square()
    if weighting.kind == "softplus":
        return F.softplus(x)
    x0, y0 = weighting.x_intercept, weighting.y_intercept
    return (x.clamp(x0, 0.0) - x0) * (y0 / -x0) + x.clamp(min=0.0).pow(weighting.power)


def attention(
    q_BHTD: Tensor, k_BKSD: Tensor, v_BKSE: Tensor, weighting: Weighting, scale: float, *, causal: bool = True,
    window: int | None = None, softcap: float | None = None, beta_H: Tensor | None = None,
    gamma_H: Tensor | None = None, lobo_H: Tensor | None = None, bias_HTS: Tensor | None = None,
    slopes_H: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Weighted values (B, H, T, E). beta and gamma > 0 belong to consmax, lobo to softmax."""
    (_, H, T, _), (_, K, S, _) = q_BHTD.shape, k_BKSD.shape
    k, v = (x.repeat_interleave(H // K, dim=1) for x in (k_BKSD, v_BKSE))
    live = live_TS(T, S, causal, window, q_BHTD.device)
    scores = q_BHTD @ k.transpose(-2, -1) * scale
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    if bias_HTS is not None:
        scores = scores + bias_HTS
    if slopes_H is not None:
        distance_TS = torch.arange(T, device=k.device)[:, None] + (S - T) - torch.arange(S, device=k.device)
        scores = scores - slopes_H.view(-1, 1, 1) * distance_TS
    scores = scores.masked_fill(~live, 0.0)  # so that what is not seen cannot overflow
    if weighting.kind == "softmax":
        scores = (scores * math.log(weighting.base)).masked_fill(~live, -math.inf)
        rest = scores.new_full((1,), -math.inf) if lobo_H is None else lobo_H
        highest = torch.maximum(scores.amax(-1, keepdim=True), rest.view(-1, 1, 1)).detach()
        highest = highest.masked_fill(highest == -math.inf, 0.0)
        e = torch.exp(scores - highest)
        total = e.sum(-1, keepdim=True) + torch.exp(rest.view(-1, 1, 1) - highest)
        weights = e / total.masked_fill(total == 0, 1.0)
    elif weighting.kind == "consmax":
        assert beta_H is not None and gamma_H is not None
        exponent = scores - beta_H.view(-1, 1, 1)
        if weighting.clamp is not None:
            exponent = exponent.clamp(max=weighting.clamp)
        weights = torch.exp(exponent * math.log(weighting.base)) / gamma_H.view(-1, 1, 1)
    else:
        keys = live.sum(-1, keepdim=True).clamp_min(1).to(scores.dtype)
        x = scores + weighting.shift
        if weighting.log_keys:
            x = x - keys.log()
        weights = curve(weighting, x) / weighting.divisor
        if weighting.by_keys:
            weights = weights / keys
    return weights.masked_fill(~live, 0.0) @ v
