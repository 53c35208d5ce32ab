"""Decode attention: few queries over a long cache, split over its keys.

One program makes the part of one split for all query heads of a key head, packed into the rows of one tile (row r is
head r // T, query r % T). ConSmax and the elementwise kinds have no row statistic, so `combine` is a plain sum of the
splits in fixed order; softmax parts carry (maximum, sum) and are rescaled. Equal inputs give equal bits.
"""

import triton
import triton.language as tl

from .attention_tiles import LOG2E, NOWHERE, at_most, curve, in_sight, keys_in_sight, round_down, scored


@triton.jit(do_not_specialize=["T", "S", "window", "H", "G", "split"])
def decode(
    q_ptr, k_ptr, v_ptr, part_ptr, stat_ptr, head_ptr, top_ptr, bias_ptr, slope_ptr, lengths_ptr,
    q_b, q_h, q_t, k_b, k_h, k_s, v_b, v_h, v_s, bias_h, bias_t,
    H, G, T, S, window, split, factor, softcap, rate, shift, x_intercept, y_intercept, share,
    D: tl.constexpr, E: tl.constexpr, BD: tl.constexpr, BE: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    KIND: tl.constexpr, POWER: tl.constexpr, CAUSAL: tl.constexpr, WINDOW: tl.constexpr, CAP: tl.constexpr,
    BIAS: tl.constexpr, ALIBI: tl.constexpr, HEAD: tl.constexpr, CLAMP: tl.constexpr, BY_KEYS: tl.constexpr,
    LOG_KEYS: tl.constexpr, LENGTHS: tl.constexpr, PAIRS: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    """Keys [i split, (i + 1) split) -> unscaled part (i, B, H, T, E); `split` is a multiple of BN.

    With lengths, sequence b has its own S; the descriptors read zeros from there on, whatever the cache holds.
    """
    i = tl.program_id(1)
    z = tl.program_id(0)
    K = H // G
    b, g = (z // K).to(tl.int64), (z % K).to(tl.int64)
    packed = tl.program_id(2) * BM + tl.arange(0, BM)
    real = packed < G * T
    h = g * G + packed // T
    t = packed % T
    if LENGTHS:
        S = tl.minimum(S, tl.load(lengths_ptr + b))
    columns = tl.arange(0, BD)
    places = b * q_b + h * q_h + t * q_t
    q = tl.load(q_ptr + places[:, None] + columns[None, :], real[:, None] & (columns < D)[None, :], 0.0)
    keys_desc = tl.make_tensor_descriptor(k_ptr + b * k_b + g * k_h, [S, D], [k_s, 1], [BN, BD])
    values_desc = tl.make_tensor_descriptor(v_ptr + b * v_b + g * v_h, [S, E], [v_s, 1], [BN, BE])
    head = tl.zeros([BM], tl.float32)
    highest_weight = 0.0
    if HEAD:
        head = tl.load(head_ptr + h, real, 0.0)
    if CLAMP:
        highest_weight = tl.exp2(tl.load(top_ptr + h, real, 0.0))[:, None]
    slope = 0.0
    if ALIBI:
        slope = (tl.load(slope_ptr + h, real, 0.0) * rate)[:, None]
    seen = keys_in_sight(t, T, S, window, CAUSAL, WINDOW)
    if LOG_KEYS:
        shift = (shift - tl.log2(seen) / LOG2E)[:, None]
    m = tl.full([BM], NOWHERE, tl.float32)
    l = tl.zeros([BM], tl.float32)
    acc = tl.zeros([BM, BE], tl.float32)
    lo = i * split
    if WINDOW:
        lo = tl.maximum(lo, round_down(S - T + 1 - window, BN))
    for n0 in tl.range(lo, tl.minimum(S, (i + 1) * split), BN):
        keys = n0 + tl.arange(0, BN)
        k = keys_desc.load([n0, 0])
        products = tl.dot(q, k.T, input_precision=EXACT)
        live = in_sight(t[:, None], keys[None, :], T, S, window, CAUSAL, WINDOW)
        bias = 0.0
        if BIAS:
            where = h[:, None] * bias_h + t[:, None].to(tl.int64) * bias_t + keys[None, :]
            bias = tl.load(bias_ptr + where, real[:, None] & live, 0.0).to(tl.float32)
        tilt = 0.0
        if ALIBI:
            tilt = slope * (keys[None, :] - (t + (S - T))[:, None])
        s, _ = scored(products, bias, tilt, factor, softcap, rate, CAP, BIAS, ALIBI)
        if KIND == "softmax":
            s = tl.where(live, s, float("-inf"))
            higher = tl.maximum(m, tl.max(s, 1))
            p = tl.exp2(s - higher[:, None])
            shrink = tl.exp2(m - higher)
            l = l * shrink + tl.sum(p, 1)
            acc = acc * shrink[:, None]
            m = higher
        else:
            if KIND == "consmax":
                s = s - head[:, None]
                p = tl.exp2(s)
            else:
                p = curve(s + shift, x_intercept, y_intercept, KIND, POWER)
            p = tl.where(live, p, 0.0)
        v = values_desc.load([n0, 0])
        p = p.to(v.dtype)
        if CLAMP:
            p = at_most(p, highest_weight, PAIRS)
        acc = tl.dot(p, v, acc, input_precision=EXACT)
    if KIND != "softmax" and KIND != "consmax":
        if BY_KEYS:
            acc = acc * (share / seen)[:, None]
        else:
            acc = acc * share
    row = (i.to(tl.int64) * tl.num_programs(0) // K + b) * H * T + h * T + t
    if KIND == "softmax":
        tl.store(stat_ptr + row * 2, m, real)
        tl.store(stat_ptr + row * 2 + 1, l, real)
    wide = tl.arange(0, BE)
    tl.store(part_ptr + row[:, None] * E + wide[None, :], acc, real[:, None] & (wide < E)[None, :])


@triton.jit(do_not_specialize=["H", "T", "rows", "splits"])
def combine(
    part_ptr, stat_ptr, head_ptr, o_ptr, H, T, rows, splits,
    E: tl.constexpr, BE: tl.constexpr, KIND: tl.constexpr, HEAD: tl.constexpr,
):  # fmt: skip
    """One program a row (B, H, T): the sum of its parts, first split first."""
    row = tl.program_id(0).to(tl.int64)
    wide = tl.arange(0, BE)
    acc = tl.zeros([BE], tl.float32)
    if KIND == "softmax":
        m = NOWHERE
        l = 0.0
        if HEAD:
            m = tl.load(head_ptr + row // T % H)
            l = 1.0
        for i in range(splits):
            at = i * rows + row
            m_part = tl.load(stat_ptr + at * 2)
            higher = tl.maximum(m, m_part)
            shrink, shrink_part = tl.exp2(m - higher), tl.exp2(m_part - higher)
            acc = acc * shrink + tl.load(part_ptr + at * E + wide, wide < E, 0.0) * shrink_part
            l = l * shrink + tl.load(stat_ptr + at * 2 + 1) * shrink_part
            m = higher
        acc = acc / tl.where(l > 0.0, l, 1.0)
    else:
        for i in range(splits):
            acc += tl.load(part_ptr + (i * rows + row) * E + wide, wide < E, 0.0)
    tl.store(o_ptr + row * E + wide, acc.to(o_ptr.dtype.element_ty), wide < E)
