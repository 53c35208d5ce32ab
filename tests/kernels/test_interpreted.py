"""Runs the interpreter's checks of every family of kernels, in few processes: a start takes as long as a family."""

import pytest
from processes import HERE, interpreted

pytest.importorskip("triton")

ATTENTION = ("attention", "faults", "types")  # one family in three files
NAMES = sorted({path.stem.removeprefix("interpreted_") for path in HERE.glob("interpreted_*.py")} - set(ATTENTION))
GROUPS = [ATTENTION, NAMES[::2], NAMES[1::2]]


@pytest.mark.parametrize("names", GROUPS, ids="+".join)
def test_interpreted(names):
    interpreted("not slow", *names)


@pytest.mark.slow
@pytest.mark.parametrize("names", GROUPS, ids="+".join)
def test_interpreted_grid(names):
    interpreted("slow", *names)
