"""Rotation of a pair by an angle whose cosine and sine are given (RoFormer, arXiv 2104.09864)."""

from . import Operator, Streams, Unit, register
from .integers import signed, unsigned
from .rounding import saturate, shift_up


@register
class Rotary(Operator):
    """(a cos - b sin, a sin + b cos), each rounded once to the nearest, ties up, and saturated."""

    module = "rotary"
    points = {"rotary_int8": {"WIDTH": 8}}
    implements = {"rotary_int8": Unit("position", ("rotary",), 8, passes=0.5)}  # a pair a cycle

    def inputs(self):
        return dict.fromkeys(("a", "b", "cosine", "sine"), self.parameters["WIDTH"])

    def outputs(self):
        return dict.fromkeys(("turned_a", "turned_b"), self.parameters["WIDTH"])

    def step(self, x: Streams) -> Streams:
        width = self.parameters["WIDTH"]
        a, b, cosine, sine = (signed(x[name], width) for name in self.inputs())
        turned = {"turned_a": a * cosine - b * sine, "turned_b": a * sine + b * cosine}
        return {name: unsigned(saturate(shift_up(v, width - 1), width), width) for name, v in turned.items()}
