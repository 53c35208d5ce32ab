"""Backward attention kernels, split and without atomics, so equal inputs give equal bits: `d_queries`, then `d_keys`.

With dP = dO V^T the gradients of the scores are

    softmax  P (dP - delta),  delta(t) = sum over the row of P dP = dO(t) O(t)
    consmax  P dP                       (no statistic of the forward pass is read)
    others   curve'(s) dP

`d_queries` also writes delta(t), from which the gradients of all constants of a head follow as sums over its rows, and,
with a clamp, free(t), the part of delta(t) of scores below it; and the gradient of a bias, if one is asked for.
"""

import triton
import triton.language as tl

from .attention_tiles import LOG2E, at_most, curve, curve_slope, in_sight, key_range, keys_in_sight, query_range, scored


@triton.jit
def weighed(
    products, dp, bias, tilt, live, less, delta, top, factor, softcap, rate, x_intercept, y_intercept,
    KIND: tl.constexpr, POWER: tl.constexpr, CAP: tl.constexpr, BIAS: tl.constexpr, ALIBI: tl.constexpr,
    CLAMP: tl.constexpr, MASK: tl.constexpr,
):  # fmt: skip
    """(weights, gradients of the scores over ln(base), slope of the cap) of a tile; scores lose `less` first.

    Weights are those before any clamp.
    """
    s, slope = scored(products, bias, tilt, factor, softcap, rate, CAP, BIAS, ALIBI)
    s = s - less
    if KIND == "softmax":
        p = tl.exp2(s)
        if MASK:
            p = tl.where(live, p, 0.0)
        ds = p * (dp - delta)
    elif KIND == "consmax":
        p = tl.exp2(s)
        if MASK:
            p = tl.where(live, p, 0.0)
        if CLAMP:
            ds = tl.where(s <= top, p, 0.0) * dp
        else:
            ds = p * dp
    else:
        p = curve(s, x_intercept, y_intercept, KIND, POWER)
        d = curve_slope(s, p, x_intercept, y_intercept, KIND, POWER)
        if MASK:
            p = tl.where(live, p, 0.0)
            d = tl.where(live, d, 0.0)
        ds = d * dp
    return p, ds, slope


@triton.jit
def add_keys(
    dq, free, q, do, queries, d_outputs, m0, keys_desc, values_desc, bias_ptr, bias_t, d_bias_ptr, d_bias_t, lo, hi,
    rows, T, S, window, less, delta, top, slope, row_share, factor, softcap, rate, x_intercept, y_intercept,
    BN: tl.constexpr, KIND: tl.constexpr, POWER: tl.constexpr, CAUSAL: tl.constexpr, WINDOW: tl.constexpr,
    CAP: tl.constexpr, BIAS: tl.constexpr, D_BIAS: tl.constexpr, ALIBI: tl.constexpr, CLAMP: tl.constexpr,
    MASK: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    """Adds what the keys [lo, hi) say about the queries."""
    for n0 in tl.range(lo, hi, BN):
        keys = n0 + tl.arange(0, BN)
        k = keys_desc.load([n0, 0])
        v = values_desc.load([n0, 0])
        if EXACT == "ieee":
            q = queries.load([m0, 0])
            do = d_outputs.load([m0, 0])
        products = tl.dot(q, k.T, input_precision=EXACT)
        dp = tl.dot(do, v.T, input_precision=EXACT)
        bias = 0.0
        live = True
        if BIAS:
            inside = (rows[:, None] < T) & (keys[None, :] < S)
            bias = tl.load(bias_ptr + rows[:, None].to(tl.int64) * bias_t + keys[None, :], inside, 0.0).to(tl.float32)
        if MASK:
            live = in_sight(rows[:, None], keys[None, :], T, S, window, CAUSAL, WINDOW)
        tilt = 0.0
        all_less = less
        if ALIBI:
            tilt = (slope * tl.arange(0, BN))[None, :]
            all_less = less + slope * (rows + (S - T) - n0)
        _, ds, cap_slope = weighed(
            products, dp, bias, tilt, live, all_less[:, None], delta[:, None], top, factor, softcap, rate,
            x_intercept, y_intercept, KIND, POWER, CAP, BIAS, ALIBI, CLAMP, MASK,
        )  # fmt: skip
        if CLAMP:
            free += ds
        if D_BIAS:
            inside = (rows[:, None] < T) & (keys[None, :] < S)
            place = rows[:, None].to(tl.int64) * d_bias_t + keys[None, :]
            tl.store(d_bias_ptr + place, ds * row_share, inside)
        if CAP:
            ds = ds * cap_slope
        dq = tl.dot(ds.to(k.dtype), k, dq, input_precision=EXACT)
    return dq, free


@triton.jit(do_not_specialize=["T", "S", "window", "H", "G"])
def d_queries(
    q_ptr, k_ptr, v_ptr, o_ptr, do_ptr, dq_ptr, lse_ptr, delta_ptr, free_ptr, head_ptr, top_ptr, bias_ptr, slope_ptr,
    d_bias_ptr,
    q_b, q_h, q_t, k_b, k_h, k_s, v_b, v_h, v_s, o_b, o_h, o_t, do_b, do_h, do_t, dq_b, dq_h, dq_t, bias_h, bias_t,
    H, G, T, S, window, factor, softcap, rate, shift, x_intercept, y_intercept, share, d_factor,
    D: tl.constexpr, E: tl.constexpr, BD: tl.constexpr, BE: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    KIND: tl.constexpr, POWER: tl.constexpr, CAUSAL: tl.constexpr, WINDOW: tl.constexpr, CAP: tl.constexpr,
    BIAS: tl.constexpr, D_BIAS: tl.constexpr, ALIBI: tl.constexpr, HEAD: tl.constexpr, CLAMP: tl.constexpr,
    BY_KEYS: tl.constexpr, LOG_KEYS: tl.constexpr, PAIRS: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    m0 = (tl.num_programs(0) - 1 - tl.program_id(0)) * BM
    z = tl.program_id(1)
    b, h = (z // H).to(tl.int64), (z % H).to(tl.int64)
    g = h // G
    queries = tl.make_tensor_descriptor(q_ptr + b * q_b + h * q_h, [T, D], [q_t, 1], [BM, BD])
    keys_desc = tl.make_tensor_descriptor(k_ptr + b * k_b + g * k_h, [S, D], [k_s, 1], [BN, BD])
    values_desc = tl.make_tensor_descriptor(v_ptr + b * v_b + g * v_h, [S, E], [v_s, 1], [BN, BE])
    d_outputs = tl.make_tensor_descriptor(do_ptr + b * do_b + h * do_h, [T, E], [do_t, 1], [BM, BE])
    d_q_desc = tl.make_tensor_descriptor(dq_ptr + b * dq_b + h * dq_h, [T, D], [dq_t, 1], [BM, BD])
    rows = m0 + tl.arange(0, BM)
    at = z.to(tl.int64) * T + rows
    q = queries.load([m0, 0])
    do = d_outputs.load([m0, 0])
    less = tl.zeros([BM], tl.float32)
    top = 0.0
    slope = 0.0
    if CLAMP:
        top = tl.load(top_ptr + h)
    if ALIBI:
        slope = tl.load(slope_ptr + h) * rate
    if BIAS:
        bias_ptr += h * bias_h
    if D_BIAS:
        d_bias_ptr += z.to(tl.int64) * T * S
    delta = tl.zeros([BM], tl.float32)
    free = tl.zeros([BM, BN], tl.float32)  # one sum after the loop, not one a tile
    if KIND == "softmax" or KIND == "consmax":
        outputs = tl.make_tensor_descriptor(o_ptr + b * o_b + h * o_h, [T, E], [o_t, 1], [BM, BE])
        delta = tl.sum(do.to(tl.float32) * outputs.load([m0, 0]).to(tl.float32), 1)
        tl.store(delta_ptr + at, delta, rows < T)
    if KIND == "softmax":
        less = tl.load(lse_ptr + at, rows < T, float("inf"))
    elif KIND == "consmax":
        less += tl.load(head_ptr + h)
    else:
        less -= shift
    seen = keys_in_sight(rows, T, S, window, CAUSAL, WINDOW)
    row_share = share
    if BY_KEYS:
        row_share = (share / seen)[:, None]
    if LOG_KEYS:
        less += tl.log2(seen) / LOG2E
    dq = tl.zeros([BM, BD], tl.float32)
    lo, a, mid, hi = key_range(m0, T, S, window, BM, BN, CAUSAL, WINDOW)
    if WINDOW:
        dq, free = add_keys(
            dq, free, q, do, queries, d_outputs, m0, keys_desc, values_desc, bias_ptr, bias_t, d_bias_ptr, S, lo, a,
            rows, T, S, window, less, delta, top, slope, row_share, factor, softcap, rate, x_intercept, y_intercept,
            BN, KIND, POWER, CAUSAL, WINDOW, CAP, BIAS, D_BIAS, ALIBI, CLAMP, True, EXACT,
        )  # fmt: skip
    dq, free = add_keys(
        dq, free, q, do, queries, d_outputs, m0, keys_desc, values_desc, bias_ptr, bias_t, d_bias_ptr, S, a, mid, rows,
        T, S, window, less, delta, top, slope, row_share, factor, softcap, rate, x_intercept, y_intercept,
        BN, KIND, POWER, CAUSAL, WINDOW, CAP, BIAS, D_BIAS, ALIBI, CLAMP, False, EXACT,
    )  # fmt: skip
    dq, free = add_keys(
        dq, free, q, do, queries, d_outputs, m0, keys_desc, values_desc, bias_ptr, bias_t, d_bias_ptr, S, mid, hi, rows,
        T, S, window, less, delta, top, slope, row_share, factor, softcap, rate, x_intercept, y_intercept,
        BN, KIND, POWER, CAUSAL, WINDOW, CAP, BIAS, D_BIAS, ALIBI, CLAMP, True, EXACT,
    )  # fmt: skip
    if CLAMP:
        tl.store(free_ptr + at, tl.sum(free, 1), rows < T)
    d_q_desc.store([m0, 0], (dq * row_share * d_factor).to(dq_ptr.dtype.element_ty))


@triton.jit
def add_queries(
    dk, dv, k, v, keys_desc, values_desc, n0, queries, d_outputs, bias_ptr, bias_t, lse_ptr, delta_ptr, lo, hi, keys,
    T, S, window, less, top, slope, share, factor, softcap, rate, x_intercept, y_intercept,
    BM: tl.constexpr, KIND: tl.constexpr, POWER: tl.constexpr, CAUSAL: tl.constexpr, WINDOW: tl.constexpr,
    CAP: tl.constexpr, BIAS: tl.constexpr, ALIBI: tl.constexpr, CLAMP: tl.constexpr, BY_KEYS: tl.constexpr,
    LOG_KEYS: tl.constexpr, MASK: tl.constexpr, PAIRS: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    """Adds what the queries [lo, hi) say about the keys; tiles are (keys, queries)."""
    for m0 in tl.range(lo, hi, BM):
        rows = m0 + tl.arange(0, BM)
        q = queries.load([m0, 0])
        do = d_outputs.load([m0, 0])
        if EXACT == "ieee":
            k = keys_desc.load([n0, 0])
            v = values_desc.load([n0, 0])
        products = tl.dot(k, q.T, input_precision=EXACT)
        dp = tl.dot(v, do.T, input_precision=EXACT)
        delta = 0.0
        bias = 0.0
        tilt = 0.0
        live = True
        row_less = tl.zeros([BM], tl.float32) + less
        if KIND == "softmax":
            row_less = tl.load(lse_ptr + rows, rows < T, 0.0)  # a row past T: P dO = dS = 0 all the same
            delta = tl.load(delta_ptr + rows, rows < T, 0.0)[None, :]
        if BIAS:
            inside = (rows[None, :] < T) & (keys[:, None] < S)
            bias = tl.load(bias_ptr + rows[None, :].to(tl.int64) * bias_t + keys[:, None], inside, 0.0).to(tl.float32)
        if MASK:
            live = in_sight(rows[None, :], keys[:, None], T, S, window, CAUSAL, WINDOW)
        if LOG_KEYS:
            row_less += tl.log2(keys_in_sight(rows, T, S, window, CAUSAL, WINDOW)) / LOG2E
        if ALIBI:
            tilt = (slope * (keys - (S - T) - m0))[:, None]
            row_less += slope * tl.arange(0, BM)
        p, ds, cap_slope = weighed(
            products, dp, bias, tilt, live, row_less[None, :], delta, top, factor, softcap, rate, x_intercept,
            y_intercept, KIND, POWER, CAP, BIAS, ALIBI, CLAMP, MASK,
        )  # fmt: skip
        if CAP:
            ds = ds * cap_slope
        if BY_KEYS:
            row_share = (share / keys_in_sight(rows, T, S, window, CAUSAL, WINDOW))[None, :]
            p = p * row_share
            ds = ds * row_share
        p = p.to(do.dtype)
        if CLAMP:
            p = at_most(p, tl.exp2(top), PAIRS)
        dv = tl.dot(p, do, dv, input_precision=EXACT)
        dk = tl.dot(ds.to(q.dtype), q, dk, input_precision=EXACT)
    return dk, dv


@triton.jit(do_not_specialize=["T", "S", "window", "H", "G"])
def d_keys(
    q_ptr, k_ptr, v_ptr, do_ptr, dk_ptr, dv_ptr, lse_ptr, delta_ptr, head_ptr, top_ptr, bias_ptr, slope_ptr,
    q_b, q_h, q_t, k_b, k_h, k_s, v_b, v_h, v_s, do_b, do_h, do_t, dk_b, dk_h, dk_s, dv_b, dv_h, dv_s, bias_h, bias_t,
    H, G, T, S, window, factor, softcap, rate, shift, x_intercept, y_intercept, share, d_factor,
    D: tl.constexpr, E: tl.constexpr, BD: tl.constexpr, BE: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    KIND: tl.constexpr, POWER: tl.constexpr, CAUSAL: tl.constexpr, WINDOW: tl.constexpr, CAP: tl.constexpr,
    BIAS: tl.constexpr, ALIBI: tl.constexpr, HEAD: tl.constexpr, CLAMP: tl.constexpr, BY_KEYS: tl.constexpr,
    LOG_KEYS: tl.constexpr, PAIRS: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    n0 = tl.program_id(0) * BN
    z = tl.program_id(1)
    K = H // G
    b, g = (z // K).to(tl.int64), (z % K).to(tl.int64)
    keys_desc = tl.make_tensor_descriptor(k_ptr + b * k_b + g * k_h, [S, D], [k_s, 1], [BN, BD])
    values_desc = tl.make_tensor_descriptor(v_ptr + b * v_b + g * v_h, [S, E], [v_s, 1], [BN, BE])
    d_k_desc = tl.make_tensor_descriptor(dk_ptr + b * dk_b + g * dk_h, [S, D], [dk_s, 1], [BN, BD])
    d_v_desc = tl.make_tensor_descriptor(dv_ptr + b * dv_b + g * dv_h, [S, E], [dv_s, 1], [BN, BE])
    keys = n0 + tl.arange(0, BN)
    k = keys_desc.load([n0, 0])
    v = values_desc.load([n0, 0])
    dk = tl.zeros([BN, BD], tl.float32)
    dv = tl.zeros([BN, BE], tl.float32)
    lo, a, mid, hi = query_range(n0, T, S, window, BM, BN, CAUSAL, WINDOW)
    for i in tl.range(0, G, num_stages=1):
        h = g * G + i
        queries = tl.make_tensor_descriptor(q_ptr + b * q_b + h * q_h, [T, D], [q_t, 1], [BM, BD])
        d_outputs = tl.make_tensor_descriptor(do_ptr + b * do_b + h * do_h, [T, E], [do_t, 1], [BM, BE])
        less = -shift
        top = 0.0
        slope = 0.0
        if KIND == "consmax":
            less = tl.load(head_ptr + h)
        if CLAMP:
            top = tl.load(top_ptr + h)
        if ALIBI:
            slope = tl.load(slope_ptr + h) * rate
        biases = bias_ptr
        if BIAS:
            biases = bias_ptr + h * bias_h
        of_head = (b * H + h) * T
        if CAUSAL:
            dk, dv = add_queries(
                dk, dv, k, v, keys_desc, values_desc, n0, queries, d_outputs, biases, bias_t, lse_ptr + of_head,
                delta_ptr + of_head, lo, a, keys, T, S, window, less, top, slope, share, factor, softcap, rate,
                x_intercept, y_intercept, BM, KIND, POWER, CAUSAL, WINDOW, CAP, BIAS, ALIBI, CLAMP, BY_KEYS, LOG_KEYS,
                True, PAIRS, EXACT,
            )  # fmt: skip
        dk, dv = add_queries(
            dk, dv, k, v, keys_desc, values_desc, n0, queries, d_outputs, biases, bias_t, lse_ptr + of_head,
            delta_ptr + of_head, a, mid, keys, T, S, window, less, top, slope, share, factor, softcap, rate,
            x_intercept, y_intercept, BM, KIND, POWER, CAUSAL, WINDOW, CAP, BIAS, ALIBI, CLAMP, BY_KEYS, LOG_KEYS,
            False, PAIRS, EXACT,
        )  # fmt: skip
        if WINDOW:
            dk, dv = add_queries(
                dk, dv, k, v, keys_desc, values_desc, n0, queries, d_outputs, biases, bias_t, lse_ptr + of_head,
                delta_ptr + of_head, mid, hi, keys, T, S, window, less, top, slope, share, factor, softcap, rate,
                x_intercept, y_intercept, BM, KIND, POWER, CAUSAL, WINDOW, CAP, BIAS, ALIBI, CLAMP, BY_KEYS, LOG_KEYS,
                True, PAIRS, EXACT,
            )  # fmt: skip
    if not BY_KEYS:
        dk = dk * share
        dv = dv * share
    d_k_desc.store([n0, 0], (dk * d_factor).to(dk_ptr.dtype.element_ty))
    d_v_desc.store([n0, 0], dv.to(dv_ptr.dtype.element_ty))
