"""Energy per cycle of a mapped netlist, from toggles of its nets.

Counted: half C V2 of every net that toggles (input pins of the fan-out, and the load of an output), the internal energy
of the cells (liberty tables at the middle slew; a flip-flop once, whichever of its outputs are in use), and both edges
of the clock at every flip-flop. Not counted: wires, the clock tree, the drivers of the inputs.

The base is zero delay: a net toggles at most once a cycle. `glitch_factor` repeats some cycles with the delays of the
library and says how much more energy the hazards take.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from heapq import heappop, heappush

from gptcore.errors import RunError

from .boolean import to_python
from .liberty import Cell, Curve, Library
from .netlist import TRACED, Gate, Netlist, Register, Simulation

_GLITCH_GATES = 150_000  # gates times vectors of the simulation with delays: about a second of Python
_GLITCH_VECTORS = (24, 400)  # fewest, most


@dataclass(frozen=True)
class Prices:
    """Energy (J) of one toggle of each net; of the clock in a cycle; load (F) of each net."""

    toggle_j: list[float]
    clock_j: float
    load_f: list[float]


def prices(netlist: Netlist, library: Library, output_load_f: float) -> Prices:
    loads = [0.0] * netlist.nets
    toggle = [0.0] * netlist.nets
    clock = 0.0
    for part in _parts(netlist):
        cell = library.cells[part.cell]
        for name, n in part.inputs.items():
            pin = cell.pins[name]
            switching = _mean_at(pin.energy_j, 0.0)
            if cell.flipflop and name == _clock_pin(cell):
                clock += 2 * (pin.capacitance_f * library.voltage_v**2 / 2 + switching)
            else:
                loads[n] += pin.capacitance_f
                toggle[n] += switching
    for bits in netlist.outputs.values():
        for n in bits:
            loads[n] += output_load_f
    for gate in netlist.gates:
        pin = library.cells[gate.cell].pins[gate.pin]
        toggle[gate.output] += _mean_at(pin.energy_j, loads[gate.output])
    for register in netlist.registers:
        cell = library.cells[register.cell]
        name, n = next(iter(register.outputs.items()))
        energies = cell.pins[name].energy_j
        by_clock = energies.get(_clock_pin(cell))
        toggle[n] += by_clock.at(loads[n]) if by_clock else _mean_at(energies, loads[n])
    half = library.voltage_v**2 / 2
    return Prices([t + half * load for t, load in zip(toggle, loads, strict=True)], clock, loads)


def _parts(netlist: Netlist) -> list[Gate | Register]:
    """One of each cell instance: one with several outputs is several gates, which share their inputs."""
    parts: dict[int, Gate | Register] = {id(gate.inputs): gate for gate in netlist.gates}
    return [*parts.values(), *netlist.registers]


def _clock_pin(cell: Cell) -> str:
    assert cell.flipflop
    return cell.flipflop.clocked_on.strip("!() ")


def _mean_at(curves: dict[str, Curve], load: float) -> float:
    return sum(c.at(load) for c in curves.values()) / len(curves) if curves else 0.0


def energy_j(prices: Prices, toggles: Sequence[int], transitions: int) -> float:
    """Mean energy of a cycle, when the toggles were counted over so many transitions between cycles."""
    return prices.clock_j + sum(t * e for t, e in zip(toggles, prices.toggle_j, strict=True)) / max(transitions, 1)


def leakage_w(netlist: Netlist, library: Library) -> float:
    """Mean over input states, of all cells."""
    return sum(library.cells[part.cell].leakage_w for part in _parts(netlist))


def glitch_factor(netlist: Netlist, library: Library, prices: Prices, simulation: Simulation) -> float:
    """Energy with the delays of the library over energy at zero delay, on some cycles of the traced streams.

    Inputs change at once; registers follow the clock after their own delay; a pulse shorter than the delay of a gate
    does not pass it. RunError if a net does not settle where the zero-delay simulation has it.
    """
    steps = len(simulation.trace) - 1
    wanted = _GLITCH_GATES // max(len(netlist.gates), 1)
    wanted = min(max(wanted, _GLITCH_VECTORS[0]), _GLITCH_VECTORS[1], steps * TRACED)
    if wanted < 1 or not netlist.gates:
        return 1.0
    timed = _Timed(netlist, library, prices)
    plain = [0] * netlist.nets
    for i in range(wanted):
        at = i * steps * TRACED // wanted
        cycle, stream = at // TRACED, at % TRACED
        before = [v >> stream & 1 for v in simulation.trace[cycle]]
        after = [v >> stream & 1 for v in simulation.trace[cycle + 1]]
        for n, (a, b) in enumerate(zip(before, after, strict=True)):
            plain[n] += a != b
        timed.settle(before, after)
    return energy_j(prices, timed.toggles, wanted) / energy_j(prices, plain, wanted)


class _Timed:
    """Event-driven simulation of one transition after another, with inertial delays."""

    def __init__(self, netlist: Netlist, library: Library, prices: Prices):
        self.toggles = [0] * netlist.nets
        self.fanout: list[list[tuple[_Timing, float, float]]] = [[] for _ in range(netlist.nets)]
        functions: dict[tuple[str, str], Callable[..., int]] = {}
        self.driven = {gate.output for gate in netlist.gates}
        for gate in netlist.gates:
            cell = library.cells[gate.cell]
            pins = [name for name, pin in cell.pins.items() if pin.direction == "input" and name in gate.inputs]
            key = (gate.cell, gate.pin)
            if key not in functions:
                text = to_python(cell.pins[gate.pin].function or "", str, ones="1")
                functions[key] = eval(f"lambda {', '.join(pins)}: {text}")
            timing = _Timing(gate.output, [gate.inputs[name] for name in pins], functions[key])
            for name in pins:
                rise, fall = _delays(cell, gate, name, prices.load_f[gate.output])
                self.fanout[gate.inputs[name]].append((timing, rise, fall))
        self.sources = [0.0] * netlist.nets
        for register in netlist.registers:
            cell = library.cells[register.cell]
            for name, n in register.outputs.items():
                pin, clock = cell.pins[name], _clock_pin(cell)
                curves = [table[clock] for table in (pin.rise_s, pin.fall_s) if clock in table]
                self.sources[n] = sum(c.at(prices.load_f[n]) for c in curves) / max(len(curves), 1)

    def settle(self, before: list[int], after: list[int]) -> None:
        """From one steady state to the next; counts the toggles of all nets."""
        values = list(before)
        pending: dict[int, tuple[int, int]] = {}  # net -> (number of the event, value)
        events: list[tuple[float, int, int, int]] = []
        number = 0
        for n, (a, b) in enumerate(zip(before, after, strict=True)):
            if a != b and n not in self.driven:
                number += 1
                heappush(events, (self.sources[n], number, n, b))
                pending[n] = (number, b)
        while events:
            time, this, n, value = heappop(events)
            if pending.get(n, (0, 0))[0] != this:
                continue  # swallowed
            del pending[n]
            values[n] = value
            self.toggles[n] += 1
            for timing, rise, fall in self.fanout[n]:
                out = timing.output
                new = timing.function(*[values[i] for i in timing.inputs])
                waiting = pending.get(out)
                if waiting is not None:
                    if waiting[1] != new:
                        del pending[out]
                elif new != values[out]:
                    number += 1
                    heappush(events, (time + (rise if new else fall), number, out, new))
                    pending[out] = (number, new)
        if values != after:
            raise RunError("a simulation with delays did not settle in the state of the one without")


@dataclass(frozen=True)
class _Timing:
    output: int
    inputs: list[int]
    function: Callable[..., int]


def _delays(cell: Cell, gate: Gate, name: str, load: float) -> tuple[float, float]:
    pin = cell.pins[gate.pin]
    return tuple(  # type: ignore[return-value]
        max(table[name].at(load), 0.0) if name in table else 0.0 for table in (pin.rise_s, pin.fall_s)
    )
