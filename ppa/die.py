"""Area of a GPU die by part, from counts that white papers publish.

    cores           cores x control factor x (arithmetic / logic density + registers and L1 / SRAM density)
    interconnect    cores x constant / logic density
    global buffer   L2 bits / SRAM density + slices x constant / logic density
    memory PHY      HBM stacks x constant (analogue: does not shrink)
    memory control  memory PHY x constant / logic density
    off-chip PHY    serial lanes x constant (does not shrink)
    off-chip control  lanes x constant / logic density
    other           constant / logic density

Arithmetic is our RTL synthesised in asap7, fast point, taken as TSMC N7 (gate pitch x cell height: 54 nm x 270 nm in
asap7, 57 nm x 240 nm in N7, 7 % apart). SRAM is the foundry's bit cell over the published efficiency of large macros.
All else are constants that annotated die photos show and nothing predicts, each from one of the two photos there are.
How little they agree (SPREAD) is the interval of every result; the validation page says how well dies without a photo
come out. Logic density is that of the foundry, not of a design, so other nodes than N7 add an error of their own.

Not covered: graphics units (ray tracing, ROPs), GDDR interfaces, chiplets, ECC bits and tags, special-function units,
several data types on one tensor unit (fp16 with fp32 accumulation is what is priced).
"""

import json
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path

from .figure import Quantity, total

MM2, UM2, KIB, MIB = 1e-6, 1e-12, 1024, 1024**2
PARTS = (
    "cores", "on_chip_interconnect", "global_buffer", "mem_phy", "mem_ctrl", "offchip_phy", "offchip_ctrl", "other",
)  # fmt: skip

# 0.027 um2: Chang et al., ISSCC 2017, "A 7nm 256Mb SRAM". 0.70: what WikiChip gives for large macros (IEDM 2022: a cell
# of 0.021 um2, 31.8 Mibit/mm2).
SRAM_M2_PER_BIT = 0.027 * UM2 / 0.70


@dataclass(frozen=True, slots=True)
class Node:
    """Density relative to N7."""

    logic: float
    sram: float


NODES = {
    "N7": Node(1.0, 1.0),
    # TSMC 2019: 18 % more logic than N7, same SRAM cell.
    "N6": Node(1.18, 1.0),
    # Angstronomics 2022, measured cells of N5: 137.6 against 90.64 Mtr/mm2. Cell 0.021 um2, Yeap et al., IEDM 2019.
    "4N": Node(137.6 / 90.64, 0.027 / 0.021),
    # ttm-cas supply_chain_model.py: 28.9 against 96.3 Mtr/mm2. Cell 0.07 um2, Wu et al., IEDM 2013.
    "12FFN": Node(28.9 / 96.3, 0.027 / 0.07),
}


@dataclass(frozen=True, slots=True)
class Core:
    """Counts of one SM or compute unit; `*_fma` are fused multiply-adds a clock, vector and tensor units together."""

    tensor_fma_fp16: int
    fp32_fma: int
    fp64_fma: int
    int32_lanes: int
    register_bytes: int
    l1_bytes: int


@dataclass(frozen=True, slots=True)
class Die:
    """Counts of a whole die, units that products switch off included. `lanes`: serial lanes of all off-chip links."""

    node: str
    cores: int
    core: Core
    l2_bytes: int
    l2_slices: int
    hbm_stacks: int
    lanes: int


DIES = {
    # NVIDIA A100 white paper, full GA100; 4 tensor cores of 256 FMA; 8 slices for each of 12 memory controllers; 12
    # NVLink of 4 pairs, PCIe x16.
    "GA100": Die("N7", 128, Core(1024, 64, 32 + 64, 64, 256 * KIB, 192 * KIB), 48 * MIB, 96, 6, 12 * 4 + 16),
    # AMD CDNA 2 white paper, ROCm documentation of MI250: one die, 8 Infinity Fabric links of 16, one of them PCIe.
    # A vector unit does fp64 at full rate, and fp32 two at a time on the same multipliers.
    "Aldebaran": Die("N6", 112, Core(512, 0, 64 + 128, 64, 512 * KIB, 80 * KIB), 8 * MIB, 32, 4, 8 * 16),
    # NVIDIA H100 white paper, full GH100; 18 NVLink of 2 pairs, PCIe x16. It does not give the slices: 512 KiB as in
    # GA100 (estimate).
    "GH100": Die("4N", 144, Core(2048, 128, 64 + 128, 64, 256 * KIB, 256 * KIB), 60 * MIB, 120, 6, 18 * 2 + 16),
    # NVIDIA V100 white paper, full GV100; 6 NVLink of 8 pairs, PCIe x16. Slices from 2048 bytes a clock (A100 white
    # paper) at 64 a slice.
    "GV100": Die("12FFN", 84, Core(512, 64, 32, 64, 256 * KIB, 128 * KIB), 6 * MIB, 32, 4, 6 * 8 + 16),
}

# Annotated die photos: PrincetonUniversity/LLMCompass @ 2e015fd, ae/figure6 (BSD-3), mm2. The sheets count one core
# fewer than the dies have (476.25 is 127 x 3.75, 446.22 is 111 x 4.02), so the single core is what calibrates.
PHOTOS = {
    "GA100": {
        "cores": 476.25, "on_chip_interconnect": 76.44, "global_buffer": 119.31, "mem_phy": 58.0, "mem_ctrl": 31.77,
        "offchip_phy": 20.95, "offchip_ctrl": 0.0, "other": 40.0, "one_core": 3.75,
    },
    "Aldebaran": {
        "cores": 446.22, "on_chip_interconnect": 33.0, "global_buffer": 25.2, "mem_phy": 83.26, "mem_ctrl": 40.83,
        "offchip_phy": 45.52, "offchip_ctrl": 42.0, "other": 4.0, "one_core": 4.02,
    },
}  # fmt: skip


@lru_cache
def arithmetic_m2() -> dict[str, float]:
    """N7 area of a unit by the field of Core that counts it.

    fp64 is not in the calibration: from fp32, its multiplier by the square of the significand's bits, the adder by the
    bits (the growth that our integer operators show).
    """
    operators = json.loads((Path(__file__).parent / "calibration" / "asap7.json").read_text())["operators"]
    area = {name: operator["fast"]["area_um2"] * UM2 for name, operator in operators.items()}
    bits = 53 / 24
    return {
        "tensor_fma_fp16": area["mac_fp16"],
        "fp32_fma": area["fp32_mul"] + area["fp32_add"],
        "fp64_fma": area["fp32_mul"] * bits**2 + area["fp32_add"] * bits,
        "int32_lanes": area["int32_mul"] + area["int32_add"],
    }


def units_m2(core: Core, node: Node) -> float:
    """Arithmetic and storage of one core, without control."""
    arithmetic = sum(getattr(core, name) * area for name, area in arithmetic_m2().items())
    bits = 8 * (core.register_bytes + core.l1_bytes)
    return arithmetic / node.logic + bits * SRAM_M2_PER_BIT / node.sram


@dataclass(frozen=True, slots=True)
class Constants:
    """What photos give. Areas as in N7."""

    control_factor: float  # area of a core over its arithmetic and storage
    interconnect_m2_per_core: float
    slice_m2: float  # logic of an L2 slice
    phy_m2_per_stack: float
    controller_per_phy: float  # of the memory
    lane_m2: float
    lane_controller_m2: float
    other_m2: float


def calibrate(die: Die, photo: dict[str, float], *, lane_controller_m2: float | None = None) -> Constants:
    """The constants with which `area` gives what the photo shows. A photo that shows no off-chip controllers has them
    under other; then their size has to be given."""
    node = NODES[die.node]
    part = {name: value * MM2 for name, value in photo.items()}
    outside = part["offchip_ctrl"] + part["other"]
    if lane_controller_m2 is None:
        lane_controller_m2 = part["offchip_ctrl"] * node.logic / die.lanes
    sram = 8 * die.l2_bytes * SRAM_M2_PER_BIT / node.sram
    return Constants(
        control_factor=part["one_core"] / units_m2(die.core, node),
        interconnect_m2_per_core=part["on_chip_interconnect"] * node.logic / die.cores,
        slice_m2=(part["global_buffer"] - sram) * node.logic / die.l2_slices,
        phy_m2_per_stack=part["mem_phy"] / die.hbm_stacks,
        controller_per_phy=part["mem_ctrl"] * node.logic / part["mem_phy"],
        lane_m2=part["offchip_phy"] / die.lanes,
        lane_controller_m2=lane_controller_m2,
        other_m2=outside * node.logic - die.lanes * lane_controller_m2,
    )


ALDEBARAN = calibrate(DIES["Aldebaran"], PHOTOS["Aldebaran"])
GA100 = calibrate(DIES["GA100"], PHOTOS["GA100"], lane_controller_m2=ALDEBARAN.lane_controller_m2)
# Five from GA100; of Aldebaran controller_per_phy, lane_m2 and (inside GA100) lane_controller_m2. These are the fewest
# from GA100 with which each of its parts is met within 12 %. That was chosen by looking at GA100, so it is no test.
CONSTANTS = replace(GA100, controller_per_phy=ALDEBARAN.controller_per_phy, lane_m2=ALDEBARAN.lane_m2)


def _spread(first: dict[str, float], second: dict[str, float]) -> Constants:
    """Factors between two dies: the only evidence of how far a constant carries."""
    factors = {name: max(value / second[name], second[name] / value) for name, value in first.items()}
    # The off-chip controllers are on one photo alone: 2 is an estimate, as wide as that of the memory PHY.
    return Constants(**factors | {"lane_controller_m2": 2.0})


SPREAD = _spread(asdict(GA100), asdict(ALDEBARAN))


@dataclass(frozen=True)
class Area:
    """m2 by part, in the order of PARTS."""

    parts: dict[str, Quantity]

    @property
    def total(self) -> Quantity:
        return total(self.parts.values())


def area(die: Die, constants: Constants = CONSTANTS) -> Area:
    """Of a die, by part. The interval is the spread of the constants between the two annotated dies."""
    c, s, node = constants, SPREAD, NODES[die.node]

    def part(value: float, spread: float, known: float = 0.0) -> Quantity:
        return Quantity(known + value, known + value / spread, known + value * spread, "estimate")

    phy = die.hbm_stacks * c.phy_m2_per_stack
    controller = phy * c.controller_per_phy / node.logic
    slices = die.l2_slices * c.slice_m2 / node.logic
    return Area({
        "cores": part(die.cores * c.control_factor * units_m2(die.core, node), s.control_factor),
        "on_chip_interconnect": part(die.cores * c.interconnect_m2_per_core / node.logic, s.interconnect_m2_per_core),
        "global_buffer": part(slices, s.slice_m2, 8 * die.l2_bytes * SRAM_M2_PER_BIT / node.sram),
        "mem_phy": part(phy, s.phy_m2_per_stack),
        "mem_ctrl": part(controller, s.phy_m2_per_stack * s.controller_per_phy),
        "offchip_phy": part(die.lanes * c.lane_m2, s.lane_m2),
        "offchip_ctrl": part(die.lanes * c.lane_controller_m2 / node.logic, s.lane_controller_m2),
        "other": part(c.other_m2 / node.logic, s.other_m2),
    })  # fmt: skip
