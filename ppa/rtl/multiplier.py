"""Signed multiplier with a product of double width, in two halves."""

from typing import ClassVar

from . import Operator, Streams, register
from .integers import signed, unsigned


@register
class Multiplier(Operator):
    """{high, low} = a b."""

    module = "multiplier"
    points: ClassVar = {f"int{w}_mul": {"WIDTH": w} for w in (4, 8, 16, 32)}

    def inputs(self):
        return dict.fromkeys(("a", "b"), self.parameters["WIDTH"])

    def outputs(self):
        return dict.fromkeys(("low", "high"), self.parameters["WIDTH"])

    def step(self, x: Streams) -> Streams:
        width = self.parameters["WIDTH"]
        product = signed(x["a"], width) * signed(x["b"], width)  # of 32 bits: at most 2^62, fits int64
        return {"low": unsigned(product, width), "high": unsigned(product >> width, width)}
