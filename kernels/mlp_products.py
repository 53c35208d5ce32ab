"""Matrix products of an MLP with what follows them, done on the tile while it is in registers.

`product` is one kernel for both directions. Forward, with weights stored (N, K),

    z = x W^T + b,  h = act(z)                  or, gated, with two products of the same tile of x
    g = x Wg^T + bg,  u = x Wu^T + bu,  h = act(g) u

and backward, with the weights of the projection down stored (K, N), K being the width of the model,

    dh = dy W,  dz = dh act'(z)                 or, gated,  dg = dh u act'(g),  du = dh act(g)

with h made again where the gradient of a weight needs it, and the column sums of what a bias needs, one row of them a
tile, to be added up by the caller in fixed order. The derivative comes from what was kept: the output of the relu
family and of no activation, else z, or g and u.

As many programs as there are multiprocessors walk over the tiles, a group of rows after the other, so that a group's
columns of weights come from the L2 cache. Tiles come and go through tensor descriptors, which clip at any end. The
loops over tiles and over K are flattened into one: the loads of the next tile run while the last one is finished.

`slopes` is dz of a linear layer alone, whose backward pass has no product before it.

Legend: M rows, N columns of the hidden vector, K what is summed over; tile of BM rows, BN columns, BK of K.
"""

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)
DENSITY = tl.constexpr(0.3989422804014327)  # of the normal distribution at 0, 1 / sqrt(2 pi)
TANH_RATE = tl.constexpr(1.5957691216057308)  # 2 sqrt(2 / pi)
CUBIC = tl.constexpr(0.044715)


@triton.jit
def logistic(x):
    """1 / (1 + e^-x), the quotient as a square of rsqrt: two instructions, where a division takes six."""
    r = tl.rsqrt(1.0 + tl.exp2(x * -LOG2E))
    return r * r


@triton.jit
def normal(z, TYPE: tl.constexpr):
    """(Phi(z), phi(z)), with the one exponential of phi: in the tail Phi is phi times a polynomial of 1 / (1 + p |z|),
    fitted to a relative error of 1.2e-7, for 2-byte types of 2.7e-5. tl.math.erf takes three times the instructions."""
    e = tl.exp2(z * z * (-0.5 * LOG2E))
    if TYPE == tl.float32:
        r = tl.rsqrt(tl.abs(z) * 0.3 + 1.0)
        t = r * r
        q = t * (t * (t * 0.036194831 - 0.159378214) + 0.210118241) - 0.0571672395
        q = t * (t * (t * (t * q + 0.130416396) + 0.0993471391) + 0.120845528) + 0.119623263
    else:
        r = tl.rsqrt(tl.abs(z) * 0.375 + 1.0)
        t = r * r
        q = t * (t * (t * (t * -0.0913463499 + 0.201846394) + 0.0823507494) + 0.15811761) + 0.149019826
    tail = e * (t * q)
    return tl.where(z > 0.0, 1.0 - tail, tail), e * DENSITY


@triton.jit
def activated(z, ACT: tl.constexpr, TYPE: tl.constexpr):
    """act(z). The tanh form of gelu is z logistic(2 c (z + 0.044715 z^3)), as 1 + tanh(v) = 2 logistic(2 v)."""
    if ACT == "relu":
        z = tl.maximum(z, 0.0)
    elif ACT == "relu2":
        r = tl.maximum(z, 0.0)
        z = r * r
    elif ACT == "gelu":
        below, density = normal(z, TYPE)
        z = z * below
    elif ACT == "gelu_tanh":
        z = z * logistic(z * TANH_RATE * (z * z * CUBIC + 1.0))
    elif ACT == "silu":
        z = z * logistic(z)
    return z


@triton.jit
def activated_and_slope(z, ACT: tl.constexpr, TYPE: tl.constexpr):
    """(act(z), act'(z))."""
    if ACT == "relu":
        a = tl.maximum(z, 0.0)
        d = tl.where(z > 0.0, 1.0, 0.0)
    elif ACT == "relu2":
        r = tl.maximum(z, 0.0)
        a = r * r
        d = 2.0 * r
    elif ACT == "gelu":
        below, density = normal(z, TYPE)
        a = z * below
        d = below + z * density
    elif ACT == "gelu_tanh":
        s = logistic(z * TANH_RATE * (z * z * CUBIC + 1.0))
        a = z * s
        d = s + a * (1.0 - s) * (z * z * (3.0 * TANH_RATE * CUBIC) + TANH_RATE)
    elif ACT == "silu":
        s = logistic(z)
        a = z * s
        d = s + a * (1.0 - s)
    else:
        a = z
        d = tl.zeros_like(z) + 1.0
    return a, d


@triton.jit
def slope_from_output(h, ACT: tl.constexpr):
    """act'(z) of the kinds whose output says it."""
    if ACT == "relu":
        d = tl.where(h > 0.0, 1.0, 0.0)
    elif ACT == "relu2":
        d = 2.0 * tl.sqrt(h)
    else:
        d = tl.zeros_like(h) + 1.0
    return d


@triton.jit
def halves(x, BM: tl.constexpr, BN: tl.constexpr):
    """Left and right columns."""
    return tl.split(tl.permute(tl.reshape(x, (BM, 2, BN // 2)), (0, 2, 1)))


@triton.jit
def forward_end(
    z, u, m0, n0, bias_ptr, outputs, kept, kept_up, N, BN: tl.constexpr, ACT: tl.constexpr, GATED: tl.constexpr,
    BIAS: tl.constexpr, KEEP: tl.constexpr, OUT: tl.constexpr, TYPE: tl.constexpr,
):  # fmt: skip
    columns = n0 + tl.arange(0, BN)
    if BIAS:
        z += tl.load(bias_ptr + columns, columns < N, 0.0).to(tl.float32)[None, :]
        if GATED:
            u += tl.load(bias_ptr + N + columns, columns < N, 0.0).to(tl.float32)[None, :]
    if KEEP:
        kept.store([m0, n0], z.to(TYPE))
        if GATED:
            kept_up.store([m0, n0], u.to(TYPE))
    if OUT:
        h = activated(z, ACT, TYPE)
        if GATED:
            h = h * u
        outputs.store([m0, n0], h.to(TYPE))


@triton.jit
def backward_end(
    dh, m0, n0, sums_ptr, outputs, kept, kept_up, d_kept, d_kept_up, N, BN: tl.constexpr, ACT: tl.constexpr,
    GATED: tl.constexpr, SUMS: tl.constexpr, OUT: tl.constexpr, TYPE: tl.constexpr,
):  # fmt: skip
    """`sums_ptr` is at the tile's row of sums. Rows past M add nothing to them: their dh is 0."""
    columns = n0 + tl.arange(0, BN)
    z = dh
    if GATED or ACT != "none":
        z = kept.load([m0, n0]).to(tl.float32)
    if OUT:
        # ties z to the layout of the product; without it the activation is computed twice, once in that of the stores
        z += dh * 0.0
    if GATED:
        u = kept_up.load([m0, n0]).to(tl.float32) + dh * 0.0
        a, slope = activated_and_slope(z, ACT, TYPE)
        du = dh * a
        d_kept_up.store([m0, n0], du.to(TYPE))
        if SUMS:
            tl.store(sums_ptr + N + columns, tl.sum(du, 0), columns < N)
        if OUT:
            outputs.store([m0, n0], (a * u).to(TYPE))
        dz = dh * u * slope
    elif OUT:
        a, slope = activated_and_slope(z, ACT, TYPE)
        outputs.store([m0, n0], a.to(TYPE))
        dz = dh * slope
    else:
        dz = dh * slope_from_output(z, ACT)
    d_kept.store([m0, n0], dz.to(TYPE))
    if SUMS:
        tl.store(sums_ptr + columns, tl.sum(dz, 0), columns < N)


@triton.jit(do_not_specialize=["M"])
def product(
    x_ptr, w_ptr, bias_ptr, out_ptr, kept_ptr, d_kept_ptr, sums_ptr, M, N, K, x_m, w_m, w_half, out_m, kept_m,
    kept_half, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, GROUP: tl.constexpr, PARTS: tl.constexpr,
    ACT: tl.constexpr, GATED: tl.constexpr, BACKWARD: tl.constexpr, BIAS: tl.constexpr, KEEP: tl.constexpr,
    OUT: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    """`bias_ptr`, `sums_ptr` hold N, gated 2 N columns; up stands `kept_half` columns right of the gate. `d_kept` is
    laid out as `kept`. BIAS is that there is a bias: added forward, summed for backward. PARTS is 1 or 2: how many
    parts of a tile are finished one after the other, with half the registers and shared memory."""
    TYPE: tl.constexpr = x_ptr.dtype.element_ty
    BP: tl.constexpr = BN // PARTS
    xs = tl.make_tensor_descriptor(x_ptr, [M, K], [x_m, 1], [BM, BK])
    if BACKWARD:
        ws = tl.make_tensor_descriptor(w_ptr, [K, N], [w_m, 1], [BK, BN])
        us = ws
    else:
        ws = tl.make_tensor_descriptor(w_ptr, [N, K], [w_m, 1], [BN, BK])
        us = ws
        if GATED:
            us = tl.make_tensor_descriptor(w_ptr + w_half, [N, K], [w_m, 1], [BN, BK])
    outputs = xs
    kept = xs
    kept_up = xs
    d_kept = xs
    d_kept_up = xs
    if OUT:
        outputs = tl.make_tensor_descriptor(out_ptr, [M, N], [out_m, 1], [BM, BP])
    if KEEP or BACKWARD:
        kept = tl.make_tensor_descriptor(kept_ptr, [M, N], [kept_m, 1], [BM, BP])
        if GATED:
            kept_up = tl.make_tensor_descriptor(kept_ptr + kept_half, [M, N], [kept_m, 1], [BM, BP])
    if BACKWARD:
        d_kept = tl.make_tensor_descriptor(d_kept_ptr, [M, N], [kept_m, 1], [BM, BP])
        if GATED:
            d_kept_up = tl.make_tensor_descriptor(d_kept_ptr + kept_half, [M, N], [kept_m, 1], [BM, BP])
    tiles_m, tiles_n = tl.cdiv(M, BM), tl.cdiv(N, BN)
    for tile in tl.range(tl.program_id(0), tiles_m * tiles_n, tl.num_programs(0), flatten=True):
        group = tile // (GROUP * tiles_n)
        rows = tl.minimum(tiles_m - group * GROUP, GROUP)
        place = tile % (GROUP * tiles_n)
        i = group * GROUP + place % rows
        m0, n0 = i * BM, place // rows * BN
        acc = tl.zeros([BM, BN], tl.float32)
        up = tl.zeros([BM, BN], tl.float32)
        for k0 in tl.range(0, K, BK):
            x = xs.load([m0, k0])
            if BACKWARD:
                acc = tl.dot(x, ws.load([k0, n0]), acc, input_precision=EXACT)
            else:
                acc = tl.dot(x, ws.load([n0, k0]).T, acc, input_precision=EXACT)
                if GATED:
                    up = tl.dot(x, us.load([n0, k0]).T, up, input_precision=EXACT)
        if BACKWARD:
            sums = sums_ptr
            if BIAS:
                sums += i.to(tl.int64) * (N * (1 + GATED))
            if PARTS == 1:
                backward_end(
                    acc, m0, n0, sums, outputs, kept, kept_up, d_kept, d_kept_up, N, BP, ACT, GATED, BIAS, OUT, TYPE
                )
            else:
                left, right = halves(acc, BM, BN)
                backward_end(
                    left, m0, n0, sums, outputs, kept, kept_up, d_kept, d_kept_up, N, BP, ACT, GATED, BIAS, OUT, TYPE
                )
                backward_end(
                    right, m0, n0 + BP, sums, outputs, kept, kept_up, d_kept, d_kept_up, N, BP, ACT, GATED, BIAS, OUT,
                    TYPE,
                )  # fmt: skip
        elif PARTS == 1:
            forward_end(acc, up, m0, n0, bias_ptr, outputs, kept, kept_up, N, BP, ACT, GATED, BIAS, KEEP, OUT, TYPE)
        else:
            left, right = halves(acc, BM, BN)
            left_up, right_up = halves(up, BM, BN)
            forward_end(
                left, left_up, m0, n0, bias_ptr, outputs, kept, kept_up, N, BP, ACT, GATED, BIAS, KEEP, OUT, TYPE
            )
            forward_end(
                right, right_up, m0, n0 + BP, bias_ptr, outputs, kept, kept_up, N, BP, ACT, GATED, BIAS, KEEP, OUT,
                TYPE,
            )  # fmt: skip


@triton.jit(do_not_specialize=["M"])
def slopes(
    d_ptr, kept_ptr, dz_ptr, sums_ptr, M, N, d_m, kept_m, dz_m, BM: tl.constexpr, BN: tl.constexpr,
    ACT: tl.constexpr, FROM_OUTPUT: tl.constexpr, BIAS: tl.constexpr,
):  # fmt: skip
    """dz = d act' of one tile, and its column sums: row program_id(0) of `sums_ptr`."""
    m0 = tl.program_id(0) * BM
    rows = (m0 + tl.arange(0, BM)).to(tl.int64)[:, None]
    columns = tl.program_id(1) * BN + tl.arange(0, BN)
    inside = (rows < M) & (columns < N)[None, :]
    d = tl.load(d_ptr + rows * d_m + columns[None, :], inside, 0.0).to(tl.float32)
    z = tl.load(kept_ptr + rows * kept_m + columns[None, :], inside, 0.0).to(tl.float32)
    if FROM_OUTPUT:
        dz = d * slope_from_output(z, ACT)
    else:
        a, slope = activated_and_slope(z, ACT, d_ptr.dtype.element_ty)
        dz = d * slope
    tl.store(dz_ptr + rows * dz_m + columns[None, :], dz.to(dz_ptr.dtype.element_ty), inside)
    if BIAS:
        tl.store(sums_ptr + tl.program_id(0).to(tl.int64) * N + columns, tl.sum(dz, 0), columns < N)
