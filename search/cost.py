"""What a point of the search space costs: the C of loss improvement per cost. Deterministic; nothing is trained.

    costs(point, space)           parameters, area, energy, latency, FLOPs and bytes of a configuration on a machine
    combined(costs, base, rule)   what a search keeps low: a number, or a tuple where one cost decides before the next
    change(new, old, base, rule)  dC as a plain number, for every form of rule
    violations(costs, bounds)     constraints that do not hold, in words

All are those of `ppa.estimate`, which prices layer by layer and remembers, since neighbours in a search share nearly
all of their layers. Batch 1, prompt and context of block_size. Energy and latency, FLOPs and bytes are those of the
stage that the space names. FLOPs count masked pairs, too (`matmul_flops`), bytes are `fused` ones (intermediates stay
in their kernel); neither knows a machine. The area of a chip whose weights live off the chip hardly depends on the size
of the model.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, get_args

from gptcore.ops import Stage
from ppa.estimate import estimate

from .point import Point

if TYPE_CHECKING:
    from .space import Bound, CostRule, Space

CostName = Literal["params", "area_m2", "energy_per_token_j", "latency_s", "flops", "bytes", "step_time_s"]
COSTS: tuple[CostName, ...] = get_args(CostName)
SAME = 1e-12  # relative; costs are sums of floats, and an order of addition is no difference


@dataclass(frozen=True, slots=True)
class Costs:
    """SI units, in the names. `intervals` holds (low, high) of the estimates; counts are exact.

    `step_time_s` is no estimate: it is measured, where a search asks for it (search.steptime), else None.
    """

    params: float
    area_m2: float
    energy_per_token_j: float
    latency_s: float
    flops: float
    bytes: float
    intervals: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    step_time_s: float | None = None

    def interval(self, name: CostName) -> tuple[float, float]:
        value = getattr(self, name)
        return self.intervals.get(name, (value, value))

    def as_dict(self) -> dict[str, float]:
        return {name: value for name in COSTS if (value := getattr(self, name)) is not None}


def costs(point: Point, space: "Space") -> Costs:
    """All costs of a point in the stage that the space names. UserError where it cannot be priced."""
    config, stage = point.config.with_vocab(space.vocab_size), space.stage
    # The units on a chip are those that prefill and decode ask for, whichever stage is looked at.
    stages: tuple[Stage, ...] = ("prefill", "decode", "train") if stage == "train" else ("prefill", "decode")
    found = estimate(config, point.machine, stages=stages)
    of_stage = found.stages[stage]
    estimates = {
        "area_m2": found.area_m2, "energy_per_token_j": of_stage.energy_per_token_j, "latency_s": of_stage.latency_s,
    }  # fmt: skip
    counts = of_stage.counts
    return Costs(
        params=float(counts.params), flops=float(counts.flops), bytes=float(counts.bytes),
        **{name: quantity.value for name, quantity in estimates.items()},
        intervals={name: (quantity.low, quantity.high) for name, quantity in estimates.items()},
    )  # fmt: skip


def combined(found: Costs, baseline: Costs, rule: "CostRule") -> float | tuple[float, ...]:
    """One cost in its unit; a weighted mean of costs relative to the baseline (1 there); or costs in turn."""
    if rule.name is not None:
        return getattr(found, rule.name)
    if rule.weights is not None:
        whole = sum(rule.weights.values())
        return sum(w / whole * getattr(found, n) / getattr(baseline, n) for n, w in rule.weights.items())
    return tuple(getattr(found, name) for name in rule.lexicographic or ())


def change(new: Costs, old: Costs, baseline: Costs, rule: "CostRule") -> float:
    """dC of going from `old` to `new`; exactly 0 where nothing but the order of additions differs.

    Of costs that decide in turn it is that of the first one that changes, relative to the baseline.
    """
    after, before = combined(new, baseline, rule), combined(old, baseline, rule)
    if isinstance(after, float) and isinstance(before, float):
        return _difference(after, before)
    for name, a, b in zip(rule.lexicographic or (), after, before, strict=True):  # type: ignore[arg-type]
        if difference := _difference(a, b):
            return difference / getattr(baseline, name)
    return 0.0


def _difference(after: float, before: float) -> float:
    return 0.0 if abs(after - before) <= SAME * max(abs(after), abs(before)) else after - before


def violations(found: Costs, constraints: Mapping[CostName, "Bound"]) -> list[str]:
    """Every constraint that does not hold, in words; one on what is not measured yet is left for later."""
    words = []
    for name, bound in constraints.items():
        value = getattr(found, name)
        if value is None:
            continue
        if bound.max is not None and value > bound.max:
            words.append(f"{name} {value:.4g} is above {bound.max:.4g}")
        if bound.min is not None and value < bound.min:
            words.append(f"{name} {value:.4g} is below {bound.min:.4g}")
    return words


__all__ = ["COSTS", "CostName", "Costs", "change", "combined", "costs", "violations"]
