"""Floating-point divider: y = a / b, rounded once."""

from . import Operator, Streams, fp, register


@register
class FpDiv(Operator):
    """Operands and result of `format`."""

    module = "fp_div"
    points = {f"{name}_div": {"format": name} for name in ("bf16", "fp16")}

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
        return {"y": fp.fp_div(x["a"], x["b"], self.fmt)}
