"""ConSmax: an exponential by tables, times one constant a head; bit for bit the kind `consmax_quan`."""

import numpy as np

from . import Streams, Unit, fp, register
from .exp_lut import Exponential, exponentials, signed_codes
from .exp_split import rom_halves
from .tables import rom
from .trace import passing

HELD = 32  # cycles for which the stimulus leaves the constant, as for the scores of one head


@register
class ConSmax(Exponential):
    """R(R(H[high] L[low]) C) after 3 cycles, or R(T[code] C) after 2."""

    module = "consmax"
    points = {"consmax_rom": {"split": 1}, "consmax_full": {"split": 0}}
    implements = {"consmax_rom": Unit("softmax", ("consmax", "consmax_quan"), 16)}
    clocked = True

    def __init__(self, split: int = 1, **exponential):
        super().__init__(**exponential)
        self.split = split
        self.parameters["split"] = split

    def verilog_parameters(self):
        return {"BITS": self.bits, "LOW": self.low_bits, "EXP": self.fmt.exp, "MAN": self.fmt.man, "SPLIT": self.split}

    def generated(self):
        return rom_halves(self) if self.split else rom("exp_lut_table", self.whole, self.fmt.width)

    def inputs(self):
        return {"valid": 1, "code": self.bits, "constant": self.fmt.width}

    def outputs(self):
        return {"out_valid": 1, "weight": self.fmt.width}

    def reset(self, streams):
        zeros = np.zeros(streams, dtype=np.int64)
        self.entries, self.table_valid = (zeros, zeros), zeros
        self.e, self.e_valid, self.weight, self.out_valid = zeros, zeros, zeros, zeros

    def step(self, x: Streams) -> Streams:
        out = {"out_valid": self.out_valid, "weight": self.weight}
        self.weight, self.out_valid = fp.fp_mul(self.e, x["constant"], self.fmt), self.e_valid
        if self.split:
            self.e, self.e_valid = fp.fp_mul(*self.entries, self.fmt), self.table_valid
            self.entries, self.table_valid = self.read(x["code"], x["valid"]), x["valid"]
        else:
            self.e, self.e_valid = self.whole[x["code"]], x["valid"]
        return out

    def read(self, code: np.ndarray, valid: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Entries of both tables."""
        high, low = self.halves
        return high[code >> self.low_bits], low[code & ((1 << self.low_bits) - 1)]

    def stimulus(self, rng, streams, cycle):
        """Random codes; constants of 2^-16 to 2^4, every fourth time all bits random, each held for 32 cycles."""
        x = super().stimulus(rng, streams, cycle)
        if cycle % HELD == 0:
            held = x["constant"] if cycle % (4 * HELD) == 3 * HELD else np.exp2(rng.uniform(-16, 4, streams))
            self.held = held if held.dtype == np.int64 else fp.from_float(held, self.fmt)
        return {**x, "constant": self.held, "valid": (rng.random(streams) < 15 / 16).astype(np.int64)}

    def replay(self, trace, streams):
        """A score in every cycle, the constant of one head: that of a fresh model, e^-2.5 / 100."""
        held = np.full(streams, fp.from_float(np.exp(-2.5) / 100, self.fmt))
        for code in passing(self.codes(trace), streams):
            yield {"valid": np.ones(streams, np.int64), "code": code, "constant": held}


@register
class ConSmaxWritable(ConSmax):
    """The same with tables in flip-flops, written by a port."""

    module = "consmax_writable"
    points = {"consmax_writable": {}}
    implements = {}

    def verilog_parameters(self):
        return {name: value for name, value in super().verilog_parameters().items() if name != "SPLIT"}

    def generated(self):
        return ""

    def inputs(self):
        return {**super().inputs(), "write": 1, "address": self.low_bits + 1, "data": self.fmt.width}

    def reset(self, streams):
        super().reset(streams)
        self.high, self.low = (np.zeros((streams, 1 << self.low_bits), dtype=np.int64) for _ in range(2))

    def read(self, code, valid):
        stream, low = np.arange(len(code)), code & ((1 << self.low_bits) - 1)
        return self.high[stream, code >> self.low_bits] * valid, self.low[stream, low] * valid

    def step(self, x: Streams) -> Streams:
        out = super().step(x)
        for table, chosen in ((self.low, 0), (self.high, 1)):
            stream = np.flatnonzero((x["write"] == 1) & (x["address"] >> self.low_bits == chosen))
            table[stream, x["address"][stream] & ((1 << self.low_bits) - 1)] = x["data"][stream]
        return out

    def stimulus(self, rng, streams, cycle):
        """First all entries are written; then scores as for the others, and an entry every 32 cycles, of base 2."""
        x, entries = super().stimulus(rng, streams, cycle), 2 << self.low_bits
        filling = cycle < entries
        address = np.full(streams, cycle) if filling else rng.integers(0, entries, streams)
        high, low = self.halves
        base_2 = exponentials(signed_codes(self.low_bits), self.step_size * (1 << self.low_bits), "2", self.fmt)
        write = np.full(streams, filling or cycle % HELD == 0, dtype=np.int64)
        data = np.concatenate([low, high if filling else base_2])[address]
        return {**x, "valid": x["valid"] * (not filling), "write": write, "address": address, "data": data}

    def replay(self, trace, streams):
        """Nothing but the tables is written, before all else: one cycle in 16."""
        entries = np.concatenate(self.halves[::-1])
        for now, x in enumerate(super().replay(trace, streams)):
            filling, address = now < len(entries), min(now, len(entries) - 1)
            written = {"write": int(filling), "address": address, "data": entries[address]}
            yield {**x, "valid": x["valid"] * (not filling)} | {n: np.full(streams, v) for n, v in written.items()}
