"""What a launcher asks of the device of its tensors, and how its operators are registered.

Off a GPU, in Triton's interpreter, the answers are those of one Hopper multiprocessor.
"""

from collections.abc import Callable, Iterable
from functools import wraps
from typing import Any

import torch
import triton
from torch import Tensor


def operator(name: str, mutates_args: Iterable[str] = ()) -> Callable[[Callable], Any]:
    """`torch.library.custom_op` of a function whose first argument is a tensor, which runs on that tensor's device.

    Triton launches on the current device, whatever device the tensors are on, and torch makes no other one current for
    an operator of Python: on a second GPU kernels would read addresses of the first.
    """

    def register(function: Callable) -> Any:
        @wraps(function)
        def on_device(*args, **kwargs):
            with torch.cuda.device_of(next(iter((*args, *kwargs.values())))):
                return function(*args, **kwargs)

        return torch.library.custom_op(name, on_device, mutates_args=mutates_args)

    return register


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
    """On the current device, where the launch is: see `operator`."""
    return torch.empty(size, dtype=torch.int8, device="cuda")
