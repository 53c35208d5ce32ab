"""Floating-point divider: y = a / b, rounded once."""

from . import Streams, fp, register


@register
class FpDiv(fp.Pair):
    """Operands and result of `format`."""

    module = "fp_div"
    points = {f"{name}_div": {"format": name} for name in ("bf16", "fp16")}

    def step(self, x: Streams) -> Streams:
        return {"y": fp.fp_div(x["a"], x["b"], self.fmt)}
