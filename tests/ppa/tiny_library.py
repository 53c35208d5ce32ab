"""A cell library of four gates in liberty format, with figures that one can compute with by hand.

1 V; ns, fF, nW. A pin has 2 fF (the clock 1 fF); a transition costs an inverter 3 fJ, a NAND 4 fJ, a flip-flop 10 fJ at
its output, 1 fJ at its data pin and 5 fJ at its clock; delays are 10 ps + 5 ps/fF.
"""

import hashlib
import importlib.util
from pathlib import Path

import pytest

from ppa.synth.liberty import Library, parse

# Looked for, never imported: pyosys makes the symbols of every library that is loaded after it global, and two compiled
# kernels of torch then call each other.
needs_pyosys = pytest.mark.skipif(
    importlib.util.find_spec("pyosys") is None, reason="pyosys is not installed (extra synth)"
)

_TABLE = 'index_1("0.01, 0.1, 1"); index_2("0, 10, 100"); values("{0}", "{0}", "{0}");'
_DELAY = _TABLE.format("0.01, 0.06, 0.51")
_TIMING = """timing() {{ related_pin : "{pin}"; timing_sense : {sense};
   cell_rise(grid) {{ %s }} cell_fall(grid) {{ %s }} rise_transition(grid) {{ %s }} fall_transition(grid) {{ %s }} }}
""" % ((_DELAY,) * 4)


def _energy(mean: float, pin: str) -> str:
    """Rise costs twice the mean, fall nothing, so that a mean of both is wanted."""
    related = f'related_pin : "{pin}";' if pin else ""
    tables = f'rise_power(scalar) {{ values("{2 * mean}"); }} fall_power(scalar) {{ values("0"); }}'
    return f"internal_power() {{ {related} {tables} }}"


def _gate(name: str, area: float, inputs: str, function: str, energy: float, sense: str) -> str:
    pins = "".join(f" pin({pin}) {{ direction : input; capacitance : 2; }}\n" for pin in inputs)
    arcs = "".join(_TIMING.format(pin=pin, sense=sense) + _energy(energy, pin) for pin in inputs)
    return f"""cell({name}) {{ area : {area}; cell_leakage_power : {area / 10};
{pins} pin(Y) {{ direction : output; function : "{function}"; max_capacitance : 100; {arcs} }} }}
"""


TEXT = f"""/* four gates */
library(tiny) {{
 time_unit : "1ns"; voltage_unit : "1V"; leakage_power_unit : "1nW"; capacitive_load_unit(1, ff); nom_voltage : 1.0;
 default_max_transition : 1;
 lu_table_template(grid) {{ variable_1 : input_net_transition; variable_2 : total_output_net_capacitance;
  index_1("0.01, 0.1, 1"); index_2("0, 10, 100"); }}
{_gate("INV", 1.0, "A", "!A", 3, "negative_unate")}
{_gate("BUF", 1.5, "A", "A", 3, "positive_unate")}
{_gate("NAND2", 2.0, "AB", "(A B)'", 4, "negative_unate")}
cell(DFF) {{ area : 8; cell_leakage_power : 0.8;
 ff(IQ, IQN) {{ clocked_on : "CK"; next_state : "D"; }}
 pin(CK) {{ direction : input; clock : true; capacitance : 1; {_energy(5, "")} }}
 pin(D) {{ direction : input; capacitance : 2; {_energy(1, "")}
  timing() {{ related_pin : "CK"; timing_type : setup_rising; rise_constraint(scalar) {{ values("0.1"); }} }} }}
 pin(Q) {{ direction : output; function : "IQ"; {_TIMING.format(pin="CK", sense="non_unate")} {_energy(10, "CK")} }} }}
}}
"""


def write(folder: Path) -> tuple[Path, Library]:
    path = folder / "tiny.lib"
    path.write_text(TEXT)
    return path, parse(TEXT, hashlib.sha256(TEXT.encode()).hexdigest())
