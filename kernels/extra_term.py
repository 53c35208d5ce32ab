"""Softmax attention with an extra term in the sum, on a CPU, from torch's fused kernels: no score is ever in memory.

    P = exp(s) / (sum exp(s) + exp(b_h))

With lse = log sum exp(s), which torch's forward kernel returns, that is its output times 1 / (1 + exp(b - lse)). Its
backward kernel computes weights exp(s - lse) and needs dO and the row sums of dO O; given lse' = log(exp(lse) + exp(b))
in place of lse, and the output as it is here, it computes the weights and the gradients of this attention. The extra
term has weight exp(b - lse') and value 0, so

    dL/db_h = -sum over rows of exp(b - lse') dO.O

Causal with as many keys as queries, and as wide values. Not covered: windows, biases, dropout, other devices.
"""

import torch
from torch import Tensor

aten = torch.ops.aten


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q_BHTD, k_BHTD, v_BHTD, b_H, scale):
        out, lse = aten._scaled_dot_product_flash_attention_for_cpu(q_BHTD, k_BHTD, v_BHTD, 0.0, True, scale=scale)
        b = b_H.to(lse.dtype).view(-1, 1)
        out = out * torch.sigmoid(lse - b).unsqueeze(-1).to(out.dtype)
        lse = torch.logaddexp(lse, b)
        ctx.save_for_backward(q_BHTD, k_BHTD, v_BHTD, b_H, out, lse)
        ctx.scale = scale
        return out

    @staticmethod
    def backward(ctx, d_out):
        q, k, v, b_H, out, lse = ctx.saved_tensors
        gradients = aten._scaled_dot_product_flash_attention_for_cpu_backward(
            d_out, q, k, v, out, lse, 0.0, True, scale=ctx.scale
        )
        d_b = None
        if ctx.needs_input_grad[3]:
            dots = torch.linalg.vecdot(d_out.to(lse.dtype), out.to(lse.dtype))
            d_b = -(dots * torch.exp(b_H.to(lse.dtype).view(-1, 1) - lse)).sum((0, 2)).to(b_H.dtype)
        return *gradients, d_b, None


def extra_term_attention(q_BHTD: Tensor, k_BKTD: Tensor, v_BKTD: Tensor, b_H: Tensor, scale: float) -> Tensor:
    """Weighted values (B, H, T, D)."""
    groups = q_BHTD.shape[1] // k_BKTD.shape[1]
    k, v = (x if groups == 1 else x.repeat_interleave(groups, dim=1) for x in (k_BKTD, v_BKTD))
    return _Attention.apply(q_BHTD, k, v, b_H, scale)
