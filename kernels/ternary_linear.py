"""Linear layers with ternary weights (BitNet b1.58, arXiv 2402.17764), four a byte: a quarter of a byte a weight moves.

int8 tokens are summed exactly in int32; tokens in floating point are too, with sums in fp32, at the price of making
every weight a number of its own. Scales, bias and rounding are those of `kernels.int8_linear`. The code of a weight is
that of the circuit (`quantised_reference`); 10, which `pack_ternary` never makes, is -2 here and 0 there.

The order of the weights in bytes makes planes of consecutive inputs. Tokens are addressed by plane, and copied first
unless K is a multiple of 64 (int8; 32 and 16 for wider ones) and their rows are as `int8_linear` wants them.

Not covered: gradients (inference), K of 1,048,576 and more, where the sum of a plane may
overflow.

Legend: M tokens, N outputs, K inputs, J = ceil(K / 4) bytes of a packed row.
"""

import torch
import torch.nn.functional as F
import triton
from torch import Tensor

from . import devices
from . import quantised_launch as table
from . import quantised_products as kernels
from .int8_linear import Epilogue, addressable, described, fixed_epilogue, in_parts, real_epilogue
from .quantised_reference import PLANES, pack_ternary, unpack_ternary

__all__ = ["pack_ternary", "ternary_linear", "ternary_linear_fixed", "unpack_ternary"]


def _planes(x: Tensor, J: int) -> tuple[Tensor, int, int]:
    """(tokens, from a token to the next, from a plane to the next) that tensor descriptors can address."""
    M, K = x.shape
    step = 16 // x.element_size()
    if K == PLANES * J and J % step == 0 and addressable(x):
        return x, x.stride(0), J
    width = -(-J // step) * step
    made = torch.zeros(M, PLANES, width, dtype=x.dtype, device=x.device)
    made[:, :, :J] = F.pad(x, (0, PLANES * J - K)).view(M, PLANES, J)
    return made, PLANES * width, width


@devices.operator("gptkernels::ternary_linear")
def ternary_linear_op(
    x: Tensor, packed: Tensor, token: Tensor | None, scale: Tensor | None, bias: Tensor | None, shift: Tensor | None,
    mode: str, dtype: torch.dtype, step: float, splits: int,
) -> Tensor:  # fmt: skip
    """(M, N) from (M, K) and (N, J); 0 splits: as many as fill the device."""
    M, (N, J) = x.shape[0], packed.shape
    if M == 0 or N == 0:
        return torch.empty(M, N, dtype=dtype, device=x.device)
    devices.use_descriptors(x)
    packed, (tokens, x_s, x_p) = described(packed), _planes(x, J)
    many, integers = M > table.FEW, x.dtype == torch.int8
    op = "ternary int8" if many else "ternary int8 decode"
    row = table.product_row(x, op if integers else f"ternary {x.element_size()}-byte")
    tile = {"BM": row.BM, "BN": row.BN, "BK": row.BK, **table.options(row)}

    def decode(grid, out, end: Epilogue, each: int) -> None:
        pointers, numbers = end.arguments()
        kernels.ternary_decode[grid](
            tokens, packed, out, *pointers, x_s, x_p, packed.stride(0), M, N, J, each, *numbers, MODE=end.mode, **tile
        )

    def whole(grid, out, end: Epilogue, each: int) -> None:
        pointers, numbers = end.arguments()
        rest = (*pointers, x_s, x_p, packed.stride(0), M, N, J, *numbers)
        if not integers:
            kernels.ternary_wide[grid](tokens, packed, out, *rest, MODE=end.mode, **tile)
            return
        added, block = torch.empty(M, dtype=torch.int32, device=x.device), table.BLOCKS["row sums"]
        kernels.twice_sums[(M,)](tokens, added, x_s, x_p, J, BLOCK=block.BLOCK, **table.options(block))
        kernels.ternary_product[grid](tokens, packed, out, added, *rest, MODE=end.mode, **tile)

    end = Epilogue(token, scale, bias, shift, mode, dtype, step)
    if many or not integers:
        return in_parts(x, M, N, J, row, 1, end, whole)
    return in_parts(x, M, N, J, row, splits, end, decode)


@ternary_linear_op.register_fake
def _(x, packed, token, scale, bias, shift, mode, dtype, step, splits):
    return x.new_empty((x.shape[0], packed.shape[0]), dtype=dtype)


def _checked(x: Tensor, packed_NJ: Tensor, K: int) -> Tensor:
    if packed_NJ.dtype != torch.uint8 or packed_NJ.shape[-1] != triton.cdiv(K, PLANES):
        raise ValueError(f"{packed_NJ.dtype} rows of {packed_NJ.shape[-1]} are no packed weights of {K} inputs")
    if x.shape[-1] != K or K == 0:
        raise ValueError(f"tokens of {x.shape[-1]} inputs, weights of {K}")
    if x.dtype not in (torch.int8, torch.bfloat16, torch.float16, torch.float32):
        raise ValueError(f"tokens in {x.dtype}")
    return x.reshape(-1, K)


def ternary_linear(
    x: Tensor, packed_NJ: Tensor, K: int, scale: Tensor | float | None = None, bias_N: Tensor | None = None, *,
    x_scale: Tensor | float | None = None, out: str = "bf16", out_scale: float | None = None, splits: int = 0,
) -> Tensor:  # fmt: skip
    """(..., N) of (..., K), int8 or floating point; `scale` is one number or one an output, x_scale one or one a token.

    int32 comes out of int8 tokens only. `splits` are of few int8 tokens.
    """
    flat, N = _checked(x, packed_NJ, K), packed_NJ.shape[0]
    if out == "int32" and x.dtype != torch.int8:
        raise ValueError(f"sums in int32 of tokens in {x.dtype}")
    end = real_epilogue(x, flat.shape[0], N, x_scale, scale, bias_N, out, out_scale)
    return ternary_linear_op(flat, packed_NJ, *end, splits).view(*x.shape[:-1], N)


def ternary_linear_fixed(
    x: Tensor, packed_NJ: Tensor, K: int, factor_N: Tensor, shift_N: Tensor, bias_N: Tensor | None = None, *,
    splits: int = 0,
) -> Tensor:  # fmt: skip
    """int8 (..., N) of int8 (..., K), requantised as `int8_linear_fixed`."""
    flat, N = _checked(x, packed_NJ, K), packed_NJ.shape[0]
    if x.dtype != torch.int8:
        raise ValueError(f"tokens in {x.dtype}: only sums of integers are requantised by integers")
    end = fixed_epilogue(N, factor_N, shift_N, bias_N)
    return ternary_linear_op(flat, packed_NJ, *end, splits).view(*x.shape[:-1], N)
