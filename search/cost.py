"""What a point of the search space costs: the C of loss improvement per cost. Deterministic; nothing is trained.

    costs(point, space)           parameters, area, energy, latency, FLOPs and bytes of a configuration on a machine
    combined(costs, base, rule)   what a search keeps low: a number, or a tuple where one cost decides before the next
    change(new, old, base, rule)  dC as a plain number, for every form of rule
    violations(costs, bounds)     constraints that do not hold, in words

Area, energy and latency are those of `ppa.estimate`; parameters, FLOPs and bytes those of `ppa.count` to the last
digit, counted layer by layer and remembered, since neighbours in a search share nearly all of their layers. Batch 1,
prompt and context of block_size. Energy and latency, FLOPs and bytes are those of the stage that the space names. FLOPs
count masked pairs, too (`matmul_flops`), bytes are `fused` ones (intermediates stay in their kernel); neither knows a
machine. The area of a chip whose weights live off the chip hardly depends on the size of the model.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, get_args

from gptcore.config import Config, GPTConfig, LayerConfig, ShareConfig
from gptcore.ops import Graph, Stage
from gptcore.residual import ScaleConfig
from ppa.count import declare_stage, make_point
from ppa.estimate import estimate, odd, part_graph

from .point import Point, uniform_layer

if TYPE_CHECKING:
    from .space import Bound, CostRule, Space

CostName = Literal["params", "area_m2", "energy_per_token_j", "latency_s", "flops", "bytes"]
COSTS: tuple[CostName, ...] = get_args(CostName)
REMEMBERED = 1 << 15  # parts counted; some 300 bytes each
SAME = 1e-12  # relative; costs are sums of floats, and an order of addition is no difference


@dataclass(frozen=True, slots=True)
class Costs:
    """SI units, in the names. `intervals` holds (low, high) of the estimates; counts are exact."""

    params: float
    area_m2: float
    energy_per_token_j: float
    latency_s: float
    flops: float
    bytes: float
    intervals: Mapping[str, tuple[float, float]] = field(default_factory=dict)

    def interval(self, name: CostName) -> tuple[float, float]:
        value = getattr(self, name)
        return self.intervals.get(name, (value, value))

    def as_dict(self) -> dict[str, float]:
        return {name: getattr(self, name) for name in COSTS}


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
    counted = count(config, stage)
    return Costs(
        params=float(counted.params), flops=float(counted.flops), bytes=float(counted.bytes),
        **{name: quantity.value for name, quantity in estimates.items()},
        intervals={name: (quantity.low, quantity.high) for name, quantity in estimates.items()},
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Counted:
    """Parameters, FLOPs of matrix products and fused bytes.

    `shares`: has weights that belong to another part, or hands on tensors of a width of their own.
    """

    params: int = 0
    flops: int = 0
    bytes: int = 0
    shares: bool = False


_NOT_SHARED = ShareConfig()
_known: dict[Any, dict[Any, Counted]] = {}  # by what all layers of a model have in common, then by part


def count(config: Config, stage: Stage) -> Counted:
    """Counts one stage of a configuration whose vocabulary is known, at batch 1 and full length."""
    model = config.model
    task = _Task(config, stage)
    ends = (
        model.vocab_size, model.tie_embeddings, model.embedding, model.norm_embedding, model.output_norm(),
        model.softmax_output,
    )  # fmt: skip
    parts = [(task.part("", ends, None, 0), 1)]
    parts += [(task.layer(layer, index), times) for layer, index, times in _layers(model)]
    if model.share != _NOT_SHARED or any(part.shares for part, _ in parts):
        return _count(declare_stage(config, task.operation, stage), "")
    return Counted(
        sum(part.params * times for part, times in parts),
        sum(part.flops * times for part, times in parts),
        sum(part.bytes * times for part, times in parts),
    )


class _Task:
    """One count under way: finds its parts among those that were counted before, or counts them."""

    def __init__(self, config: Config, stage: Stage):
        self.config, self.stage, self.operation = config, stage, make_point(config.model)
        model = config.model
        common = (
            stage, self.operation, config.train if stage == "train" else None, model.n_embd, model.block_size,
            model.bias, model.dropout, model.rounding, model.position,
        )  # fmt: skip
        if sum(map(len, _known.values())) > REMEMBERED:
            _known.clear()
        self.known = _known.setdefault(common, {})

    def layer(self, layer: LayerConfig, index: int) -> Counted:
        """Attention, mlp, and the rest of a layer in one; each of the three may have been met in another layer."""
        found = self.known.get((layer, index))
        if found is None:
            three = (
                self.part("attn", layer.attention, layer, index),
                self.part("mlp", layer.mlp, layer, index),
                self.part("", (layer.norm, layer.block, index), layer, index),
            )
            found = self.known[layer, index] = Counted(
                sum(p.params for p in three), sum(p.flops for p in three), sum(p.bytes for p in three),
                any(p.shares for p in three),
            )  # fmt: skip
        return found

    def part(self, name: str, key: Any, layer: LayerConfig | None, index: int) -> Counted:
        """Attention (`attn`), `mlp` or the rest of a layer; without a layer, what is around all of them."""
        found = self.known.get((name, key))
        if found is None:
            own = f"transformer.h.{index}." if layer is not None else ""
            graph = part_graph(self.config, self.operation, self.stage, layer, index, name)
            found = self.known[name, key] = _count(graph, own)
        return found


def _layers(model: GPTConfig) -> list[tuple[LayerConfig, int, int]]:
    """(layer, index to declare it at, how often). The index matters only where a factor depends on the depth."""
    found, index, last = [], 0, model.n_layer - 1
    for layer in model.layers or [uniform_layer(model, model.n_layer)]:
        residual: Any = layer.block.residual  # type: ignore[attr-defined]
        if isinstance(residual, ScaleConfig) and residual.initial(0) != residual.initial(last):
            found += [(layer, index + i, 1) for i in range(layer.repeat)]
        else:
            found.append((layer, 0, layer.repeat))
        index += layer.repeat
    return found


def _count(graph: Graph, own: str) -> Counted:
    weights = graph.weights()
    return Counted(
        sum(t.numel for t in weights.values()),
        2 * sum(op.macs for op in graph.ops),
        sum(nbytes for op in graph.ops for role, nbytes in op.moved() if role != "intermediate"),
        odd(graph) or not all(name.startswith(own) for name in weights),
    )


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
    """Every constraint that does not hold, in words."""
    words = []
    for name, bound in constraints.items():
        value = getattr(found, name)
        if bound.max is not None and value > bound.max:
            words.append(f"{name} {value:.4g} is above {bound.max:.4g}")
        if bound.min is not None and value < bound.min:
            words.append(f"{name} {value:.4g} is below {bound.min:.4g}")
    return words


__all__ = [
    "COSTS", "CostName", "Costs", "Counted", "change", "combined", "costs", "count",
    "violations",
]  # fmt: skip
