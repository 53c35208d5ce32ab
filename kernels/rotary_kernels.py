"""Kernel of rotary position embedding (RoFormer, arXiv 2104.09864): queries and keys in one launch, tables loaded.

    y_i = x_i cos_i + x_j sin_i,    j = i + h for i < h, i - h otherwise, h half of the entries that turn

The gradient is the transposed turn, by the negative angle: dx_i = dy_i cos_i + dy_j sin_j. A program holds the tables
of BT tokens, counted over all sequences, in registers and goes through its share of the heads. The result may be
written where the input was: a number and its partner are read before either is written.

B sequences, H query heads, K key heads, T tokens, D head width; tables (S, 2 h) in fp32.
"""

import triton
import triton.language as tl


@triton.jit
def turn(
    x_ptr, out_ptr, x_h, o_h, lo, hi, some, cos_0, cos_1, sin_0, sin_1, D: tl.constexpr, HALF: tl.constexpr,
    BH: tl.constexpr, BR: tl.constexpr,
):  # fmt: skip
    """Heads lo to hi. `x_ptr` and `out_ptr` are of tokens, of which there are `some`."""
    cols, rest = tl.arange(0, BH), 2 * HALF + tl.arange(0, BR)
    inside, left = some[:, None] & (cols < HALF)[None, :], some[:, None] & (rest < D)[None, :]
    for i in range(lo, hi):
        h = tl.zeros([1], tl.int64) + i
        x, out = (x_ptr + h * x_h)[:, None], (out_ptr + h * o_h)[:, None]
        x_0 = tl.load(x + cols[None, :], inside, 0.0).to(tl.float32)
        x_1 = tl.load(x + (cols + HALF)[None, :], inside, 0.0).to(tl.float32)
        tl.store(out + cols[None, :], (x_0 * cos_0 + x_1 * sin_0).to(out_ptr.dtype.element_ty), inside)
        tl.store(out + (cols + HALF)[None, :], (x_1 * cos_1 + x_0 * sin_1).to(out_ptr.dtype.element_ty), inside)
        if BR > 1:  # what does not turn
            tl.store(out + rest[None, :], tl.load(x + rest[None, :], left), left)


@triton.jit(do_not_specialize=["start"])
def rotate(
    q_ptr, k_ptr, q_out_ptr, k_out_ptr, cos_ptr, sin_ptr, q_b, q_h, q_t, k_b, k_h, k_t, qo_b, qo_h, qo_t, ko_b, ko_h,
    ko_t, cos_s, sin_s, B, H, K, T, start, share, D: tl.constexpr, HALF: tl.constexpr, BT: tl.constexpr,
    BH: tl.constexpr, BR: tl.constexpr, BACK: tl.constexpr,
):  # fmt: skip
    """`share`: heads of a program, of queries and keys together. BR: block of what is copied unturned, 1 for none."""
    token = tl.program_id(0) * BT + tl.arange(0, BT)
    some = token < B * T
    b, t = (token // T).to(tl.int64), (token % T).to(tl.int64)
    cols = tl.arange(0, BH)
    inside = some[:, None] & (cols < HALF)[None, :]
    cos = (cos_ptr + (start + t) * cos_s)[:, None] + cols[None, :]
    sin = (sin_ptr + (start + t) * sin_s)[:, None] + cols[None, :]
    cos_0, cos_1 = tl.load(cos, inside, 0.0), tl.load(cos + HALF, inside, 0.0)
    sin_0, sin_1 = tl.load(sin, inside, 0.0), tl.load(sin + HALF, inside, 0.0)
    if BACK:
        sin_0, sin_1 = sin_1, sin_0
    lo = tl.program_id(1) * share
    hi = tl.minimum(lo + share, H + K)
    turn(
        q_ptr + b * q_b + t * q_t, q_out_ptr + b * qo_b + t * qo_t, q_h, qo_h, lo, tl.minimum(hi, H), some, cos_0,
        cos_1, sin_0, sin_1, D, HALF, BH, BR,
    )  # fmt: skip
    turn(
        k_ptr + b * k_b + t * k_t, k_out_ptr + b * ko_b + t * ko_t, k_h, ko_h, tl.maximum(lo - H, 0), hi - H, some,
        cos_0, cos_1, sin_0, sin_1, D, HALF, BH, BR,
    )  # fmt: skip
