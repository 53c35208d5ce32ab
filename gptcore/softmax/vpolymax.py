"""Polymax with a V: its line falls towards 0, so keys that disagree with the query weigh more than indifferent ones."""

from ..registry import register
from . import Elementwise
from .polymax import PolynomialConfig, power_cost, sum_of


@register("softmax", "vpolymax")
class VPolymax(Elementwise):
    """s > 0: s^power + y; s >= x_intercept: the line from (x_intercept, 2y) to (0, y); else 0. All / divisor / keys."""

    class Config(PolynomialConfig):
        pass

    def curve(self, scores):
        c = self.config
        line = scores.clamp(c.x_intercept, 0.0) * (c.y_intercept / c.x_intercept) + c.y_intercept
        return (line + scores.clamp(min=0.0).pow(c.power)).masked_fill(scores < c.x_intercept, 0.0)

    @staticmethod
    def per_element(config):
        return sum_of({"max": 1, "compare": 2, "add": 2, "mul": 1}, power_cost(config.power))
