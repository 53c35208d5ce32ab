"""Activations as circuits of integers compute them, one pass forward and one backward: tables and straight lines.

    code    c = clamp(round(x 2^fraction_in), -2^(bits-1), 2^(bits-1) - 1), ties to even
    table   y = T[c] 2^-fraction_out, 2^bits entries from the lowest code on
    lines   int16 of fraction 12, 16 segments of 2^11 codes from -4 to 4: y = (v[i] + (r[i] place + 2^10 >> 11)) 2^-12,
            constant or, where the function rises as x does, of slope 1 beyond them

The gradient is that of the function itself (straight-through, arXiv 1308.3432): none beyond the last code or where
the result saturates. Saved for it: x. The function is computed in fp32 by other series than torch's: an element whose
exact value lies within a rounding of where results saturate may pass its gradient here and not there. `exp_lut` has no
gradient. NaN stays NaN. Not covered: fp64.
"""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import devices
from . import quantised_launch as table
from .quantised_numbers import nearest, saturated

FUNCTIONS = ("gelu", "silu", "tanh", "sigmoid")
RISING = ("gelu", "silu")  # ends as x does; the others end flat
PLACES = tl.constexpr(11)  # log2 of a segment of the lines
WITHIN, ROUND_UP = tl.constexpr((1 << 11) - 1), tl.constexpr(1 << 10)
EDGE = tl.constexpr(4 << 12)
LOG2E = tl.constexpr(math.log2(math.e))
ROOT_HALF = tl.constexpr(math.sqrt(0.5))
DENSITY = tl.constexpr(1 / math.sqrt(2 * math.pi))


@triton.jit
def code_of(x, per_unit, BITS: tl.constexpr):
    """int32 code of fp32, 0 of NaN; `per_unit` is a power of two, so that only the rounding rounds."""
    return nearest(saturated(tl.where(x == x, x * per_unit, 0.0), BITS)).to(tl.int32)


@triton.jit(do_not_specialize=["per_unit", "unit"])
def by_table(x_ptr, table_ptr, out_ptr, size, per_unit, unit, BLOCK: tl.constexpr, BITS: tl.constexpr):
    places = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    live = places < size
    x = tl.load(x_ptr + places, live, 0.0).to(tl.float32)
    entry = tl.load(table_ptr + (code_of(x, per_unit, BITS) + (1 << (BITS - 1))))
    out = tl.where(x == x, entry.to(tl.float32) * unit, x)
    tl.store(out_ptr + places, out.to(out_ptr.dtype.element_ty), live)


@triton.jit
def by_lines(x_ptr, start_ptr, rise_ptr, out_ptr, size, BLOCK: tl.constexpr, RISES: tl.constexpr):
    places = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    live = places < size
    x = tl.load(x_ptr + places, live, 0.0).to(tl.float32)
    code = code_of(x, 4096.0, 16)
    inside = tl.minimum(tl.maximum(code, -EDGE), EDGE - 1) + EDGE
    segment, place = inside >> PLACES, inside & WITHIN
    start = tl.load(start_ptr + segment).to(tl.int32)
    rise = tl.load(rise_ptr + segment).to(tl.int32)
    line = start + ((rise * place + ROUND_UP) >> PLACES)
    if RISES:
        line += tl.maximum(code - (EDGE - 1), 0)
    out = tl.where(x == x, line.to(tl.float32) * (1 / 4096), x)
    tl.store(out_ptr + places, out.to(out_ptr.dtype.element_ty), live)


@triton.jit
def value_and_slope(x, FUNCTION: tl.constexpr):
    if FUNCTION == "gelu":
        below = 0.5 + 0.5 * tl.math.erf(x * ROOT_HALF)
        value = x * below
        slope = below + x * DENSITY * tl.exp2(x * x * (-0.5 * LOG2E))
    elif FUNCTION == "tanh":
        value = 2.0 / (1.0 + tl.exp2(x * (-2.0 * LOG2E))) - 1.0
        slope = (1.0 - value) * (1.0 + value)
    else:
        s = 1.0 / (1.0 + tl.exp2(x * -LOG2E))
        if FUNCTION == "silu":
            value = x * s
            slope = s * (1.0 + x * (1.0 - s))
        else:
            value = s
            slope = s * (1.0 - s)
    return value, slope


@triton.jit(do_not_specialize=["unit_in", "unit_out"])
def d_input(
    x_ptr, d_out_ptr, d_x_ptr, size, unit_in, unit_out,
    BLOCK: tl.constexpr, BITS: tl.constexpr, FUNCTION: tl.constexpr,
):  # fmt: skip
    """Slope of the function between the lowest and the highest code and result, 0 elsewhere."""
    places = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    live = places < size
    x = tl.load(x_ptr + places, live, 0.0).to(tl.float32)
    d = tl.load(d_out_ptr + places, live, 0.0).to(tl.float32)
    value, slope = value_and_slope(x, FUNCTION)
    half = 1 << (BITS - 1)
    inside = (x >= -half * unit_in) & (x <= (half - 1) * unit_in)
    inside = inside & (value >= -half * unit_out) & (value <= (half - 1) * unit_out)
    tl.store(d_x_ptr + places, tl.where(inside, d * slope, 0.0).to(d_x_ptr.dtype.element_ty), live)


def _blocks(x: Tensor) -> tuple[tuple[int], dict]:
    row = table.BLOCKS["element"]
    return (triton.cdiv(x.numel(), row.BLOCK),), {"BLOCK": row.BLOCK, **table.options(row)}


def _empty(x: Tensor) -> Tensor:
    return torch.empty(x.shape, dtype=x.dtype, device=x.device)


@devices.operator("gptkernels::lut_activation")
def lut_activation_op(x: Tensor, entries: Tensor, function: str, fraction_in: int, fraction_out: int) -> Tensor:
    """Contiguous y; `function` is only for its gradient."""
    out = _empty(x)
    if x.numel():
        grid, options = _blocks(x)
        bits = entries.numel().bit_length() - 1
        by_table[grid](
            x.contiguous(), entries.contiguous(), out, x.numel(), 2.0**fraction_in, 2.0**-fraction_out, BITS=bits,
            **options,
        )  # fmt: skip
    return out


@devices.operator("gptkernels::pwl_activation")
def pwl_activation_op(x: Tensor, start: Tensor, rise: Tensor, function: str) -> Tensor:
    """Contiguous y."""
    out = _empty(x)
    if x.numel():
        grid, options = _blocks(x)
        by_lines[grid](
            x.contiguous(), start.contiguous(), rise.contiguous(), out, x.numel(), RISES=function in RISING, **options
        )
    return out


@devices.operator("gptkernels::fixed_point_backward")
def fixed_point_backward_op(
    x: Tensor, d_out: Tensor, function: str, bits: int, fraction_in: int, fraction_out: int
) -> Tensor:
    out = _empty(x)
    if x.numel():
        grid, options = _blocks(x)
        d_input[grid](
            x.contiguous(), d_out.contiguous(), out, x.numel(), 2.0**-fraction_in, 2.0**-fraction_out, BITS=bits,
            FUNCTION=function, **options,
        )  # fmt: skip
    return out


@lut_activation_op.register_fake
def _(x, entries, function, fraction_in, fraction_out):
    return x.new_empty(x.shape)


@pwl_activation_op.register_fake
def _(x, start, rise, function):
    return x.new_empty(x.shape)


@fixed_point_backward_op.register_fake
def _(x, d_out, function, bits, fraction_in, fraction_out):
    return x.new_empty(x.shape)


def _keep_lut(ctx, inputs, output):
    x, entries, function, fraction_in, fraction_out = inputs
    ctx.save_for_backward(x)
    ctx.settings = function, entries.numel().bit_length() - 1, fraction_in, fraction_out


def _keep_pwl(ctx, inputs, output):
    ctx.save_for_backward(inputs[0])
    ctx.settings = inputs[3], 16, 12, 12


def _lut_backward(ctx, d_out):
    return fixed_point_backward_op(ctx.saved_tensors[0], d_out, *ctx.settings), None, None, None, None


def _pwl_backward(ctx, d_out):
    return fixed_point_backward_op(ctx.saved_tensors[0], d_out, *ctx.settings), None, None, None


lut_activation_op.register_autograd(_lut_backward, setup_context=_keep_lut)
pwl_activation_op.register_autograd(_pwl_backward, setup_context=_keep_pwl)


def _check(x: Tensor, function: str) -> None:
    if function not in FUNCTIONS:
        raise ValueError(f"function {function!r} is none of {', '.join(FUNCTIONS)}")
    if x.dtype not in (torch.bfloat16, torch.float16, torch.float32):
        raise ValueError(f"{x.dtype} is none of bfloat16, float16, float32")


def lut_activation(x: Tensor, entries: Tensor, function: str, *, fraction_in: int, fraction_out: int) -> Tensor:
    """T[code of x] 2^-fraction_out in the type of x; `entries` integers of any type, int8 the quickest to look up."""
    _check(x, function)
    if entries.numel() & (entries.numel() - 1) or not 4 <= entries.numel() <= 1 << 16:
        raise ValueError(f"{entries.numel()} entries are no power of two of 4 to 65536")
    return lut_activation_op(x, entries, function, fraction_in, fraction_out)


def pwl_activation(x: Tensor, start: Tensor, rise: Tensor, function: str) -> Tensor:
    """16 lines of fraction 12 in the type of x; `start` and `rise` integers of any type, one a segment."""
    _check(x, function)
    if start.numel() != 16 or rise.numel() != 16:
        raise ValueError(f"{start.numel()} starts and {rise.numel()} rises are not 16 of each")
    return pwl_activation_op(x, start, rise, function)


def exp_lut(scores: Tensor, entries: Tensor, *, fraction_in: int) -> Tensor:
    """T[code of the scores] in their type, without a gradient; `entries` in floating point, 2^bits of them."""
    _check(scores, "sigmoid")
    return lut_activation_op(scores.detach(), entries, "sigmoid", fraction_in, 0)
