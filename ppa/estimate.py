"""Area, energy and latency of a configuration on a machine.

    estimate(config, hardware) -> Estimate(area_m2, stages: {prefill, decode, train: Stage})

A pure function of the operation list and the description of the machine. Equal layers are priced once, and what was
declared and priced is remembered, so that a search may ask thousands of times a second. Every result has an interval
and a grade (ppa/figure.py); counts are exact. Not covered: more than one chip; a model that does not fit the memory of
its machine is priced all the same, and `notes` says so.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np

from gptcore import optim
from gptcore.config import LAYER_FIELDS, Config, GPTConfig, LayerConfig, ShareConfig
from gptcore.errors import UserError
from gptcore.model import declare, declare_embedding, declare_head, declare_layer, declare_part
from gptcore.ops import STAGES, Bits, Graph, Stage
from gptcore.residual import ScaleConfig

from .alike import Numbers
from .asic import AsicChip
from .cost import WIDTH, Cost, Silicon
from .count import Point, make_point, train_bits
from .figure import Quantity, total
from .gpu_chip import GpuChip
from .machine import Asic, Machine, load_machine
from .work import Kernel, kernels_of, together

REMEMBERED = 1 << 14  # parts, those of a machine and those of none; some 20 kB each
Chip = AsicChip | GpuChip


@dataclass(frozen=True, slots=True)
class StageEstimate:
    """One stage: a prompt (prefill), one token for each sequence (decode), one step (train).

    `energy_by_component` adds up to `energy_j`. `busy_s` says how long each resource works, `bound` names the busiest;
    `stall_s` is what rows of scores hold up the array (asic), or launches and inefficiency take (gpu).
    """

    latency_s: Quantity
    energy_j: Quantity
    energy_per_token_j: Quantity
    energy_by_component: Mapping[str, Quantity]
    busy_s: Mapping[str, float]
    stall_s: float
    bound: str
    macs: float
    dram_bytes: float
    tokens: int
    counts: "Counts"


@dataclass(frozen=True, slots=True)
class Counts:
    """What no machine changes, to the last digit those of ppa.count: distinct parameters, `matmul_flops` and `fused`
    bytes of a stage."""

    params: int
    flops: int
    bytes: int


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a configuration costs on a machine. `area_by_component` adds up to `area_m2`."""

    hardware: str
    area_m2: Quantity
    area_by_component: Mapping[str, Quantity]
    stages: Mapping[Stage, StageEstimate]
    notes: tuple[str, ...]


@dataclass(slots=True)
class _Work:
    """What a part of a model has any machine do: kernels by stage, and what is stored."""

    kernels: dict[Stage, list[Kernel]]
    updates: list[tuple[Kernel, int]]  # of the optimizer, which is one for all parts
    counts: list[tuple[int, int, int]]  # by stage, as in Counts
    weight_bytes: float
    kv_bytes: float
    entangled: bool  # shares parameters, or tensors of a width of their own, with others: no part by itself


@dataclass(slots=True)
class _Part:
    """A layer, or what surrounds the layers, priced on a machine: a row of costs for each stage, what it asks for."""

    rows: np.ndarray
    counts: list[tuple[int, int, int]]
    silicon: Silicon = field(default_factory=Silicon)
    weight_bytes: float = 0.0
    kv_bytes: float = 0.0
    updates: list[tuple[Kernel, int]] = field(default_factory=list)
    entangled: bool = False

    def join(self, other: "_Part", times: int = 1, known: bool = False) -> None:
        """`known`: it was joined before, so it asks for no silicon that is not there."""
        self.rows += other.rows if times == 1 else other.rows * times
        self.counts = [
            (p + q * times, f + g * times, b + c * times)
            for (p, f, b), (q, g, c) in zip(self.counts, other.counts, strict=True)
        ]
        if not known:
            self.silicon.join(other.silicon)
        self.weight_bytes += other.weight_bytes * times
        self.kv_bytes += other.kv_bytes * times
        if other.updates:
            self.updates += [(kernel, n * times) for kernel, n in other.updates]
        self.entangled |= other.entangled


def _nothing(stages: tuple[Stage, ...]) -> _Part:
    return _Part(np.zeros((len(stages), WIDTH)), [(0, 0, 0)] * len(stages))


def estimate(
    config: Config, hardware: str | Machine, *, batch_size: int = 1, seq_len: int | None = None,
    context: int | None = None, bits: Bits | None = None, stages: tuple[Stage, ...] = STAGES,
) -> Estimate:  # fmt: skip
    """Prices a configuration on a machine, by its name or description.

    `seq_len` (prefill, train) and `context` (decode) default to block_size, `bits` to the configuration's. UserError
    where the vocabulary is unknown, the point does not fit the model, or the machine is not known.
    """
    machine = load_machine(hardware) if isinstance(hardware, str) else hardware
    name = hardware if isinstance(hardware, str) else machine.title
    if config.model.vocab_size is None:
        raise UserError("model.vocab_size is unknown: prepare the data set, or set model.vocab_size")
    point = make_point(config.model, batch_size=batch_size, seq_len=seq_len, context=context, bits=bits)
    chip = chip_of(machine)
    whole, met = _nothing(stages), set()
    for part, times in _parts(config, point, chip, stages):
        whole.join(part, times, known=id(part) in met)
        met.add(id(part))
    area = chip.area(whole.silicon, whole.weight_bytes, whole.kv_bytes)
    found: dict[Stage, StageEstimate] = {}
    for stage, row, counts in zip(stages, whole.rows, whole.counts, strict=True):
        cost = chip.components.cost(row)
        if stage == "train":
            for kernel in together(whole.updates):
                cost.add(chip.price(kernel, Silicon(), True))
        by_component = chip.energies(cost, whole.silicon, whole.weight_bytes, whole.kv_bytes)
        joules = total(by_component.values())
        tokens = point.batch * (1 if stage == "decode" else point.seq_len)
        busy = chip.busy_s(cost)
        found[stage] = StageEstimate(
            chip.latency(cost), joules, joules.scaled(1 / tokens), by_component, busy, cost.stall_s,
            max(busy, key=busy.__getitem__), cost.macs, cost.dram_bytes, tokens, Counts(*counts),
        )  # fmt: skip
    return Estimate(name, chip.whole_area(area), area, found, chip.notes(whole.weight_bytes, whole.kv_bytes))


def kernel_costs(config: Config, point: Point, machine: Machine, stage: Stage) -> list[tuple[Kernel, Cost]]:
    """Every kernel of a stage with its cost, in order; they add up to an estimate without leakage and control."""
    chip, silicon = chip_of(machine), Silicon()
    return [(k, chip.price(k, silicon, stage == "train")) for k in kernels_of(_whole(config, point, stage).ops)]


@lru_cache(maxsize=256)
def chip_of(machine: Machine) -> Chip:
    """A machine with everything looked up that does not depend on the model."""
    return AsicChip(machine) if isinstance(machine, Asic) else GpuChip(machine)


_NOT_SHARED = ShareConfig()
_known: dict[Any, dict[Any, Any]] = {}  # by what all parts of a configuration have in common, then by part
_number = Numbers(1 << 15)  # of what layers are made of


def _parts(config: Config, point: Point, chip: Chip, stages: tuple[Stage, ...]) -> list[tuple[_Part, int]]:
    """The model in parts, each with how often it occurs: what is around the layers, and each distinct layer."""
    model = config.model
    task = _Task(config, point, chip, stages)
    ends = (
        model.vocab_size, model.tie_embeddings, model.embedding, model.norm_embedding, model.output_norm(),
        model.softmax_output,
    )  # fmt: skip
    found = [(task.part("", ends, None, 0), 1)]
    index, last = 0, model.n_layer - 1
    for layer in model.layers or [uniform_layer(model, model.n_layer)]:
        repeat = layer.repeat
        alike = repeat == 1 or _factor(layer, 0) == _factor(layer, last)
        for first, times in [(index, repeat)] if alike else [(index + i, 1) for i in range(repeat)]:
            found.append((task.layer(layer, first), times))
        index += repeat
    if model.share != _NOT_SHARED or any(part.entangled for part, _ in found):
        return [(_priced(chip, _work({stage: _whole(config, point, stage) for stage in stages})), 1)]
    return found


class _Task:
    """One estimate under way: finds its parts among those that were priced before, or prices them."""

    held = 0  # entries of `_known`

    def __init__(self, config: Config, point: Point, chip: Chip, stages: tuple[Stage, ...]):
        self.config, self.point, self.chip, self.stages = config, point, chip, stages
        model = config.model
        common = (
            point, stages, config.train if "train" in stages else None, model.n_embd, model.block_size,
            model.bias, model.dropout, model.rounding, model.position,
        )  # fmt: skip
        if _Task.held > REMEMBERED:
            _known.clear()
            _Task.held = 0
        self.works: dict[Any, _Work] = _known.setdefault(common, {})
        self.priced: dict[Any, _Part] = _known.setdefault((chip, common), {})

    def layer(self, layer: LayerConfig, index: int) -> _Part:
        """Attention, mlp, and the rest of a layer in one; each of the three may have been met in another layer."""
        factor = _factor(layer, index)
        key = tuple([_number(getattr(layer, name)) for name in LAYER_FIELDS]), factor
        whole = self.priced.get(key)
        if whole is None:
            whole = _nothing(self.stages)
            whole.join(self.part("attn", _number(layer.attention), layer, index))
            whole.join(self.part("mlp", _number(layer.mlp), layer, index))
            whole.join(self.part("", (layer.norm, layer.block, factor), layer, index))
            self.priced[key] = whole
            _Task.held += 1
        return whole

    def part(self, name: str, key: Any, layer: LayerConfig | None, index: int) -> _Part:
        """Attention (`attn`), `mlp` or the rest of a layer; without a layer, what is around all of them."""
        part = self.priced.get((name, key))
        if part is None:
            work = self.works.get((name, key))
            if work is None:
                own = f"transformer.h.{index}." if layer is not None else ""
                graphs = {
                    stage: part_graph(self.config, self.point, stage, layer, index, name) for stage in self.stages
                }
                work = self.works[name, key] = _work(graphs, own)
                _Task.held += 1
            part = self.priced[name, key] = _priced(self.chip, work)
            _Task.held += 1
        return part


def uniform_layer(model: GPTConfig, repeat: int = 1) -> LayerConfig:
    """All layers of a model without a schedule, as one entry of it."""
    return LayerConfig.model_construct(
        repeat=repeat, attention=model.attention, mlp=model.mlp, norm=model.norm, block=model.block
    )


def _factor(layer: LayerConfig, index: int) -> float:
    """The one thing that a layer declares by its depth: the factor on its branches."""
    residual: Any = layer.block.residual  # type: ignore[attr-defined]
    return residual.initial(index) if isinstance(residual, ScaleConfig) else 1.0


def part_graph(config: Config, point: Point, stage: Stage, layer: LayerConfig | None, index: int, part: str) -> Graph:
    """The operations of attention or mlp of a layer, of the rest of it, or of everything around the layers."""
    model, run = config.model, point.run(stage)
    g = Graph(run, train_bits(config) if stage == "train" else point.bits, without_parts=not part)
    if layer is None:
        x = declare_embedding(model, g)
        g.passed.append(x)
        declare_head(model, g, g.tensor("x", *x.shape), config.train)
    else:
        x = g.tensor("x", run.B, run.T, model.n_embd)
        declared = declare_part(model, g, x, layer, index, part) if part else declare_layer(model, g, x, layer, index)
        g.passed.append(declared)
    if stage == "train":
        g.add_backward()
        optim.declare(g, config.train)
    return g


def _whole(config: Config, point: Point, stage: Stage) -> Graph:
    bits = train_bits(config) if stage == "train" else point.bits
    return declare(config.model, point.run(stage), bits, config.train)


def _work(graphs: Mapping[Stage, Graph], own: str = "") -> _Work:
    """Of a part whose parameters have names that begin with `own`."""
    work = _Work({}, [], [], 0.0, 0.0, False)
    for stage, graph in graphs.items():
        weights = graph.weights()
        kernels = work.kernels[stage] = []
        for kernel in kernels_of(graph.ops):
            if kernel.phase == "optimizer" and not kernel.products:
                work.updates.append((kernel, 1))
            else:
                kernels.append(kernel)
        work.counts.append(_counted(graph))
        if stage != "train":
            work.weight_bytes = float(sum(t.nbytes for t in weights.values()))
        if stage == "decode":
            work.kv_bytes = float(sum(t.nbytes for t in graph.cache_tensors().values()))
        # A tensor that passes from part to part is a plain activation to the next one, and must be one to this.
        odd = any(t.role != "activation" or t.bits != graph.bits.activation for t in graph.passed)
        work.entangled |= odd or not all(name.startswith(own) for name in weights)
    return work


def _counted(graph: Graph) -> tuple[int, int, int]:
    return (
        sum(t.numel for t in graph.weights().values()), 2 * sum(op.macs for op in graph.ops),
        sum(nbytes for op in graph.ops for role, nbytes in op.moved() if role != "intermediate"),
    )  # fmt: skip


def _priced(chip: Chip, work: _Work) -> _Part:
    part = _nothing(tuple(work.kernels))
    part.counts, part.updates, part.entangled = work.counts, work.updates, work.entangled
    part.weight_bytes, part.kv_bytes = work.weight_bytes, work.kv_bytes
    for row, (stage, kernels) in zip(part.rows, work.kernels.items(), strict=True):
        training = stage == "train"
        cost, silicon = Cost(), Silicon() if training else part.silicon  # the chip is made for inference
        for kernel in kernels:
            cost.add(chip.price(kernel, silicon, training))
        row[:] = chip.components.row(cost)
    return part


__all__ = ["Counts", "Estimate", "Quantity", "StageEstimate", "estimate", "kernel_costs", "uniform_layer"]
