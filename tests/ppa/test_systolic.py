"""Latency and traffic of systolic arrays: against SCALE-Sim's tables and against walks over the folds."""

import csv
import dataclasses
import math
from itertools import product
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ppa import systolic
from ppa.validation import scalesim

DATA = Path(__file__).parents[3] / "shared" / "validation"
DATAFLOWS = ("output_stationary", "weight_stationary", "input_stationary")
shapes = st.tuples(*[st.integers(1, 40)] * 3, *[st.integers(1, 9)] * 2)


@pytest.fixture
def table():
    if not (DATA / scalesim.TABLE).is_file():
        pytest.skip(f"{scalesim.TABLE} is not here")
    with open(DATA / scalesim.TABLE) as file:
        return list(csv.DictReader(file))


def test_every_row_of_scale_sim_comes_out(table):
    section = scalesim.validate(DATA)
    assert len(table) == 2000
    assert [(score.value, score.bar, score.verdict) for score in section.scores] == [(0.0, 0.0, "pass")] * 3
    assert [row.verdict for row in section.rows] == ["pass"] * 3


@pytest.mark.parametrize(
    "fault",
    [
        lambda *shape: systolic.cycles(*shape) + 1,  # off by one
        lambda flow, m, k, n, rows, columns: systolic.cycles(
            flow, m, min(k, rows), n, rows, columns
        ),  # folds of k lost
        lambda flow, m, k, n, rows, columns: systolic.cycles(DATAFLOWS[0], m, k, n, rows, columns),
    ],
)
def test_a_wrong_formula_is_noticed(table, monkeypatch, fault):
    monkeypatch.setattr(scalesim, "cycles", fault)
    assert scalesim.validate(DATA).scores[0].verdict == "fail"


def pieces(size, step):
    return [min(step, size - start) for start in range(0, size, step)]


def walk(dataflow, m, k, n, rows, columns):
    """Every fold by itself: its cycles, and what enters and leaves the array in it."""
    cycles = a = b = written = read = 0
    if dataflow == "output_stationary":
        for fold_m, fold_n in product(pieces(m, rows), pieces(n, columns)):
            a, b, written = a + fold_m * k, b + k * fold_n, written + fold_m * fold_n
            cycles += k + (rows - 1) + (columns - 1)  # the last operand pair meets in the far corner
        return cycles, (a, b, written, read)
    kept, streamed = (n, m) if dataflow == "weight_stationary" else (m, n)
    done = set()
    for fold_k, (column, fold) in product(pieces(k, rows), enumerate(pieces(kept, columns))):
        loaded, streams = fold_k * fold, streamed * fold_k
        a, b = (a + streams, b + loaded) if dataflow == "weight_stationary" else (a + loaded, b + streams)
        written += streamed * fold
        read += streamed * fold if column in done else 0
        done.add(column)
        cycles += rows + streamed + (rows - 1) + (columns - 1)  # load, stream, and the skew of both edges
    return cycles, (a, b, written, read)


@pytest.mark.parametrize("dataflow", DATAFLOWS)
@given(shape=shapes)
def test_closed_forms_equal_a_walk_over_the_folds(dataflow, shape):
    assert (systolic.cycles(dataflow, *shape), dataclasses.astuple(systolic.traffic(dataflow, *shape))) == walk(
        dataflow, *shape
    )


@pytest.mark.parametrize("dataflow", DATAFLOWS)
def test_the_walk_tells_rows_from_columns(dataflow):
    """SCALE-Sim's table cannot: all its arrays are square."""
    right, mixed_up = ((19, 23, 29, *array) for array in ((8, 4), (4, 8)))
    assert systolic.cycles(dataflow, *right) == walk(dataflow, *right)[0] != systolic.cycles(dataflow, *mixed_up)


def test_the_walk_tells_a_lost_fold_of_k():
    m, k, n, rows, columns = 5, 9, 7, 4, 4  # three folds along k
    whole, lost = (systolic.traffic("weight_stationary", m, depth, n, rows, columns) for depth in (k, k - 1))
    assert dataclasses.astuple(whole) == walk("weight_stationary", m, k, n, rows, columns)[1]
    assert dataclasses.astuple(lost) != walk("weight_stationary", m, k, n, rows, columns)[1]


@pytest.mark.parametrize("dataflow", DATAFLOWS)
@given(shape=shapes)
def test_bounds(dataflow, shape):
    m, k, n, rows, columns = shape
    cycles, moved = systolic.cycles(dataflow, *shape), systolic.traffic(dataflow, *shape)
    assert cycles >= math.ceil(m * k * n / (rows * columns))  # every cell one multiplication a cycle
    assert 0 < systolic.utilization(dataflow, *shape) <= 1
    assert moved.a >= m * k and moved.b >= k * n
    assert moved.out_written - moved.partial_read == m * n  # what is written and not read again is the result


@pytest.mark.parametrize("dataflow", DATAFLOWS)
@given(shape=shapes, axis=st.integers(0, 2))
def test_grows_with_the_product(dataflow, shape, axis):
    larger = [size + (position == axis) for position, size in enumerate(shape)]
    assert systolic.cycles(dataflow, *larger) >= systolic.cycles(dataflow, *shape)
    moved = (dataclasses.astuple(systolic.traffic(dataflow, *sizes)) for sizes in (larger, shape))
    for after, before in zip(*moved, strict=True):
        assert after >= before


def test_transposed_product_mirrors_the_dataflows():
    """(A B)^T = B^T A^T: with the inputs kept instead of the weights nothing changes but the names."""
    ws = systolic.traffic("weight_stationary", 20, 30, 50, 8, 4)
    mirrored = systolic.traffic("input_stationary", 50, 30, 20, 8, 4)
    assert (ws.a, ws.b, ws.out_written, ws.partial_read) == (
        mirrored.b,
        mirrored.a,
        mirrored.out_written,
        mirrored.partial_read,
    )
    assert systolic.cycles("weight_stationary", 20, 30, 50, 8, 4) == systolic.cycles(
        "input_stationary", 50, 30, 20, 8, 4
    )


def test_unknown_dataflow():
    for function in (systolic.cycles, systolic.traffic):
        with pytest.raises(ValueError, match="row_stationary"):
            function("row_stationary", 1, 1, 1, 1, 1)
