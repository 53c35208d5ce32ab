"""Activation by a table of 256 entries: int8 in, int8 out, each entry the function rounded to the nearest step."""

import math
from collections.abc import Callable
from typing import ClassVar

import numpy as np

from . import Operator, Streams, Unit, register
from .integers import signed, unsigned
from .tables import rom
from .trace import fixed, passing

FUNCTIONS: dict[str, Callable[[float], float]] = {
    "gelu": lambda x: x * (1 + math.erf(x / math.sqrt(2))) / 2,
    "silu": lambda x: x / (1 + math.exp(-x)),
    "tanh": math.tanh,
    "sigmoid": lambda x: 1 / (1 + math.exp(-x)),
}


@register
class LutActivation(Operator):
    """y = f(x): steps of 2^-fraction_in and 2^-fraction_out, y saturated to [-128, 127]."""

    module = "lut_activation"
    points = {
        "gelu_lut256": {"function": "gelu", "fraction_in": 5, "fraction_out": 5},
        "silu_lut256": {"function": "silu", "fraction_in": 4, "fraction_out": 4},
        "tanh_lut256": {"function": "tanh", "fraction_in": 4, "fraction_out": 7},
        "sigmoid_lut256": {"function": "sigmoid", "fraction_in": 4, "fraction_out": 7},
    }
    implements: ClassVar = {f"{f}_lut256": Unit("activation", (f,), 8) for f in ("silu", "tanh", "sigmoid")} | {
        "gelu_lut256": Unit("activation", ("gelu", "lut_int"), 8)  # lut_int at its default function
    }

    def __init__(self, function: str, fraction_in: int, fraction_out: int):
        super().__init__(function=function, fraction_in=fraction_in, fraction_out=fraction_out)
        f, x = FUNCTIONS[function], signed(np.arange(256), 8) / 2**fraction_in
        steps = np.round(np.array([f(v) for v in x]) * 2**fraction_out)  # ties to even
        self.entries = unsigned(np.clip(steps, -128, 127).astype(np.int64), 8)

    def verilog_parameters(self):
        return {}

    def generated(self):
        return rom("lut_activation_rom", self.entries.tolist(), 8)

    def inputs(self):
        return {"x": 8}

    def outputs(self):
        return {"y": 8}

    def step(self, x: Streams) -> Streams:
        return {"y": self.entries[x["x"]]}

    def replay(self, trace, streams):
        codes = fixed(trace.activations, self.parameters["fraction_in"], 8)
        return ({"x": x} for x in passing(codes, streams))
