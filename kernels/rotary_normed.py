"""Query-key norm (arXiv 2010.04245, here of root mean square, arXiv 1910.07467) and rotary embedding in one launch.

    rms_norm_rotary(q, k, q_weight, k_weight, cos, sin, start, eps)
        = rotary(rms_norm(q, q_weight, eps), rms_norm(k, k_weight, eps), cos, sin, start, D)

Forward it reads and writes queries and keys once instead of twice, and keeps what the norm alone would keep: q and k as
they came, and fp32 of a head. Backward it is the launches of both, of `rotary` and then of `norms`. Layouts, types and
tables as in `rotary`; all entries of a head turn.

Legend: B batch, H query heads, K key heads, T tokens, D head width, S positions.
"""

import torch
import triton
from torch import Tensor

from . import devices, rotary_normed_kernels
from .norms import norm_backward_op
from .norms_work import Norm, norm_work
from .roofline import Work
from .rotary import adjacent, checked_tables, new_heads, rotary_op, rotary_work, shared_out, table_row


def _statistic(x: Tensor) -> Tensor:
    return torch.empty(x.shape[:3], dtype=torch.float32, device=x.device)


@devices.operator("gptkernels::rms_norm_rotary")
def rms_norm_rotary_op(
    q: Tensor, k: Tensor, q_weight: Tensor, k_weight: Tensor, cos: Tensor, sin: Tensor, start: int, eps: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(q, k, 1 / rms of q, of k)."""
    (B, H, T, D), K = q.shape, k.shape[1]
    (q_out, k_out), q_rstd, k_rstd = new_heads(q, k), _statistic(q), _statistic(k)
    if q.numel() or k.numel():
        block, row = table_row(D // 2)
        q, k = adjacent(q), adjacent(k)
        tiles = triton.cdiv(B * T, row.BT)
        share = shared_out(tiles, H + K, q)
        rotary_normed_kernels.norm_and_rotate[(tiles, triton.cdiv(H + K, share))](
            q, k, q_weight, k_weight, q_out, k_out, q_rstd, k_rstd, cos, sin, *q.stride()[:3], *k.stride()[:3],
            *q_out.stride()[:3], *k_out.stride()[:3], cos.stride(0), sin.stride(0), B, H, K, T, start, share, eps,
            HALF=D // 2, BT=row.BT, BH=block, num_warps=row.num_warps, num_stages=row.num_stages,
        )  # fmt: skip
    return q_out, k_out, q_rstd, k_rstd


@rms_norm_rotary_op.register_fake
def _(q, k, q_weight, k_weight, cos, sin, start, eps):
    return *new_heads(q, k), _statistic(q), _statistic(k)


def _keep(ctx, inputs, output):
    *tensors, ctx.start, _ = inputs
    ctx.save_for_backward(*tensors, *output[2:])
    ctx.mark_non_differentiable(*output[2:])


def _differentiate(ctx, d_q, d_k, _q_rstd, _k_rstd):
    q, k, q_weight, k_weight, cos, sin, q_rstd, k_rstd = ctx.saved_tensors
    d_q, d_k = rotary_op(d_q, d_k, cos, sin, ctx.start, q.shape[-1], True)
    q_needed, k_needed = ctx.needs_input_grad[2:4]
    d_q, d_q_weight = _norm_backward(d_q, q, q_weight, q_rstd, q_needed)
    d_k, d_k_weight = _norm_backward(d_k, k, k_weight, k_rstd, k_needed)
    return d_q, d_k, d_q_weight, d_k_weight, None, None, None, None


def _norm_backward(d, x, weight, rstd, needed) -> tuple[Tensor, Tensor | None]:
    no_mean = rstd.new_empty(0)
    dx, _, dw, _ = norm_backward_op(d, None, x, weight, None, no_mean, rstd, False, needed, False, x.dtype, None)
    return dx, dw if needed else None


rms_norm_rotary_op.register_autograd(_differentiate, setup_context=_keep)


def rms_norm_rotary(
    q_BHTD: Tensor, k_BKTD: Tensor, q_weight_D: Tensor, k_weight_D: Tensor, cos_SD: Tensor, sin_SD: Tensor, start: int,
    eps: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Queries and keys, normalised by head and turned, in new memory."""
    D = q_BHTD.shape[-1]
    for name, w in (("queries", q_weight_D), ("keys", k_weight_D)):
        if w.shape != (D,):
            raise ValueError(f"weight of {name} of shape {tuple(w.shape)} for heads of {D}")
    cos, sin = checked_tables(q_BHTD.shape, k_BKTD.shape, cos_SD, sin_SD, start, D)
    weights = q_weight_D.contiguous(), k_weight_D.contiguous()
    return rms_norm_rotary_op(q_BHTD, k_BKTD, *weights, cos, sin, start, eps)[:2]


def rms_norm_rotary_work(op: str, B: int, H: int, K: int, T: int, D: int, itemsize: int) -> Work:
    """`op` is forward, of one launch, or backward, of those that turn back, and of the norms of queries and keys."""
    turn = rotary_work(B, H, K, T, D, D, itemsize)
    norms = [norm_work(op, Norm(B * n * T, D, size=itemsize, out_size=itemsize)) for n in (H, K)]
    flops = turn.flops + sum(norm.flops for norm in norms)
    if op == "forward":
        return Work(flops, turn.bytes + 4 * B * (H + K) * T + 2 * 4 * D, 0)
    return Work(flops, turn.bytes + sum(norm.bytes for norm in norms), 0)
