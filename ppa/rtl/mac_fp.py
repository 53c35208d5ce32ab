"""Floating-point multiply-accumulate: narrow operands, exact products, an fp32 sum."""

import numpy as np

from . import Operator, Streams, fp, register
from .trace import products


@register
class MacFp(Operator):
    """acc <- (clear ? 0 : acc) + a b, for the operands of the cycle before."""

    module = "mac_fp"
    points = {f"mac_{name}": {"format": name} for name in ("bf16", "fp16", "e4m3")}
    clocked = True

    def __init__(self, format: str):
        super().__init__(format=format)
        self.fmt = fp.FORMATS[format]

    def verilog_parameters(self):
        return {"EXP": self.fmt.exp, "MAN": self.fmt.man}

    def inputs(self):
        return {"a": self.fmt.width, "b": self.fmt.width, "clear": 1}

    def outputs(self):
        return {"acc": 32}

    def reset(self, streams):
        zeros = np.zeros(streams, dtype=np.int64)
        self.a, self.b, self.clear, self.acc = zeros, zeros, zeros, zeros

    def step(self, x: Streams) -> Streams:
        out = {"acc": self.acc}
        product = fp.fp_mul(self.a, self.b, self.fmt, fp.FP32)
        self.acc = fp.fp_add(np.where(self.clear == 1, 0, self.acc), product, fp.FP32)
        self.a, self.b, self.clear = x["a"], x["b"], x["clear"]
        return out

    def stimulus(self, rng, streams, cycle):
        """Numbers of a normal distribution, as operands have; a sum of 16 products on average. Or all bits random."""
        if cycle % 64 >= 48:
            return super().stimulus(rng, streams, cycle)
        a, b = (fp.from_float(rng.standard_normal(streams), self.fmt) for _ in range(2))
        return {"a": a, "b": b, "clear": (rng.random(streams) < 1 / 16).astype(np.int64)}

    def replay(self, trace, streams):
        left, right = (fp.from_float(operand, self.fmt) for operand in (trace.left, trace.right))
        for token, output, inner, clear in products(trace, streams):
            yield {"a": left[token, inner], "b": right[output, inner], "clear": clear}
