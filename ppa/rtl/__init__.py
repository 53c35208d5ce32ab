"""Operators in SystemVerilog, each with a bit-accurate model beside it: `<module>.sv` and `<module>.py`.

An operator is one module at one set of parameters. Its model says, cycle by cycle, exactly what the outputs are; the
gate-level netlist is held against it, and so is what `gptcore` computes in training. Conventions of all of them:

    clk, rst      ports of clocked modules only; rst is synchronous and active high. Models begin after a reset
    step          outputs in this cycle as a function of the state and of the inputs in this cycle; then the clock ticks
    values        bit patterns, as non-negative int64 arrays with one element a stream: a stream is an independent copy
                  of the operator, and all of them run side by side
    tables        read-only memories are modules that the model generates (`generated`), so that both hold one truth
"""

import importlib
import pkgutil
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from .trace import Trace

FOLDER = Path(__file__).parent
Streams = dict[str, np.ndarray]


class Unit(NamedTuple):
    """What a point of an operator is in a model: the unit of some kinds of a slot, for operands of so many bits.

    `passes` are the cycles that an element takes, one for each time that the unit sees it.
    """

    slot: str
    kinds: tuple[str, ...]
    bits: int
    passes: float = 1


class Operator:
    """Base of every operator. A subclass sets `module`, `points` and `clocked`, and defines ports and `step`."""

    module: ClassVar[str]  # top module, in the file of that name
    points: ClassVar[Mapping[str, Mapping[str, Any]]]  # name in the calibration -> parameters of the model
    clocked: ClassVar[bool] = False
    implements: ClassVar[Mapping[str, Unit]] = {}  # points that are the unit of some kind, by name

    def __init__(self, **parameters: Any):
        self.parameters = parameters

    def verilog_parameters(self) -> dict[str, int]:
        """Parameters of the SystemVerilog module."""
        return {name: value for name, value in self.parameters.items() if isinstance(value, int)}

    def generated(self) -> str:
        """SystemVerilog of the tables of this point; empty where there are none."""
        return ""

    def inputs(self) -> dict[str, int]:
        """Width of every input port but clk and rst."""
        raise NotImplementedError

    def outputs(self) -> dict[str, int]:
        """Width of every output port."""
        raise NotImplementedError

    def reset(self, streams: int) -> None:
        """State after a reset, for so many streams."""

    def step(self, x: Streams) -> Streams:
        """Outputs of one cycle; then the clock ticks."""
        raise NotImplementedError

    def stimulus(self, rng: np.random.Generator, streams: int, cycle: int) -> Streams:
        """Inputs of one cycle for energy and equivalence: all bits random, unless the operator has a protocol."""
        return {
            name: rng.integers(0, 1 << width, streams, dtype=np.int64)
            if width < 63
            else rng.integers(0, 1 << 62, streams)
            for name, width in self.inputs().items()
        }

    def replay(self, trace: "Trace", streams: int) -> Iterator[Streams] | None:
        """Inputs of one cycle after another as they come in a trained model; None where a trace has nothing to say."""
        return None


_operators: dict[str, tuple[type[Operator], Mapping[str, Any]]] = {}


def register(cls: type[Operator]) -> type[Operator]:
    """Class decorator: makes every point of an operator known by its name."""
    for name, parameters in cls.points.items():
        if name in _operators:
            raise ValueError(f"operator {name!r} is registered twice: {_operators[name][0]} and {cls}")
        _operators[name] = (cls, parameters)
    return cls


@cache
def _discover() -> None:
    for found in pkgutil.iter_modules([str(FOLDER)]):
        importlib.import_module(f"{__name__}.{found.name}")


def names() -> list[str]:
    """Every operator that is calibrated, sorted."""
    _discover()
    return sorted(_operators)


def units() -> Iterator[tuple[str, Unit]]:
    """(operator, what it is the unit of), for every point that is one."""
    _discover()
    for cls, _ in dict.fromkeys((cls, "") for cls, _ in _operators.values()):
        yield from cls.implements.items()


def make(name: str) -> Operator:
    """A fresh operator of that name. KeyError where there is none."""
    _discover()
    cls, parameters = _operators[name]
    return cls(**parameters)
