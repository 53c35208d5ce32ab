"""Energy from access counts, the sections that hold our operators against published tables, and three descriptions."""

import itertools
import json
import math
import random
from functools import lru_cache
from pathlib import Path

import pytest

from gptcore.errors import UserError
from ppa import energy_table, machine, scaling
from ppa.energy_table import Level, Loop, Operand
from ppa.figure import Figure
from ppa.validation import consmax_table, eyeriss, operator_tables

REFERENCE = Path(__file__).parents[3] / "shared" / "validation"
MACHINES = ("eyeriss-like", "gemmini-16", "tpuv3-like")


def folder(module):
    if not all((REFERENCE / name).is_file() for name in module.FILES):
        pytest.skip(f"{', '.join(module.FILES)} is not here")
    return REFERENCE


def section(module):
    return module.validate(folder(module))


# Access counts, against a walk through every iteration.


def walked(levels, operand):
    """Words read, filled and updated at each level, by enumerating the nest: sets of words, no closed form."""
    loops = [(k, loop) for k, level in enumerate(levels) for loop in level.loops]
    kept = [k for k, level in enumerate(levels) if operand.name in level.keeps]
    parents = dict(zip(kept[1:], kept, strict=False))
    result = {}
    for k, inside in zip(kept, [*kept[1:], None], strict=True):
        fills, known = 0, {}
        for instance, _, taken in tiles(loops, operand, k, 0):
            have = known.setdefault(instance, set())
            fills += len(taken & have) if operand.output else len(taken)
            have |= taken
        if (
            inside is None
        ):  # one read or one sum for all products that only loops without a word of their own tell apart
            moved = len({
                tuple(i for (at, loop), i in zip(loops, index, strict=True)
                      if not loop.spatial or at < k or operand.indexed_by(loop.dimension))
                for index in itertools.product(*(range(loop.size) for _, loop in loops))
            })  # fmt: skip
        else:
            groups = {}
            for instance, group, taken in tiles(loops, operand, inside, parents[inside]):
                each = groups.setdefault(group, {})
                each[instance] = each.get(instance, 0) + len(taken)
            assert all(len(set(each.values())) == 1 for each in groups.values())  # of a multicast all take the same
            moved = sum(next(iter(each.values())) for each in groups.values())
        if operand.output:
            result[levels[k].name] = (moved - sum(map(len, known.values())), fills, moved)
        else:
            result[levels[k].name] = (moved, 0 if k == kept[0] else fills, 0)
    return result


def tiles(loops, operand, k, parent):
    """(instance, multicast group, words taken in) at each change of the tile of a level, outermost loop first.

    A tile is the box of words over the loops inside of the level, at the place that those outside give.
    """
    outside = [loop for at, loop in loops if at < k]
    inner = [loop for at, loop in loops if at >= k]
    steps = [math.prod(o.size for o in [*outside[n + 1 :], *inner] if o.dimension == loop.dimension)
             for n, loop in enumerate(outside)]  # fmt: skip
    extent = {d: math.prod(o.size for o in inner if o.dimension == d) for d in "MCPRS"}
    temporal = [n for n, loop in enumerate(outside) if not loop.spatial and loop.size > 1]
    held = {}
    for index in itertools.product(*(range(loop.size) for loop in outside)):
        place = dict.fromkeys("MCPRS", 0)
        for i, loop, step in zip(index, outside, steps, strict=True):
            place[loop.dimension] += i * step
        box = []
        for axis in operand.axes:
            start = sum(f * place[d] for d, f in axis.items())
            box.append(range(start, start + 1 + sum(f * (extent[d] - 1) for d, f in axis.items())))
        now = set(itertools.product(*box))
        spatial = [(at, loop, i) for (at, loop), i in zip(loops, index, strict=False) if loop.spatial]
        instance = tuple(i for _, _, i in spatial)
        group = tuple(i for at, loop, i in spatial if at < parent or operand.indexed_by(loop.dimension))
        identity = [index[n] for n in temporal if operand.indexed_by(outside[n].dimension)]
        before = held.get(instance)
        held[instance] = identity, now, index
        if before is None:
            yield instance, group, now
        elif identity != before[0]:
            slid = all(index[n] == before[2][n] for n in temporal[:-1])  # only the innermost loop went on
            yield instance, group, now - before[1] if slid else now


def nests(seed):
    """A small mapping of a convolution with stride, each operand kept at some levels; the outermost keeps all."""
    rng = random.Random(seed)
    names = ["weights", "inputs", "outputs"]
    levels, size = [], 1
    for k in range(rng.randint(2, 4)):
        loops = []
        for _ in range(rng.randint(0, 3)):
            loop = Loop(rng.choice("MCPR"), rng.randint(1, 3), spatial=k > 0 and rng.random() < 0.4)
            if size * loop.size <= 300:
                size *= loop.size
                loops.append(loop)
        kept = names if k == 0 else [name for name in names if rng.random() < 0.5]
        levels.append(Level(f"level {k}", tuple(loops), frozenset(kept)))
    stride = rng.choice((1, 2))
    operands = (
        Operand("weights", ({"M": 1}, {"C": 1}, {"R": 1})), Operand("inputs", ({"C": 1}, {"P": stride, "R": 1})),
        Operand("outputs", ({"M": 1}, {"P": 1}), output=True),
    )  # fmt: skip
    return levels, operands


def counted(levels, operand):
    return {name: (w.reads, w.fills, w.updates) for name, w in energy_table.accesses(levels, operand).items()}


@lru_cache
def cases():
    return [(levels, o, walked(levels, o)) for levels, operands in map(nests, range(150)) for o in operands]


def test_counts_are_those_of_a_walk_through_the_nest():
    for levels, operand, expected in cases():
        assert counted(levels, operand) == expected, (operand.name, levels)


@pytest.mark.parametrize("fault", ["no reuse, no multicast", "tiles fetched whole", "spills forgotten"])
def test_a_fault_in_the_counts_is_seen(fault, monkeypatch):
    cases()
    taken = energy_table._taken
    if fault == "no reuse, no multicast":
        monkeypatch.setattr(Operand, "indexed_by", lambda self, dimension: True)
    elif fault == "tiles fetched whole":
        monkeypatch.setattr(energy_table, "_innermost_step", lambda levels, i: 10**6)
    else:
        monkeypatch.setattr(energy_table, "_values", lambda levels, operand, i: taken(levels, operand, i))
    assert sum(counted(levels, operand) != expected for levels, operand, expected in cases()) >= 5


def test_energy_is_the_sum_of_counts_times_energies():
    counts = {("a", "read"): 3, ("a", "write"): 2, ("b", "read"): 5}
    table = {("a", "read"): 1e-12, ("a", "write"): 2e-12, ("b", "read"): 4e-12, ("c", "read"): 9.0}
    assert energy_table.energy_j(counts, table) == pytest.approx({"a": 7e-12, "b": 20e-12})
    with pytest.raises(UserError, match="write of a"):
        energy_table.energy_j(counts, {("a", "read"): 1.0, ("b", "read"): 1.0})
    with pytest.raises(UserError, match="no level keeps weights"):
        energy_table.accesses((Level("DRAM", ()),), eyeriss.OPERANDS[0])


# Eyeriss-like.


def test_eyeriss_like_energy_and_the_counts_of_two_more_designs():
    found = section(eyeriss)
    assert [score.verdict for score in found.scores] == ["pass"] * 3
    assert all(row.verdict == "pass" for row in found.rows) and len(found.rows) == 10
    assert found.scores[0].value < 1e-4  # far below the bar of 0.5 %


def test_two_swapped_energies_are_seen(tmp_path):
    published = json.loads((folder(eyeriss) / eyeriss.FILES[0]).read_text())
    names = [name for name in published["ERT_pJ_per_action"] if name != "mac_leak"]  # not in the published sum
    for one, other in itertools.combinations(names, 2):
        broken = json.loads(json.dumps(published))
        table = broken["ERT_pJ_per_action"]
        table[one], table[other] = table[other], table[one]
        (tmp_path / eyeriss.FILES[0]).write_text(json.dumps(broken))
        assert eyeriss.validate(tmp_path).scores[0].verdict == "fail", (one, other)


def test_another_mapping_has_other_counts():
    assert eyeriss.different(eyeriss.SIMBA, eyeriss.SIMBA_COUNTS) == 0
    inner = eyeriss.SIMBA[5]
    other = Level(inner.name, (inner.loops[0], inner.loops[2], inner.loops[1]), inner.keeps)  # P innermost
    assert eyeriss.different((*eyeriss.SIMBA[:5], other, *eyeriss.SIMBA[6:]), eyeriss.SIMBA_COUNTS) > 0


# Arithmetic, and softmax units.


def test_an_operator_is_carried_by_hand_and_by_the_section():
    rows = {row.name + row.unit: row for row in section(operator_tables).rows}
    row = rows["Horowitz, int32_mul, from asap7um2"]
    points = json.loads((scaling.FOLDER / "asap7.json").read_text())["operators"]["int32_mul"]
    factor = scaling.between(7e-9, 45e-9).area
    areas = sorted(points[point]["area_um2"] for point in ("relaxed", "fast"))
    assert row.ours_low == pytest.approx(areas[0] * factor.value / factor.spread)
    assert row.ours_high == pytest.approx(areas[1] * factor.value * factor.spread)
    assert row.published == 3495 and row.ours == pytest.approx(math.sqrt(row.ours_low * row.ours_high))


def test_geometric_mean_and_spread():
    assert operator_tables.geometric([2.0, 8.0]) == pytest.approx((4.0, math.exp(math.log(4) / math.sqrt(2))))


def test_a_node_scaling_applied_twice_is_seen(monkeypatch):
    """Areas agree within a factor of 1.5 on the average of each table; carried twice, by none under 3."""

    def worst_and_best():
        scores = [score for score in section(operator_tables).scores if " area" in score.name]
        assert len(scores) == 4
        factors = [math.exp(abs(math.log(score.value))) for score in scores]
        return max(factors), min(factors)

    assert worst_and_best()[0] < 1.5
    carried = scaling.carried

    def twice(library, node_m):
        once = carried(library, node_m)
        return scaling.Scaling(
            *(scaling.Factor(f.value**2, f.spread) for f in (once.area, once.energy, once.delay, once.leakage))
        )

    monkeypatch.setattr(scaling, "carried", twice)
    assert worst_and_best()[1] > 3


def test_what_the_page_says_of_the_softmax_units_holds():
    found = section(consmax_table)
    rows = {row.name: row for row in found.rows}
    assert rows["Softmax, 130nm, open flow, area"].verdict == "pass"
    assert rows["Softmax / ConSmax, 130nm, proprietary flow, area"].verdict == "pass"
    shrinks = [row for row in found.rows if row.name.partition(", ")[2].startswith("130 over 16 nm, open")]
    assert len(shrinks) == 6 and all(row.verdict == "pass" for row in shrinks)
    power = [
        rows[f"{unit}, 130 over 16 nm, proprietary flow, energy a cycle"].published
        / rows[f"{unit}, 130 over 16 nm, open flow, energy a cycle"].published
        for unit in consmax_table.ACCOUNTING
    ]
    assert 3 < min(power) and max(power) < 8.5
    for node, flow in itertools.product(("16nm", "130nm"), ("proprietary", "open")):
        assert rows[f"Softmax / ConSmax, {node}, {flow} flow, area, any storage"].verdict == "pass"
    # The buffer is what makes the ratio: without it, softmax is below 4 times ConSmax.
    buffered = consmax_table.interval("Softmax", "130nm", "area")
    bare = consmax_table.interval("Softmax", "130nm", "area", accounting="no buffer")
    fixed = consmax_table.interval("ConSmax", "130nm", "area")
    assert bare.middle < 4 * fixed.middle < 20 * fixed.middle < buffered.middle
    latches = consmax_table.interval("ConSmax", "130nm", "area").low + 512 * consmax_table.LATCH_UM2 * 1e-6
    assert latches == pytest.approx(0.015, rel=0.05)


def test_power_is_energy_times_clock():
    row = json.loads((scaling.FOLDER / "sky130.json").read_text())["operators"]["consmax_rom"]
    ours = consmax_table.interval("ConSmax", "130nm", "power")
    assert ours.low == pytest.approx(1e3 * 80e6 * 1e-12 * row["relaxed"]["energy_pj_per_cycle"])
    high = row["fast"]["energy_pj_per_cycle"] * row["fast"]["glitch_factor"] * operator_tables.WIRES
    assert ours.high == pytest.approx(1e3 * 80e6 * 1e-12 * high)


# Descriptions of published machines.


def figures(value):
    if isinstance(value, Figure):
        yield value
    elif hasattr(type(value), "model_fields"):
        for name in type(value).model_fields:
            yield from figures(getattr(value, name))


@pytest.mark.parametrize("name", MACHINES)
def test_a_description_loads_and_every_figure_has_a_source(name):
    asic = machine.load_machine(name)
    found = list(figures(asic))
    assert len(found) >= 7
    for figure in found:
        assert len(figure.source) > 20 and figure.grade in ("published", "estimate")
        assert figure.grade == "published" or figure.spread > 1 or figure.value == 0
    assert asic.sram.capacity_bytes % asic.sram.banks == 0
    scaling.carried(asic.technology.library, asic.technology.node_m.value)


def test_peak_rates_are_the_published_ones():
    """TPUv3: 123 TFLOP/s. Eyeriss at 200 MHz: 33.6 GMAC/s. Gemmini: 256 MACs a cycle at 1 GHz."""
    peaks = {}
    for name in MACHINES:
        asic = machine.load_machine(name)
        array = asic.array
        peaks[name] = array.rows * array.columns * array.count * asic.technology.clock_hz.value
    assert 2 * peaks["tpuv3-like"] == pytest.approx(123e12, rel=0.005)
    assert peaks["eyeriss-like"] == pytest.approx(33.6e9)
    assert peaks["gemmini-16"] == pytest.approx(256e9)
