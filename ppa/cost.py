"""Costs of kernels as they are added up, and what silicon they ask for."""

from dataclasses import dataclass, field

import numpy as np

from .cells import Cell, VectorUnit


@dataclass(slots=True)
class Cost:
    """Of a kernel, or a sum of many. Energy by component, in J; bytes to and from DRAM; seconds of each resource."""

    seconds: float = 0.0
    low_s: float = 0.0
    high_s: float = 0.0
    array_s: float = 0.0
    vector_s: float = 0.0
    stall_s: float = 0.0
    dram_s: float = 0.0
    dram_bytes: float = 0.0
    macs: float = 0.0
    energy_j: dict[str, float] = field(default_factory=dict)

    def add(self, other: "Cost", times: float = 1.0) -> None:
        self.seconds += other.seconds * times
        self.low_s += other.low_s * times
        self.high_s += other.high_s * times
        self.array_s += other.array_s * times
        self.vector_s += other.vector_s * times
        self.stall_s += other.stall_s * times
        self.dram_s += other.dram_s * times
        self.dram_bytes += other.dram_bytes * times
        self.macs += other.macs * times
        mine = self.energy_j
        for component, joules in other.energy_j.items():
            mine[component] = mine.get(component, 0.0) + joules * times


SUMS = ("seconds", "low_s", "high_s", "array_s", "vector_s", "stall_s", "dram_s", "dram_bytes", "macs")
WIDTH = 512  # of a row: the sums, then energy by component


class Rows:
    """Costs as rows of numbers, which add up much faster than objects do."""

    def __init__(self) -> None:
        self.places: dict[str, int] = {}
        self.names: list[str] = []

    def row(self, cost: Cost) -> np.ndarray:
        row = np.zeros(WIDTH)
        row[: len(SUMS)] = [getattr(cost, name) for name in SUMS]
        for component, joules in cost.energy_j.items():
            place = self.places.get(component)
            if place is None:
                place = self.places[component] = len(SUMS) + len(self.names)
                self.names.append(component)
            row[place] = joules
        return row

    def cost(self, row: np.ndarray) -> Cost:
        sums = dict(zip(SUMS, row[: len(SUMS)].tolist(), strict=True))
        energy = row[len(SUMS) : len(SUMS) + len(self.names)].tolist()
        return Cost(**sums, energy_j={name: joules for name, joules in zip(self.names, energy, strict=True) if joules})


@dataclass(slots=True)
class Silicon:
    """What kernels ask for: MACs by operator, units by (slot, kind), the longest row of scores."""

    macs: dict[str, Cell] = field(default_factory=dict)
    units: dict[tuple[str, str], VectorUnit] = field(default_factory=dict)
    score_words: int = 0

    def need_unit(self, slot: str, kind: str, unit: VectorUnit) -> None:
        known = self.units.get((slot, kind))
        if known is unit:
            return
        if known is None or unit.area_m2 > known.area_m2:
            self.units[slot, kind] = unit

    def join(self, other: "Silicon") -> None:
        self.macs.update(other.macs)
        for (slot, kind), unit in other.units.items():
            self.need_unit(slot, kind, unit)
        self.score_words = max(self.score_words, other.score_words)
