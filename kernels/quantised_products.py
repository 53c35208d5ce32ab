"""Products of integers: int8 by int8, and int8 or wider numbers by ternary weights of two bits. Sums are exact int32.

Tiles have outputs in rows and tokens in columns where the weights come through registers or tokens are few, so that the
tensor cores of Hopper get 64 rows whatever the number of tokens. Byte j of a packed row holds the weights of the
inputs j, J + j, 2 J + j and 3 J + j, J = ceil(K / 4): plane i is bits 2 i and 2 i + 1, 01 for 1, 11 for -1. Nothing is
shifted. Masked, and its upper bit inverted, plane i of a byte is (w + 2) 4^i as int8 (the last plane w 64), four bytes
an instruction; sums of a plane are multiples of 4^i, and what the 2 adds is a product of the tokens with a constant.

Legend: M tokens, N outputs, K inputs, J bytes of a packed row.
"""

import triton
import triton.language as tl

from .quantised_numbers import nearest, product, quotient, saturated


@triton.jit
def shifted_even(value, shift):
    """value / 2^shift of int64 to the nearest integer, ties to even; beyond 62 places nothing is left of 48 bits."""
    shift = tl.minimum(shift, 62).to(tl.int64)
    kept = value >> shift
    one = tl.full([1, 1], 1, tl.int64)
    rest, half = value - (kept << shift), (one << shift) >> 1
    up = (rest > half) | ((rest == half) & (half > 0) & ((kept & 1) == 1))
    return kept + up.to(tl.int64)


@triton.jit
def finished(
    acc, rows, columns, M, N, token_ptr, token_s, scale_ptr, scale_s, bias_ptr, shift_ptr, step, MODE: tl.constexpr
):  # fmt: skip
    """A tile (tokens, outputs) of sums as `out` wants it, in a type that its cast to the output does not round."""
    if MODE == "fixed":
        if bias_ptr is not None:
            acc += tl.load(bias_ptr + columns, columns < N, 0)[None, :].to(tl.int32)
        factor = tl.load(scale_ptr + columns * scale_s, columns < N, 0).to(tl.int64)[None, :]
        shift = tl.load(shift_ptr + columns * scale_s, columns < N, 0)[None, :]
        acc = saturated(shifted_even(acc.to(tl.int64) * factor, shift), 8)
    elif MODE != "sums":
        acc = acc.to(tl.float32)
        if token_ptr is not None:
            acc = product(acc, tl.load(token_ptr + rows * token_s, rows < M, 0.0).to(tl.float32)[:, None])
        if scale_ptr is not None:
            acc = product(acc, tl.load(scale_ptr + columns * scale_s, columns < N, 0.0).to(tl.float32)[None, :])
        if bias_ptr is not None:
            acc += tl.load(bias_ptr + columns, columns < N, 0.0).to(tl.float32)[None, :]
        if MODE == "steps":
            acc = nearest(saturated(quotient(acc, tl.full([1, 1], 1.0, tl.float32) * step), 8))
    return acc


@triton.jit
def stored(
    acc, rows, columns, out_ptr, part, M, N, token_ptr, token_s, scale_ptr, scale_s, bias_ptr, shift_ptr, step,
    MODE: tl.constexpr,
):  # fmt: skip
    """Stores a tile of part `part` of the (parts, M, N) output."""
    acc = finished(acc, rows, columns, M, N, token_ptr, token_s, scale_ptr, scale_s, bias_ptr, shift_ptr, step, MODE)
    places = (part * M + rows).to(tl.int64)[:, None] * N + columns[None, :]
    live = (rows < M)[:, None] & (columns < N)[None, :]
    tl.store(out_ptr + places, acc.to(out_ptr.dtype.element_ty), live)


@triton.jit
def tile_of(M, N, BM: tl.constexpr, BN: tl.constexpr, GROUP: tl.constexpr):
    """(first token, first output) of a program; neighbours share GROUP tiles of tokens, so that caches hold both."""
    i = tl.program_id(0)
    tall, wide = tl.cdiv(M, BM), tl.cdiv(N, BN)
    group = i // (GROUP * wide)
    size = tl.minimum(tall - group * GROUP, GROUP)
    within = i % (GROUP * wide)
    return (group * GROUP + within % size) * BM, within // size * BN


@triton.jit(do_not_specialize=["M", "tiles", "step"])
def int8_product(
    x_ptr, w_ptr, out_ptr, token_ptr, scale_ptr, bias_ptr, shift_ptr, x_s, w_s, M, N, K, tiles, token_s, scale_s, step,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, TURNED: tl.constexpr, MODE: tl.constexpr,
):  # fmt: skip
    """Tiles [i tiles, (i + 1) tiles) of BK inputs -> part i of the output. TURNED: outputs in rows."""
    m0, n0 = tile_of(M, N, BM, BN, 8)
    part = tl.program_id(1)
    tokens = tl.make_tensor_descriptor(x_ptr, [M, K], [x_s, 1], [BM, BK])
    weights = tl.make_tensor_descriptor(w_ptr, [N, K], [w_s, 1], [BN, BK])
    acc = tl.zeros([BN, BM] if TURNED else [BM, BN], tl.int32)
    for k0 in tl.range(part * tiles * BK, tl.minimum(K, (part + 1) * tiles * BK), BK):
        x, w = tokens.load([m0, k0]), weights.load([n0, k0])
        if TURNED:
            acc = tl.dot(w, x.T, acc, out_dtype=tl.int32)
        else:
            acc = tl.dot(x, w.T, acc, out_dtype=tl.int32)
    if TURNED:
        acc = acc.T
    rows, columns = m0 + tl.arange(0, BM), n0 + tl.arange(0, BN)
    stored(
        acc, rows, columns, out_ptr, part, M, N, token_ptr, token_s, scale_ptr, scale_s, bias_ptr, shift_ptr, step, MODE
    )


@triton.jit
def plane(packed, I: tl.constexpr):
    """(w + 2) 4^I of plane I as int8, of the last w 64. Inverted for all planes at once, that is before it is masked,
    bytes would be handled one by one."""
    if I == 3:
        codes = packed & -64
    else:
        codes = (packed & (3 << (2 * I))) ^ (2 << (2 * I))
    return codes


@triton.jit(do_not_specialize=["M", "tiles", "step"])
def ternary_decode(
    x_ptr, w_ptr, out_ptr, token_ptr, scale_ptr, bias_ptr, shift_ptr, x_s, x_p, w_s, M, N, J, tiles, token_s, scale_s,
    step, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, MODE: tl.constexpr,
):  # fmt: skip
    """Tiles [i tiles, (i + 1) tiles) of BK bytes of the packed rows -> part i. Packed weights are read once, planes
    summed apart; x_p: from a plane of a token to the next."""
    m0, n0 = tile_of(M, N, BM, BN, 8)
    part = tl.program_id(1)
    x0 = tl.make_tensor_descriptor(x_ptr, [M, J], [x_s, 1], [BM, BK])
    x1 = tl.make_tensor_descriptor(x_ptr + x_p, [M, J], [x_s, 1], [BM, BK])
    x2 = tl.make_tensor_descriptor(x_ptr + 2 * x_p, [M, J], [x_s, 1], [BM, BK])
    x3 = tl.make_tensor_descriptor(x_ptr + 3 * x_p, [M, J], [x_s, 1], [BM, BK])
    weights = tl.make_tensor_descriptor(w_ptr, [N, J], [w_s, 1], [BN, BK])
    sum0, sum1 = tl.zeros([BN, BM], tl.int32), tl.zeros([BN, BM], tl.int32)
    sum2, sum3 = tl.zeros([BN, BM], tl.int32), tl.zeros([BN, BM], tl.int32)
    added = tl.zeros([BN, BM], tl.int32)
    two = tl.full([BN, BK], 2, tl.int8)
    for j0 in tl.range(part * tiles * BK, tl.minimum(J, (part + 1) * tiles * BK), BK):
        packed = weights.load([n0, j0]).to(tl.int8, bitcast=True)
        x = x0.load([m0, j0]).T
        sum0 = tl.dot(plane(packed, 0), x, sum0, out_dtype=tl.int32)
        added = tl.dot(two, x, added, out_dtype=tl.int32)
        x = x1.load([m0, j0]).T
        sum1 = tl.dot(plane(packed, 1), x, sum1, out_dtype=tl.int32)
        added = tl.dot(two, x, added, out_dtype=tl.int32)
        x = x2.load([m0, j0]).T
        sum2 = tl.dot(plane(packed, 2), x, sum2, out_dtype=tl.int32)
        added = tl.dot(two, x, added, out_dtype=tl.int32)
        x = x3.load([m0, j0]).T
        sum3 = tl.dot(plane(packed, 3), x, sum3, out_dtype=tl.int32)
    acc = (sum0 + (sum1 >> 2) + (sum2 >> 4) + (sum3 >> 6) - added).T
    rows, columns = m0 + tl.arange(0, BM), n0 + tl.arange(0, BN)
    stored(
        acc, rows, columns, out_ptr, part, M, N, token_ptr, token_s, scale_ptr, scale_s, bias_ptr, shift_ptr, step, MODE
    )


@triton.jit
def add_plane(acc, x_ptr, x_s, x_p, weights, m0, n0, M, J, I: tl.constexpr, BM: tl.constexpr, BK: tl.constexpr):
    tokens = tl.make_tensor_descriptor(x_ptr + I * x_p, [M, J], [x_s, 1], [BM, BK])
    for j0 in tl.range(0, J, BK):
        packed = weights.load([n0, j0]).to(tl.int8, bitcast=True)
        acc = tl.dot(plane(packed, I), tokens.load([m0, j0]).T, acc, out_dtype=tl.int32)
    return acc


@triton.jit(do_not_specialize=["M", "step"])
def ternary_product(
    x_ptr, w_ptr, out_ptr, added_ptr, token_ptr, scale_ptr, bias_ptr, shift_ptr, x_s, x_p, w_s, M, N, J, token_s,
    scale_s, step, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, MODE: tl.constexpr,
):  # fmt: skip
    """For many tokens: one plane after another into one sum, the last one first, so that each needs one shift of the
    sum. Packed weights are read four times, from caches. `added`: what the 2 of each plane adds, of every token."""
    m0, n0 = tile_of(M, N, BM, BN, 8)
    weights = tl.make_tensor_descriptor(w_ptr, [N, J], [w_s, 1], [BN, BK])
    acc = tl.zeros([BN, BM], tl.int32)
    acc = add_plane(acc, x_ptr, x_s, x_p, weights, m0, n0, M, J, 3, BM, BK) >> 2
    acc = add_plane(acc, x_ptr, x_s, x_p, weights, m0, n0, M, J, 2, BM, BK) >> 2
    acc = add_plane(acc, x_ptr, x_s, x_p, weights, m0, n0, M, J, 1, BM, BK) >> 2
    acc = add_plane(acc, x_ptr, x_s, x_p, weights, m0, n0, M, J, 0, BM, BK)
    rows, columns = m0 + tl.arange(0, BM), n0 + tl.arange(0, BN)
    acc = acc.T - tl.load(added_ptr + rows, rows < M, 0)[:, None]
    stored(
        acc, rows, columns, out_ptr, 0, M, N, token_ptr, token_s, scale_ptr, scale_s, bias_ptr, shift_ptr, step, MODE
    )


@triton.jit
def twice_sums(x_ptr, added_ptr, x_s, x_p, J, BLOCK: tl.constexpr):
    """Twice the sum of the first three planes of a token, one a program."""
    row = tl.program_id(0).to(tl.int64)
    total = tl.zeros([BLOCK], tl.int32)
    for j0 in tl.range(0, J, BLOCK):
        places = j0 + tl.arange(0, BLOCK)
        for i in tl.static_range(3):
            total += tl.load(x_ptr + row * x_s + i * x_p + places, places < J, 0).to(tl.int32)
    tl.store(added_ptr + row, 2 * tl.sum(total, 0))


@triton.jit(do_not_specialize=["M", "step"])
def ternary_wide(
    x_ptr, w_ptr, out_ptr, token_ptr, scale_ptr, bias_ptr, shift_ptr, x_s, x_p, w_s, M, N, J, token_s, scale_s, step,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, MODE: tl.constexpr,
):  # fmt: skip
    """Tokens in floating point: weights become numbers one by one, sums are in fp32."""
    m0, n0 = tile_of(M, N, BM, BN, 8)
    weights = tl.make_tensor_descriptor(w_ptr, [N, J], [w_s, 1], [BN, BK])
    acc = tl.zeros([BN, BM], tl.float32)
    for i in tl.static_range(4):
        tokens = tl.make_tensor_descriptor(x_ptr + i * x_p, [M, J], [x_s, 1], [BM, BK])
        for j0 in tl.range(0, J, BK):
            packed = weights.load([n0, j0]).to(tl.int8, bitcast=True)
            x = tokens.load([m0, j0])
            w = ((packed << (6 - 2 * i)) >> 6).to(tl.float32).to(x.dtype)
            acc = tl.dot(w, x.T, acc, input_precision="ieee")
    rows, columns = m0 + tl.arange(0, BM), n0 + tl.arange(0, BN)
    stored(
        acc.T, rows, columns, out_ptr, 0, M, N, token_ptr, token_s, scale_ptr, scale_s, bias_ptr, shift_ptr, step, MODE
    )


@triton.jit(do_not_specialize=["M", "parts", "step"])
def combine(
    part_ptr, out_ptr, token_ptr, scale_ptr, bias_ptr, shift_ptr, M, N, parts, token_s, scale_s, step,
    BLOCK: tl.constexpr, MODE: tl.constexpr,
):  # fmt: skip
    """Sum of int32 parts (parts, M, N), BLOCK outputs of a token a program."""
    rows = tl.program_id(0) + tl.arange(0, 1)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    acc = tl.zeros([1, BLOCK], tl.int32)
    for i in tl.range(parts):
        places = (i * M + rows).to(tl.int64)[:, None] * N + columns[None, :]
        acc += tl.load(part_ptr + places, (columns < N)[None, :], 0)
    stored(
        acc, rows, columns, out_ptr, 0, M, N, token_ptr, token_s, scale_ptr, scale_s, bias_ptr, shift_ptr, step, MODE
    )
