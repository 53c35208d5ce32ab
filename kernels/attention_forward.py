"""Forward attention kernel: softmax keeps a running maximum and sum; the other kinds keep nothing but the output.

One program makes BM rows of one head. Keys and values come in tiles of BN through tensor descriptors, which clip at the
ends of any T and any width. Tiles without masked keys run in a loop of their own that holds no select. Products of
4-byte types use no tensor cores and take both operands from registers: what a tile is multiplied with is loaded again
for every one (from shared memory, more or less), because held throughout it would be spilled.
"""

import triton
import triton.language as tl

from .attention_tiles import LOG2E, NOWHERE, at_most, curve, in_sight, key_range, keys_in_sight, scored


@triton.jit
def add_tiles(
    acc, m, l, q, queries, m0, keys_desc, values_desc, bias_ptr, bias_s, lo, hi, rows, T, S, window, less,
    highest_weight, slope, factor, softcap, rate, x_intercept, y_intercept,
    BN: tl.constexpr, KIND: tl.constexpr, POWER: tl.constexpr, CAUSAL: tl.constexpr, WINDOW: tl.constexpr,
    CAP: tl.constexpr, BIAS: tl.constexpr, ALIBI: tl.constexpr, CLAMP: tl.constexpr, MASK: tl.constexpr,
    PAIRS: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    """Adds the keys [lo, hi) to the output of the rows."""
    for n0 in tl.range(lo, hi, BN):
        keys = n0 + tl.arange(0, BN)
        k = keys_desc.load([n0, 0])
        if EXACT == "ieee":
            q = queries.load([m0, 0])
        products = tl.dot(q, k.T, input_precision=EXACT)
        bias = 0.0
        if BIAS:
            inside = (rows[:, None] < T) & (keys[None, :] < S)
            bias = tl.load(bias_ptr + rows[:, None].to(tl.int64) * bias_s + keys[None, :], inside, 0.0).to(tl.float32)
        tilt = 0.0
        row_less = less
        if ALIBI:
            tilt = (slope * tl.arange(0, BN))[None, :]
            row_less += slope * (rows + (S - T) - n0)
        s, _ = scored(products, bias, tilt, factor, softcap, rate, CAP, BIAS, ALIBI)
        if KIND == "softmax":
            if MASK:
                live = in_sight(rows[:, None], keys[None, :], T, S, window, CAUSAL, WINDOW)
                s = tl.where(live, s, float("-inf"))
            highest = tl.max(s, 1)
            if ALIBI:
                highest -= row_less
            higher = tl.maximum(m, highest)
            from_scores = higher
            if ALIBI:
                from_scores += row_less
            p = tl.exp2(s - from_scores[:, None])
            shrink = tl.exp2(m - higher)
            l = l * shrink + tl.sum(p, 1)
            acc = acc * shrink[:, None]
            m = higher
        else:
            s = s - row_less[:, None]
            if KIND == "consmax":
                p = tl.exp2(s)
            else:
                p = curve(s, x_intercept, y_intercept, KIND, POWER)
            if MASK:
                p = tl.where(in_sight(rows[:, None], keys[None, :], T, S, window, CAUSAL, WINDOW), p, 0.0)
        v = values_desc.load([n0, 0])
        p = p.to(v.dtype)
        if CLAMP:
            p = at_most(p, highest_weight, PAIRS)
        acc = tl.dot(p, v, acc, input_precision=EXACT)
    return acc, m, l


@triton.jit(do_not_specialize=["T", "S", "window", "H", "G"])
def forward(
    q_ptr, k_ptr, v_ptr, o_ptr, lse_ptr, head_ptr, top_ptr, bias_ptr, slope_ptr,
    q_b, q_h, q_t, k_b, k_h, k_s, v_b, v_h, v_s, o_b, o_h, o_t, bias_h, bias_t,
    H, G, T, S, window, factor, softcap, rate, shift, x_intercept, y_intercept, share,
    D: tl.constexpr, E: tl.constexpr, BD: tl.constexpr, BE: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    KIND: tl.constexpr, POWER: tl.constexpr, CAUSAL: tl.constexpr, WINDOW: tl.constexpr, CAP: tl.constexpr,
    BIAS: tl.constexpr, ALIBI: tl.constexpr, HEAD: tl.constexpr, CLAMP: tl.constexpr, BY_KEYS: tl.constexpr,
    LOG_KEYS: tl.constexpr, PAIRS: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    m0 = (tl.num_programs(0) - 1 - tl.program_id(0)) * BM  # the longest rows first
    z = tl.program_id(1)
    b, h = (z // H).to(tl.int64), (z % H).to(tl.int64)
    g = h // G
    queries = tl.make_tensor_descriptor(q_ptr + b * q_b + h * q_h, [T, D], [q_t, 1], [BM, BD])
    keys_desc = tl.make_tensor_descriptor(k_ptr + b * k_b + g * k_h, [S, D], [k_s, 1], [BN, BD])
    values_desc = tl.make_tensor_descriptor(v_ptr + b * v_b + g * v_h, [S, E], [v_s, 1], [BN, BE])
    outputs = tl.make_tensor_descriptor(o_ptr + b * o_b + h * o_h, [T, E], [o_t, 1], [BM, BE])
    rows = m0 + tl.arange(0, BM)
    less = tl.zeros([BM], tl.float32)
    if KIND == "consmax":
        less += tl.load(head_ptr + h)
    elif KIND != "softmax":
        less -= shift
    highest_weight = 0.0
    if CLAMP:
        highest_weight = tl.exp2(tl.load(top_ptr + h))
    slope = 0.0
    if ALIBI:
        slope = tl.load(slope_ptr + h) * rate
    if BIAS:
        bias_ptr += h * bias_h
    seen = keys_in_sight(rows, T, S, window, CAUSAL, WINDOW)
    if LOG_KEYS:
        less += tl.log2(seen) / LOG2E
    m = tl.full([BM], NOWHERE, tl.float32)
    l = tl.zeros([BM], tl.float32)
    if HEAD and KIND == "softmax":  # the extra term of the sum: a key with this score and the value 0
        m = m * 0.0 + tl.load(head_ptr + h)
        l += 1.0
    acc = tl.zeros([BM, BE], tl.float32)
    q = queries.load([m0, 0])
    lo, a, mid, hi = key_range(m0, T, S, window, BM, BN, CAUSAL, WINDOW)
    if WINDOW:
        acc, m, l = add_tiles(
            acc, m, l, q, queries, m0, keys_desc, values_desc, bias_ptr, bias_t, lo, a, rows, T, S, window, less,
            highest_weight, slope, factor, softcap, rate, x_intercept, y_intercept, BN, KIND, POWER, CAUSAL, WINDOW,
            CAP, BIAS, ALIBI, CLAMP, True, PAIRS, EXACT,
        )  # fmt: skip
    acc, m, l = add_tiles(
        acc, m, l, q, queries, m0, keys_desc, values_desc, bias_ptr, bias_t, a, mid, rows, T, S, window, less,
        highest_weight, slope, factor, softcap, rate, x_intercept, y_intercept, BN, KIND, POWER, CAUSAL, WINDOW,
        CAP, BIAS, ALIBI, CLAMP, False, PAIRS, EXACT,
    )  # fmt: skip
    acc, m, l = add_tiles(
        acc, m, l, q, queries, m0, keys_desc, values_desc, bias_ptr, bias_t, mid, hi, rows, T, S, window, less,
        highest_weight, slope, factor, softcap, rate, x_intercept, y_intercept, BN, KIND, POWER, CAUSAL, WINDOW,
        CAP, BIAS, ALIBI, CLAMP, True, PAIRS, EXACT,
    )  # fmt: skip
    if KIND == "softmax":
        some = l > 0.0
        # A row without keys: weights exp2(score - inf) = 0 in the backward pass.
        l = tl.where(some, l, 1.0)
        tl.store(lse_ptr + z.to(tl.int64) * T + rows, tl.where(some, m + tl.log2(l), float("inf")), rows < T)
        acc = acc / l[:, None]
    elif KIND != "consmax":
        if BY_KEYS:
            acc = acc * (share / seen)[:, None]
        else:
            acc = acc * share
    outputs.store([m0, 0], acc.to(o_ptr.dtype.element_ty))
