"""What the attention kernels share: which tiles need a mask, scores of a tile, weights and their slopes.

Exponentials are powers of 2, the base folded into the factor of the scores: a GPU has no other.
`SPEC` names the kind; everything that a kind does not use is compiled away. The extents of a tile:

    rows of a query tile see keys [lo, hi); [lo, a) and [b, hi) hold masked keys, [a, b) none.
"""

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)
NOWHERE = tl.constexpr(-1e30)  # below any score and finite: a row without keys stays free of NaN


@triton.jit
def round_down(x, SIZE: tl.constexpr):
    return tl.maximum(x, 0) // SIZE * SIZE


@triton.jit
def key_range(m0, T, S, window, ROWS: tl.constexpr, BN: tl.constexpr, CAUSAL: tl.constexpr, WINDOW: tl.constexpr):
    """(lo, a, b, hi) of the query rows [m0, m0 + ROWS)."""
    lo, a = 0, 0
    b, hi = round_down(S, BN), S
    if CAUSAL:
        first = m0 + S - T
        hi = tl.maximum(tl.minimum(S, first + ROWS), 0)
        b = tl.minimum(b, round_down(first + 1, BN))
        if WINDOW:
            lo = round_down(first + 1 - window, BN)
            b = tl.maximum(b, lo)
            a = tl.minimum(round_down(first + ROWS - window + BN - 1, BN), b)
            a = tl.maximum(a, lo)
    return lo, a, b, hi


@triton.jit
def query_range(n0, T, S, window, BM: tl.constexpr, COLS: tl.constexpr, CAUSAL: tl.constexpr, WINDOW: tl.constexpr):
    """(lo, a, b, hi) of the query rows that see the keys [n0, n0 + COLS). Rows past T add nothing, and need no mask."""
    lo, a = 0, 0
    b, hi = T, T
    if CAUSAL:
        first = n0 + T - S  # the row that sees key n0 as its last
        lo = round_down(first, BM)
        if WINDOW:
            hi = tl.minimum(T, tl.maximum(first + COLS - 1 + window, 0))
        # a starts a tile, even where that is past hi: the loop from a must not take rows of the tile before
        a = round_down(tl.minimum(first + COLS - 1, hi) + BM - 1, BM)
        a = tl.maximum(a, lo)
        if WINDOW:
            b = tl.maximum(tl.minimum(round_down(first + window, BM), hi), a)
    return lo, a, b, hi


@triton.jit
def in_sight(rows, keys, T, S, window, CAUSAL: tl.constexpr, WINDOW: tl.constexpr):
    live = keys < S
    if CAUSAL:
        distance = rows + (S - T) - keys
        live = live & (distance >= 0)
        if WINDOW:
            live = live & (distance < window)
    return live


@triton.jit
def keys_in_sight(rows, T, S, window, CAUSAL: tl.constexpr, WINDOW: tl.constexpr):
    """Number of keys that each row sees, at least 1, in fp32."""
    count = rows * 0 + S
    if CAUSAL:
        count = rows + (S - T) + 1
        if WINDOW:
            count = tl.minimum(count, window)
    return tl.maximum(count, 1).to(tl.float32)


@triton.jit
def capped(x, softcap):
    """(tanh(x / softcap) softcap, its slope)."""
    t = 2.0 / (1.0 + tl.exp2(x * (-2.0 * LOG2E / softcap))) - 1.0
    return t * softcap, 1.0 - t * t


@triton.jit
def scored(
    products, bias, tilt, factor, softcap, rate, CAP: tl.constexpr, BIAS: tl.constexpr, ALIBI: tl.constexpr
):  # fmt: skip
    """Products of queries and keys -> (scores times `rate`, slope of the cap). `factor` is scale, times rate if no cap.

    Without cap and bias that is one product, which the compiler joins with the sum that follows. ALiBi,
    slope (key - query), comes in two parts, so that no tile of distances is made: `tilt` here, and what the caller
    subtracts. Both count from the tile, where they are small enough to be exact.
    """
    slope = 1.0
    if CAP:
        s, slope = capped(products * factor, softcap)
        s = s * rate
    else:
        s = products * factor
    if ALIBI:
        s = s + tilt
    if BIAS:
        s = s + bias * rate
    return s, slope


@triton.jit
def at_most(p, ceiling, PAIRS: tl.constexpr):
    """min(p, ceiling) of weights, whose bits order as integers do, having no sign. 2-byte ones go two an instruction,
    where the architecture has it; clamping scores before their exponential takes one each, with the same result."""
    if PAIRS:
        bits = tl.minimum(p.to(tl.int16, bitcast=True), ceiling.to(p.dtype).to(tl.int16, bitcast=True))
        p = bits.to(p.dtype, bitcast=True)
    else:
        p = tl.minimum(p.to(tl.float32), ceiling).to(p.dtype)
    return p


@triton.jit
def log1p(u):
    """ln(1 + u) for u in [0, 1], 2 artanh(u / (2 + u)) to 2e-7: tl.log2 is 13 instructions, and worse near 0."""
    z = u / (2.0 + u)
    y = z * z
    series = 1.0 + y * (1 / 3 + y * (1 / 5 + y * (1 / 7 + y * (1 / 9 + y * (1 / 11 + y * (1 / 13))))))
    return 2.0 * z * series


@triton.jit
def curve(x, x_intercept, y_intercept, KIND: tl.constexpr, POWER: tl.constexpr):
    if KIND == "sigmoid":
        p = 1.0 / (1.0 + tl.exp2(x * -LOG2E))
    elif KIND == "relu":
        p = tl.maximum(x, 0.0)
    elif KIND == "relu2":
        r = tl.maximum(x, 0.0)
        p = r * r
    elif KIND == "softplus":
        p = tl.maximum(x, 0.0) + log1p(tl.exp2(tl.abs(x) * -LOG2E))
    else:
        r = tl.maximum(x, 0.0)
        p = r
        for _ in tl.static_range(POWER - 1):
            p = p * r
        line = tl.minimum(tl.maximum(x, x_intercept), 0.0) - x_intercept
        p = p + line * (y_intercept / -x_intercept)
    return p


@triton.jit
def curve_slope(x, p, x_intercept, y_intercept, KIND: tl.constexpr, POWER: tl.constexpr):
    """d curve / dx, given p = curve(x)."""
    if KIND == "sigmoid":
        d = p * (1.0 - p)
    elif KIND == "relu":
        d = tl.where(x > 0.0, 1.0, 0.0)
    elif KIND == "relu2":
        d = 2.0 * tl.maximum(x, 0.0)
    elif KIND == "softplus":
        d = 1.0 / (1.0 + tl.exp2(x * -LOG2E))
    else:
        r = tl.maximum(x, 0.0)
        d = tl.full(x.shape, POWER, tl.float32)
        for _ in tl.static_range(POWER - 1):
            d = d * r
        line = tl.where(x > x_intercept, y_intercept / -x_intercept, 0.0)
        d = tl.where(x > 0.0, d, line)
    return d
