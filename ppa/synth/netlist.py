"""Simulation of a mapped netlist: one Python function over ints, one bit a stream, held against the model.

Every output is compared in every cycle. Registers hold random bits before the reset, so that an operator that reads
what was never written is found out. The reset lasts some cycles, in which all inputs are 0: a pipeline without resets
on its data fills with what follows from 0.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from itertools import repeat
from operator import and_, xor
from typing import Any

import numpy as np

from gptcore.errors import RunError

from ..rtl import Operator, Streams
from .boolean import to_python
from .liberty import Cell, Library

STREAMS = 256
CYCLES = 128
EXHAUSTIVE_BITS = 16
RESET_CYCLES = 4
TRACED = 8  # streams whose nets a simulation keeps


@dataclass(frozen=True)
class Gate:
    """One output of one cell instance. Nets are indices; constants are the nets 0 and 1."""

    cell: str
    pin: str
    output: int
    inputs: dict[str, int]


@dataclass(frozen=True)
class Register:
    cell: str
    outputs: dict[str, int]  # pin -> net, connected ones
    inputs: dict[str, int]


@dataclass
class Netlist:
    """Gates in an order in which every input is known; `cycle(inputs, states, ones)` -> (every net, next states)."""

    inputs: dict[str, list[int]]
    outputs: dict[str, list[int]]
    gates: list[Gate]
    registers: list[Register]
    nets: int
    cycle: Callable[[list[int], list[int], int], tuple[list[int], list[int]]]


@dataclass
class Simulation:
    """Vectors compared, and how many of them differ in some output; toggles of every net over `cycles` x `streams`."""

    vectors: int
    mismatches: int
    first: str  # where the first difference is, empty if there is none
    exhaustive: bool = False
    toggles: list[int] = field(default_factory=list)
    transitions: int = 0  # pairs of successive cycles in which toggles were counted, over all streams
    trace: list[list[int]] = field(default_factory=list)  # of the first TRACED streams, every net in every cycle


def compile_netlist(netlist: Mapping[str, Any], library: Library) -> Netlist:
    """Of the mapped top module as yosys writes it (ports, cells). RunError for what cannot be simulated."""
    number: dict[Any, int] = {"0": 0, "1": 1, "x": 0}

    def net(bit: Any) -> int:
        return number.setdefault(bit, max(len(number) - 1, 2))

    ports: dict[str, dict[str, list[int]]] = {"input": {}, "output": {}}
    for name, port in netlist["ports"].items():
        ports[port["direction"]][name] = [net(bit) for bit in port["bits"]]
    clock = ports["input"].pop("clk", [-1])[0]
    gates, registers = [], []
    for name, instance in netlist["cells"].items():
        cell = library.cells.get(instance["type"])
        if cell is None or not cell.usable:
            raise RunError(f"{name} is a {instance['type']}, which {library.name} lacks or which cannot be simulated")
        pins = {pin: net(bits[0]) for pin, bits in instance["connections"].items() if bits and bits[0] != "z"}
        outputs = {pin: pins[pin] for pin in cell.outputs() if pin in pins}
        inputs = {pin: n for pin, n in pins.items() if pin not in outputs}
        if cell.flipflop:
            registers.append(Register(instance["type"], outputs, inputs))
        else:
            gates += [Gate(instance["type"], pin, n, inputs) for pin, n in outputs.items()]
    known = {0, 1, clock} | {n for bits in ports["input"].values() for n in bits}
    known |= {n for register in registers for n in register.outputs.values()}
    gates = _ordered(gates, known)
    needed = {n for bits in ports["output"].values() for n in bits}
    needed |= {n for register in registers for n in register.inputs.values()}
    if needed - known - {gate.output for gate in gates}:
        raise RunError("an output or the input of a register is driven by nobody")
    source = _source(ports["input"], gates, registers, clock, library, len(number) - 1)
    scope: dict[str, Any] = {}
    exec(compile(source, "<netlist>", "exec"), scope)
    return Netlist(ports["input"], ports["output"], gates, registers, max(len(number) - 1, 2), scope["cycle"])


def _ordered(gates: list[Gate], known: set[int]) -> list[Gate]:
    waiting: dict[int, list[int]] = {}
    missing = []
    for i, gate in enumerate(gates):
        unknown = set(gate.inputs.values()) - known
        missing.append(len(unknown))
        for n in unknown:
            waiting.setdefault(n, []).append(i)
    ready = [i for i, n in enumerate(missing) if n == 0]
    order = []
    while ready:
        gate = gates[ready.pop()]
        order.append(gate)
        for i in waiting.pop(gate.output, ()):
            missing[i] -= 1
            if missing[i] == 0:
                ready.append(i)
    if len(order) < len(gates):
        raise RunError(f"{len(gates) - len(order)} gates are in a combinational loop or have an input nobody drives")
    return order


def _source(
    inputs: dict[str, list[int]], gates: list[Gate], registers: list[Register], clock: int, library: Library, nets: int
) -> str:
    lines = ["def cycle(inputs, states, M):", " n0, n1 = 0, M"]
    bits = [n for port in inputs.values() for n in port]
    if bits:
        lines.append(f" [{', '.join(f'n{n}' for n in bits)}] = inputs")
    if clock >= 0:
        lines.append(f" n{clock} = 0")
    following = []
    for i, register in enumerate(registers):
        cell = library.cells[register.cell]
        _check_clock(register, cell, clock)
        lines.append(f" s{i} = states[{i}]")
        for pin, n in register.outputs.items():
            lines.append(f" n{n} = {_function(cell, pin, register.inputs, f's{i}')}")
        assert cell.flipflop
        following.append(_expression(cell.flipflop.next_state, cell, register.inputs, f"s{i}"))
    for gate in gates:
        lines.append(f" n{gate.output} = {_function(library.cells[gate.cell], gate.pin, gate.inputs)}")
    lines.append(f" return [{', '.join(f'n{n}' for n in range(max(nets, 2)))}], [{', '.join(following)}]")
    return "\n".join(lines)


def _check_clock(register: Register, cell: Cell, clock: int) -> None:
    """All registers tick with the rising edge of clk, and no asynchronous clear or preset is in use."""
    flipflop = cell.flipflop
    assert flipflop
    pin = flipflop.clocked_on.strip("() ")
    if register.inputs.get(pin) != clock:
        raise RunError(f"a {register.cell} is not clocked by the rising edge of clk ({flipflop.clocked_on})")
    for function in (flipflop.clear, flipflop.preset):
        if function is None:
            continue
        active = _expression(function, cell, register.inputs, "0")
        try:
            value = eval(active, {"M": 1, "n0": 0, "n1": 1})
        except NameError:
            value = 1
        if value:
            raise RunError(f"a {register.cell} uses its asynchronous input ({function})")


def _function(cell: Cell, pin: str, inputs: Mapping[str, int], state: str = "") -> str:
    function = cell.pins[pin].function
    if function is None:
        raise RunError(f"output {pin} of a cell has no function")
    return _expression(function, cell, inputs, state)


def _expression(function: str, cell: Cell, inputs: Mapping[str, int], state: str) -> str:
    def spell(name: str) -> str:
        if cell.flipflop and name == cell.flipflop.state:
            return state
        if cell.flipflop and name == cell.flipflop.inverse:
            return f"(M ^ {state})"
        if name not in inputs:
            raise RunError(f"the function {function!r} of a cell needs a pin {name}, which is not connected")
        return f"n{inputs[name]}"

    return to_python(function, spell)


def run(
    netlist: Netlist,
    operator: Operator,
    *,
    streams: int = STREAMS,
    cycles: int | None = None,
    seed: int = 0,
    replay: Iterable[Streams] | None = None,
) -> Simulation:
    """Drives netlist and model side by side, and compares every output in every cycle.

    128 cycles, unless the operator has a number of its own (`cycles`), because its protocol is longer.
    Combinational operators with at most 16 input bits are also compared on every input there is.
    `replay` gives inputs cycle after cycle, in place of those of the operator.
    """
    _check_ports(netlist, operator)
    count: int = getattr(operator, "cycles", CYCLES) if cycles is None else cycles
    rng = np.random.default_rng(seed)
    ones = (1 << streams) - 1
    states = [int.from_bytes(rng.bytes(streams // 8 + 1), "little") & ones for _ in netlist.registers]
    if operator.clocked:
        zeros = {name: np.zeros(streams, np.int64) for name in operator.inputs()}
        held = _packed(netlist, operator, zeros, ones, reset=True)
        for _ in range(RESET_CYCLES):
            states = netlist.cycle(held, states, ones)[1]
    operator.reset(streams)
    result = Simulation(0, 0, "", toggles=[0] * netlist.nets)
    kept = (1 << TRACED) - 1
    last = None
    given = (operator.stimulus(rng, streams, cycle) for cycle in range(count)) if replay is None else replay
    for cycle, x in enumerate(given):
        nets, states = netlist.cycle(_packed(netlist, operator, x, ones), states, ones)
        _compare(result, netlist, operator, x, nets, streams, f"cycle {cycle}")
        if last is not None:
            result.toggles = [t + d.bit_count() for t, d in zip(result.toggles, map(xor, nets, last), strict=True)]
            result.transitions += streams
        result.trace.append(list(map(and_, nets, repeat(kept))))
        last = nets
    widths = operator.inputs()
    if replay is None and not operator.clocked and sum(widths.values()) <= EXHAUSTIVE_BITS:
        _exhaustive(result, netlist, operator, widths)
    return result


def _exhaustive(result: Simulation, netlist: Netlist, operator: Operator, widths: dict[str, int]) -> None:
    streams = 1 << sum(widths.values())
    rest = np.arange(streams, dtype=np.int64)
    x = {}
    for name, width in widths.items():
        x[name] = rest & ((1 << width) - 1)
        rest = rest >> width
    ones = (1 << streams) - 1
    operator.reset(streams)
    nets, _ = netlist.cycle(_packed(netlist, operator, x, ones), [], ones)
    _compare(result, netlist, operator, x, nets, streams, "exhaustive")
    result.exhaustive = True


def _check_ports(netlist: Netlist, operator: Operator) -> None:
    widths = {name: len(bits) for name, bits in netlist.inputs.items() if not (operator.clocked and name == "rst")}
    for what, declared, found in (
        ("inputs", operator.inputs(), widths),
        ("outputs", operator.outputs(), {name: len(bits) for name, bits in netlist.outputs.items()}),
    ):
        if declared != found:
            raise RunError(f"{operator.module}: the model has the {what} {declared}, the netlist {found}")
    if bool(netlist.registers) > operator.clocked:
        raise RunError(f"{operator.module}: the netlist has flip-flops, and the model is not clocked")


def _packed(netlist: Netlist, operator: Operator, x: Streams, ones: int, reset: bool = False) -> list[int]:
    """Input bits in the order of the netlist."""
    bits = []
    for name, nets in netlist.inputs.items():
        if operator.clocked and name == "rst":
            bits.append(ones if reset else 0)
        else:
            bits += pack(x[name], len(nets), f"input {name} of {operator.module}")
    return bits


def pack(values: np.ndarray, width: int, what: str) -> list[int]:
    """One int a bit of the values, whose bit s is that of stream s. RunError for values that do not fit."""
    values = np.asarray(values)
    if values.dtype.kind not in "iub":
        raise RunError(f"{what} is {values.dtype}, not integer")
    if (values < 0).any() or (width < 63 and (values >> width).any()):
        raise RunError(f"{what} does not fit {width} bits: {values.min()} to {values.max()}")
    shifts = np.minimum(np.arange(width), 63)  # int64 values are below 2^63
    rows = np.packbits((values[None, :] >> shifts[:, None]) & 1 != 0, axis=1, bitorder="little")
    return [int.from_bytes(row.tobytes(), "little") for row in rows]


def _compare(
    result: Simulation, netlist: Netlist, operator: Operator, x: Streams, nets: list[int], streams: int, when: str
) -> None:
    expected = operator.step(x)
    wrong = 0
    for name, bits in netlist.outputs.items():
        difference = 0
        wanted = pack(expected[name], len(bits), f"output {name} of {operator.module}")
        for n, want in zip(bits, wanted, strict=True):
            difference |= nets[n] ^ want
        if difference and not result.first:
            stream = (difference & -difference).bit_length() - 1
            got = sum((nets[n] >> stream & 1) << i for i, n in enumerate(bits))
            given = ", ".join(f"{k}={int(v[stream]):#x}" for k, v in x.items())
            result.first = (
                f"{when}, stream {stream}: {name} is {got:#x}, the model says {int(expected[name][stream]):#x}; {given}"
            )
        wrong |= difference
    result.vectors += streams
    result.mismatches += wrong.bit_count()
