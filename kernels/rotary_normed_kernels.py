"""Kernel of query-key norm and rotary embedding in one: every head is brought to root mean square 1, scaled, turned.

Programs and tiles as in `rotary_kernels`; all entries of a head turn. The inverse root mean square of every head is
left for the backward pass, by sequence, head and token.
"""

import triton
import triton.language as tl


@triton.jit
def norm_and_turn(
    x_ptr, w_ptr, out_ptr, r_ptr, x_h, o_h, r_h, lo, hi, some, cos_0, cos_1, sin_0, sin_1, eps, HALF: tl.constexpr,
    BT: tl.constexpr, BH: tl.constexpr,
):  # fmt: skip
    """Heads lo to hi. All pointers but that of the weight are of tokens, of which there are `some`."""
    cols = tl.arange(0, BH)
    inside = some[:, None] & (cols < HALF)[None, :]
    w = (w_ptr + tl.zeros([BT], tl.int32))[:, None]  # of the shape of x, so that a thread holds what it needs
    w_0 = tl.load(w + cols[None, :], inside, 0.0).to(tl.float32)
    w_1 = tl.load(w + (cols + HALF)[None, :], inside, 0.0).to(tl.float32)
    for i in range(lo, hi):
        h = tl.zeros([1], tl.int64) + i
        x, out = (x_ptr + h * x_h)[:, None], (out_ptr + h * o_h)[:, None]
        x_0 = tl.load(x + cols[None, :], inside, 0.0).to(tl.float32)
        x_1 = tl.load(x + (cols + HALF)[None, :], inside, 0.0).to(tl.float32)
        rstd = tl.rsqrt(tl.sum(x_0 * x_0 + x_1 * x_1, 1) * (0.5 / HALF) + eps)
        tl.store(r_ptr + h * r_h, rstd, some)
        x_0, x_1 = x_0 * rstd[:, None] * w_0, x_1 * rstd[:, None] * w_1
        tl.store(out + cols[None, :], (x_0 * cos_0 + x_1 * sin_0).to(out_ptr.dtype.element_ty), inside)
        tl.store(out + (cols + HALF)[None, :], (x_1 * cos_1 + x_0 * sin_1).to(out_ptr.dtype.element_ty), inside)


@triton.jit(do_not_specialize=["start"])
def norm_and_rotate(
    q_ptr, k_ptr, q_w_ptr, k_w_ptr, q_out_ptr, k_out_ptr, q_r_ptr, k_r_ptr, cos_ptr, sin_ptr, q_b, q_h, q_t, k_b, k_h,
    k_t, qo_b, qo_h, qo_t, ko_b, ko_h, ko_t, cos_s, sin_s, B, H, K, T, start, share, eps, HALF: tl.constexpr,
    BT: tl.constexpr, BH: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0) * BT + tl.arange(0, BT)
    some = token < B * T
    b, t = (token // T).to(tl.int64), (token % T).to(tl.int64)
    cols = tl.arange(0, BH)
    inside = some[:, None] & (cols < HALF)[None, :]
    cos, sin = (cos_ptr + (start + t) * cos_s)[:, None], (sin_ptr + (start + t) * sin_s)[:, None]
    cos_0, cos_1 = tl.load(cos + cols[None, :], inside, 0.0), tl.load(cos + (cols + HALF)[None, :], inside, 0.0)
    sin_0, sin_1 = tl.load(sin + cols[None, :], inside, 0.0), tl.load(sin + (cols + HALF)[None, :], inside, 0.0)
    lo = tl.program_id(1) * share
    hi = tl.minimum(lo + share, H + K)
    norm_and_turn(
        q_ptr + b * q_b + t * q_t, q_w_ptr, q_out_ptr + b * qo_b + t * qo_t, q_r_ptr + b * H * T + t, q_h, qo_h, T, lo,
        tl.minimum(hi, H), some, cos_0, cos_1, sin_0, sin_1, eps, HALF, BT, BH,
    )  # fmt: skip
    norm_and_turn(
        k_ptr + b * k_b + t * k_t, k_w_ptr, k_out_ptr + b * ko_b + t * ko_t, k_r_ptr + b * K * T + t, k_h, ko_h, T,
        tl.maximum(lo - H, 0), hi - H, some, cos_0, cos_1, sin_0, sin_1, eps, HALF, BT, BH,
    )  # fmt: skip
