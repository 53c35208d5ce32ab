"""Kernels of root-mean-square and layer normalisation: forward with or without a residual sum, and backward.

    rms     y = x r w,              r = 1 / sqrt(mean(x^2) + eps)                     (arXiv 1910.07467)
    layer   y = (x - m) r w + b,    r = 1 / sqrt(mean((x - m)^2) + eps), m = mean(x)  (arXiv 1607.06450)

    with n the normalised row and g = dy w:   dx = r (g - n mean(g n) [- mean(g)]),   dw = sum dy n,   db = sum dy

`forward` and `backward` hold rows in registers, `long_forward` and `long_backward` go over one in blocks of BN, which
a cache may hold for the next time. Gradients of weight and bias come in two stages: a program sums its rows in fp32 and
leaves a partial row (`backward`, `long_parameters`); `total` sums those in fixed order.

Rows are numbered by three indices of which the sizes of the last two, n1 and n2, are given; every tensor has a stride
for each. Numbers are widened to fp32 as they are read. N width, M rows, BM and BN tile; CENTRED is layer norm.
"""

import triton
import triton.language as tl


@triton.jit
def row_offsets(rows, n1, n2, s0, s1, s2):
    rest = rows // n2
    i0, i1, i2 = rest // n1, rest % n1, rows % n2
    return i0.to(tl.int64) * s0 + i1.to(tl.int64) * s1 + i2.to(tl.int64) * s2


@triton.jit
def load_rows(ptr, at, cols, inside, POLICY: tl.constexpr):
    """Rows that begin at `at`. Also of weights, which all rows share: a thread then holds those that it needs."""
    return tl.load((ptr + at)[:, None] + cols[None, :], inside, 0.0, eviction_policy=POLICY).to(tl.float32)


@triton.jit
def forward(
    x_ptr, y_ptr, w_ptr, b_ptr, out_ptr, sum_ptr, mean_ptr, rstd_ptr, x_0, x_1, x_2, y_0, y_1, y_2, o_0, o_1, o_2, r_0,
    r_1, r_2, n1, n2, M, eps, N: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, CENTRED: tl.constexpr,
):  # fmt: skip
    rows, cols = tl.program_id(0) * BM + tl.arange(0, BM), tl.arange(0, BN)
    inside = (rows < M)[:, None] & (cols < N)[None, :]
    o_at = row_offsets(rows, n1, n2, o_0, o_1, o_2)[:, None] + cols[None, :]
    r_at = row_offsets(rows, n1, n2, r_0, r_1, r_2)
    x = load_rows(x_ptr, row_offsets(rows, n1, n2, x_0, x_1, x_2), cols, inside, "evict_first")
    if y_ptr is not None:
        x += load_rows(y_ptr, row_offsets(rows, n1, n2, y_0, y_1, y_2), cols, inside, "evict_first")
        kept = x.to(sum_ptr.dtype.element_ty)
        tl.store(sum_ptr + o_at, kept, inside)
        x = kept.to(tl.float32)  # what the backward pass will see
    if CENTRED:
        mean = tl.sum(x, 1) * (1.0 / N)
        tl.store(mean_ptr + r_at, mean, rows < M)
        x = tl.where(inside, x - mean[:, None], 0.0)
    rstd = tl.rsqrt(tl.sum(x * x, 1) * (1.0 / N) + eps)
    tl.store(rstd_ptr + r_at, rstd, rows < M)
    x *= rstd[:, None]
    if w_ptr is not None:
        x *= load_rows(w_ptr, rows * 0, cols, inside, "evict_last")
    if b_ptr is not None:
        x += load_rows(b_ptr, rows * 0, cols, inside, "evict_last")
    tl.store(out_ptr + o_at, x.to(out_ptr.dtype.element_ty), inside)


@triton.jit
def long_forward(
    x_ptr, y_ptr, w_ptr, b_ptr, out_ptr, sum_ptr, mean_ptr, rstd_ptr, x_0, x_1, x_2, y_0, y_1, y_2, o_0, o_1, o_2, r_0,
    r_1, r_2, n1, n2, M, eps, N: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, CENTRED: tl.constexpr,
):  # fmt: skip
    row, cols = tl.program_id(0), tl.arange(0, BN)
    x_ptr += row_offsets(row, n1, n2, x_0, x_1, x_2)
    o_at = row_offsets(row, n1, n2, o_0, o_1, o_2)
    r_at = row_offsets(row, n1, n2, r_0, r_1, r_2)
    if y_ptr is not None:
        y_ptr += row_offsets(row, n1, n2, y_0, y_1, y_2)
        for n in range(0, N, BN):
            at = n + cols
            x = tl.load(x_ptr + at, at < N, 0.0).to(tl.float32) + tl.load(y_ptr + at, at < N, 0.0).to(tl.float32)
            tl.store(sum_ptr + o_at + at, x.to(sum_ptr.dtype.element_ty), at < N)
        tl.debug_barrier()  # what one thread wrote, another reads
        x_ptr = sum_ptr + o_at
    mean = 0.0
    if CENTRED:
        total = tl.zeros([BN], tl.float32)
        for n in range(0, N, BN):
            total += tl.load(x_ptr + n + cols, n + cols < N, 0.0).to(tl.float32)
        mean = tl.sum(total, 0) * (1.0 / N)
        tl.store(mean_ptr + r_at, mean)
    squares = tl.zeros([BN], tl.float32)
    for n in range(0, N, BN):
        x = tl.load(x_ptr + n + cols, n + cols < N, mean).to(tl.float32) - mean
        squares += x * x
    rstd = tl.rsqrt(tl.sum(squares, 0) * (1.0 / N) + eps)
    tl.store(rstd_ptr + r_at, rstd)
    for n in range(0, N, BN):
        at = n + cols
        x = (tl.load(x_ptr + at, at < N, 0.0).to(tl.float32) - mean) * rstd
        if w_ptr is not None:
            x *= tl.load(w_ptr + at, at < N, 0.0).to(tl.float32)
        if b_ptr is not None:
            x += tl.load(b_ptr + at, at < N, 0.0).to(tl.float32)
        tl.store(out_ptr + o_at + at, x.to(out_ptr.dtype.element_ty), at < N)


@triton.jit
def read_tile(
    x_ptr, dy_ptr, w_ptr, x_at, d_at, rows, cols, mean, rstd, M, N: tl.constexpr, CENTRED: tl.constexpr,
    POLICY: tl.constexpr,
):  # fmt: skip
    """(normalised rows, dy, dy w, which of them exist), of columns `cols`."""
    inside = (rows < M)[:, None] & (cols < N)[None, :]
    n = load_rows(x_ptr, x_at, cols, inside, POLICY)
    dy = load_rows(dy_ptr, d_at, cols, inside, POLICY)
    if CENTRED:
        n -= mean[:, None]
    n *= rstd[:, None]
    g = dy
    if w_ptr is not None:
        g *= load_rows(w_ptr, rows * 0, cols, inside, "evict_last")
    return n, dy, g, inside


@triton.jit
def backward(
    dy_ptr, ds_ptr, x_ptr, w_ptr, mean_ptr, rstd_ptr, dx_ptr, dz_ptr, part_ptr, d_0, d_1, d_2, s_0, s_1, s_2, x_0, x_1,
    x_2, o_0, o_1, o_2, r_0, r_1, r_2, n1, n2, M, N: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    CHUNKS: tl.constexpr, CENTRED: tl.constexpr, W_GRAD: tl.constexpr, B_GRAD: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """ds is the gradient that the residual sum gets besides, dz is dx in the type of its other part; part (1 or 2,
    programs, N) takes the partial rows.

    The sums of rows of several chunks leave no registers for them: they are read a second time, from a cache. With two
    stages a tile is copied to shared memory while the one before is worked on, which a lone program has to do itself.
    """
    programs = tl.num_programs(0)
    dws, dbs = (), ()
    for _ in tl.static_range(CHUNKS):
        dws += (tl.zeros([BM, BN], tl.float32),)  # type: ignore[assignment]
        dbs += (tl.zeros([BM, BN], tl.float32),)  # type: ignore[assignment]
    for tile in tl.range(tl.program_id(0), tl.cdiv(M, BM), programs, num_stages=STAGES):
        rows = tile * BM + tl.arange(0, BM)
        x_at = row_offsets(rows, n1, n2, x_0, x_1, x_2)
        d_at = row_offsets(rows, n1, n2, d_0, d_1, d_2)
        s_at = row_offsets(rows, n1, n2, s_0, s_1, s_2)
        o_at = row_offsets(rows, n1, n2, o_0, o_1, o_2)
        r_at = row_offsets(rows, n1, n2, r_0, r_1, r_2)
        rstd = tl.load(rstd_ptr + r_at, rows < M, 0.0)
        mean = rstd
        if CENTRED:
            mean = tl.load(mean_ptr + r_at, rows < M, 0.0)
        cols = tl.arange(0, BN)
        if CHUNKS == 1:
            n, dy, g, inside = read_tile(
                x_ptr, dy_ptr, w_ptr, x_at, d_at, rows, cols, mean, rstd, M, N, CENTRED, "evict_first"
            )
            dots, shifts = g * n, g
        else:
            dots = tl.zeros([BM, BN], tl.float32)
            shifts = tl.zeros([BM, BN], tl.float32)
            for c in tl.range(CHUNKS, loop_unroll_factor=1):
                n, dy, g, inside = read_tile(
                    x_ptr, dy_ptr, w_ptr, x_at, d_at, rows, cols + c * BN, mean, rstd, M, N, CENTRED, "evict_last"
                )
                dots += g * n
                shifts += g
        dot = tl.sum(dots, 1) * (1.0 / N)
        shift = dot
        if CENTRED:
            shift = tl.sum(shifts, 1) * (1.0 / N)
        dws_now, dbs_now = (), ()
        for c in tl.static_range(CHUNKS):
            if CHUNKS > 1:
                cols = c * BN + tl.arange(0, BN)
                n, dy, g, inside = read_tile(
                    x_ptr, dy_ptr, w_ptr, x_at, d_at, rows, cols, mean, rstd, M, N, CENTRED, "evict_first"
                )
            dws_now += (dws[c] + dy * n if W_GRAD else dws[c],)  # type: ignore[assignment]
            dbs_now += (dbs[c] + dy if B_GRAD else dbs[c],)  # type: ignore[assignment]
            dx = g - n * dot[:, None]
            if CENTRED:
                dx -= shift[:, None]
            dx *= rstd[:, None]
            if ds_ptr is not None:
                dx += load_rows(ds_ptr, s_at, cols, inside, "evict_first")
            tl.store((dx_ptr + o_at)[:, None] + cols[None, :], dx.to(dx_ptr.dtype.element_ty), inside)
            if dz_ptr is not None:
                tl.store((dz_ptr + o_at)[:, None] + cols[None, :], dx.to(dz_ptr.dtype.element_ty), inside)
        dws, dbs = dws_now, dbs_now
    part_ptr += tl.program_id(0).to(tl.int64) * N
    for c in tl.static_range(CHUNKS):
        cols = c * BN + tl.arange(0, BN)
        if W_GRAD:
            tl.store(part_ptr + cols, tl.sum(dws[c], 0), cols < N)
        if B_GRAD:
            tl.store(part_ptr + programs.to(tl.int64) * N * W_GRAD + cols, tl.sum(dbs[c], 0), cols < N)


@triton.jit
def long_backward(
    dy_ptr, ds_ptr, x_ptr, w_ptr, mean_ptr, rstd_ptr, dx_ptr, dz_ptr, d_0, d_1, d_2, s_0, s_1, s_2, x_0, x_1, x_2, o_0,
    o_1, o_2, r_0, r_1, r_2, n1, n2, M, N: tl.constexpr, BN: tl.constexpr, CENTRED: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0)
    dy_ptr += row_offsets(row, n1, n2, d_0, d_1, d_2)
    x_ptr += row_offsets(row, n1, n2, x_0, x_1, x_2)
    o_at = row_offsets(row, n1, n2, o_0, o_1, o_2)
    r_at = row_offsets(row, n1, n2, r_0, r_1, r_2)
    rstd = tl.load(rstd_ptr + r_at)
    mean = 0.0
    if CENTRED:
        mean = tl.load(mean_ptr + r_at)
    dots, shifts = tl.zeros([BN], tl.float32), tl.zeros([BN], tl.float32)
    for start in range(0, N, BN):
        at = start + tl.arange(0, BN)
        g = tl.load(dy_ptr + at, at < N, 0.0).to(tl.float32)
        if w_ptr is not None:
            g *= tl.load(w_ptr + at, at < N, 0.0).to(tl.float32)
        dots += g * (tl.load(x_ptr + at, at < N, 0.0).to(tl.float32) - mean)
        shifts += g
    dot = tl.sum(dots, 0) * rstd * (1.0 / N)
    shift = tl.sum(shifts, 0) * (1.0 / N) if CENTRED else 0.0
    for start in range(0, N, BN):
        at = start + tl.arange(0, BN)
        g = tl.load(dy_ptr + at, at < N, 0.0).to(tl.float32)
        if w_ptr is not None:
            g *= tl.load(w_ptr + at, at < N, 0.0).to(tl.float32)
        n = (tl.load(x_ptr + at, at < N, 0.0).to(tl.float32) - mean) * rstd
        dx = (g - n * dot - shift) * rstd
        if ds_ptr is not None:
            s_at = row_offsets(row, n1, n2, s_0, s_1, s_2)
            dx += tl.load(ds_ptr + s_at + at, at < N, 0.0).to(tl.float32)
        tl.store(dx_ptr + o_at + at, dx.to(dx_ptr.dtype.element_ty), at < N)
        if dz_ptr is not None:
            tl.store(dz_ptr + o_at + at, dx.to(dz_ptr.dtype.element_ty), at < N)


@triton.jit
def long_parameters(
    dy_ptr, x_ptr, mean_ptr, rstd_ptr, part_ptr, d_0, d_1, d_2, x_0, x_1, x_2, r_0, r_1, r_2, n1, n2, M,
    N: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, CENTRED: tl.constexpr, W_GRAD: tl.constexpr,
    B_GRAD: tl.constexpr,
):  # fmt: skip
    """Partial rows of `backward` for a block of columns and every num_programs(1)-th tile of rows."""
    programs = tl.num_programs(1)
    cols = tl.program_id(0) * BN + tl.arange(0, BN)
    dw, db = tl.zeros([BM, BN], tl.float32), tl.zeros([BM, BN], tl.float32)
    for tile in range(tl.program_id(1), tl.cdiv(M, BM), programs):
        rows = tile * BM + tl.arange(0, BM)
        r_at = row_offsets(rows, n1, n2, r_0, r_1, r_2)
        rstd = tl.load(rstd_ptr + r_at, rows < M, 0.0)
        mean = rstd
        if CENTRED:
            mean = tl.load(mean_ptr + r_at, rows < M, 0.0)
        x_at = row_offsets(rows, n1, n2, x_0, x_1, x_2)
        d_at = row_offsets(rows, n1, n2, d_0, d_1, d_2)
        n, dy, _, _ = read_tile(x_ptr, dy_ptr, None, x_at, d_at, rows, cols, mean, rstd, M, N, CENTRED, "evict_first")
        dw += dy * n
        db += dy
    part_ptr += tl.program_id(1).to(tl.int64) * N
    if W_GRAD:
        tl.store(part_ptr + cols, tl.sum(dw, 0), cols < N)
    if B_GRAD:
        tl.store(part_ptr + programs.to(tl.int64) * N * W_GRAD + cols, tl.sum(db, 0), cols < N)


@triton.jit
def total(part_ptr, first_ptr, second_ptr, P, N, BP: tl.constexpr, BN: tl.constexpr):
    """Sums of the P partial rows of the one or two parameters that `part` holds, one after the other."""
    cols = tl.program_id(0) * BN + tl.arange(0, BN)
    which = tl.program_id(1)
    part_ptr += which.to(tl.int64) * P * N
    acc = tl.zeros([BP, BN], tl.float32)
    for p in range(0, P, BP):
        rows = p + tl.arange(0, BP)
        inside = (rows < P)[:, None] & (cols < N)[None, :]
        acc += tl.load((part_ptr + rows.to(tl.int64) * N)[:, None] + cols[None, :], inside, 0.0)
    summed = tl.sum(acc, 0)
    if which == 0:
        tl.store(first_ptr + cols, summed.to(first_ptr.dtype.element_ty), cols < N)
    elif second_ptr is not None:
        tl.store(second_ptr + cols, summed.to(second_ptr.dtype.element_ty), cols < N)
