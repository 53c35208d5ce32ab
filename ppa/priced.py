"""The part of a report that knows a machine: area, energy and latency, where they go, how they move with the point."""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import Any

from gptcore.config import Config
from gptcore.ops import STAGES, Stage

from .count import Point, make_point
from .estimate import Estimate, estimate, kernel_costs
from .figure import Quantity
from .machine import load_machine
from .work import Kernel

BATCHES = (1, 2, 4, 8, 16, 32, 64)
CONTEXTS = 7  # of the block size, down by factors of two


def describe(name: str | None) -> dict[str, Any]:
    """The machine as its file says, every figure with its source."""
    if name is None:
        return {"name": None, "statement": "no hardware named: counts only, no area, energy or latency"}
    machine = load_machine(name)
    return {
        "name": name, "title": machine.title, "kind": machine.kind,
        "statement": f"hardware {name}: {machine.title}", "description": machine.model_dump(mode="json"),
    }  # fmt: skip


def price(config: Config, point: Point, name: str) -> dict[str, Any]:
    """`totals` to join those of the counts, and `estimate` with everything behind them."""
    machine = load_machine(name)
    found = _at(config, name, point)
    stages = {
        stage: {
            **{key: getattr(s, key) for key in ("busy_s", "stall_s", "bound", "macs", "dram_bytes", "tokens")},
            "energy_by_component": _table(s.energy_by_component),
        }
        for stage, s in found.stages.items()
    }
    kernels = [
        _row(kernel, cost, stage) for stage in STAGES for kernel, cost in kernel_costs(config, point, machine, stage)
    ]
    return {
        "totals": {
            "area_m2": asdict(found.area_m2),
            "latency_s": {stage: asdict(s.latency_s) for stage, s in found.stages.items()},
            "energy_j": {stage: asdict(s.energy_j) for stage, s in found.stages.items()},
            "energy_per_token_j": {stage: asdict(s.energy_per_token_j) for stage, s in found.stages.items()},
        },
        "estimate": {
            "area_by_component": _table(found.area_by_component), "stages": stages, "notes": list(found.notes),
            "peaks": _peaks(name, point), "sweep": list(_sweep(config, name, point)), "kernels": kernels,
        },
    }  # fmt: skip


def _at(config: Config, name: str, point: Point, stages: tuple[Stage, ...] = STAGES) -> Estimate:
    return estimate(
        config, name, batch_size=point.batch, seq_len=point.seq_len, context=point.context, bits=point.bits,
        stages=stages,
    )  # fmt: skip


def _table(parts: Mapping[str, Quantity]) -> dict[str, Any]:
    return {name: asdict(q) for name, q in parts.items()}


def _row(kernel: Kernel, cost: Any, stage: Stage) -> dict[str, Any]:
    return {
        "stage": stage, "phase": kernel.phase, "slot": kernel.slot, "kind": kernel.kind, "layer": kernel.layer,
        "name": kernel.name, "seconds": cost.seconds, "energy_j": sum(cost.energy_j.values()),
        "energy_by_component": cost.energy_j, "macs": cost.macs, "dram_bytes": cost.dram_bytes,
        "busy_s": [cost.array_s, cost.vector_s, cost.dram_s, cost.stall_s],
    }  # fmt: skip


def _peaks(name: str, point: Point) -> dict[str, float]:
    """The roofline of a machine: FLOP/s of its matrix units at the widths of the point, and bytes/s of its memory."""
    machine = load_machine(name)
    if machine.kind == "gpu":
        bits = max(4, min(32, max(point.bits.weight, point.bits.activation)))
        return {"flop_per_s": machine.rates.flop_per_s[bits], "bytes_per_s": machine.rates.bandwidth}
    array, clock = machine.array, machine.technology.clock_hz.value
    cells = array.rows * array.columns * array.count
    return {"flop_per_s": 2 * cells * clock, "bytes_per_s": machine.dram.bandwidth_bytes_per_s.value}


@lru_cache
def estimator() -> str:
    """What the numbers depend on beside configuration and machine: a hash of this package and its calibrations."""
    folder = Path(__file__).parent
    files = sorted(path for suffix in ("*.py", "calibration/*") for path in folder.glob(suffix))
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()[:12]


def _sweep(config: Config, name: str, point: Point) -> Iterable[dict[str, Any]]:
    """Prefill and decode over batch and context, as the sliders of the page want them."""
    longest = config.model.block_size
    lengths = sorted({max(1, longest >> i) for i in range(CONTEXTS)})
    for batch in BATCHES:
        for length in lengths:
            at = make_point(config.model, batch_size=batch, seq_len=length, context=length, bits=point.bits)
            found = _at(config, name, at, ("prefill", "decode"))
            yield {
                "batch": batch, "context": length,
                **{
                    stage: {
                        "latency_s": asdict(s.latency_s), "energy_per_token_j": asdict(s.energy_per_token_j),
                        "bound": s.bound, "dram_bytes": s.dram_bytes,
                        "flops": 2 * s.macs,
                    }
                    for stage, s in found.stages.items()
                },
            }  # fmt: skip
