"""PFLA softmax: the exponential replaced by a learned piecewise function ("piecewise fully learnable activation").

On the `num_points` + 1 intervals of [left, right] the curve is interpolated from learned values; outside it is flat.
The values are learned as square roots, so no weight is negative. They start as those of the exponential, so a fresh
model weighs as softmax does.
"""

import math
from typing import Literal

import torch
from torch import Tensor, nn

from ..config import knob
from ..precision import wide
from ..registry import KindConfig, Problem, register
from . import Softmax, live_count

LOWEST_SUM = 1e-30  # a row whose curve is 0 everywhere weighs nothing; its inverse must not overflow a gradient


@register("softmax", "pfla")
class PiecewiseLearned(Softmax):
    """curve(s) / (sum curve(s) + obo), curve^(1/2) learned at knots; linear between them, or a line squared."""

    classic = ("pfla_softmax",)

    class Config(KindConfig):
        num_points: int = knob(30, "knots inside the bounds", flat=("pfla_softmax_num_points",), ge=1)
        left_bound: float = knob(-10.0, "first knot", flat=("pfla_softmax_left_bound",))
        right_bound: float = knob(10.0, "last knot", flat=("pfla_softmax_right_bound",))
        density: Literal["linear", "quad", "exp"] = knob(
            "linear", "knots evenly, or closer together in the middle", flat=("pfla_softmax_density",)
        )
        mode: Literal["linear", "quadratic"] = knob(
            "linear", "between knots: a line, or the square of a line", flat=("pfla_softmax_mode",)
        )
        learn_x: bool = knob(False, "learn where the inner knots are", flat=("pfla_softmax_learn_x",))
        learn_y: bool = knob(True, "learn the values at the knots", flat=("pfla_softmax_learn_y",))
        use_learned_divisor: bool = knob(
            False, "a learned divisor in place of the row sum", flat=("pfla_softmax_use_learned_divisor",)
        )
        gamma_init: float = knob(1.0, "its first value over the keys in sight", flat=("pfla_softmax_gamma_init",), gt=0)
        obo: float = knob(0.0, "added to the row sum", flat=("pfla_softmax_obo",), ge=0)
        use_learned_obo: bool = knob(False, "learn it, from this value", flat=("pfla_softmax_use_learned_obo",))

    @classmethod
    def check(cls, config, dims):
        if config.left_bound >= config.right_bound:
            yield Problem("left_bound", f"left_bound {config.left_bound} is not below {config.right_bound}")
        if config.use_learned_divisor and (config.obo or config.use_learned_obo):
            field = "obo" if config.obo else "use_learned_obo"
            yield Problem(field, "obo is a term of the row sum, which use_learned_divisor replaces")

    def __init__(self, config, dims, heads):
        super().__init__(config, dims, heads)
        knots = _first_knots(config, torch.empty(()))
        if config.learn_x:
            self.log_widths = nn.Parameter(knots.diff().log())
        roots = torch.exp(knots / 2)
        if config.learn_y:
            self.roots = nn.Parameter(roots)
        else:
            self.register_buffer("roots", roots, persistent=False)
        if config.use_learned_divisor:
            self.log_gamma = nn.Parameter(torch.full((1,), math.log(config.gamma_init)))
        if config.use_learned_obo:
            self.obo = nn.Parameter(torch.full((1,), config.obo))

    def weights(self, scores_BHTS, live_TS):
        c = self.config
        curve = self._curve(wide(scores_BHTS).masked_fill(~live_TS, 0.0)).masked_fill(~live_TS, 0.0)
        if c.use_learned_divisor:
            return curve * torch.exp(-self.log_gamma.to(curve.dtype)) / live_count(live_TS, curve)
        total = curve.sum(dim=-1, keepdim=True)
        if c.use_learned_obo:
            total = total + self.obo.to(curve.dtype).clamp_min(0.0)
        elif c.obo:
            total = total + c.obo
        return curve / total.clamp_min(LOWEST_SUM)

    def _curve(self, scores: Tensor) -> Tensor:
        c = self.config
        knots = self._knots(scores)
        values = self.roots.to(scores.dtype)
        if c.mode == "linear":
            values = values.square()
        # On each interval the curve is intercept + slope x: two tables, one address.
        slopes = values.diff() / knots.diff()
        intercepts = values[:-1] - slopes * knots[:-1]
        x = scores.clamp(c.left_bound, c.right_bound)
        if c.density == "linear" and not c.learn_x:  # evenly spaced knots need no search, which takes 20 times as long
            per_unit = (c.num_points + 1) / (c.right_bound - c.left_bound)
            address = ((x.detach() - c.left_bound) * per_unit).long().clamp(0, c.num_points)
        else:
            address = torch.bucketize(x.detach(), knots[1:-1].detach())
        y = torch.addcmul(intercepts[address], slopes[address], x)
        return y if c.mode == "linear" else y.square()

    def _knots(self, like: Tensor) -> Tensor:
        """All knots, rising. Learned ones share the range between the bounds in proportion to their widths."""
        c = self.config
        if not c.learn_x:  # not a buffer: in a narrow type neighbours could become equal
            return _first_knots(c, like)
        ends = torch.softmax(self.log_widths.to(like.dtype), dim=0).cumsum(0)[:-1]
        inner = c.left_bound + (c.right_bound - c.left_bound) * ends
        return torch.cat([inner.new_full((1,), c.left_bound), inner, inner.new_full((1,), c.right_bound)])

    @staticmethod
    def declare(config, g, scores, heads):
        c, knots = config, config.num_points + 2
        tables = [g.weight("log_widths", knots - 1)] if c.learn_x else []
        tables += [g.weight("roots", knots)] if c.learn_y else []
        if c.density == "linear" and not c.learn_x:
            search = {"mul": 1, "add": 1, "round": 1}
        else:
            search = {"compare": math.ceil(math.log2(knots - 1))}  # halving the intervals
        counts = {"max": 1, "lut": 2, "mul": 0, "add": 0, "compare": 0} | search
        counts["mul"] += 1 if c.mode == "linear" else 2
        counts["add"] += 1
        counts["compare"] += 1
        curve = g.pointwise("curve", scores, *tables, role="intermediate", **counts)
        if c.use_learned_divisor:
            return g.pointwise("divisor", curve, g.weight("log_gamma", 1), role="intermediate", mul=1)
        total = g.reduce("sum", curve, add=1)
        if c.use_learned_obo:
            total = g.pointwise("obo", total, g.weight("obo", 1), role="intermediate", add=1)
        elif c.obo:
            total = g.pointwise("obo", total, role="intermediate", add=1)
        return g.pointwise("div", curve, total, role="intermediate", div=1)


def _first_knots(config, like: Tensor) -> Tensor:
    """All knots from bound to bound; `quad` and `exp` crowd around the middle."""
    t = torch.linspace(-1, 1, config.num_points + 2, dtype=like.dtype, device=like.device)
    if config.density == "quad":
        t = t.sign() * t.square()
    elif config.density == "exp":
        t = t.sign() * torch.expm1(t.abs()) / (math.e - 1)
    return config.left_bound + (config.right_bound - config.left_bound) * (t + 1) / 2
