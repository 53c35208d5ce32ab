"""An Eyeriss-like accelerator: energy by component from a mapping and a table of energies, against Accelergy's own.

The mapping is theirs, loop by loop; the counts are derived from it by ppa.energy_table, not copied. The counts of two
further designs, with other reuse, are held against Timeloop's one by one.
"""

import json
from pathlib import Path

from .. import energy_table
from ..energy_table import Level, Loop, Operand
from . import Row, Score, Section
from .operator_tables import paragraphs

ORDER = 68
FILES = ("eyeriss_like.json",)
TITLE = "Energy by component: an Eyeriss-like accelerator"
SOURCE = (
    "Accelergy-Project/timeloop-accelergy-exercises @ 2d55108, example_designs, ref_outputs/default_problem of "
    "eyeriss_like, simba_like and simple_output_stationary (Timeloop and Accelergy v0.4): map, ERT and stats"
)
BAR = 0.005

# A 3 x 3 convolution of stride 2 from 3 to 32 channels, 112 x 112 outputs.
OPERANDS = (
    Operand("weights", ({"M": 1}, {"C": 1}, {"R": 1}, {"S": 1})),
    Operand("inputs", ({"C": 1}, {"P": 2, "R": 1}, {"Q": 2, "S": 1})),
    Operand("outputs", ({"M": 1}, {"P": 1}, {"Q": 1}), output=True),
)
LEVELS = (
    Level("DRAM", (Loop("P", 8), Loop("Q", 2), Loop("M", 4)), frozenset({"weights", "inputs", "outputs"}), words=8),
    Level("shared_glb", (Loop("P", 14), Loop("Q", 4)), frozenset({"inputs", "outputs"}), words=8),
    Level("columns", (Loop("Q", 14, spatial=True),)),
    Level("rows", (Loop("C", 3, spatial=True), Loop("S", 3, spatial=True))),
    Level("ifmap_spad", (), frozenset({"inputs"}), words=2),
    Level("weights_spad", (Loop("R", 3),), frozenset({"weights"}), words=2),
    Level("psum_spad", (Loop("M", 8),), frozenset({"outputs"})),
)
# Two designs with the same layer: loops, and (reads, fills, updates) of each instance, from their stats.txt.
SIMBA = (
    Level("DRAM", (Loop("Q", 28),), frozenset({"weights", "inputs", "outputs"})),
    Level("GlobalBuffer", (Loop("P", 4),), frozenset({"inputs", "outputs"})),
    Level("elements", (Loop("C", 3, spatial=True), Loop("M", 4, spatial=True))),
    Level("PEInputBuffer", (Loop("Q", 4),), frozenset({"inputs"})),
    Level("buffers", (Loop("M", 4, spatial=True),)),
    Level("PEWeightBuffer", (Loop("R", 3), Loop("P", 4), Loop("S", 3)), frozenset({"weights"})),
    Level("PEAccuBuffer", (Loop("M", 2), Loop("P", 7)), frozenset({"outputs"})),
    Level("PEWeightRegs", (), frozenset({"weights"})),
)
SIMBA_COUNTS = {
    ("weights", "DRAM"): (864, 0, 0), ("weights", "PEWeightBuffer"): (32256, 18, 0),
    ("weights", "PEWeightRegs"): (225792, 32256, 0), ("inputs", "DRAM"): (151875, 0, 0),
    ("inputs", "GlobalBuffer"): (170100, 151875, 0), ("inputs", "PEInputBuffer"): (225792, 56700, 0),
    ("outputs", "DRAM"): (0, 0, 401408), ("outputs", "GlobalBuffer"): (802816, 0, 1204224),
    ("outputs", "PEAccuBuffer"): (200704, 50176, 225792),
}  # fmt: skip
OUTPUT_STATIONARY = (
    Level("DRAM", (Loop("P", 7),), frozenset({"weights", "inputs", "outputs"})),
    Level("shared_glb", (Loop("P", 16), Loop("Q", 7), Loop("M", 2)), frozenset({"weights", "inputs"})),
    Level("elements", (Loop("M", 16, spatial=True),)),
    Level("pe_spad", (Loop("C", 3), Loop("Q", 4), Loop("S", 3), Loop("R", 3)), frozenset({"outputs"})),
    Level("weight_reg", (Loop("Q", 4),), frozenset({"weights"})),
    Level("activation_regs", (), frozenset({"inputs", "outputs"})),
)
OUTPUT_STATIONARY_COUNTS = {
    ("weights", "DRAM"): (864, 0, 0), ("weights", "shared_glb"): (2709504, 864, 0),
    ("weights", "weight_reg"): (677376, 169344, 0), ("inputs", "DRAM"): (151875, 0, 0),
    ("inputs", "shared_glb"): (677376, 151875, 0), ("inputs", "activation_regs"): (677376, 677376, 0),
    ("outputs", "DRAM"): (0, 0, 401408), ("outputs", "pe_spad"): (652288, 0, 677376),
    ("outputs", "activation_regs"): (652288, 652288, 677376),
}  # fmt: skip
# pJ an instance and cycle, from ERT.yaml: not in the file of figures.
LEAK_PJ = {"shared_glb": 0.005652, "ifmap_spad": 0.000101, "weights_spad": 0.001592, "psum_spad": 0.000134}
COMPONENTS = ("mac", "psum_spad", "weights_spad", "ifmap_spad", "shared_glb", "DRAM")


def table_j(published: dict) -> dict[tuple[str, str], float]:
    """Energies of actions. DRAM takes the same for a read as for a write, and its leakage is 0 in the source."""
    ert = published["ERT_pJ_per_action"]
    table = {("mac", "compute"): ert["mac_compute"], ("DRAM", "leak"): 0.0}
    for action in ("read", "write"):
        table["DRAM", action] = ert["DRAM_write"]
        table["shared_glb", action] = ert[f"glb_{action}"]
        for spad in ("ifmap_spad", "weights_spad", "psum_spad"):
            table[spad, action] = ert[f"{spad}_{action}"]
    table |= {(component, "leak"): value for component, value in LEAK_PJ.items()}
    return {action: 1e-12 * value for action, value in table.items()}


def different(levels: tuple[Level, ...], counts: dict[tuple[str, str], tuple[int, int, int]]) -> int:
    """How many of the published counts of an instance are not ours."""
    places = {level.name: i for i, level in enumerate(levels)}
    found = {operand.name: energy_table.accesses(levels, operand) for operand in OPERANDS}
    wrong = 0
    for (operand, name), theirs in counts.items():
        words, instances = found[operand][name], energy_table.instances(levels, places[name])
        wrong += sum(
            ours != instances * count
            for ours, count in zip((words.reads, words.fills, words.updates), theirs, strict=True)
        )
    return wrong


def validate(folder: Path) -> Section:
    published = json.loads((folder / FILES[0]).read_text())
    energy = energy_table.energy_j(energy_table.actions(LEVELS, OPERANDS), table_j(published))
    total, computes = sum(energy.values()), energy_table.products(LEVELS)
    theirs = published["fJ_per_compute"]
    ours = {name: 1e15 * energy[name] / computes for name in COMPONENTS} | {"total": 1e15 * total / computes}
    rows = (
        Row("multiply-accumulates", "1", published["computes"], computes, 0.0),
        Row("cycles", "1", published["cycles"], energy_table.cycles(LEVELS), 0.0),
        Row("total energy", "uJ", published["energy_uJ"], 1e6 * total, BAR),
        *(Row(f"{name}, energy of a product", "fJ", theirs[name], ours[name], BAR) for name in (*COMPONENTS, "total")),
    )
    scores = [Score("largest error of total and components", max(abs(row.error) for row in rows), BAR, len(rows))]
    for design, levels, counts in (
        ("Simba-like", SIMBA, SIMBA_COUNTS),
        ("output-stationary", OUTPUT_STATIONARY, OUTPUT_STATIONARY_COUNTS),
    ):
        scores.append(
            Score(f"counts that differ, {design} design", different(levels, counts), 0.0, 3 * len(counts), unit="count")
        )
    return Section(TITLE, SOURCE, TEXT, tuple(scores), rows)


TEXT = paragraphs(
    "The energy of a layer is the sum over components of counts times energies. The counts are derived from the loop "
    "nest of the reference mapping: a 3 x 3 convolution on 126 of 168 processing elements, scratch pads for inputs, "
    "weights and partial sums, a buffer, DRAM. Both sides are models: this tests how we count accesses (reuse in time "
    "and space, words per access), not silicon. No constant was fitted. The rules for tiles that slide and for sums "
    "that are spilled were written with the counts of the Simba-like design at hand; the output-stationary one was "
    "only compared afterwards."
)
