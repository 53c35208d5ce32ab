"""The sections of the file that describes a search: their fields, and what is wrong with a section by itself."""

from typing import Any, Literal

from pydantic import Field, model_validator

from gptcore.ops import Stage
from gptcore.registry import Strict, nearest

from .cost import CostName

SCORES = ("loss", "exp(-loss)", "bits_per_byte", "task:NAME", "task:NAME:METRIC")
SELECTION_CONFIDENCE = 0.8


class Objective(Strict):
    score: str = Field(default="loss", description="what improves: loss, exp(-loss), bits_per_byte or task:NAME")
    limit: int | None = Field(default=None, ge=1, description="documents of a task that are scored; null: all")

    @model_validator(mode="after")
    def _known(self) -> "Objective":
        if not self.score.startswith("task:") and self.score not in SCORES[:3]:
            raise ValueError(f"no score {self.score!r}{nearest(self.score, list(SCORES))} (known: {', '.join(SCORES)})")
        if self.limit is not None and not self.score.startswith("task:"):
            raise ValueError(f"limit counts documents of a task; {self.score} has none")
        return self


class CostRule(Strict):
    """Exactly one of the three."""

    name: CostName | None = None
    weights: dict[CostName, float] | None = Field(default=None, min_length=1)
    lexicographic: list[CostName] | None = Field(default=None, min_length=1)

    @model_validator(mode="before")
    @classmethod
    def _bare(cls, value: Any) -> Any:
        return {"name": str(value)} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _one(self) -> "CostRule":
        if sum(given is not None for given in (self.name, self.weights, self.lexicographic)) != 1:
            raise ValueError("expected one cost, weights, or lexicographic")
        if self.weights is not None and min(self.weights.values()) <= 0:
            raise ValueError("weights are positive")
        return self

    @property
    def names(self) -> tuple[CostName, ...]:
        return (self.name,) if self.name else tuple(self.weights or self.lexicographic or ())


class Bound(Strict):
    min: float | None = None
    max: float | None = None


class Budget(Strict):
    """Whichever ends first."""

    trials: int | None = Field(default=None, ge=1, description="training runs, all seeds together")
    seconds: float | None = Field(default=None, gt=0, description="wall-clock time")
    tokens: int | None = Field(default=None, ge=1, description="tokens trained on, all trials together")
    gpu_hours: float | None = Field(default=None, gt=0, description="time of all trials together, each on a device")
    rounds: int | None = Field(default=None, ge=1, description="decisions, each of which moves on or ends the search")


class Seeds(Strict):
    first: int = Field(default=1, ge=0)
    min: int = Field(default=2, ge=2, description="for every candidate; an interval takes two")
    max: int = Field(default=6, ge=2, description="for candidates that more seeds could decide")

    @model_validator(mode="after")
    def _ordered(self) -> "Seeds":
        if self.max < self.min:
            raise ValueError(f"max {self.max} is below min {self.min}")
        return self


class Strategy(Strict):
    kind: Literal["greedy", "random", "grid", "nsga2"] = "greedy"
    beam: int = Field(default=1, ge=1, description="points that greedy goes on from at a time")
    rungs: list[int] = Field(default=[], description="steps at which candidates far behind the best are pruned")
    eta: int = Field(default=3, ge=2, description="at a rung the best 1/eta pass, and who may be as good as they")
    start: Literal["scratch", "warm"] = Field(default="scratch", description="warm: train on from the incumbent")
    seed: int = Field(default=0, ge=0, description="of random points and of evolution; not of training")
    reach: int = Field(default=2, ge=1, description="steps from the baseline that a grid goes, up and down")
    population: int = Field(default=16, ge=4, description="points of a generation (nsga2)")
    objectives: list[CostName] = Field(
        default=["area_m2", "energy_per_token_j"], min_length=1, description="what nsga2 keeps low, beside the score"
    )

    @model_validator(mode="after")
    def _fits(self) -> "Strategy":
        belongs = {
            "beam": ("greedy",), "start": ("greedy",), "rungs": ("greedy", "random", "grid"),
            "eta": ("greedy", "random", "grid"), "seed": ("random", "nsga2"), "reach": ("grid", "nsga2"),
            "population": ("nsga2",), "objectives": ("nsga2",),
        }  # fmt: skip
        for name, kinds in belongs.items():
            if self.kind not in kinds and getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(f"{name} belongs to {' and '.join(kinds)}, not to {self.kind}")
        if self.rungs != sorted(set(self.rungs)) or any(step < 1 for step in self.rungs):
            raise ValueError(f"rungs are steps in ascending order, not {self.rungs}")
        if self.start == "warm" and self.beam > 1:
            raise ValueError("points of a beam are compared with the baseline, which takes start: scratch")
        if "step_time_s" in self.objectives:
            raise ValueError("objectives of nsga2 are estimates; step_time_s is measured")
        return self


class DecisionRule(Strict):
    confidence: float = Field(default=0.95, gt=0.5, lt=1)
    shrink_tolerance: float | None = Field(default=None, ge=0, description="score a cheaper model may lose; null: none")

    @property
    def selection_confidence(self) -> float:
        """Of what is selected to be confirmed: lower, see search.rounds."""
        return min(SELECTION_CONFIDENCE, self.confidence)


class SpaceFile(Strict):
    """What stands in a file."""

    baseline: str | dict[str, Any]
    overrides: list[str] = []
    hardware: str | None = None
    objective: Objective = Field(default_factory=Objective)
    cost: CostRule
    stage: Stage = "decode"
    constraints: dict[CostName, Bound] = {}
    moves: dict[str, Any] = Field(min_length=1)
    budget: Budget = Field(default_factory=Budget)
    seeds: Seeds = Field(default_factory=Seeds)
    train: dict[str, Any] = {}
    strategy: Strategy = Field(default_factory=Strategy)
    rule: DecisionRule = Field(default_factory=DecisionRule)
    results_file: str | None = None
