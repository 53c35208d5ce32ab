"""The operators beside attention by name."""

from kernels.roofline import Work

from . import block_dense, block_losses, block_quantised
from .block_forms import Operator
from .block_plan import BlockPoint

OPERATORS: dict[str, Operator] = block_dense.OPERATORS | block_losses.OPERATORS | block_quantised.OPERATORS


def work_of(point: BlockPoint) -> Work:
    """Of what is timed."""
    operator = OPERATORS[point.op]
    if point.mode != "both" or point.op.endswith("cross_entropy"):
        return operator.work(point, point.mode)
    passes = [operator.work(point, direction) for direction in ("forward", "backward")]
    return Work(*(sum(getattr(w, n) for w in passes) for n in ("flops", "bytes", "exponentials")))
