"""What a launcher asks of the device of its tensors.

Off a GPU, in Triton's interpreter, the answers are those of one Hopper multiprocessor.
"""

import torch
import triton
from torch import Tensor


def capability(x: Tensor) -> int:
    """E.g. 90."""
    if not x.is_cuda:
        return 90
    major, minor = torch.cuda.get_device_capability(x.device)
    return 10 * major + minor


def table_of(x: Tensor) -> int:
    """The architecture whose launch rows serve: 90, and 80 for what comes before, between and after."""
    return 90 if capability(x) == 90 else 80


def multiprocessors(x: Tensor) -> int:
    return torch.cuda.get_device_properties(x.device).multi_processor_count if x.is_cuda else 1


def use_descriptors(x: Tensor) -> None:
    """Tensor descriptors made in a kernel need memory."""
    if x.is_cuda:
        triton.set_allocator(_scratch)


def _scratch(size: int, alignment: int, stream: int | None) -> Tensor:
    return torch.empty(size, dtype=torch.int8, device="cuda")
