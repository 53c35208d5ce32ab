"""What an operator beside attention is to the GPU checks: tensors, our kernel, definition, baselines, work.

Whatever the point, a form is a function of the tensors by name, and returns a tensor or several. Tensors named in
`rows`, and all results that are no scalars, belong to rows (of rotary, to sequences), so that big ones are checked a
part at a time; gradients of the others are sums over the parts, and so is a loss.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from kernels.roofline import Work

from .block_plan import BlockPoint
from .contestants import DTYPES, compiled

Form = Callable[..., Tensor | tuple[Tensor, ...]]
Named = dict[str, Tensor]


class Draw:
    """Random tensors of a point."""

    def __init__(self, point: BlockPoint, seed: int, device: str):
        self.generator = torch.Generator(device).manual_seed(seed)
        self.device, self.dtype = device, DTYPES[point.dtype]

    def normal(self, *size: int, scale: float = 1.0, dtype: torch.dtype | None = None) -> Tensor:
        x = torch.randn(size, generator=self.generator, device=self.device, dtype=dtype or self.dtype)
        return x if scale == 1.0 else x.mul_(scale)

    def integers(self, low: int, high: int, *size: int, dtype: torch.dtype = torch.int8) -> Tensor:
        return torch.randint(low, high, size, generator=self.generator, device=self.device, dtype=dtype)


@dataclass(frozen=True)
class Operator:
    tensors: Callable[[BlockPoint, Draw], Named]
    own: Callable[[BlockPoint, str], Form]  # flag of the contestant
    reference: Callable[[BlockPoint], Form]
    work: Callable[[BlockPoint, str], Work]  # forward or backward; both where no backward pass stands alone
    rows: tuple[str, ...]
    width: Callable[[BlockPoint], int]  # elements of a row in the widest tensor
    held: tuple[str, ...] = ()  # no gradient is asked of these
    exact: bool = False  # results equal the definition bit for bit
    sums: bool = False  # of integers: the definition goes to a CPU by itself, after the product
    writes: bool = False  # may write to what it is given
    baselines: Mapping[str, Callable[[BlockPoint, Named], Form]] = field(default_factory=dict)


def size_of(point: BlockPoint) -> int:
    return DTYPES[point.dtype].itemsize


def by_compile(reference: Callable[[BlockPoint], Form]) -> dict[str, Callable[[BlockPoint, Named], Form]]:
    return {"compile": lambda point, named: compiled(reference(point), point.mode == "backward")}


def given(named: Mapping[str, Tensor | None]) -> Named:
    return {n: x for n, x in named.items() if x is not None}
