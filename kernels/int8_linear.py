"""Linear layers of int8 tokens and int8 weights: exact int32 sums, scales and rounding in the epilogue.

    int8_linear         scales of tokens and outputs, a bias; floating point, rounded int8, or the bare sums come out
    int8_linear_fixed   the requantiser of a circuit: integer factor and shift of an output, int8 comes out

`kernels.quantised_reference` is the definition, which the kernels equal bit for bit. Operands whose rows are not
contiguous, or no multiple of 16 bytes apart, are copied first: weights with K that is no multiple of 16 are best kept
in rows that are. With few tokens the inputs are split among programs, and a second kernel adds the parts.

Not covered: gradients (inference), zero points, K of 131,072 and more, where int32 may overflow.

Legend: M tokens, N outputs, K inputs.
"""

from typing import NamedTuple

import torch
import triton
from torch import Tensor

from . import devices
from . import quantised_launch as table
from . import quantised_products as kernels

TYPES = {
    "bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32, "int32": torch.int32, "int8": torch.int8,
}  # fmt: skip
FEWEST_TILES = 4  # of a split


class Epilogue(NamedTuple):
    """What happens to sums, as flat arguments of an operator."""

    token: Tensor | None
    scale: Tensor | None
    bias: Tensor | None
    shift: Tensor | None
    mode: str
    dtype: torch.dtype
    step: float

    def arguments(self) -> tuple:
        """Of a kernel: pointers, then the strides of the scales."""
        return (self.token, self.scale, self.bias, self.shift), (_stride(self.token), _stride(self.scale), self.step)


def _stride(scale: Tensor | None) -> int:
    return int(scale is not None and scale.numel() > 1)


def real_epilogue(x: Tensor, M: int, N: int, x_scale, w_scale, bias, out: str, out_scale: float | None) -> Epilogue:
    """For scales that are numbers, or tensors of one element or one a token or output."""
    if out not in TYPES:
        raise ValueError(f"out {out!r} is none of {', '.join(TYPES)}")
    if (out == "int8") != (out_scale is not None):
        raise ValueError(f"out_scale {out_scale} with out {out!r}: it belongs to int8")
    if out == "int32" and not (x_scale is None and w_scale is None and bias is None):
        raise ValueError("sums in int32 have neither scales nor a bias")
    token, scale = _flat("x_scale", x_scale, M, x), _flat("w_scale", w_scale, N, x)
    mode = {"int32": "sums", "int8": "steps"}.get(out, "real")
    return Epilogue(token, scale, _whole("bias", bias, N), None, mode, TYPES[out], out_scale or 1.0)


def fixed_epilogue(N: int, factor: Tensor, shift: Tensor, bias: Tensor | None) -> Epilogue:
    factor, shift = factor.reshape(-1).contiguous(), shift.reshape(-1).contiguous()
    if factor.numel() not in (1, N) or factor.shape != shift.shape:
        raise ValueError(f"{factor.numel()} factors and {shift.numel()} shifts for {N} outputs")
    if factor.is_floating_point() or shift.is_floating_point() or (bias is not None and bias.is_floating_point()):
        raise ValueError("factors, shifts and the bias are integers")
    return Epilogue(None, factor, _whole("bias", bias, N), shift, "fixed", torch.int8, 1.0)


def _flat(name: str, scale: Tensor | float | None, count: int, like: Tensor) -> Tensor | None:
    if scale is None:
        return None
    if not isinstance(scale, Tensor):
        return torch.full((1,), scale, dtype=torch.float32, device=like.device)
    if scale.numel() not in (1, count):
        raise ValueError(f"{name} of {scale.numel()} elements is neither one nor {count}")
    return scale.reshape(-1).contiguous()


def _whole(name: str, x: Tensor | None, count: int) -> Tensor | None:
    if x is not None and x.shape != (count,):
        raise ValueError(f"{name} of shape {tuple(x.shape)} is not one of {count} outputs")
    return None if x is None else x.contiguous()


def addressable(x: Tensor) -> bool:
    """By a tensor descriptor."""
    step = x.stride(0) * x.element_size()
    return x.stride(-1) == 1 and step > 0 and step % 16 == 0 and x.data_ptr() % 16 == 0


def described(x: Tensor) -> Tensor:
    """`x`, or a copy that a tensor descriptor can address."""
    if addressable(x):
        return x
    rows, width = x.shape
    step = 16 // x.element_size()
    return torch.empty(rows, -(-width // step) * step, dtype=x.dtype, device=x.device)[:, :width].copy_(x)


def default_splits(x: Tensor, tiles: int, steps: int) -> int:
    """Two programs a multiprocessor, if each has enough to do."""
    wanted = triton.cdiv(2 * devices.multiprocessors(x), max(tiles, 1))
    return max(1, min(wanted, steps // FEWEST_TILES))


def in_parts(x: Tensor, M: int, N: int, width: int, row: table.Product, splits: int, end: Epilogue, kernel) -> Tensor:
    """Launches `kernel(grid, out, epilogue, tiles of a part)` over `splits` parts of `width`, and adds several up."""
    tiles = triton.cdiv(M, row.BM) * triton.cdiv(N, row.BN)
    steps = triton.cdiv(width, row.BK)
    splits = min(splits or default_splits(x, tiles, steps), steps)
    each = triton.cdiv(steps, splits)
    count = triton.cdiv(steps, each)
    out = torch.empty(M, N, dtype=end.dtype, device=x.device)
    if count == 1:
        kernel((tiles, 1), out, end, each)
        return out
    parts = torch.empty(count, M, N, dtype=torch.int32, device=x.device)
    kernel((tiles, count), parts, Epilogue(None, None, None, None, "sums", torch.int32, 1.0), each)
    block, (pointers, numbers) = table.BLOCKS["combine"], end.arguments()
    kernels.combine[(M, triton.cdiv(N, block.BLOCK))](
        parts, out, *pointers, M, N, count, *numbers, BLOCK=block.BLOCK, MODE=end.mode, **table.options(block)
    )
    return out


@devices.operator("gptkernels::int8_linear")
def int8_linear_op(
    x: Tensor, w: Tensor, token: Tensor | None, scale: Tensor | None, bias: Tensor | None, shift: Tensor | None,
    mode: str, dtype: torch.dtype, step: float, splits: int,
) -> Tensor:  # fmt: skip
    """(M, N) from (M, K) and (N, K); 0 splits: as many as fill the device."""
    (M, K), N = x.shape, w.shape[0]
    if M == 0 or N == 0:
        return torch.empty(M, N, dtype=dtype, device=x.device)
    devices.use_descriptors(x)
    x, w, few = described(x), described(w), M <= table.FEW
    row = table.product_row(x, "int8 decode" if few else "int8 rounded" if dtype == torch.int8 else "int8")

    def kernel(grid, out, end: Epilogue, each: int) -> None:
        pointers, numbers = end.arguments()
        kernels.int8_product[grid](
            x, w, out, *pointers, x.stride(0), w.stride(0), M, N, K, each, *numbers, BM=row.BM, BN=row.BN, BK=row.BK,
            TURNED=few, MODE=end.mode, **table.options(row),
        )  # fmt: skip

    end = Epilogue(token, scale, bias, shift, mode, dtype, step)
    return in_parts(x, M, N, K, row, splits or (0 if few else 1), end, kernel)


@int8_linear_op.register_fake
def _(x, w, token, scale, bias, shift, mode, dtype, step, splits):
    return x.new_empty((x.shape[0], w.shape[0]), dtype=dtype)


def _checked(x: Tensor, w_NK: Tensor) -> Tensor:
    if x.dtype != torch.int8 or w_NK.dtype != torch.int8:
        raise ValueError(f"{x.dtype} tokens and {w_NK.dtype} weights are not int8")
    if x.shape[-1] != w_NK.shape[-1] or x.shape[-1] == 0:
        raise ValueError(f"tokens of {x.shape[-1]} inputs, weights of {w_NK.shape[-1]}")
    return x.reshape(-1, x.shape[-1])


def int8_linear(
    x: Tensor, w_NK: Tensor, x_scale: Tensor | float | None = None, w_scale_N: Tensor | float | None = None,
    bias_N: Tensor | None = None, *, out: str = "bf16", out_scale: float | None = None, splits: int = 0,
) -> Tensor:  # fmt: skip
    """(..., N) of int8 (..., K). x_scale is one number or one a token; `out_scale` is the step of an int8 result.

    A scale that is a tensor costs no launch of its own.
    """
    flat, N = _checked(x, w_NK), w_NK.shape[0]
    end = real_epilogue(x, flat.shape[0], N, x_scale, w_scale_N, bias_N, out, out_scale)
    return int8_linear_op(flat, w_NK, *end, splits).view(*x.shape[:-1], N)


def int8_linear_fixed(
    x: Tensor, w_NK: Tensor, factor_N: Tensor, shift_N: Tensor, bias_N: Tensor | None = None, *, splits: int = 0
) -> Tensor:
    """int8 (..., N): integer factors of at most 16 bits and shifts of 0 .. 63, one or one an output; int32 bias."""
    flat, N = _checked(x, w_NK), w_NK.shape[0]
    return int8_linear_op(flat, w_NK, *fixed_epilogue(N, factor_N, shift_N, bias_N), splits).view(*x.shape[:-1], N)
