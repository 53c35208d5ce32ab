"""Cross entropy of rows of logits in plain torch: the definition that tests, GPU checks and benchmarks compare with.

Legend: N rows, V vocabulary, C width of the stream.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def token_losses(
    logits_NV: Tensor, targets_N: Tensor, *, smoothing: float = 0.0, gamma: float = 0.0, z: float = 0.0,
    ignore_index: int = -1,
) -> Tensor:  # fmt: skip
    """(1 - p)^gamma ((1 - smoothing) nll + smoothing mean_v(nll_v)) + z log(Z)^2 of each row, 0 where ignored.

    p is the probability of the target and Z = sum_v exp(logit_v). Label smoothing: Szegedy et al., arXiv 1512.00567.
    Focal loss: Lin et al., arXiv 1708.02002. z-loss: PaLM, arXiv 2204.02311, section 5.
    """
    live_N = targets_N != ignore_index
    log_z_N = logits_NV.logsumexp(-1)
    log_p_N = logits_NV.gather(-1, (targets_N * live_N).unsqueeze(-1)).squeeze(-1) - log_z_N
    loss_N = -log_p_N
    if smoothing:
        loss_N = (1 - smoothing) * loss_N + smoothing * (log_z_N - logits_NV.mean(-1))
    if gamma:
        loss_N = loss_N * (-log_p_N.expm1()).clamp_min(torch.finfo(log_p_N.dtype).eps) ** gamma
    if z:
        loss_N = loss_N + z * log_z_N.square()
    return torch.where(live_N, loss_N, 0.0)


def cross_entropy(logits_NV: Tensor, targets_N: Tensor, *, ignore_index: int = -1, **terms: float) -> Tensor:
    """Mean of `token_losses` over the rows that are not ignored; NaN where all are."""
    loss_N = token_losses(logits_NV, targets_N, ignore_index=ignore_index, **terms)
    return loss_N.sum() / (targets_N != ignore_index).sum()


def linear_cross_entropy(
    x_NC: Tensor, weight_VC: Tensor, targets_N: Tensor, *, bias_V: Tensor | None = None, ignore_index: int = -1,
    **terms: float,
) -> Tensor:  # fmt: skip
    """Of the logits x W^T + b, which are made whole; the loss is computed in fp32 at least."""
    logits_NV = F.linear(x_NC, weight_VC, bias_V)
    wide = torch.promote_types(logits_NV.dtype, torch.float32)
    return cross_entropy(logits_NV.to(wide), targets_N, ignore_index=ignore_index, **terms)
