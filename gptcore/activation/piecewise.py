"""A fixed piecewise-linear stand-in for another activation: what hardware with a small table computes."""

import torch

from ..config import knob
from ..errors import UserError
from ..precision import wide
from ..registry import KindConfig, Problem, build, lookup, register
from . import Activation
from .tables import check_bounds, linear_table, piecewise_polynomial, uniform_segments

FAR = 64.0  # where tails are straight to rounding: exp(-64) is 1e-28


def _far_slopes(function: Activation) -> torch.Tensor:
    """Slopes at -FAR, -FAR / 2, FAR / 2 and FAR."""
    x = torch.tensor([-FAR, -FAR / 2, FAR / 2, FAR], dtype=torch.float64)
    return function(x + 0.5) - function(x - 0.5)


@register("activation", "piecewise")
class Piecewise(Activation):
    """Straight lines between points of a function at equal distances; outside, lines of the function's final slopes."""

    table: torch.Tensor

    class Config(KindConfig):
        function: str = knob("gelu", "activation kind that is approximated, at its defaults", flat=("pla_function",))
        points: int = knob(15, "points between the bounds", flat=("pla_num_points",), ge=0)
        left: float = knob(-4.0, "left bound", flat=("pla_left_bound",))
        right: float = knob(4.0, "right bound", flat=("pla_right_bound",))

    @classmethod
    def check(cls, config, dims):
        yield from check_bounds(config)
        try:
            kind = lookup("activation", config.function)
        except UserError as error:
            yield Problem("function", str(error))
            return
        if kind.narrowing != 1 or kind.parameters_of(kind.Config()):
            yield Problem("function", f"{config.function} is no fixed function of one number")
            return
        slopes = _far_slopes(build(kind.Config()).eval())
        if not torch.allclose(slopes[0], slopes[1]) or not torch.allclose(slopes[2], slopes[3]):
            yield Problem("function", f"{config.function} has no straight tails")

    def __init__(self, config):
        super().__init__(config)
        function = build(lookup("activation", config.function).Config()).eval()
        knots = torch.linspace(config.left, config.right, config.points + 2, dtype=torch.float64)
        width = (config.right - config.left) / (config.points + 1)
        left_slope, _, _, right_slope = (_far_slopes(function) * width).split(1)
        self.register_buffer("table", linear_table(function(knots), left_slope, right_slope).float(), persistent=False)

    def forward(self, x):
        x32 = wide(x)
        offset, segment = uniform_segments(x32, self.config.left, self.config.right, self.config.points + 1)
        return piecewise_polynomial(offset, segment, self.table.to(x32.dtype)).to(x.dtype)

    @staticmethod
    def per_element(config):
        # place in units of segments, its integer part within the table; a row of it; one step of Horner
        return {"mul": 2, "add": 2, "round": 1, "max": 1, "compare": 1, "lut": 1}
