"""Gate-level simulation and energy, on netlists that are written here."""

import copy

import numpy as np
import pytest
import tiny_library

from gptcore.errors import RunError
from ppa.rtl import Operator
from ppa.synth import energy, netlist


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    return tiny_library.write(tmp_path_factory.mktemp("tiny"))[1]


def cell(kind, **pins):
    return {"type": kind, "connections": {name: [bit] for name, bit in pins.items()}}


def ports(inputs, outputs):
    sides = (("input", inputs), ("output", outputs))
    return {name: {"direction": side, "bits": bits} for side, group in sides for name, bits in group.items()}


class Xor(Operator):
    module = "xor"

    def inputs(self):
        return {"a": 1, "b": 1}

    def outputs(self):
        return {"y": 1}

    def step(self, x):
        return {"y": x["a"] ^ x["b"]}


XOR = {
    "ports": ports({"a": [2], "b": [3]}, {"y": [7]}),
    "cells": {
        "d": cell("NAND2", A=5, B=6, Y=7),  # written against the order of evaluation
        "b": cell("NAND2", A=2, B=4, Y=5),
        "c": cell("NAND2", A=3, B=4, Y=6),
        "a": cell("NAND2", A=2, B=3, Y=4),
    },
}


class Counter(Operator):
    """Two bits, counts while `on`; synchronous reset."""

    module = "counter"
    clocked = True

    def inputs(self):
        return {"on": 1}

    def outputs(self):
        return {"n": 2}

    def reset(self, streams):
        self.n = np.zeros(streams, np.int64)

    def step(self, x):
        out = {"n": self.n}
        self.n = (self.n + x["on"]) & 3
        return out


def counter():
    """n0 <= !rst & (n0 ^ on), n1 <= !rst & (n1 ^ (n0 & on)): nets 2 clk, 3 rst, 4 on, 5 n0, 6 n1."""
    cells = {"n0": cell("DFF", CK=2, D=20, Q=5), "n1": cell("DFF", CK=2, D=30, Q=6), "i": cell("INV", A=3, Y=7)}
    bit = 40

    def nand(a, b, out=None):
        nonlocal bit
        bit += 1
        cells[f"g{bit}"] = cell("NAND2", A=a, B=b, Y=out or bit)
        return out or bit

    def both(a, b, out=None):
        inner = nand(a, b)
        cells[f"i{inner}"] = cell("INV", A=inner, Y=out or inner + 100)
        return out or inner + 100

    def xor(a, b):
        inner = nand(a, b)
        return nand(nand(a, inner), nand(b, inner))

    both(7, xor(5, 4), 20)
    both(7, xor(6, both(5, 4)), 30)
    return {"ports": ports({"clk": [2], "rst": [3], "on": [4]}, {"n": [5, 6]}), "cells": cells}


def test_combinational_netlist_equals_its_model(library):
    result = netlist.run(netlist.compile_netlist(XOR, library), Xor())
    assert result.mismatches == 0 and result.exhaustive and result.vectors == 256 * 128 + 4


def test_registers_are_reset_and_count(library):
    result = netlist.run(netlist.compile_netlist(counter(), library), Counter())
    assert result.mismatches == 0 and not result.exhaustive and result.vectors == 256 * 128


@pytest.mark.parametrize("name", sorted(name for name in counter()["cells"] if name[0] in "gi"))
def test_every_swapped_gate_is_found(library, name):
    """Seeded faults: an inverter becomes a buffer, a NAND loses an input."""
    faulty = counter()
    gate = faulty["cells"][name]
    if gate["type"] == "INV":
        gate["type"] = "BUF"
    else:
        gate["connections"]["B"] = ["1"]
    result = netlist.run(netlist.compile_netlist(faulty, library), Counter())
    assert result.mismatches > 0 and "the model says" in result.first


def test_a_register_that_is_never_reset_is_found(library):
    faulty = counter()
    faulty["cells"]["i"]["connections"]["A"] = ["0"]
    result = netlist.run(netlist.compile_netlist(faulty, library), Counter())
    assert result.mismatches > 0 and "cycle 0" in result.first


def test_what_cannot_be_simulated_is_refused(library):
    def broken(change):
        design = copy.deepcopy(counter())
        change(design["cells"])
        return design

    for change, message in (
        (lambda cells: cells["n0"].update(type="$_DFF_P_"), "lacks"),
        (lambda cells: cells["n0"]["connections"].update(CK=[4]), "not clocked"),
        (lambda cells: cells["i"]["connections"].update(A=[99]), "input nobody drives"),
        (lambda cells: cells["g41"]["connections"].update(A=[44]), "combinational loop"),
    ):
        with pytest.raises(RunError, match=message):
            netlist.compile_netlist(broken(change), library)


def test_ports_and_widths_are_checked(library):
    class Wide(Xor):
        def outputs(self):
            return {"y": 2}

    class Negative(Xor):
        def step(self, x):
            return {"y": -x["a"]}

    compiled = netlist.compile_netlist(XOR, library)
    with pytest.raises(RunError, match="the model has the outputs {'y': 2}"):
        netlist.run(compiled, Wide())
    with pytest.raises(RunError, match="does not fit 1 bits"):
        netlist.run(compiled, Negative())


class Chain(Operator):
    """Three inverters; the input changes in every cycle of every stream."""

    module = "chain"

    def inputs(self):
        return {"a": 1}

    def outputs(self):
        return {"y": 1}

    def step(self, x):
        return {"y": 1 - x["a"]}

    def stimulus(self, rng, streams, cycle):
        return {"a": np.full(streams, cycle & 1)}


CHAIN = {
    "ports": ports({"a": [2]}, {"y": [5]}),
    "cells": {f"i{i}": cell("INV", A=2 + i, Y=3 + i) for i in range(3)},
}


def test_energy_of_a_chain_of_inverters(library):
    """Three pins of 2 fF and a load of 8 fF at 1/2 V2, and 3 fJ in each inverter: 7 + 9 = 16 fJ a cycle."""
    compiled = netlist.compile_netlist(CHAIN, library)
    simulation = netlist.run(compiled, Chain())
    prices = energy.prices(compiled, library, 8e-15)
    assert energy.energy_j(prices, simulation.toggles, simulation.transitions) == pytest.approx(16e-15)
    assert energy.leakage_w(compiled, library) == pytest.approx(0.3e-9)
    assert energy.glitch_factor(compiled, library, prices, simulation) == pytest.approx(1.0)


def test_energy_of_a_register(library):
    """A toggling flip-flop: data pin 1 + 1 fJ, output 10 fJ and 4 fJ of load, clock twice (5 + 0.5) fJ: 27 fJ."""

    class Delay(Chain):
        clocked = True

        def reset(self, streams):
            self.held = np.zeros(streams, np.int64)

        def step(self, x):
            out, self.held = {"y": self.held}, x["a"]
            return out

    design = {"ports": ports({"clk": [2], "a": [3]}, {"y": [4]}), "cells": {"r": cell("DFF", CK=2, D=3, Q=4)}}
    compiled = netlist.compile_netlist(design, library)
    simulation = netlist.run(compiled, Delay())
    assert simulation.mismatches == 0
    prices = energy.prices(compiled, library, 8e-15)
    toggling = energy.energy_j(prices, [t // max(t, 1) for t in simulation.toggles], 1)
    assert toggling == pytest.approx(27e-15) and prices.clock_j == pytest.approx(11e-15)


def glitching(inverters):
    """y = !(a & !...!a): constant but for a pulse as long as the chain takes, when a rises."""
    cells = {f"i{i}": cell("INV", A=2 if i == 0 else 10 + i, Y=11 + i) for i in range(inverters)}
    return {"ports": ports({"a": [2]}, {"y": [5]}), "cells": {**cells, "n": cell("NAND2", A=2, B=10 + inverters, Y=5)}}


class One(Chain):
    def step(self, x):
        return {"y": np.ones_like(x["a"])}


@pytest.mark.parametrize("inverters, load_f, pulse", [(5, 8e-15, True), (1, 8e-15, False), (1, 1e-15, True)])
def test_glitches_cost_energy_if_they_are_longer_than_the_gate_is_slow(library, inverters, load_f, pulse):
    """An inverter that drives one pin takes 20 ps; the NAND 10 ps + 5 ps/fF: 50 ps with 8 fF, 15 ps with 1 fF."""
    compiled = netlist.compile_netlist(glitching(inverters), library)
    simulation = netlist.run(compiled, One())
    prices = energy.prices(compiled, library, load_f)
    plain = (inverters + 2) * 1e-15 + inverters * 3e-15  # pins (the input drives two) and inverters, every cycle
    assert energy.energy_j(prices, simulation.toggles, simulation.transitions) == pytest.approx(plain)
    extra = 4e-15 + load_f / 2 if pulse else 0  # two toggles of y in every second cycle
    factor = energy.glitch_factor(compiled, library, prices, simulation)
    assert factor - 1 == pytest.approx(extra / plain, rel=0.05)  # 205 of the 400 sampled transitions rise: +2.5 %
