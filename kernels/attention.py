"""Attention of the whole family as operators of torch: forward, backward, decode.

`attention` is differentiable and traces into one graph; `attention_decode` is for few queries over a cache, without
gradients. Both run the Triton kernels, on a GPU or in Triton's interpreter; `attention_reference` is the same in plain
torch. Inputs may have any strides; those that a tensor descriptor cannot express (rows not contiguous, not a multiple
of 16 bytes apart) are copied first. gamma must be positive: its logarithm joins the exponent.

Not covered: dropout, windows of attention that is not causal, fp64, a second derivative, gradients of ALiBi's slopes.
"""

import math
from collections.abc import Sequence

import torch
import triton
from torch import Tensor

from . import attention_backward, attention_forward, devices
from . import attention_decode as decoding
from .attention_reference import Weighting
from .launch_table import Launch, launch

EXPONENTIAL = ("softmax", "consmax")
MOST_ROWS = 65_535  # of the second axis of a grid
FEWEST_KEYS = 256  # of a split


def _described(x: Tensor) -> Tensor:
    """`x`, or a copy that a tensor descriptor can address."""
    aligned = all(s * x.element_size() % 16 == 0 for s in x.stride()[:-1]) and x.data_ptr() % 16 == 0
    return x if x.stride(-1) == 1 and aligned and min(x.stride()[:-1]) > 0 else _copied(x)


def _copied(x: Tensor) -> Tensor:
    out = _rows(x, *x.shape)
    return out.copy_(x)


def _rows(like: Tensor, B: int, H: int, T: int, D: int, dtype: torch.dtype | None = None) -> Tensor:
    """Empty (B, H, T, D) whose rows start at multiples of 16 bytes."""
    dtype = dtype or like.dtype
    step = 16 // dtype.itemsize
    return torch.empty(B, H, T, -(-D // step) * step, dtype=dtype, device=like.device)[..., :D]


def _launch(op: str, plan: "_Plan", q: Tensor, D: int, E: int, *flags: str) -> tuple[Launch, dict]:
    width = triton.next_power_of_2(max(D, E))
    capability = devices.capability(q)
    devices.use_descriptors(q)
    flags += tuple(name for name in ("bias", "alibi", "clamp") if plan.flags[name.upper()])
    row = launch(capability, op, width, plan.flags["KIND"], q.element_size(), flags)
    pairs = capability >= 90 and q.element_size() == 2
    return row, {"BM": row.BM, "BN": row.BN, "PAIRS": pairs, "num_warps": row.num_warps, "num_stages": row.num_stages}


class _Plan:
    """Arguments that all kernels of a call share, from the operator's flat ones."""

    def __init__(self, kind, causal, window, log_keys, by_keys, power, numbers, head, top, bias, slopes):
        self.scale, softcap, self.rate, shift, x0, y0, divisor = numbers
        exponential = kind in EXPONENTIAL
        rate = self.rate if exponential else 1.0
        self.ln_base = rate * math.log(2) if exponential else 1.0
        factor = self.scale if softcap else self.scale * rate
        self.numbers = (factor, softcap, rate, shift, x0, y0, 1.0 / divisor)
        self.d_factor = self.scale * self.ln_base
        self.window = window
        self.flags = {
            "KIND": kind, "POWER": power, "CAUSAL": causal, "WINDOW": window > 0, "CAP": softcap > 0,
            "BIAS": bias is not None, "ALIBI": slopes is not None, "HEAD": head is not None, "CLAMP": top is not None,
            "BY_KEYS": by_keys, "LOG_KEYS": log_keys,
        }  # fmt: skip


def _widths(q: Tensor, D: int, E: int) -> dict:
    return {
        "D": D, "E": E, "BD": max(triton.next_power_of_2(D), 16), "BE": max(triton.next_power_of_2(E), 16),
        "EXACT": "ieee" if q.dtype == torch.float32 else "tf32",
    }  # fmt: skip


def _bias_strides(bias: Tensor | None) -> tuple[int, int]:
    return (0, 0) if bias is None else (bias.stride(0), bias.stride(1))


@devices.operator("gptkernels::attention_forward")
def attention_forward_op(
    q: Tensor, k: Tensor, v: Tensor, head: Tensor | None, top: Tensor | None, bias: Tensor | None,
    slopes: Tensor | None, kind: str, causal: bool, window: int, log_keys: bool, by_keys: bool, power: int,
    numbers: Sequence[float],
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """(output (B, H, T, E), log2 of the row sums (B, H, T) for softmax, else empty)."""
    (B, H, T, D), (_, K, S, E) = q.shape, v.shape
    plan = _Plan(kind, causal, window, log_keys, by_keys, power, numbers, head, top, bias, slopes)
    out, lse = _new_outputs(q, v, kind)
    q, k, v = _described(q), _described(k), _described(v)
    made = out if out.stride(2) * out.element_size() % 16 == 0 else _rows(out, B, H, T, E)
    row, options = _launch("forward", plan, q, D, E)
    attention_forward.forward[(triton.cdiv(T, row.BM), B * H)](
        q, k, v, made, lse, head, top, bias, slopes, *q.stride()[:3], *k.stride()[:3], *v.stride()[:3],
        *made.stride()[:3], *_bias_strides(bias), H, H // K, T, S, plan.window, *plan.numbers, **_widths(q, D, E),
        **plan.flags, **options,
    )  # fmt: skip
    return (out if made is out else out.copy_(made)), lse


def _new_outputs(q: Tensor, v: Tensor, kind: str) -> tuple[Tensor, Tensor]:
    B, H, T, _ = q.shape
    statistic = (B, H, T) if kind == "softmax" else (0,)
    return q.new_empty(B, H, T, v.shape[-1]), q.new_empty(statistic, dtype=torch.float32)


@attention_forward_op.register_fake
def _(q, k, v, head, top, bias, slopes, kind, causal, window, log_keys, by_keys, power, numbers):
    return _new_outputs(q, v, kind)


@devices.operator("gptkernels::attention_backward")
def attention_backward_op(
    q: Tensor, k: Tensor, v: Tensor, head: Tensor | None, top: Tensor | None, bias: Tensor | None,
    slopes: Tensor | None, out: Tensor, lse: Tensor, d_out: Tensor, kind: str, causal: bool, window: int,
    log_keys: bool, by_keys: bool, power: int, numbers: Sequence[float], bias_grad: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """(dq, dk, dv, delta, free (B, H, T), gradient of the bias (B, H, T, S)); what is not needed is empty."""
    (B, H, T, D), (_, K, S, E) = q.shape, v.shape
    plan = _Plan(kind, causal, window, log_keys, by_keys, power, numbers, head, top, bias, slopes)
    delta, free, d_bias = _new_statistics(q, kind, S, top, bias_grad)
    if bias_grad:
        d_bias.zero_()  # tiles without a live key are not visited
    q, k, v, out, d_out = (_described(x) for x in (q, k, v, out, d_out))
    dq, dk, dv = made = [_rows(x, *x.shape) for x in (q, k, v)]
    common = (H, H // K, T, S, plan.window, *plan.numbers, plan.d_factor)
    reads = (*q.stride()[:3], *k.stride()[:3], *v.stride()[:3])
    row, options = _launch("d_queries", plan, q, D, E, *["d_bias"] * bias_grad)
    attention_backward.d_queries[(triton.cdiv(T, row.BM), B * H)](
        q, k, v, out, d_out, dq, lse, delta, free, head, top, bias, slopes, d_bias, *reads, *out.stride()[:3],
        *d_out.stride()[:3], *dq.stride()[:3], *_bias_strides(bias), *common, **_widths(q, D, E), **plan.flags,
        D_BIAS=bias_grad, **options,
    )  # fmt: skip
    row, options = _launch("d_keys", plan, q, D, E)
    attention_backward.d_keys[(triton.cdiv(S, row.BN), B * K)](
        q, k, v, d_out, dk, dv, lse, delta, head, top, bias, slopes, *reads, *d_out.stride()[:3], *dk.stride()[:3],
        *dv.stride()[:3], *_bias_strides(bias), *common, **_widths(q, D, E), **plan.flags,
        **options,
    )  # fmt: skip
    finished = [x if x.is_contiguous() else x.contiguous() for x in made]
    return finished[0], finished[1], finished[2], delta, free, d_bias


def _new_statistics(q, kind, S, top, bias_grad):
    B, H, T, _ = q.shape
    wide = {"dtype": torch.float32, "device": q.device}
    return (
        torch.empty((B, H, T) if kind in EXPONENTIAL else (0,), **wide),
        torch.empty((B, H, T) if top is not None else (0,), **wide),
        torch.empty((B, H, T, S) if bias_grad else (0,), **wide),
    )


@attention_backward_op.register_fake
def _(
    q, k, v, head, top, bias, slopes, out, lse, d_out, kind, causal, window, log_keys, by_keys, power, numbers,
    bias_grad,
):  # fmt: skip
    gradients = (x.new_empty(x.shape) for x in (q, k, v))
    return *gradients, *_new_statistics(q, kind, k.shape[2], top, bias_grad)


def _keep(ctx, inputs, output):
    q, k, v, head, top, bias, slopes, *settings = inputs
    out, lse = output
    ctx.save_for_backward(q, k, v, head, top, bias, slopes, out, lse)
    ctx.set_materialize_grads(True)
    ctx.settings = settings


def _differentiate(ctx, d_out, d_lse):
    """Gradients of all constants of a head are sums over what `d_queries` leaves for its rows."""
    q, k, v, head, top, bias, slopes, out, lse = ctx.saved_tensors
    kind, rate = ctx.settings[0], ctx.settings[-1][2]
    needs_head, needs_top, needs_bias = ctx.needs_input_grad[3:6]
    dq, dk, dv, delta, free, d_bias = attention_backward_op(
        q, k, v, head, top, bias, slopes, out, lse, d_out, *ctx.settings, needs_bias
    )
    d_head = d_top = None
    if kind == "consmax" and needs_head:
        d_head = -math.log(2) * (delta if top is None else free).sum((0, 2))
    elif kind == "softmax" and needs_head:
        d_head = -math.log(2) * (torch.exp2(head.view(-1, 1) - lse) * delta).sum((0, 2))
    if needs_top:
        d_top = math.log(2) * (delta - free).sum((0, 2))
    if needs_bias:
        ln_base = rate * math.log(2) if kind in EXPONENTIAL else 1.0
        d_bias = (d_bias.sum(0) * ln_base).to(bias.dtype)
    return dq, dk, dv, d_head, d_top, (d_bias if needs_bias else None), None, *[None] * len(ctx.settings)


attention_forward_op.register_autograd(_differentiate, setup_context=_keep)


@devices.operator("gptkernels::attention_decode")
def attention_decode_op(
    q: Tensor, k: Tensor, v: Tensor, head: Tensor | None, top: Tensor | None, bias: Tensor | None,
    slopes: Tensor | None, kind: str, causal: bool, window: int, log_keys: bool, by_keys: bool, power: int,
    numbers: Sequence[float], splits: int, lengths: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Output (B, H, T, E) from at most `splits` parts of the keys."""
    (B, H, T, D), (_, K, S, E) = q.shape, v.shape
    plan = _Plan(kind, causal, window, log_keys, by_keys, power, numbers, head, top, bias, slopes)
    q = q if q.stride(-1) == 1 else q.contiguous()
    k, v = _described(k), _described(v)
    row, options = _launch("decode", plan, q, D, E)
    tiles = triton.cdiv(S, row.BN)
    split = triton.cdiv(tiles, min(splits, tiles)) * row.BN
    count = triton.cdiv(S, split)
    out = q.new_empty(B, H, T, E)
    part = torch.empty(count, B, H, T, E, dtype=torch.float32, device=q.device)
    stats = torch.empty((count, B, H, T, 2) if kind == "softmax" else (0,), dtype=torch.float32, device=q.device)
    widths = _widths(q, D, E)
    decoding.decode[(B * K, count, triton.cdiv(H // K * T, row.BM))](
        q, k, v, part, stats, head, top, bias, slopes, lengths, *q.stride()[:3], *k.stride()[:3], *v.stride()[:3],
        *_bias_strides(bias), H, H // K, T, S, plan.window, split, *plan.numbers, **widths, **plan.flags,
        LENGTHS=lengths is not None, **options,
    )  # fmt: skip
    decoding.combine[(B * H * T,)](
        part, stats, head, out, H, T, B * H * T, count, E=E, BE=widths["BE"], KIND=kind, HEAD=head is not None
    )
    return out


@attention_decode_op.register_fake
def _(q, k, v, head, top, bias, slopes, kind, causal, window, log_keys, by_keys, power, numbers, splits, lengths=None):
    return q.new_empty(*q.shape[:3], v.shape[-1])


def _flat(q_BHTD, weighting, scale, causal, window, softcap, beta_H, gamma_H, lobo_H, bias_HTS, slopes_H):
    """Operator arguments after q, k, v. Constants of a head become one exponent, by operations autograd knows."""
    w = weighting
    if window is not None and not causal:
        raise ValueError("a window needs causal attention")
    if q_BHTD.shape[0] * q_BHTD.shape[1] > MOST_ROWS:
        raise ValueError(f"{q_BHTD.shape[0]} sequences of {q_BHTD.shape[1]} heads: one launch takes {MOST_ROWS} heads")
    head = top = None
    rate = math.log2(w.base)
    if w.kind == "consmax":
        log_gamma = gamma_H.float().log2()
        head = beta_H.float() * rate + log_gamma
        top = None if w.clamp is None else w.clamp * rate - log_gamma
    elif w.kind == "softmax" and lobo_H is not None:
        head = lobo_H.float() * math.log2(math.e)
    if bias_HTS is not None and bias_HTS.stride(-1) != 1:
        bias_HTS = bias_HTS.contiguous()
    if slopes_H is not None:
        slopes_H = slopes_H.float().contiguous()
    numbers = [scale, softcap or 0.0, rate, w.shift, w.x_intercept, w.y_intercept, w.divisor]
    return head, top, bias_HTS, slopes_H, w.kind, causal, window or 0, w.log_keys, w.by_keys, w.power, numbers


def attention(
    q_BHTD: Tensor, k_BKSD: Tensor, v_BKSE: Tensor, weighting: Weighting, scale: float, *, causal: bool = True,
    window: int | None = None, softcap: float | None = None, beta_H: Tensor | None = None,
    gamma_H: Tensor | None = None, lobo_H: Tensor | None = None, bias_HTS: Tensor | None = None,
    slopes_H: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """As `attention_reference.attention`; bf16, fp16 or fp32, sums in fp32. Slopes get no gradient."""
    if slopes_H is not None and slopes_H.requires_grad and torch.is_grad_enabled():
        raise ValueError("slopes_H gets no gradient; give what trained slopes add to the scores as bias_HTS")
    flat = _flat(q_BHTD, weighting, scale, causal, window, softcap, beta_H, gamma_H, lobo_H, bias_HTS, slopes_H)
    return attention_forward_op(q_BHTD, k_BKSD, v_BKSE, *flat)[0]


def attention_decode(
    q_BHTD: Tensor, k_BKSD: Tensor, v_BKSE: Tensor, weighting: Weighting, scale: float, *, causal: bool = True,
    window: int | None = None, softcap: float | None = None, beta_H: Tensor | None = None,
    gamma_H: Tensor | None = None, lobo_H: Tensor | None = None, bias_HTS: Tensor | None = None,
    splits: int | None = None, slopes_H: Tensor | None = None, lengths_B: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """`attention` without gradients for few queries over many keys, in `splits` parts summed in fixed order.

    By default two programs a multiprocessor, if each has enough keys. Of sequence b only the first lengths_B[b] keys
    are seen, the queries being its last T tokens when causal.
    """
    if lengths_B is not None:
        if bias_HTS is not None:
            raise ValueError("lengths_B and bias_HTS exclude each other: a bias is one of (T, S) for all sequences")
        lengths_B = lengths_B.to(torch.int32).contiguous()
    flat = _flat(q_BHTD, weighting, scale, causal, window, softcap, beta_H, gamma_H, lobo_H, bias_HTS, slopes_H)
    if splits is None:
        splits = default_splits(k_BKSD.shape[0] * k_BKSD.shape[1], k_BKSD.shape[2], devices.multiprocessors(q_BHTD))
    return attention_decode_op(q_BHTD, k_BKSD, v_BKSE, *flat, splits, lengths_B)


def default_splits(heads: int, S: int, multiprocessors: int) -> int:
    """Parts that the S keys of each of `heads` key heads, over all sequences, are read in."""
    return max(1, min(-(-2 * multiprocessors // heads), S // FEWEST_KEYS))
