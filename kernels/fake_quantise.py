"""Rounding to few bits and back in one pass, with the gradient of no rounding (straight-through, arXiv 1308.3432).

    symmetric   x' = round(x / s) s,  s = max |x| / (2^(bits-1) - 1)
    affine      x' = (clamp(round(x / s) + z, 0, 2^bits - 1) - z) s,  z = round(-low / s),
                s = (high - low) / (2^bits - 1)

low <= 0 <= high are the range of a row (`dim=-1`: x is read once, written once) or of the whole tensor (`dim=None`: x
is read twice). Ranges are maxima, so no order of summation matters. `strength` fades from x to x'. Bit for bit what
torch computes in fp32 with IEEE division, ties to even and `lerp`; a range with a NaN or an infinity makes NaN of all
that it is the range of.

`quantise_rows` leaves the codes and scales of symmetric rows instead, for products of integers.

Nothing is saved for the backward pass, which hands the gradient on. Not covered: other dimensions, fp64, more than 16
bits, gradients of `strength`.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import devices
from . import quantised_launch as table
from .quantised_numbers import divided, divisor, nearest, product, quotient

METHODS = ("symmetric", "affine")
PARTS = 256  # programs that find the range of a whole tensor
TINY = tl.constexpr(torch.finfo(torch.float32).tiny)
LOWEST, HIGHEST = tl.constexpr(-0x7FFFFFFF), tl.constexpr(0x7FFFFFFF)


@triton.jit
def ordered(bits):
    """Patterns of fp32 <-> integers in the order of the numbers, NaN beyond the infinities."""
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@triton.jit
def ends(x, live, METHOD: tl.constexpr):
    """(low, high) of each fp32 element as integers, whose maxima keep NaN; symmetric: the magnitude, twice."""
    bits = x.to(tl.int32, bitcast=True)
    if METHOD == "symmetric":
        low = tl.where(live, bits & 0x7FFFFFFF, 0)
        high = low
    else:
        order = ordered(bits)
        low, high = tl.where(live, order, HIGHEST), tl.where(live, order, LOWEST)
    return low, high


@triton.jit
def rounded(x, low, high, TOP: tl.constexpr, METHOD: tl.constexpr):
    """x' of fp32 x, from integers `low` and `high`; comparisons are such that NaN stays."""
    if METHOD == "symmetric":
        scale = quotient(high.to(tl.float32, bitcast=True), tl.full([1], TOP, tl.float32))
        scale = tl.where(scale < TINY, TINY, scale)
        power, y, inverse = divisor(scale)
        out = product(nearest(divided(x, power, y, inverse)), scale)
    else:
        bottom, top = ordered(low).to(tl.float32, bitcast=True), ordered(high).to(tl.float32, bitcast=True)
        bottom, top = tl.where(bottom > 0.0, 0.0, bottom), tl.where(top < 0.0, 0.0, top)
        scale = quotient(top - bottom, tl.full([1], TOP, tl.float32))
        scale = tl.where(scale < TINY, TINY, scale)
        zero = nearest(quotient(0.0 - bottom, scale))
        power, y, inverse = divisor(scale)
        code = nearest(divided(x, power, y, inverse)) + zero
        out = product(tl.minimum(tl.maximum(code, 0.0), TOP) - zero, scale)
    return out


@triton.jit
def faded(x, out, strength_ptr, factor, KIND: tl.constexpr, FADE: tl.constexpr):
    """torch.lerp(x, out, strength) + (x - x), in fp32 with the digits of KIND: no negative zero. At strength 1 it
    is `out`, which has no negative zero either, and is NaN wherever x is not finite."""
    if FADE != "none":
        out = out.to(KIND).to(tl.float32)
        w = factor
        if FADE == "tensor":
            w = tl.load(strength_ptr).to(tl.float32).to(KIND).to(tl.float32)
        near = tl.abs(w) < 0.5
        base, weight = tl.where(near, x, out), tl.where(near, w, w - 1.0)
        step, weight = tl.broadcast(out - x, weight)
        out = tl.fma(weight, step, base).to(KIND).to(tl.float32) + (x - x)
    return out


@triton.jit(do_not_specialize=["R", "factor"])
def by_row(
    x_ptr, out_ptr, strength_ptr, R, N, factor,
    ROWS: tl.constexpr, BLOCK: tl.constexpr, WHOLE: tl.constexpr, TOP: tl.constexpr, METHOD: tl.constexpr,
    FADE: tl.constexpr,
):  # fmt: skip
    """Rows of N elements, ROWS a program; WHOLE: a block holds all of a row, otherwise the row is read again."""
    kind = x_ptr.dtype.element_ty
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    columns = tl.arange(0, BLOCK)
    starts = (rows * N)[:, None] + columns[None, :]
    real = (rows < R)[:, None]
    if WHOLE:
        live = real & (columns < N)[None, :]
        x = tl.load(x_ptr + starts, live, 0.0).to(tl.float32)
        low, high = ends(x, live, METHOD)
        low, high = tl.min(low, 1)[:, None], tl.max(high, 1)[:, None]
        out = faded(x, rounded(x, low, high, TOP, METHOD), strength_ptr, factor, kind, FADE)
        tl.store(out_ptr + starts, out.to(kind), live)
    else:
        low, high = tl.full([ROWS, 1], HIGHEST, tl.int32), tl.full([ROWS, 1], LOWEST, tl.int32)
        for n0 in tl.range(0, N, BLOCK):
            live = real & (columns < N - n0)[None, :]
            a, b = ends(tl.load(x_ptr + starts + n0, live, 0.0).to(tl.float32), live, METHOD)
            low, high = tl.minimum(low, tl.min(a, 1)[:, None]), tl.maximum(high, tl.max(b, 1)[:, None])
        for n0 in tl.range(0, N, BLOCK):
            live = real & (columns < N - n0)[None, :]
            x = tl.load(x_ptr + starts + n0, live, 0.0).to(tl.float32)
            out = faded(x, rounded(x, low, high, TOP, METHOD), strength_ptr, factor, kind, FADE)
            tl.store(out_ptr + starts + n0, out.to(kind), live)


@triton.jit
def put_codes(x, places, live, code_ptr, high, TOP: tl.constexpr):
    """Stores the codes of x, whose largest magnitude is that of the integer `high`; returns the scale."""
    scale = quotient(high.to(tl.float32, bitcast=True), tl.full([1], TOP, tl.float32))
    scale = tl.where(scale < TINY, TINY, scale)
    power, y, inverse = divisor(scale)
    code = nearest(divided(x, power, y, inverse))
    tl.store(code_ptr + places, tl.where(code == code, code, 0.0).to(tl.int8), live)
    return scale


@triton.jit(do_not_specialize=["R"])
def codes_by_row(
    x_ptr, code_ptr, scale_ptr, R, N, ROWS: tl.constexpr, BLOCK: tl.constexpr, WHOLE: tl.constexpr, TOP: tl.constexpr
):
    """As `by_row`: int8 codes and fp32 scales."""
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    columns = tl.arange(0, BLOCK)
    starts = (rows * N)[:, None] + columns[None, :]
    real = (rows < R)[:, None]
    if WHOLE:
        live = real & (columns < N)[None, :]
        x = tl.load(x_ptr + starts, live, 0.0).to(tl.float32)
        _, high = ends(x, live, "symmetric")
        scale = put_codes(x, starts, live, code_ptr, tl.max(high, 1)[:, None], TOP)
    else:
        high = tl.zeros([ROWS, 1], tl.int32)
        for n0 in tl.range(0, N, BLOCK):
            live = real & (columns < N - n0)[None, :]
            _, b = ends(tl.load(x_ptr + starts + n0, live, 0.0).to(tl.float32), live, "symmetric")
            high = tl.maximum(high, tl.max(b, 1)[:, None])
        scale = tl.zeros([ROWS, 1], tl.float32)
        for n0 in tl.range(0, N, BLOCK):
            live = real & (columns < N - n0)[None, :]
            x = tl.load(x_ptr + starts + n0, live, 0.0).to(tl.float32)
            scale = put_codes(x, starts + n0, live, code_ptr, high, TOP)
    tl.store(scale_ptr + rows[:, None] + tl.arange(0, 1)[None, :], scale, real)


@triton.jit
def find_range(x_ptr, part_ptr, size, BLOCK: tl.constexpr, METHOD: tl.constexpr):
    """(low, high) of every n-th block of BLOCK elements, n programs, as integers."""
    low, high = tl.full([BLOCK], HIGHEST, tl.int32), tl.full([BLOCK], LOWEST, tl.int32)
    for start in tl.range(tl.program_id(0).to(tl.int64) * BLOCK, size, tl.num_programs(0).to(tl.int64) * BLOCK):
        places = start + tl.arange(0, BLOCK)
        live = places < size
        a, b = ends(tl.load(x_ptr + places, live, 0.0).to(tl.float32), live, METHOD)
        low, high = tl.minimum(low, a), tl.maximum(high, b)
    tl.store(part_ptr + tl.program_id(0) * 2, tl.min(low, 0))
    tl.store(part_ptr + tl.program_id(0) * 2 + 1, tl.max(high, 0))


@triton.jit(do_not_specialize=["parts", "factor"])
def by_tensor(
    x_ptr, out_ptr, part_ptr, strength_ptr, size, parts, factor,
    BLOCK: tl.constexpr, PARTS: tl.constexpr, TOP: tl.constexpr, METHOD: tl.constexpr, FADE: tl.constexpr,
):  # fmt: skip
    """A block of elements, by the range of at most PARTS parts."""
    kind = x_ptr.dtype.element_ty
    i = tl.arange(0, PARTS)
    low = tl.min(tl.load(part_ptr + i * 2, i < parts, HIGHEST), 0)
    high = tl.max(tl.load(part_ptr + i * 2 + 1, i < parts, LOWEST), 0)
    places = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    live = places < size
    x = tl.load(x_ptr + places, live, 0.0).to(tl.float32)
    out = faded(x, rounded(x, low, high, TOP, METHOD), strength_ptr, factor, kind, FADE)
    tl.store(out_ptr + places, out.to(kind), live)


def top_of(bits: int, method: str) -> float:
    """Steps between zero and the end of the range, or between its ends."""
    return float(2 ** (bits - 1) - 1 if method == "symmetric" else 2**bits - 1)


def held_rows(row: table.Block) -> int:
    """Rows of a program."""
    return max(1, 2048 // row.BLOCK)


@devices.operator("gptkernels::fake_quantise")
def fake_quantise_op(
    x: Tensor, strength: Tensor | None, bits: int, method: str, by_rows: bool, factor: float
) -> Tensor:
    """Contiguous x'; `factor` is the strength where there is no tensor of it."""
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    if x.numel() == 0:
        return out
    x = x.contiguous()
    fade = "tensor" if strength is not None else "none" if factor == 1.0 else "number"
    rule = {"TOP": top_of(bits, method), "METHOD": method, "FADE": fade}
    if by_rows:
        N = x.shape[-1]
        row, R = table.row_block(N, x.element_size()), x.numel() // N
        held = held_rows(row)
        by_row[(triton.cdiv(R, held),)](
            x, out, strength, R, N, factor, ROWS=held, BLOCK=row.BLOCK, WHOLE=row.BLOCK >= N, **rule,
            **table.options(row),
        )  # fmt: skip
        return out
    row, size = table.BLOCKS["range"], x.numel()
    blocks = triton.cdiv(size, row.BLOCK)
    parts = torch.empty(min(blocks, PARTS), 2, dtype=torch.int32, device=x.device)
    find_range[(len(parts),)](x, parts, size, BLOCK=row.BLOCK, METHOD=method, **table.options(row))
    by_tensor[(blocks,)](
        x, out, parts, strength, size, len(parts), factor, BLOCK=row.BLOCK, PARTS=PARTS, **rule, **table.options(row)
    )
    return out


@fake_quantise_op.register_fake
def _(x, strength, bits, method, by_rows, factor):
    return x.new_empty(x.shape)


@devices.operator("gptkernels::quantise_rows")
def quantise_rows_op(x: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Contiguous codes and scales."""
    N = x.shape[-1]
    codes = torch.empty(x.shape, dtype=torch.int8, device=x.device)
    scale = torch.empty((*x.shape[:-1], 1), dtype=torch.float32, device=x.device)
    if x.numel():
        row, R = table.row_block(N, x.element_size()), x.numel() // N
        held = held_rows(row)
        codes_by_row[(triton.cdiv(R, held),)](
            x.contiguous(), codes, scale, R, N, ROWS=held, BLOCK=row.BLOCK, WHOLE=row.BLOCK >= N,
            TOP=top_of(bits, "symmetric"), **table.options(row),
        )  # fmt: skip
    return codes, scale


@quantise_rows_op.register_fake
def _(x, bits):
    return x.new_empty(x.shape, dtype=torch.int8), x.new_empty((*x.shape[:-1], 1), dtype=torch.float32)


def _differentiate(ctx, d_out):
    return d_out, None, None, None, None, None


fake_quantise_op.register_autograd(_differentiate)


def _check_type(x: Tensor) -> None:
    if x.dtype not in (torch.bfloat16, torch.float16, torch.float32):
        raise ValueError(f"{x.dtype} is none of bfloat16, float16, float32")


def fake_quantise(
    x: Tensor, bits: int, method: str = "symmetric", dim: int | None = None, strength: Tensor | float = 1.0
) -> Tensor:
    """`x` in `bits`, back in floating point; bf16, fp16 or fp32. A tensor of strength is used in the type of `x`."""
    if method not in METHODS or not 2 <= bits <= 16:
        raise ValueError(f"method {method!r} is none of {', '.join(METHODS)}, or bits {bits} not of 2 .. 16")
    if dim is not None and dim not in (-1, x.dim() - 1):
        raise ValueError(f"dim {dim} is neither the last nor None")
    _check_type(x)
    held = strength.detach() if isinstance(strength, Tensor) else None
    factor = 1.0 if isinstance(strength, Tensor) else float(strength)
    return fake_quantise_op(x, held, bits, method, dim is not None, factor)


def quantise_rows(x: Tensor, bits: int = 8) -> tuple[Tensor, Tensor]:
    """(int8 codes, fp32 scale (..., 1)) of each row, symmetric, without a gradient: what `int8_linear` and
    `ternary_linear` take. A row with a NaN or an infinity has codes of 0 where they are undefined, and such a scale."""
    _check_type(x)
    if not 2 <= bits <= 8 or x.shape[-1] == 0:
        raise ValueError(f"bits {bits} not of 2 .. 8, or rows of {x.shape[-1]}")
    return quantise_rows_op(x.detach(), bits)
