"""Kernels of cross entropy, one program a row of logits: statistics and loss, gradient, or both at once.

The statistics are one pass of a running maximum and sum, kept apart by every thread, so that the loop has one
exponential an element, no shuffle and no barrier. Whole tiles are loaded 16 bytes a thread without a mask, from the
first such address of a row; what is left at both ends of a row comes in masked tiles. A row leaves 4 numbers, of which
its gradient is

    d (k exp2(x_v log2(e) - shift) - share - [v = target] hit)

whatever the loss is made of. Legend: N rows, V vocabulary.
"""

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)
NOWHERE = tl.constexpr(-1e38)  # below every logit; finite, so that a difference of two is
EPS = tl.constexpr(2.0**-23)


@triton.jit
def element(REPEAT: tl.constexpr, LANES: tl.constexpr, VECTOR: tl.constexpr):
    """Place in a tile: VECTOR neighbours in a thread, REPEAT times."""
    repeat = tl.arange(0, REPEAT)[:, None, None] * (LANES * VECTOR)
    return repeat + tl.arange(0, LANES)[None, :, None] * VECTOR + tl.arange(0, VECTOR)[None, None, :]


@triton.jit
def parts(row, stride, V, TILE: tl.constexpr, VECTOR: tl.constexpr, ALIGNED: tl.constexpr):
    """(start of a row, elements before its first aligned one, elements in whole tiles)."""
    start = row * stride
    lead = 0
    if not ALIGNED:
        lead = ((VECTOR - start % VECTOR) % VECTOR).to(tl.int32)
    return start, lead, tl.maximum(V - lead, 0) // TILE * TILE


@triton.jit
def edge(n0, lead, inner, V, REPEAT: tl.constexpr, LANES: tl.constexpr, VECTOR: tl.constexpr, ALIGNED: tl.constexpr):
    """(columns, mask) of the elements from n0 on that no whole tile has: those of both ends, one after the other."""
    n = n0 + element(REPEAT, LANES, VECTOR)
    if ALIGNED:
        return n + inner, n + inner < V
    return tl.where(n < lead, n, n + inner), n < V - inner


@triton.jit
def add_tile(x, m, l, total, SMOOTH: tl.constexpr):
    """Adds a tile to every thread's maximum (times log2(e)), sum of exponentials, and sum."""
    higher = tl.maximum(m, tl.max(tl.max(x, 2), 0) * LOG2E)
    p = tl.exp2(x * LOG2E - higher[None, :, None])
    l = l * tl.exp2(m - higher) + tl.sum(tl.sum(p, 2), 0)
    if SMOOTH:
        total += tl.sum(tl.sum(x, 2), 0)
    return higher, l, total


@triton.jit
def below(x, shift, l):
    """log(Z) - x, without the rounding of log(Z)."""
    return (tl.log2(l) + (shift - x * LOG2E)) * LN2


@triton.jit
def at_target(x_t, mean, shift, l, smoothing, gamma, z, SMOOTH: tl.constexpr, FOCAL: tl.constexpr):
    """(loss of a row, hit, share times V, weight of the probabilities in its gradient)."""
    nll = below(x_t, shift, l)
    loss, hit, share = nll, 1.0, 0.0
    if SMOOTH:
        loss = (1.0 - smoothing) * nll + smoothing * below(mean, shift, l)
        hit, share = 1.0 - smoothing, smoothing
    if FOCAL:
        # 1 - p: the series where the difference would cancel
        series = nll * (1.0 - nll / 2 * (1.0 - nll / 3 * (1.0 - nll / 4 * (1.0 - nll / 5))))
        p = tl.exp2(-nll * LOG2E)
        doubt = tl.where(nll < 0.0625, series, 1.0 - p)
        slope = tl.where(doubt >= EPS, gamma * p, 0.0)  # a sure token has none
        doubt = tl.maximum(doubt, EPS)
        factor = tl.exp2(gamma * tl.log2(doubt))
        hit = factor * (hit + loss * slope / doubt)
        share = factor * share
        loss = factor * loss
    log_z = (shift + tl.log2(l)) * LN2
    return loss + z * log_z * log_z, hit, share, hit + share + 2.0 * z * log_z


@triton.jit
def measure(
    x_ptr, target_ptr, row, stride, V, ignore, smoothing, gamma, z, REPEAT: tl.constexpr, LANES: tl.constexpr,
    VECTOR: tl.constexpr, ALIGNED: tl.constexpr, SMOOTH: tl.constexpr, FOCAL: tl.constexpr,
):  # fmt: skip
    """(loss, shift, k, hit, share) of a row; NaN if its target is no column, 0 and nothing read if it is ignored."""
    target = tl.load(target_ptr + row)
    loss, shift, k, hit, share = 0.0, 0.0, 0.0, 0.0, 0.0
    if target != ignore:
        TILE: tl.constexpr = REPEAT * LANES * VECTOR
        start, lead, inner = parts(row, stride, V, TILE, VECTOR, ALIGNED)
        first = tl.multiple_of(start + lead, VECTOR)
        known = (target >= 0) & (target < V)
        x_t = tl.load(x_ptr + start + target, known, float("nan")).to(tl.float32)
        m = tl.full([LANES], NOWHERE, tl.float32)
        l = tl.zeros([LANES], tl.float32)
        total = tl.zeros([LANES], tl.float32)
        for n0 in tl.range(0, inner, TILE):
            x = tl.load(x_ptr + first + n0 + element(REPEAT, LANES, VECTOR)).to(tl.float32)
            m, l, total = add_tile(x, m, l, total, SMOOTH)
        for n0 in tl.range(0, V - inner, LANES * VECTOR):
            columns, inside = edge(n0, lead, inner, V, 1, LANES, VECTOR, ALIGNED)
            x = tl.load(x_ptr + start + columns, inside, float("-inf")).to(tl.float32)
            m, l, total = add_tile(x, m, l, total, False)
            if SMOOTH:
                total += tl.sum(tl.sum(tl.where(inside, x, 0.0), 2), 0)
        shift = tl.max(m, 0)
        l = tl.sum(l * tl.exp2(m - shift), 0)
        mean = tl.sum(total, 0) / V
        loss, hit, share, k = at_target(x_t, mean, shift, l, smoothing, gamma, z, SMOOTH, FOCAL)
        k = tl.where(known, k / l, float("nan"))
        share = share / V
    return loss, shift, k, hit, share


@triton.jit
def write_gradient(
    x_ptr, dx_ptr, target_ptr, row, stride, V, ignore, d, shift, k, hit, share, REPEAT: tl.constexpr,
    LANES: tl.constexpr, VECTOR: tl.constexpr, ALIGNED: tl.constexpr,
):  # fmt: skip
    """The gradient of a row, where the logits stand or elsewhere; 0 and nothing read if its target is ignored."""
    TILE: tl.constexpr = REPEAT * LANES * VECTOR
    target = tl.load(target_ptr + row)
    live = target != ignore
    start, lead, inner = parts(row, stride, V, TILE, VECTOR, ALIGNED)
    first = tl.multiple_of(start + lead, VECTOR)
    d = tl.where(live, d, 0.0)
    k, hit, share = k * d, hit * d, share * d
    target = target.to(tl.int32)
    place = element(REPEAT, LANES, VECTOR)
    for n0 in tl.range(0, inner, TILE):
        x = tl.load(x_ptr + first + n0 + place, live, float("-inf")).to(tl.float32)
        dx = tl.exp2(x * LOG2E - shift) * k - share
        dx = tl.where(place == target - lead - n0, dx - hit, dx)
        tl.store(dx_ptr + first + n0 + place, dx.to(dx_ptr.dtype.element_ty))
    for n0 in tl.range(0, V - inner, LANES * VECTOR):
        columns, inside = edge(n0, lead, inner, V, 1, LANES, VECTOR, ALIGNED)
        x = tl.load(x_ptr + start + columns, inside & live, float("-inf")).to(tl.float32)
        dx = tl.exp2(x * LOG2E - shift) * k - share
        dx = tl.where(columns == target, dx - hit, dx)
        tl.store(dx_ptr + start + columns, dx.to(dx_ptr.dtype.element_ty), inside)


@triton.jit(do_not_specialize=["N", "ignore"])
def forward(
    x_ptr, target_ptr, loss_ptr, left_ptr, stride, N, V, ignore, smoothing, gamma, z, REPEAT: tl.constexpr,
    LANES: tl.constexpr, VECTOR: tl.constexpr, ALIGNED: tl.constexpr, SMOOTH: tl.constexpr, FOCAL: tl.constexpr,
):  # fmt: skip
    """Losses (N,), and (4, N) shift, k, hit, share."""
    row = tl.program_id(0).to(tl.int64)
    loss, shift, k, hit, share = measure(
        x_ptr, target_ptr, row, stride, V, ignore, smoothing, gamma, z, REPEAT, LANES, VECTOR, ALIGNED, SMOOTH, FOCAL
    )
    tl.store(loss_ptr + row, loss)
    tl.store(left_ptr + row, shift)
    tl.store(left_ptr + N + row, k)
    tl.store(left_ptr + 2 * N.to(tl.int64) + row, hit)
    tl.store(left_ptr + 3 * N.to(tl.int64) + row, share)


@triton.jit(do_not_specialize=["N", "ignore", "d_stride"])
def backward(
    x_ptr, dx_ptr, target_ptr, left_ptr, d_ptr, d_stride, stride, N, V, ignore, REPEAT: tl.constexpr,
    LANES: tl.constexpr, VECTOR: tl.constexpr, ALIGNED: tl.constexpr,
):  # fmt: skip
    """Gradients of the logits from those of the losses; `dx_ptr` may be `x_ptr`."""
    row = tl.program_id(0).to(tl.int64)
    shift = tl.load(left_ptr + row)
    k = tl.load(left_ptr + N + row)
    hit = tl.load(left_ptr + 2 * N.to(tl.int64) + row)
    share = tl.load(left_ptr + 3 * N.to(tl.int64) + row)
    d = tl.load(d_ptr + row * d_stride)
    write_gradient(
        x_ptr, dx_ptr, target_ptr, row, stride, V, ignore, d, shift, k, hit, share, REPEAT, LANES, VECTOR, ALIGNED
    )


@triton.jit(do_not_specialize=["ignore"])
def both(
    x_ptr, target_ptr, loss_ptr, d_ptr, stride, V, ignore, smoothing, gamma, z, REPEAT: tl.constexpr,
    LANES: tl.constexpr, VECTOR: tl.constexpr, ALIGNED: tl.constexpr, SMOOTH: tl.constexpr, FOCAL: tl.constexpr,
):  # fmt: skip
    """Losses (N,), and the gradients in place of the logits; that of every loss is the one number at `d_ptr`."""
    row = tl.program_id(0).to(tl.int64)
    loss, shift, k, hit, share = measure(
        x_ptr, target_ptr, row, stride, V, ignore, smoothing, gamma, z, REPEAT, LANES, VECTOR, ALIGNED, SMOOTH, FOCAL
    )
    tl.store(loss_ptr + row, loss)
    tl.debug_barrier()  # every thread has read the target's logit before one overwrites it
    write_gradient(
        x_ptr, x_ptr, target_ptr, row, stride, V, ignore, tl.load(d_ptr), shift, k, hit, share, REPEAT, LANES, VECTOR,
        ALIGNED,
    )  # fmt: skip


@triton.jit
def scale(x_ptr, factor_ptr, size, BLOCK: tl.constexpr):
    """x times the one number at `factor_ptr`, in place; nothing is moved when that is 1."""
    factor = tl.load(factor_ptr)
    if factor != 1.0:
        places = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
        x = tl.load(x_ptr + places, places < size).to(tl.float32)
        tl.store(x_ptr + places, (x * factor).to(x_ptr.dtype.element_ty), places < size)
