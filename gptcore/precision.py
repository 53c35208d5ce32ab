"""More digits than half precision has, where sums and exponentials need them."""

import torch
from torch import Tensor


def wide_type(dtype: torch.dtype) -> torch.dtype:
    """`dtype`, or fp32 where it has fewer digits."""
    return torch.promote_types(dtype, torch.float32)


def wide(x: Tensor) -> Tensor:
    """`x` in at least fp32."""
    return x.to(wide_type(x.dtype))
