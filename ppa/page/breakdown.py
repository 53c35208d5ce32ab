"""Where a report's totals go: by slot and by layer, for each stage; and whether the parts add up to what is stated.

Read from the document alone, so that a page can be made of any report.json. Energy of a vector unit (softmax, norm,
...) counts for the slot that it serves, that of array and memories for the slot of the kernel. Seconds count for the
kernel: a fused attention holds its softmax. What no kernel causes (control, leakage) is a slot and a place of its own.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ..count import BYTE_CLASSES

STAGES = ("prefill", "decode", "train")
SHARED = "shared"  # the slot of what no kernel causes
AROUND, CHIP = "around", "chip"  # places that are no layer: embedding and head; control and leakage
SLACK = 1e-6  # relative: sums of thousands of floats in another order differ by less
_SCORES = "score buffer"

Place = int | str
Cells = dict[tuple[Place, str], float]  # by place and slot


@dataclass(frozen=True)
class Measure:
    """Something that adds up over kernels or operations."""

    key: str
    title: str
    unit: str
    note: str = ""


_PRICED = (
    Measure("energy", "Energy", "J", "of vector units by the slot they serve, of array and memories by kernel"),
    Measure("latency", "Latency", "s", "a fused kernel counts whole: attention holds its softmax"),
    Measure("dram", "DRAM traffic", "B", "bytes that cross the chip's edge, after tiling"),
)
_COUNTED = (
    Measure("flops", "Matrix FLOPs", "FLOP", "masked pairs included"),
    Measure("bytes", "Bytes moved", "B", "fused: without intermediates"),
    Measure("primitives", "Primitive operations", "", "outside matrix products"),
)


def measures(report: Mapping[str, Any]) -> tuple[Measure, ...]:
    """What the report can break down: what a machine makes of it, or counts where none is named."""
    return _PRICED if report["estimate"] else _COUNTED


def stated(report: Mapping[str, Any], measure: Measure, stage: str) -> float:
    """The total that the parts of a measure must add up to."""
    totals = report["totals"]
    if measure.key == "energy":
        return totals["energy_j"][stage]["value"]
    if measure.key == "latency":
        return totals["latency_s"][stage]["value"]
    if measure.key == "dram":
        return report["estimate"]["stages"][stage]["dram_bytes"]
    counted = totals[stage]
    if measure.key == "flops":
        return counted["matmul_flops"]
    return counted["bytes"]["fused"] if measure.key == "bytes" else sum(counted["op_counts"].values())


def cells(report: Mapping[str, Any]) -> dict[tuple[str, str], Cells]:
    """(measure, stage) -> amounts by place and slot. Empty amounts are left out."""
    keys = [measure.key for measure in measures(report)]
    found: dict[tuple[str, str], Cells] = {(key, stage): {} for key in keys for stage in STAGES}
    for stage, key, place, slot, amount in _priced(report) if report["estimate"] else _counted(report):
        if amount:
            into = found[key, stage]
            into[place, slot] = into.get((place, slot), 0) + amount
    return found


def _place(layer: int | None) -> Place:
    return AROUND if layer is None else layer


def _counted(report: Mapping[str, Any]) -> Iterator[tuple[str, str, Place, str, float]]:
    for row in report["ops"]:
        stage, place, slot = row["stage"], _place(row["layer"]), row["slot"]
        yield stage, "flops", place, slot, row["flops"]
        yield stage, "bytes", place, slot, row["bytes"]["fused"]
        yield stage, "primitives", place, slot, sum(row["op_counts"].values())


def _priced(report: Mapping[str, Any]) -> Iterator[tuple[str, str, Place, str, float]]:
    slots = slots_of(report)
    caused = set()
    for row in report["estimate"]["kernels"]:
        stage, place, slot = row["stage"], _place(row["layer"]), row["slot"]
        yield stage, "latency", place, slot, row["seconds"]
        yield stage, "dram", place, slot, row["dram_bytes"]
        for component, joules in row["energy_by_component"].items():
            caused.add((stage, component))
            yield stage, "energy", place, serves(component, slots) or slot, joules
    for stage in STAGES:
        for component, quantity in report["estimate"]["stages"][stage]["energy_by_component"].items():
            if (stage, component) not in caused:
                yield stage, "energy", CHIP, SHARED, quantity["value"]


def slots_of(report: Mapping[str, Any]) -> frozenset[str]:
    return frozenset(row["slot"] for row in report["ops"])


def serves(component: str, slots: frozenset[str]) -> str | None:
    """The slot that a component is there for, None for what serves several."""
    if component == _SCORES:
        return "softmax"
    first = component.partition(" ")[0]
    return first if first in slots else None


def by_slot(amounts: Cells) -> dict[str, float]:
    """Sums over places, largest first."""
    return _summed((slot, amount) for (_, slot), amount in amounts.items())


def by_place(amounts: Cells) -> dict[Place, dict[str, float]]:
    """Layers in order, then what is around them, then the chip; slots of each by name."""
    found: dict[Place, dict[str, float]] = {}
    for (place, slot), amount in amounts.items():
        found.setdefault(place, {})[slot] = amount
    layers: list[Place] = sorted(place for place in found if isinstance(place, int))
    return {place: found[place] for place in [*layers, AROUND, CHIP] if place in found}


def _summed(pairs: Iterator[tuple[str, float]]) -> dict[str, float]:
    sums: dict[str, float] = {}
    for key, amount in pairs:
        sums[key] = sums.get(key, 0) + amount
    return dict(sorted(sums.items(), key=lambda item: (-item[1], item[0])))


@dataclass(frozen=True)
class Sum:
    """Parts against the total that is stated for them."""

    name: str
    unit: str
    parts: float
    stated: float

    @property
    def holds(self) -> bool:
        return abs(self.parts - self.stated) <= SLACK * abs(self.stated)


def sums(report: Mapping[str, Any]) -> list[Sum]:
    """Every total that has parts in the report."""
    totals, found = report["totals"], []
    parts = cells(report)
    for measure in measures(report):
        for stage in STAGES:
            amount = sum(parts[measure.key, stage].values())
            name = f"{measure.title} of {stage}, by {'kernel' if report['estimate'] else 'operation'}"
            found.append(Sum(name, measure.unit, amount, stated(report, measure, stage)))
    for stage in STAGES:
        moved = totals[stage]["bytes"]
        found.append(Sum(f"Bytes of {stage}, by class", "B", sum(moved[c] for c in BYTE_CLASSES), moved["unfused"]))
    if report["estimate"]:
        area = sum(q["value"] for q in report["estimate"]["area_by_component"].values())
        found.append(Sum("Area, by component", "m2", area, totals["area_m2"]["value"]))
        for stage in STAGES:
            joules = sum(q["value"] for q in report["estimate"]["stages"][stage]["energy_by_component"].values())
            found.append(Sum(f"Energy of {stage}, by component", "J", joules, totals["energy_j"][stage]["value"]))
    return found
