"""Activations as a circuit of integers computes them: a code comes in, an integer of steps goes out.

    code    c = clamp(round(x 2^fraction_in), -2^(bits-1), 2^(bits-1) - 1), ties to even
    result  steps(c) 2^-fraction_out, exact in fp32; a narrower model rounds it once more

The gradient is that of the function itself (straight-through, arXiv 1308.3432), and none beyond the last code or where
the result saturates.
"""

import torch
from torch import Tensor

from ..kernel_choice import Kernelled, Part
from ..ops import Graph, Role
from ..ops import Tensor as OpTensor
from ..precision import wide
from ..quantize import straight_through
from ..registry import KindConfig, build, lookup
from . import Activation
from .tables import table_index


def steps_of(function: Activation, x: Tensor, fraction: int) -> Tensor:
    """The function of float64 points as whole steps of 2^-fraction, ties to even."""
    return torch.round(function(x.double()) * 2**fraction).int()


class FixedPoint(Kernelled, Activation):
    """Base of the kinds in integers: a kind sets `bits` of code and result, and defines `steps` and `by_kernel`."""

    part: Part = "rounding"
    bits: int

    def __init__(self, config: KindConfig, *, function: str, fraction_in: int, fraction_out: int):
        super().__init__(config)
        self.fraction_in, self.fraction_out = fraction_in, fraction_out
        self.function: Activation = build(lookup("activation", function).Config()).eval()

    def steps(self, code: Tensor) -> Tensor:
        """Result of int64 codes, in steps of 2^-fraction_out."""
        raise NotImplementedError

    def by_kernel(self, x: Tensor) -> Tensor:
        """`forward` in one kernel."""
        raise NotImplementedError

    def kernel_obstacle(self, dropout: float = 0.0) -> str | None:
        return None

    def forward(self, x: Tensor) -> Tensor:
        if self.runs_kernel(x):
            return self.by_kernel(x)
        x32, half = wide(x), 1 << (self.bits - 1)
        code = table_index(torch.round(x32 * 2**self.fraction_in) + half, 2 * half) - half
        result = self.steps(code).to(x32.dtype) * 2.0**-self.fraction_out
        unit_in, unit_out = 2.0**-self.fraction_in, 2.0**-self.fraction_out
        exact = self.function(x32.clamp(-half * unit_in, (half - 1) * unit_in))
        return straight_through(exact.clamp(-half * unit_out, (half - 1) * unit_out), result).to(x.dtype)

    @classmethod
    def declare(cls, config: KindConfig, g: Graph, x: OpTensor, role: Role = "activation") -> OpTensor:
        bits = cls.bits if g.run.stage != "train" else None  # training keeps wide values
        return g.pointwise("activation", x, role=role, bits=bits, **cls.per_element(config))
