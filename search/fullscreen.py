"""The monitor on a whole terminal: a study above, its trials below, sorted, filtered and scrolled by keys."""

import contextlib
import time
from collections.abc import Sequence

from rich import box
from rich.console import Console, Group, JustifyMethod, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from gptcore.errors import RunError, UserError

from .keys import Keyboard
from .live import COLOURS, bars, candidates, counts, headline, points, rate
from .monitor import Look, Studies, TrialRow, failures
from .trial import STATES

SORTS = ("order", "state", "loss", "seconds", "seed", "candidate", "differs", "key")
WIDE = 110  # columns from which on what differs has one of its own
AROUND = 4  # lines of the screen around the rows: header and rule of the table, a blank, the line of keys
ALWAYS = 6  # rows, before what stands above them is cut


def watch_keys(studies: Studies, interval_s: float) -> None:
    """Until the user quits, by q or Ctrl-C. Whatever ends it, the terminal is as it was."""
    view = View(studies)
    console = Console(highlight=False)
    with (
        contextlib.suppress(KeyboardInterrupt),
        Keyboard() as keyboard,
        Live(console=console, screen=True, auto_refresh=False) as live,
    ):
        due = 0.0
        while not view.quit:
            if time.monotonic() >= due:
                view.read()
                due = time.monotonic() + interval_s
            live.update(view.picture(console.width, console.height), refresh=True)
            for key in keyboard.read(max(0.0, due - time.monotonic())):
                view.press(key)


class View:
    """What is shown and how: a function of the study, the keys pressed and the size of the screen."""

    def __init__(self, studies: Studies):
        self.studies = studies
        self.found: Look | None = None
        self.problem = ""
        self.sort, self.reverse, self.words, self.typing, self.failed = "order", False, "", False, False
        self.top, self.page, self.quit = 0, 1, False
        self.round = False  # the candidates of the round in place of the trials

    def read(self) -> None:
        """A ledger that cannot be read now leaves the last look on the screen, with the reason."""
        try:
            self.found, self.problem = self.studies.look(), ""
        except (UserError, RunError) as error:
            self.problem = str(error)

    def press(self, key: str) -> None:
        if self.typing:
            self._type(key)
        elif key == "q":
            self.quit = True
        elif key == "s":
            self.sort, self.top = SORTS[(SORTS.index(self.sort) + 1) % len(SORTS)], 0
        elif key == "r":
            self.reverse, self.top = not self.reverse, 0
        elif key == "/":
            self.typing = True
        elif key == "f":
            self.failed, self.top = not self.failed, 0
        elif key == "c":
            self.round = not self.round
        elif key == "escape":
            self.words, self.top = "", 0
        elif key == "tab":
            self._next()
        else:
            steps = {"up": -1, "k": -1, "down": 1, "j": 1, "pgup": -self.page, "pgdn": self.page}
            ends = {"home": 0, "g": 0, "end": 1 << 30, "G": 1 << 30}
            self.top = ends.get(key, self.top + steps.get(key, 0))

    def _type(self, key: str) -> None:
        if key == "enter":
            self.typing = False
        elif key == "escape":
            self.typing, self.words = False, ""
        elif key == "backspace":
            self.words = self.words[:-1]
        elif len(key) == 1 and key.isprintable():
            self.words += key
        self.top = 0

    def _next(self) -> None:
        self.top = 0
        try:
            self.studies.next()
        except (UserError, RunError) as error:
            self.problem = str(error)
        else:
            self.read()

    def rows(self) -> list[TrialRow]:
        """Those that the filter lets pass, in order; what has no value comes last whichever way."""
        found = self.found.rows if self.found else ()
        found = failures(found) if self.failed else found
        return ordered([row for row in found if row.matches(self.words)], self.sort, self.reverse)

    def picture(self, width: int, height: int) -> RenderableType:
        if self.found is None:
            wait = Text(self.problem or f"no study in {self.studies.path} yet")
            return Group(wait, Text("looked for again and again; q quit", style="dim"))
        status, rows = self.found.status, self.rows()
        above: list[RenderableType] = [headline(status), *points(status), counts(status), rate(status)]
        limits = sum(use.limit is not None for use in status.budget)
        if limits and height - AROUND - len(above) - limits >= ALWAYS:
            above.append(bars(status))
        else:
            above, limits = above[: max(1, height - AROUND - ALWAYS)], 0
        self.page = max(1, height - AROUND - len(above) - (limits - 1 if limits else 0))
        self.top = max(0, min(self.top, len(rows) - self.page))
        shown = rows[self.top : self.top + self.page]
        table: RenderableType = trials(shown, width, self.sort, self.reverse)
        lines = len(shown)
        if self.round:
            listed = status.recent if status.round is None else status.candidates or (None,)
            table, lines = candidates(status, self.page + 2), min(self.page, len(listed))
        blank = [Text("")] * (self.page - lines)
        return Group(*above, Text(""), table, *blank, self._keys(len(rows)))

    def _keys(self, count: int) -> Text:
        """The last line: what is shown, and what can be pressed."""
        if self.typing:
            return _cut(
                Text.assemble(("filter: ", "bold"), self.words, ("_", "blink"), ("  Enter keep, Esc clear", "dim"))
            )
        if self.problem:
            return _cut(Text(self.problem, style="red"))
        last = min(self.top + self.page, count)
        told = Text(f"{self.top + 1 if count else 0}-{last} of {count}", style="bold")
        if self.failed:
            told.append(" failed", style="red")
        if self.words:
            told.append(f" with '{self.words}'", style="yellow")
        told.append(f" by {self.sort} {'v' if self.reverse else '^'}")
        all_, at = self.studies.all, self.studies.at
        others = "latest" if self.found and self.found.status.round is None else "round"
        more = f"  Tab study {all_.index(at) + 1}/{len(all_)}" if at in all_ and len(all_) > 1 else ""
        told.append(f"  q quit  s sort  r reverse  / filter  f failed  c {others}{more}", style="dim")
        return _cut(told)


def ordered(rows: Sequence[TrialRow], sort: str, reverse: bool = False) -> list[TrialRow]:
    """Sorted by a column; rows without a value come last in both directions, equal ones as they were added."""

    def value(row: TrialRow) -> float | str:
        return STATES.index(row.state) if sort == "state" else getattr(row, sort)  # type: ignore[arg-type]

    known = sorted((r for r in rows if getattr(r, sort) not in (None, "")), key=value, reverse=reverse)
    return known + [r for r in rows if getattr(r, sort) in (None, "")]


def trials(rows: Sequence[TrialRow], width: int, sort: str = "order", reverse: bool = False) -> Table:
    """Trials as a table as wide as the terminal; the column that it is sorted by is marked."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), pad_edge=False, show_edge=False, expand=True)
    wide = width >= WIDE
    names = ["state", "seed", "loss", "seconds", *(["candidate", "differs"] if wide else ["candidate"]), "key"]
    for name in names:
        mark = (" v" if reverse else " ^") if name == sort else ""
        title = {"differs": "what differs", "seconds": "s"}.get(name, name) + mark
        text = name in ("candidate", "differs")
        right: JustifyMethod = "right" if name in ("seed", "loss", "seconds") else "left"
        table.add_column(
            title, no_wrap=True, overflow="ellipsis", ratio=1 if text else None, justify=right,
            min_width=12 if text else None, style="dim" if name == "key" else None,
        )  # fmt: skip
    for row in rows:
        loss = "-" if row.loss is None else f"{row.loss:.4f}"
        name, told = row.candidate or "baseline", row.reason
        words = f"{row.progress}: {name}" if row.progress else f"{name}: {told}" if told else name
        cells: list[RenderableType] = [Text(row.state, COLOURS.get(row.state, "")), str(row.seed), loss]
        cells += [f"{row.seconds:.1f}", Text(words), *([Text(row.differs or "-")] if wide else []), row.key[:8]]
        table.add_row(*cells)
    return table


def _cut(text: Text) -> Text:
    text.no_wrap, text.overflow = True, "ellipsis"
    return text
