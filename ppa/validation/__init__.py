"""Published and measured numbers beside ours: what `gptcore ppa validate` prints and docs/validation.md holds.

Each module of this package is one section and defines

    ORDER         place on the page
    FILES         names of the files below the data folder that it reads; without them it is skipped, and says so
    validate(folder: Path) -> Section

A section never counts a row that it was fitted on: `scored` and `fitted` are kept apart.
"""

import importlib
import pkgutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

RESULTS = Path(__file__).parent / "results.json"  # the scores of the last run, which reports show


@dataclass(frozen=True)
class Row:
    """One published number, ours, and the relative error; `bar` is the largest error allowed, None where none is set.

    `bar` may also be judged by an interval: then `ours_low`, `ours_high` hold ours, and the published number must lie
    inside. `note` explains; a row without a bar and interval is shown, not judged.
    """

    name: str
    unit: str
    published: float
    ours: float
    bar: float | None = None
    ours_low: float | None = None
    ours_high: float | None = None
    note: str = ""

    @property
    def error(self) -> float:
        """Relative to the published number; the difference itself where that is 0 (an error measure)."""
        return (self.ours - self.published) / self.published if self.published else self.ours

    @property
    def verdict(self) -> str:
        if self.ours_low is not None and self.ours_high is not None:
            return "pass" if self.ours_low <= self.published <= self.ours_high else "fail"
        if self.bar is None:
            return "shown"
        return "pass" if abs(self.error) <= self.bar else "fail"


@dataclass(frozen=True)
class Score:
    """An aggregate that a bar is set on, such as a mean absolute error over held-out rows; smaller is better."""

    name: str
    value: float
    bar: float | None
    rows: int
    baseline: float | None = None  # of the simple model that we should beat
    note: str = ""
    unit: Literal["share", "count", "factor"] = "share"

    @property
    def verdict(self) -> str:
        if self.bar is None:
            return "shown"
        return "pass" if self.value <= self.bar else "fail"


@dataclass(frozen=True)
class Section:
    """A part of the page. `text` says in plain sentences what is compared, how, and why a miss is a miss."""

    title: str
    source: str
    text: str
    scores: tuple[Score, ...] = ()
    rows: tuple[Row, ...] = ()
    skipped: str = ""  # why nothing was compared
    extra: dict[str, Any] = field(default_factory=dict)


def sections(folder: Path) -> Iterator[Section]:
    """Every section, in the order of the page."""
    found = [importlib.import_module(f"{__name__}.{m.name}") for m in pkgutil.iter_modules(__path__)]
    for module in sorted((m for m in found if hasattr(m, "validate")), key=lambda m: m.ORDER):
        absent = [name for name in module.FILES if not (folder / name).is_file()]
        if absent:
            yield Section(module.TITLE, module.SOURCE, "", skipped=f"{', '.join(absent)} is not in {folder}")
        else:
            yield module.validate(folder)
