"""Floating-point multiplier: y = a b, rounded once."""

from . import Operator, Streams, fp, register


@register
class FpMul(Operator):
    """Operands of `format`; a result of `out`, or else of the same format."""

    module = "fp_mul"
    points = {f"{name}_mul": {"format": name} for name in ("bf16", "fp16", "fp32", "e4m3")}

    def __init__(self, format: str, out: str | None = None):
        super().__init__(format=format, out=out or format)
        self.fmt, self.out = fp.FORMATS[format], fp.FORMATS[out or format]

    def verilog_parameters(self):
        to = self.out
        return {
            "EXP": self.fmt.exp,
            "MAN": self.fmt.man,
            "OUT_EXP": to.exp,
            "OUT_MAN": to.man,
            "OUT_HIGHEST": to.highest,
        }

    def inputs(self):
        return {"a": self.fmt.width, "b": self.fmt.width}

    def outputs(self):
        return {"y": self.out.width}

    def step(self, x: Streams) -> Streams:
        return {"y": fp.fp_mul(x["a"], x["b"], self.fmt, self.out)}
