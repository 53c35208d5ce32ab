"""Runs the interpreter's checks of every family of kernels, a process a family."""

import pytest
from processes import HERE, interpreted

pytest.importorskip("triton")

ATTENTION = ("attention", "faults", "types")  # one family in three files
NAMES = sorted({path.stem.removeprefix("interpreted_") for path in HERE.glob("interpreted_*.py")} - set(ATTENTION))
FAMILIES = [ATTENTION, *((name,) for name in NAMES)]


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family[0])
def test_interpreted(family):
    interpreted("not slow", *family)


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family[0])
def test_interpreted_grid(family):
    interpreted("slow", *family)
