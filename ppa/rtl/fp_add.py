"""Floating-point adder: y = a + b, rounded once."""

from . import Streams, fp, register


@register
class FpAdd(fp.Pair):
    """Operands and result of `format`. Operands of the stimulus are close enough for their bits to meet."""

    module = "fp_add"
    points = {f"{name}_add": {"format": name} for name in ("bf16", "fp16", "fp32")}

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
