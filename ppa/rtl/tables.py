"""Read-only memories: one list of entries for the circuit and for its model."""

import numpy as np


def rom(name: str, entries: np.ndarray | list[int], width: int) -> str:
    """SystemVerilog of a combinational ROM `name`: entries of `width` bits, their number a power of two."""
    bits = (len(entries) - 1).bit_length()
    if len(entries) != 1 << bits or not all(0 <= int(entry) < 1 << width for entry in entries):
        raise ValueError(f"{name}: {len(entries)} entries are not a power of two, or one is wider than {width} bits")
    cases = "\n".join(f"      {bits}'d{i}: data = {width}'d{int(entry)};" for i, entry in enumerate(entries))
    return f"""module {name} (
    input logic [{bits - 1}:0] address,
    output logic [{width - 1}:0] data
);
  always_comb
    case (address)
{cases}
    endcase
endmodule
"""
