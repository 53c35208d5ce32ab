"""A GPU: its description, and closed forms for the seconds and joules of one kernel that a search can call in its loop.

A matrix product runs in square tiles that the units (SMs, CUs) take in waves: with few tiles, time is a staircase in
every dimension (NVIDIA, "Matrix Multiplication Background User's Guide": tile and wave quantisation). The model takes
the best of two tile edges, each whole or with its inner dimension split in four; every candidate grows with every
dimension, so their minimum does too. The real library picks its tile by a heuristic, which is not always the best one
and not always monotone: that, not noise, is most of the remaining error.

All times are those of kernels that wait in a queue: the seconds that a Python program needs to launch one are not in
them, except where the constants were fitted on single calls. Neither is communication between GPUs, nor a cache that
holds what the kernel before wrote: operands come from DRAM. A result is never below the operations over the peak rate
or the bytes over the peak bandwidth. Rates are in 1e9, not in 2^30.
"""

from dataclasses import dataclass
from functools import cached_property
from math import sqrt
from typing import Literal

from pydantic import Field, model_validator

from gptcore.registry import Strict

from .figure import Figure, Section

EDGES = (128, 64)  # of the tiles; a few kernels of cuBLAS have others (256 x 128 and the like), they add nothing here
SPLITS = (1, 4)  # of the inner dimension
Kind = Literal["pointwise", "norm", "softmax"]


class Chip(Section):
    units: int = Field(ge=1, description="streaming multiprocessors or compute units in use")
    clock_hz: Figure = Field(description="highest clock, the one that the peak rates hold for")
    die_area_m2: Figure
    die: str | None = Field(default=None, description="name in ppa/die.py, which divides the area among parts")
    node_m: Figure = Field(description="name of the process, as a length")
    l2_bytes: Figure


class Matrix(Section):
    """Peak rates of dense products by the width of the operands, 2 FLOPs a multiply-accumulate; without sparsity."""

    bits_32_flop_per_s: Figure = Field(description="IEEE float32, what PyTorch takes unless TF32 is allowed")
    bits_19_flop_per_s: Figure | None = Field(default=None, description="TF32")
    bits_16_flop_per_s: Figure = Field(description="float16 or bfloat16, summed in float32")
    bits_8_flop_per_s: Figure | None = None
    bits_4_flop_per_s: Figure | None = None


class Vector(Section):
    flop_per_s: Figure = Field(description="float32 outside the matrix units")
    special_per_clock: Figure = Field(description="exp, reciprocal and the like, a clock and unit")


class Memory(Section):
    bandwidth_bytes_per_s: Figure
    capacity_bytes: Figure
    energy_j_per_byte: Figure


class Power(Section):
    tdp_w: Figure
    static_w: Figure = Field(description="drawn while any kernel runs: leakage, clocks, regulators")
    energy_j_per_flop: Figure = Field(description="at 16 bits; other widths by the ratio of the peak rates")


class Gemm(Section):
    """Constants of the time of a matrix product. `time_spread`, here and below: the factor within which nine of ten
    kernels of the same library lie, fitted or not; another library can be further off.
    """

    launch_s: Figure = Field(description="start and end of a kernel")
    memory_efficiency: Figure = Field(description="reachable share of the memory bandwidth")
    tile_overhead: Figure = Field(description="h: a tile of edge e takes 1 + 2 h / e times its operations at peak")
    wave_start_s: Figure = Field(description="fill and drain of a tile")
    wave_overlap: Figure = Field(description="0: the next wave waits for the last tile; 1: no waiting at all")
    split_s: Figure = Field(description="adding up where the inner dimension is split")
    slowdown: Figure = Field(description="by which share a long product is slower: the clock falls at the power limit")
    slowdown_after_s: Figure = Field(description="duration at which half of the slowdown is there")
    time_spread: Figure


class Streaming(Section):
    """Constants of the time of a kernel that is bound by memory."""

    launch_s: Figure
    memory_efficiency: Figure
    time_spread: Figure


class RowStreaming(Streaming):
    """And of one that reduces rows."""

    row_s_per_element: Figure = Field(description="a row passes through one unit: time that more rows do not hide")
    held_elements: Figure = Field(description="what a unit holds of a row; the rest is read again")
    reread: Figure = Field(description="share of the traffic that reading the rest again adds")


class Fused(Section):
    """Constants of the time of a fused kernel, such as fused attention."""

    launch_s: Figure
    compute_efficiency: Figure
    memory_efficiency: Figure
    time_spread: Figure


@dataclass(frozen=True, slots=True)
class Rates:
    """The numbers of a description, as the closed forms need them."""

    units: int
    flop_per_s: tuple[float, ...]  # by bits
    bandwidth: float
    special_per_s: float
    gemm_launch: float
    gemm_bandwidth: float
    steps: tuple[tuple[int, float], ...]  # edge of a tile; work of one inner step of it, in operations at the peak rate
    wave_start: float
    overlap: float
    split: float
    slowdown: float
    slowdown_after: float
    streaming: dict[str, tuple[float, float, float, float, float]]


@dataclass(frozen=True, slots=True)
class Energy:
    """Joules of a kernel by where they go."""

    static_j: float
    compute_j: float
    dram_j: float

    @property
    def total_j(self) -> float:
        return self.static_j + self.compute_j + self.dram_j


class Gpu(Strict):
    """A GPU with the constants of its latency model."""

    kind: Literal["gpu"]
    title: str
    chip: Chip
    matrix: Matrix
    vector: Vector
    memory: Memory
    power: Power
    gemm: Gemm
    pointwise: Streaming
    norm: RowStreaming
    softmax: RowStreaming
    fused: Fused

    @model_validator(mode="after")
    def _physical(self) -> "Gpu":
        for section in (self.gemm, self.pointwise, self.norm, self.softmax, self.fused):
            for name in ("memory_efficiency", "compute_efficiency"):
                figure = getattr(section, name, None)
                if figure is not None and not 0 < figure.value <= 1:
                    raise ValueError(f"{name} is a share, above 0 and at most 1, not {figure.value}")
        if not 0 <= self.gemm.wave_overlap.value <= 1:
            raise ValueError(f"wave_overlap is a share, not {self.gemm.wave_overlap.value}")
        peaks = self.rates.flop_per_s[1:]
        if any(wide > narrow for narrow, wide in zip(peaks, peaks[1:], strict=False)):
            raise ValueError("a peak rate of wider operands is above that of narrower ones")
        return self

    @cached_property
    def rates(self) -> Rates:
        m, g = self.matrix, self.gemm
        widths = [(4, m.bits_4_flop_per_s), (8, m.bits_8_flop_per_s), (16, m.bits_16_flop_per_s),
                  (19, m.bits_19_flop_per_s), (32, m.bits_32_flop_per_s)]  # fmt: skip
        peaks = [next(f.value for width, f in widths if f is not None and width >= bits) for bits in range(33)]
        bandwidth = self.memory.bandwidth_bytes_per_s.value
        streaming = {}
        for name in ("pointwise", "norm", "softmax"):
            s = getattr(self, name)
            rows = isinstance(s, RowStreaming)
            streaming[name] = (
                s.launch_s.value,
                bandwidth * s.memory_efficiency.value,
                s.row_s_per_element.value if rows else 0.0,
                s.held_elements.value if rows else 0.0,
                s.reread.value if rows else 0.0,
            )
        return Rates(
            units=self.chip.units,
            flop_per_s=tuple(peaks),
            bandwidth=bandwidth,
            special_per_s=self.chip.units * self.chip.clock_hz.value * self.vector.special_per_clock.value,
            gemm_launch=g.launch_s.value,
            gemm_bandwidth=bandwidth * g.memory_efficiency.value,
            steps=tuple((e, 2.0 * e * e * (1 + 2 * g.tile_overhead.value / e)) for e in EDGES),
            wave_start=g.wave_start_s.value,
            overlap=g.wave_overlap.value,
            split=g.split_s.value,
            slowdown=g.slowdown.value,
            slowdown_after=g.slowdown_after_s.value,
            streaming=streaming,
        )


def gemm_seconds(
    gpu: Gpu, m: int, k: int, n: int, *, batch: int = 1, bits: int = 16, moved_bytes: float | None = None
) -> float:
    """Of `batch` products (m, k) x (k, n) with operands of `bits` (1 to 32). `moved_bytes` where it is not what the
    operands and the result take at this width: narrow weights that are widened on the way, a cached operand.

    Compute and memory overlap, but not fully: the root of the sum of squares lies above both.
    """
    r = gpu.rates
    unit_s = r.units / r.flop_per_s[bits]
    overlap, start = r.overlap, r.wave_start
    compute = 1e300
    for edge, step in r.steps:
        tiles = -(-m // edge) * -(-n // edge) * batch
        inner = k * step * unit_s
        for split in SPLITS:
            count = tiles * split
            whole, fluid = -(-count // r.units), count / r.units
            waves = whole + overlap * ((fluid if fluid > 1 else 1) - whole)
            seconds = waves * (inner / split + start)
            if split > 1:
                seconds += r.split
            if seconds < compute:
                compute = seconds
    compute *= 1 + r.slowdown * compute / (compute + r.slowdown_after)
    if moved_bytes is None:
        moved_bytes = batch * (m * k + k * n + m * n) * bits / 8
    memory = moved_bytes / r.gemm_bandwidth
    return r.gemm_launch + sqrt(compute * compute + memory * memory)


def streaming_seconds(gpu: Gpu, kind: Kind, length: int, read_bytes: float, written_bytes: float) -> float:
    """Of a kernel that is bound by the bytes it moves; `length` is that of the rows it reduces, 1 without any.

    One row passes through one unit, which takes its time however many others work beside it: so few rows are slow.
    """
    launch, bandwidth, per_element, held, reread = gpu.rates.streaming[kind]
    moved = read_bytes + written_bytes
    if length > held:
        moved *= 1 + reread * (1 - held / length)
    return launch + length * per_element + moved / bandwidth


def kernel_seconds(gpu: Gpu, flops: float, bits: int, moved_bytes: float, *, special: float = 0.0) -> float:
    """Of a fused kernel with `flops` on the matrix units, `special` functions (the exp of a fused attention) and
    `moved_bytes`, all under way at once. It is taken to fill the GPU: few short rows do not.
    """
    r, f = gpu.rates, gpu.fused
    compute = max(flops / r.flop_per_s[bits], special / r.special_per_s) / f.compute_efficiency.value
    return f.launch_s.value + max(compute, moved_bytes / (r.bandwidth * f.memory_efficiency.value))


def energy_j(gpu: Gpu, seconds: float, flops: float, bits: int, moved_bytes: float) -> Energy:
    """Of `seconds` of work. Wider operands cost in proportion to their lower peak rate: the same power at the peak."""
    peaks, power = gpu.rates.flop_per_s, gpu.power
    return Energy(
        static_j=power.static_w.value * seconds,
        compute_j=power.energy_j_per_flop.value * flops * peaks[16] / peaks[bits],
        dram_j=gpu.memory.energy_j_per_byte.value * moved_bytes,
    )
