"""Polymax: softmax whose exponential is a polynomial right of 0 and a line left of it."""

from ..config import knob
from ..registry import register
from . import Elementwise, ElementwiseConfig

POWERS = (1, 2, 3, 4)  # of the kernels


class PolynomialConfig(ElementwiseConfig):
    """Knobs shared by the two-piece kinds. At y_intercept = divisor a score of 0 weighs 1 (over the keys in sight)."""

    x_intercept: float = knob(-100.0, "scores below weigh nothing", flat=("polymax_x_intercept",), lt=0)
    y_intercept: float = knob(1.0, "value at 0", flat=("polymax_y_intercept",), gt=0)
    power: float = knob(2.0, "power of positive scores", flat=("polymax_power",), ge=1)
    divisor: float = knob(1.0, "divides every weight", flat=("polymax_divisor",), gt=0)


def power_cost(power: float) -> dict[str, int]:
    """Primitives of x^power: products for a whole power, else exp(power log x)."""
    return {"mul": int(power) - 1} if power == int(power) else {"log": 1, "mul": 1, "exp": 1}


def sum_of(*counts: dict[str, int]) -> dict[str, int]:
    return {name: sum(c.get(name, 0) for c in counts) for name in sorted(set().union(*counts))}


@register("softmax", "polymax")
class Polymax(Elementwise):
    """s > 0: s^power + y; s > x_intercept: the line from (x_intercept, 0) to (0, y); else 0. All / divisor / keys."""

    class Config(PolynomialConfig):
        pass

    def curve(self, scores):
        c = self.config
        line = (scores.clamp(c.x_intercept, 0.0) - c.x_intercept) * (c.y_intercept / -c.x_intercept)
        return line + scores.clamp(min=0.0).pow(c.power)

    def weighting(self):
        c = self.config
        if c.power not in POWERS:
            return f"no kernel raises scores to the power {c.power}"
        return self.standalone(
            "polymax", power=int(c.power), x_intercept=c.x_intercept, y_intercept=c.y_intercept
        )  # fmt: skip

    @staticmethod
    def per_element(config):
        return sum_of({"max": 1, "compare": 2, "add": 2, "mul": 1}, power_cost(config.power))
