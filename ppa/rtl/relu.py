"""Rectified linear unit, two's complement."""

from typing import ClassVar

from . import Operator, Streams, Unit, register
from .integers import signed, unsigned


@register
class Relu(Operator):
    """max(x, 0)."""

    module = "relu"
    points: ClassVar = {f"relu_int{w}": {"WIDTH": w} for w in (8, 16)}
    implements: ClassVar = {f"relu_int{w}": Unit("activation", ("relu",), w) for w in (8, 16)}

    def inputs(self):
        return {"x": self.parameters["WIDTH"]}

    def outputs(self):
        return {"y": self.parameters["WIDTH"]}

    def step(self, x: Streams) -> Streams:
        width = self.parameters["WIDTH"]
        return {"y": unsigned(signed(x["x"], width).clip(min=0), width)}
