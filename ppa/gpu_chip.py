"""A GPU under the estimator: kernels of a model through the closed forms of ppa/gpu.py.

A product with its epilogue is a GEMM; scores, softmax and the product behind them are one fused kernel; norms, sums and
activations are bound by memory. Operands narrower than the arithmetic move at their own width and are widened on the
way. The silicon is that of the die, whatever the model; the memory is outside it.
"""

from .cost import Cost, Rows, Silicon
from .die import DIES, area
from .figure import Figure, Quantity, of_figure
from .gpu import Gpu, Kind, energy_j, gemm_seconds, kernel_seconds, streaming_seconds
from .work import Kernel

SPECIAL = frozenset({"exp", "exp2", "log", "erf", "tanh", "div", "recip", "sqrt", "rsqrt"})
NARROWEST = 4  # bits that some GPU multiplies; what is narrower is widened


class GpuChip:
    """A GPU as a machine for kernels."""

    def __init__(self, gpu: Gpu):
        self.gpu = gpu
        self.components = Rows()
        self.bandwidth = gpu.rates.bandwidth
        self.capacity_bytes = gpu.memory.capacity_bytes.value

    def price(self, kernel: Kernel, silicon: Silicon, training: bool = False) -> Cost:
        """What a kernel costs; a GPU needs nothing that it does not have."""
        gpu, moved, products = self.gpu, kernel.moved_bytes, kernel.products
        flops, bits = 2 * kernel.macs, 16
        if products:
            bits = max(self._width(min(p.a.bits, p.b.bits) if training else max(p.a.bits, p.b.bits)) for p in products)
        if len(products) == 1 and products[0].live == 1.0:
            p, spread = products[0], gpu.gemm.time_spread
            seconds = gemm_seconds(gpu, p.m, p.k, p.n, batch=p.batch, bits=bits, moved_bytes=moved)
        elif products:
            special = sum(count for s in kernel.streams for name, count in s.counts if name in SPECIAL)
            spread = gpu.fused.time_spread
            seconds = kernel_seconds(gpu, flops, bits, moved, special=special)
        else:
            rows = next((s for s in kernel.streams if s.reductions), None)
            kind: Kind = "pointwise" if rows is None else "softmax" if rows.slot == "softmax" else "norm"
            spread = getattr(gpu, kind).time_spread
            seconds = streaming_seconds(gpu, kind, rows.length if rows else 1, moved, 0.0)
        joules = energy_j(gpu, seconds, flops, bits, moved)
        compute_s, dram_s = flops / gpu.rates.flop_per_s[bits], moved / self.bandwidth
        return Cost(
            seconds=seconds, low_s=max(seconds / spread.value, compute_s, dram_s), high_s=seconds * spread.value,
            array_s=compute_s, vector_s=0.0, stall_s=max(0.0, seconds - max(compute_s, dram_s)), dram_s=dram_s,
            dram_bytes=moved, macs=kernel.macs,
            energy_j={"static": joules.static_j, "matrix units": joules.compute_j, "dram": joules.dram_j},
        )  # fmt: skip

    @staticmethod
    def _width(bits: int) -> int:
        return min(max(bits, NARROWEST), 32)

    def area(self, silicon: Silicon, weight_bytes: float, kv_bytes: float) -> dict[str, Quantity]:
        """Of the die by part, in m2; the parts of the area model share out the published area."""
        whole = of_figure(self.gpu.chip.die_area_m2)
        if self.gpu.chip.die is None:
            return {"die": whole}
        parts = area(DIES[self.gpu.chip.die]).parts
        share = whole.value / sum(q.value for q in parts.values())
        return {name.replace("_", " "): q.scaled(share) for name, q in parts.items()}

    def whole_area(self, parts: dict[str, Quantity]) -> Quantity:
        """The published die, which is known better than its parts."""
        return of_figure(self.gpu.chip.die_area_m2)

    def energies(self, cost: Cost, silicon: Silicon, weight_bytes: float, kv_bytes: float) -> dict[str, Quantity]:
        """By component, in J."""
        power = self.gpu.power
        figures: dict[str, Figure] = {
            "static": power.static_w, "matrix units": power.energy_j_per_flop,
            "dram": self.gpu.memory.energy_j_per_byte,
        }  # fmt: skip
        longer, shorter = cost.high_s / cost.seconds, cost.low_s / cost.seconds
        parts = {}
        for component, joules in cost.energy_j.items():
            figure = figures[component]
            low, high = joules / figure.spread, joules * figure.spread
            if component == "static":
                low, high = low * shorter, high * longer
            parts[component] = Quantity(joules, low, high, figure.grade)
        return parts

    def busy_s(self, cost: Cost) -> dict[str, float]:
        """How long each resource would work at its peak; overhead is what launches and inefficiency add."""
        return {"matrix units": cost.array_s, "dram": cost.dram_s, "overhead": cost.stall_s}

    def notes(self, weight_bytes: float, kv_bytes: float) -> tuple[str, ...]:
        notes = [
            "the silicon is the die, whatever the variant; latency is that of fused kernels queued one after another"
        ]
        if weight_bytes + kv_bytes > self.capacity_bytes:
            notes.append(
                f"weights and KV cache take {(weight_bytes + kv_bytes) / 1e9:.1f} GB and do not fit the memory of "
                f"{self.capacity_bytes / 1e9:.0f} GB"
            )
        return tuple(notes)

    def latency(self, cost: Cost) -> Quantity:
        return Quantity(cost.seconds, cost.low_s, cost.high_s, self.gpu.gemm.time_spread.grade)
