"""Quantised linear layers in plain torch with int64 sums, the truth for the kernels; packing of ternary weights.

    sums       acc = x W^T, exact
    real       (acc x_scale) w_scale + bias, in fp32, each operation rounded
    steps      clamp(round(real / out_scale), -128, 127), ties to even
    fixed      clamp(round((acc + bias) factor / 2^shift), -128, 127), ties to even, all integers: the requantiser
               behind an array of multipliers (arXiv 1712.05877)

A ternary weight is two bits, two's complement: 00 is 0, 01 is 1, 11 is -1. Byte j of a row holds in its bits 2 i and
2 i + 1 the weight of input i J + j, J = ceil(K / 4), 0 beyond the last input.

Legend: M tokens, N outputs, K inputs.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

PLANES = 4


def sums(x_MK: Tensor, w_NK: Tensor) -> Tensor:
    """int64; only int32 holds what a circuit and the kernels have."""
    return x_MK.long() @ w_NK.long().T


def real(acc_MN: Tensor, x_scale: Tensor | None, w_scale: Tensor | None, bias_N: Tensor | None) -> Tensor:
    out = acc_MN.float()
    if x_scale is not None:
        out = out * x_scale.float().view(-1, 1)
    if w_scale is not None:
        out = out * w_scale.float().view(1, -1)
    return out if bias_N is None else out + bias_N.float()


def steps(real_MN: Tensor, out_scale: float) -> Tensor:
    return torch.round(real_MN / out_scale).clamp(-128, 127).to(torch.int8)


def fixed(acc_MN: Tensor, factor_N: Tensor, shift_N: Tensor, bias_N: Tensor | None) -> Tensor:
    value = (acc_MN.long() + (0 if bias_N is None else bias_N.long())) * factor_N.long()
    shift = shift_N.long().clamp(max=62)
    kept = value >> shift
    rest, half = value - (kept << shift), (torch.ones_like(shift) << shift) >> 1
    up = (rest > half) | ((rest == half) & (half > 0) & (kept % 2 == 1))
    return (kept + up).clamp(-128, 127).to(torch.int8)


def pack_ternary(w_NK: Tensor) -> Tensor:
    """uint8 (N, ceil(K / 4)), rows 16 bytes apart or a multiple, from weights of any type that are -1, 0 or 1."""
    N, K = w_NK.shape
    codes = w_NK.to(torch.int8)
    if not torch.equal(codes.to(w_NK.dtype), w_NK) or bool(((codes < -1) | (codes > 1)).any()):
        raise ValueError("weights are not all -1, 0 or 1")
    J = -(-K // PLANES)
    planes = F.pad(codes, (0, PLANES * J - K)).view(N, PLANES, J).to(torch.uint8) & 3
    packed = torch.zeros(N, -(-J // 16) * 16, dtype=torch.uint8, device=w_NK.device)[:, :J]
    for i in range(PLANES):
        packed |= planes[:, i] << (2 * i)
    return packed


def unpack_ternary(packed_NJ: Tensor, K: int) -> Tensor:
    """int8 (N, K); 10, which no weight is packed as, is 0."""
    planes = torch.stack([(packed_NJ >> (2 * i)) & 3 for i in range(PLANES)], 1).flatten(1)[:, :K]
    one = (planes & 1).to(torch.int8)
    return torch.where(planes == 3, -one, one)
