"""Floating-point adder: y = a + b, rounded once."""

from . import Operator, Streams, fp, register


@register
class FpAdd(Operator):
    """Operands and result of `format`. Operands of the stimulus are close enough for their bits to meet."""

    module = "fp_add"
    points = {f"{name}_add": {"format": name} for name in ("bf16", "fp16", "fp32")}

    def __init__(self, format: str):
        super().__init__(format=format)
        self.fmt = fp.FORMATS[format]

    def verilog_parameters(self):
        return {"EXP": self.fmt.exp, "MAN": self.fmt.man, "HIGHEST": self.fmt.highest}

    def inputs(self):
        return {"a": self.fmt.width, "b": self.fmt.width}

    def outputs(self):
        return {"y": self.fmt.width}

    def step(self, x: Streams) -> Streams:
        return {"y": fp.fp_add(x["a"], x["b"], self.fmt)}

    def stimulus(self, rng, streams, cycle):
        x = super().stimulus(rng, streams, cycle)
        # Every other cycle: random patterns of 8-bit exponents seldom are within a mantissa of each other.
        if cycle % 2:
            mask = (1 << self.fmt.exp) - 1
            near = (x["a"] >> self.fmt.man) + rng.integers(-self.fmt.man - 4, self.fmt.man + 5, streams) & mask
            x["b"] = x["b"] & ~(mask << self.fmt.man) | near << self.fmt.man
        return x
