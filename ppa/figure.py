"""Figures with a source, and results with an interval: what the descriptions of machines and the estimates are made of.

A grade says how a number came about, best first: `measured` on the real thing, `synthesised` by us from RTL,
`published` by somebody else, `estimate` by reasoning. A result is as good as the worst grade among its weighty parts.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from pydantic import Field, model_validator

from gptcore.registry import Strict

Grade = Literal["measured", "synthesised", "published", "estimate"]
GRADES: tuple[Grade, ...] = get_args(Grade)
WEIGHTY = 0.05  # share of a total from which on a part counts for its grade


class Figure(Strict):
    """A number in the unit that its key names, within value / spread .. value * spread, and where it is from."""

    value: float = Field(description="in the unit that the key names")
    source: str = Field(min_length=3, description="paper and table, data sheet, or the reasoning of an estimate")
    grade: Grade
    spread: float = Field(default=1.0, ge=1.0, description="factor by which the truth may be smaller or larger")


class Section(Strict):
    """A mapping of a description. A figure written as a plain number takes source and grade of its section."""

    source: str = Field(min_length=3, description="of every figure that has none of its own")
    grade: Grade = Field(default="published", description="of every figure that has none of its own")

    @model_validator(mode="before")
    @classmethod
    def _sourced(cls, values: Any) -> Any:
        if not isinstance(values, Mapping):
            return values
        shared = {"source": values.get("source"), "grade": values.get("grade", cls.model_fields["grade"].default)}
        figures = {
            name
            for name, field in cls.model_fields.items()
            if Figure in (field.annotation, *get_args(field.annotation))
        }
        return {
            key: {"value": float(value), **shared} if key in figures and type(value) in (int, float) else value
            for key, value in values.items()
        }  # fmt: skip


@dataclass(frozen=True, slots=True)
class Quantity:
    """A result: best value, and the interval and grade that its parts give it."""

    value: float
    low: float
    high: float
    grade: Grade

    def scaled(self, factor: float) -> "Quantity":
        return Quantity(self.value * factor, self.low * factor, self.high * factor, self.grade)


def exact(value: float, grade: Grade = "published") -> Quantity:
    return Quantity(value, value, value, grade)


def of_figure(figure: Figure) -> Quantity:
    return Quantity(figure.value, figure.value / figure.spread, figure.value * figure.spread, figure.grade)


def total(parts: Iterable[Quantity]) -> Quantity:
    """Sum. Errors of parts are taken as common (the same library, the same neglect), so ends add up to ends."""
    parts = list(parts)
    value = sum(p.value for p in parts)
    weighty = [GRADES.index(p.grade) for p in parts if p.value >= WEIGHTY * value]
    return Quantity(value, sum(p.low for p in parts), sum(p.high for p in parts), GRADES[max(weighty, default=0)])
