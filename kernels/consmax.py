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


def _scaled_bmm(a: Tensor, b: Tensor, factor: float) -> Tensor:
    """factor * a @ b, the factor applied inside the product."""
    return torch.baddbmm(a.new_zeros(1, 1, 1), a, b, beta=0, alpha=factor)


class _ConSmaxAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q_BHTD, k_BKSD, v_BKSE, beta_H, gamma_H, live_TS, scale, base, clamp):
        (B, H, T, D), (_, K, S, _) = q_BHTD.shape, k_BKSD.shape
        log2_base = math.log2(base)
        # exp2 takes a third of the time of exp on a CPU, and is what a GPU has; the base folds into the scale.
        q = q_BHTD.reshape(B * K, H // K * T, D)  # query heads of one key head stacked
        k, v = k_BKSD.reshape(B * K, S, D), v_BKSE.reshape(B * K, S, v_BKSE.shape[-1])
        e = _scaled_bmm(q, k.transpose(1, 2), scale * log2_base)
        e = e.float() if e.dtype in (torch.bfloat16, torch.float16) else e
        e_BHTS = e.view(B, H, T, S)
        e_BHTS.sub_((beta_H * log2_base).to(e.dtype).view(-1, 1, 1))
        free = None
        if clamp is not None:
            free = e_BHTS <= clamp * log2_base
            e_BHTS.clamp_(max=clamp * log2_base)
        e_BHTS.exp2_()
        if live_TS is None:  # masked entries become exact zeros, whatever they were
            e_BHTS.tril_()
        else:
            e_BHTS.masked_fill_(~live_TS, 0.0)
        e_BHTS.div_(gamma_H.to(e.dtype).view(-1, 1, 1))  # before the narrow type: a weight fits where exp(s) does not
        e = e.to(v.dtype)
        out = torch.bmm(e, v).view(B, H, T, -1)
        ctx.save_for_backward(q, k, v, e, out, gamma_H, free)
        ctx.scale, ctx.ln_base, ctx.shape = scale, math.log(base), (B, H, T, K, S)
        return out

    @staticmethod
    def backward(ctx, d_out):
        q, k, v, e, out, gamma_H, free = ctx.saved_tensors
        B, H, T, K, S = ctx.shape
        d = d_out.reshape(B * K, H // K * T, -1)
        d_gamma = -torch.linalg.vecdot(d.reshape(B, H, -1), out.reshape(B, H, -1)).to(gamma_H.dtype).sum(0) / gamma_H
        d_beta = ctx.ln_base * gamma_H * d_gamma
        d_v = torch.bmm(e.transpose(1, 2), d)
        d_s = torch.bmm(d, v.transpose(1, 2)).mul_(e)
        if free is not None:
            d_s_BHTS = d_s.view(B, H, T, S).mul_(free)
            d_beta = -ctx.ln_base * d_s_BHTS.sum(dim=(0, 2, 3), dtype=gamma_H.dtype)
        factor = ctx.scale * ctx.ln_base
        d_q, d_k = _scaled_bmm(d_s, k, factor), _scaled_bmm(d_s.transpose(1, 2), q, factor)
        d_q, d_k, d_v = d_q.view(B, H, T, -1), d_k.view(B, K, S, -1), d_v.view(B, K, S, -1)
        return d_q, d_k, d_v, d_beta, d_gamma, None, None, None, None


def consmax_attention(
    q_BHTD: Tensor, k_BKSD: Tensor, v_BKSE: Tensor, beta_H: Tensor, gamma_H: Tensor,
    live_TS: Tensor | None, scale: float, base: float = math.e, clamp: float | None = None,
) -> Tensor:  # fmt: skip
    """Weighted values (B, H, T, E); `live_TS` None means causal with T == S. Scores are exponentiated in fp32."""
    return _ConSmaxAttention.apply(q_BHTD, k_BKSD, v_BKSE, beta_H, gamma_H, live_TS, scale, base, clamp)
