"""Integer adder."""

from typing import ClassVar

from . import Operator, Streams, register
from .integers import unsigned


@register
class Adder(Operator):
    """sum = a + b modulo 2^WIDTH."""

    module = "adder"
    points: ClassVar = {f"int{w}_add": {"WIDTH": w} for w in (8, 16, 32)}

    def inputs(self):
        return dict.fromkeys(("a", "b"), self.parameters["WIDTH"])

    def outputs(self):
        return {"sum": self.parameters["WIDTH"]}

    def step(self, x: Streams) -> Streams:
        return {"sum": unsigned(x["a"] + x["b"], self.parameters["WIDTH"])}
