"""What the worker times, behind one interface: attention, the other operators, a whole training step."""

from collections.abc import Callable
from typing import Protocol

from kernels.roofline import Work

from . import block_checks, block_ops, checks, contestants, work
from .block_plan import BlockPoint
from .parts import AnyPoint
from .plan import Point, kernel_name, split_contestant


class Subject(Protocol):
    """Tensors of one point, and its contestants."""

    def __init__(self, point, seed: int, device: str, multiprocessors: int): ...

    def kernel(self, contestant: str) -> str:
        """What a red check of this contestant would be called."""

    def gate(self, contestant: str) -> tuple[float, float]:
        """(error, allowed) of our contestant on these very tensors."""

    def run(self, contestant: str) -> Callable[[], object]:
        """What is timed; `Absent` says why there is none."""

    def work(self, contestant: str) -> Work: ...

    def facts(self, contestant: str) -> dict:
        """Further fields of its row, found after it was timed."""


class Attention:
    def __init__(self, point: Point, seed: int, device: str, multiprocessors: int):
        self.point, self.multiprocessors = point, multiprocessors
        self.everything = contestants.new_tensors(point, "consmax", seed, device)

    def kernel(self, contestant: str) -> str:
        p = self.point
        return kernel_name(split_contestant(contestant)[1], max(p.D, p.E), p.variant, p.dtype)

    def gate(self, contestant: str) -> tuple[float, float]:
        splits = self.point.splits or contestants.decode_splits(self.point, self.multiprocessors)
        return checks.gate(self.point, contestant, self._named(contestant), splits)

    def run(self, contestant: str) -> Callable[[], object]:
        call = contestants.function(self.point, contestant, self.multiprocessors)
        return contestants.callable_of(call, self.point, self._named(contestant), contestant)

    def work(self, contestant: str) -> Work:
        return work.of(self.point, contestant, contestants.DTYPES[self.point.dtype].itemsize)

    def facts(self, contestant: str) -> dict:
        return {}

    def _named(self, contestant: str) -> dict:
        return contestants.of_kind(self.everything, split_contestant(contestant)[1])


class Block:
    def __init__(self, point: BlockPoint, seed: int, device: str, multiprocessors: int):
        self.point = point
        self.named = block_checks.new_tensors(point, seed, device)

    def kernel(self, contestant: str) -> str:
        return self.point.kernel

    def gate(self, contestant: str) -> tuple[float, float]:
        return block_checks.gate(self.point, contestant, self.named)[:2]

    def run(self, contestant: str) -> Callable[[], object]:
        provider = split_contestant(contestant)[0]
        if provider == "triton":
            point, call = block_checks.own(self.point, contestant)
        else:
            baselines = block_ops.OPERATORS[self.point.op].baselines
            if provider not in baselines:
                raise contestants.Absent(f"no {provider} of {self.point.op}")
            point, call = self.point, baselines[provider](self.point, self.named)
        return block_checks.runnable(point, call, self.named)

    def work(self, contestant: str) -> Work:
        return block_ops.work_of(self.point)

    def facts(self, contestant: str) -> dict:
        return {}


def subject_of(point: AnyPoint) -> type[Subject]:
    if isinstance(point, Point):
        return Attention
    if point.op != "step":
        return Block
    from .block_step import Step  # imports the model

    return Step
