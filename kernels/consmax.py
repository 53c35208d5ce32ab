"""ConSmax attention with its closed-form backward, in plain torch: the CPU path and the truth for GPU kernels.

    weight(t, s) = base ** min(score(t, s) - beta_h, clamp) / gamma_h

(ConSmax, arXiv 2402.10930, eq. 2.) No row statistic exists, so nothing but the exponentials is saved, and the gradients
of beta and gamma are sums over outputs: with O = P V,

    dP = dO V^T,   dS = ln(base) P * dP,   dbeta_h = -ln(base) sum(dO * O),   dgamma_h = -sum(dO * O) / gamma_h.

With a clamp, clamped scores pass no gradient to S and beta; gamma keeps its closed form.

Legend: B batch, H query heads, K key/value heads, G = H / K, T queries, S keys, D head width, E value width.
"""

import math

import torch
from torch import Tensor


def consmax_attention_naive(q_BHTD, k_BKSD, v_BKSE, beta_H, gamma_H, live_TS, scale, base=math.e, clamp=None):
    """The definition, differentiated by autograd. `live_TS` is True where a query may see a key."""
    groups = q_BHTD.shape[1] // k_BKSD.shape[1]
    k, v = (x.repeat_interleave(groups, dim=1) for x in (k_BKSD, v_BKSE))
    exponent = q_BHTD @ k.transpose(-2, -1) * scale - beta_H.view(-1, 1, 1)
    if clamp is not None:
        exponent = exponent.clamp(max=clamp)
    weights = torch.where(live_TS, torch.pow(base, exponent) / gamma_H.view(-1, 1, 1), 0.0)
    return weights @ v


def _exponent(q, k, beta_H, scale_ln, ln_base, heads, T):
    """ln(base) * (score - beta) in at least fp32, as (B*K, G*T, S) for the products and a (B, H, T, S) view of it."""
    s = torch.bmm(q, k.transpose(1, 2))
    s = s.float() if s.dtype in (torch.bfloat16, torch.float16) else s
    view = s.view(-1, heads, T, s.shape[-1])
    view.mul_(scale_ln).sub_((beta_H * ln_base).to(s.dtype).view(-1, 1, 1))
    return s, view


class _ConSmaxAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q_BHTD, k_BKSD, v_BKSE, beta_H, gamma_H, live_TS, scale, base, clamp):
        (B, H, T, D), (_, K, S, _) = q_BHTD.shape, k_BKSD.shape
        ln_base = math.log(base)
        q = q_BHTD.reshape(B * K, H // K * T, D)
        k, v = k_BKSD.reshape(B * K, S, D), v_BKSE.reshape(B * K, S, v_BKSE.shape[-1])
        e, view = _exponent(q, k, beta_H, scale * ln_base, ln_base, H, T)
        # The exponent is kept only where the clamp acts; masked entries become exact zeros whatever they were.
        free = None if clamp is None else view <= clamp * ln_base
        if clamp is not None:
            view.clamp_(max=clamp * ln_base)
        view.exp_()
        if live_TS is None:
            view.tril_()
        else:
            view.masked_fill_(~live_TS, 0.0)
        e = e.to(v.dtype)
        out = torch.bmm(e, v).view(B, H, T, -1)
        out = out / gamma_H.to(out.dtype).view(-1, 1, 1)
        ctx.save_for_backward(q, k, v, e, out, gamma_H, free)
        ctx.scale_ln, ctx.ln_base, ctx.shape = scale * ln_base, ln_base, (B, H, T, K, S)
        return out

    @staticmethod
    def backward(ctx, d_out):
        q, k, v, e, out, gamma_H, free = ctx.saved_tensors
        B, H, T, K, S = ctx.shape
        dot_H = (d_out * out).sum(dim=(0, 2, 3), dtype=gamma_H.dtype)
        d_gamma = -dot_H / gamma_H
        d = (d_out / gamma_H.to(d_out.dtype).view(-1, 1, 1)).reshape(B * K, H // K * T, -1)
        d_v = torch.bmm(e.transpose(1, 2), d)
        d_s = torch.bmm(d, v.transpose(1, 2)).mul_(e)
        d_beta = -ctx.ln_base * dot_H
        if free is not None:
            view = d_s.view(B, H, T, S)
            view.mul_(free)
            d_beta = -ctx.ln_base * view.sum(dim=(0, 2, 3), dtype=gamma_H.dtype)
        d_q = torch.bmm(d_s, k).mul_(ctx.scale_ln)
        d_k = torch.bmm(d_s.transpose(1, 2), q).mul_(ctx.scale_ln)
        d_q, d_k, d_v = d_q.view(B, H, T, -1), d_k.view(B, K, S, -1), d_v.view(B, K, S, -1)
        return d_q, d_k, d_v, d_beta, d_gamma, None, None, None, None


def consmax_attention(
    q_BHTD: Tensor, k_BKSD: Tensor, v_BKSE: Tensor, beta_H: Tensor, gamma_H: Tensor,
    live_TS: Tensor | None, scale: float, base: float = math.e, clamp: float | None = None,
) -> Tensor:  # fmt: skip
    """Weighted values (B, H, T, E); `live_TS` None means causal with T == S. Scores are exponentiated in fp32."""
    return _ConSmaxAttention.apply(q_BHTD, k_BKSD, v_BKSE, beta_H, gamma_H, live_TS, scale, base, clamp)
