"""The live table of a study on a terminal: incumbent, path, candidates of the round, budget, and what is left of it.

    with Ledger(path) as ledger, Screen(path, study) as screen:
        ...  screen.line("round 1: 12 candidates")

A thread looks at the ledger twice a second, read-only, and draws below the lines, which scroll by above it. On a pipe,
or a terminal that cannot move its cursor, there are the lines alone. Nothing that fails here fails the search: it is
shown in place of the table. The cursor stays visible and no mode of the terminal is changed, so that a process that is
killed leaves nothing to repair. Leave the screen before the ledger is closed: SQLite folds its log into the file only
if nobody reads.
"""

import threading
import time
from collections import Counter
from pathlib import Path
from types import TracebackType

from rich import box
from rich.console import Console, Group, RenderableType
from rich.constrain import Constrain
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from gptcore.errors import RunError, UserError

from .human import clock, human
from .status import Row, Standing, Status, read_status
from .trial import FAILED
from .watch import watch

INTERVAL_S = 0.5
SHARE = 0.05  # of a core, at most; a look at 1,000 trials takes some 15 ms, at 10,000 ten times that
LINES_ABOVE = 6  # of the terminal that are left to the lines
TABLE_WIDTH = 100
PATH = 4  # steps of it that are shown, the last ones
COLOURS = {"done": "green", "running": "cyan", "confirming": "yellow", "queued": "dim", "pruned": "blue"}
COLOURS |= {state: "red" for state in FAILED} | {"finished": "green", "stopped": "yellow", "unknown": "yellow"}
SHORT = {"area_m2": "area", "energy_per_token_j": "energy", "latency_s": "latency", "step_time_s": "step time"}


class Screen:
    """Says what happens in a study, and on a terminal shows where it stands. A context manager."""

    def __init__(self, path: str | Path, study: str, *, console: Console | None = None, interval_s: float = INTERVAL_S):
        self.path, self.study, self.interval_s = path, study, interval_s
        self._console = console or Console(highlight=False)
        self._draws = self._console.is_terminal and not self._console.is_dumb_terminal
        self._live = Live(console=self._console, auto_refresh=False, vertical_overflow="crop")
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="live table", daemon=True)

    def line(self, text: str) -> None:
        """Says a line at once; on a terminal above the table."""
        if not self._draws:
            print(text, flush=True)
            return
        try:
            self._console.print(text, markup=False, highlight=False)
        except OSError:  # the terminal is gone
            self._done.set()

    def follow(self, study: str) -> None:
        """Shows another study of the same ledger from now on."""
        self.study = study

    def __enter__(self) -> "Screen":
        if self._draws:
            self._live.start()
            self._console.show_cursor(True)
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._draws:
            return
        gone = self._done.is_set()
        self._done.set()
        try:
            self._thread.join()
            if not gone:
                self._draw()  # the last state stays on the terminal
        finally:
            try:
                self._live.stop()
            except OSError:
                self._draws = False

    def _watch(self) -> None:
        began = time.thread_time()
        while not self._done.wait(max(self.interval_s, (time.thread_time() - began) / SHARE)):
            began = time.thread_time()
            self._draw()

    def _draw(self) -> None:
        shown: RenderableType
        try:
            status = watch(self.path, lambda ledger: read_status(ledger, self.study))
            shown = picture(status, self._console.height - LINES_ABOVE)
        except Exception as error:  # of any kind: the search goes on without its picture
            kind = "" if isinstance(error, (UserError, RunError)) else f"{type(error).__name__}: "
            shown = Text(f"no live table: {kind}{error}", style="yellow")
        try:
            self._live.update(shown, refresh=True)
        except OSError:
            self._done.set()


def picture(status: Status, height: int) -> RenderableType:
    """A study in at most `height` lines, or in the few that are always there."""
    head = [Text(""), headline(status), *points(status)]
    foot: list[RenderableType] = [bars(status), counts(status), rate(status)]
    room = height - len(head) - len([use for use in status.budget if use.limit is not None]) - 3
    return Group(*head, Text(""), candidates(status, max(4, room)), *foot)


def headline(status: Status) -> Text:
    """Study, state, machine and cost, for how long."""
    about = [status.strategy, status.machine, *(f"cost {SHORT.get(n, n)}" for n in status.cost_names)]
    said = Text.assemble((status.study, "bold"), "  ", (status.phase, COLOURS.get(status.phase, "cyan")))
    if status.round is not None:
        said.append("  start against end" if status.final else f"  round {status.round}")
    said.append("  " + ", ".join(filter(None, about)), style="dim")
    said.append(f"  {clock(status.elapsed_s)}")
    if status.phase == "stopped" and status.counts.get("running"):
        said.append(f"  ({status.counts['running']} interrupted)", style="yellow")
    return _line(said)


def points(status: Status) -> list[Text]:
    """Incumbent, best so far, path, and how it ended."""
    found = []
    if status.incumbent is not None:
        found.append(_titled("incumbent", _standing(status.incumbent, status)))
    known = status.incumbent.config_hash if status.incumbent else ""
    if status.best is not None and status.best.config_hash != known:
        found.append(_titled("best mean", _standing(status.best, status)))
    if status.steps:
        early = len(status.steps) - PATH
        path = Text(f"{early} before > " if early > 0 else "")
        for i, step in enumerate(status.steps[-PATH:]):
            path.append(f"{' > ' if i else ''}{step.name}")
            if step.gain is not None:
                path.append(f" {step.gain:+.4f}", style="green" if step.gain > 0 else "yellow")
        found.append(_titled("path", path.append(f" {status.unit}", style="dim")))
    if status.reason:
        found.append(_titled("ended", Text(status.reason)))
    if status.gain:
        low, high = status.gain["low"], status.gain["high"]
        ends = f" [{low:+.4f}, {high:+.4f}]" if low is not None else ""
        words = f"{status.gain['mean']:+.4f}{ends} {status.unit} from start to end, {_seeds(status.gain['seeds'])}"
        found.append(_titled("gain", Text(words)))
    return found


def _titled(title: str, text: Text) -> Text:
    return _line(Text.assemble((f"{title:<10} ", "dim"), text))


def _standing(point: Standing, status: Status) -> Text:
    loss = "loss -" if point.loss is None else f"loss {point.loss:.4f}"
    text = Text.assemble((loss, "bold"), (f" ({_seeds(point.seeds)})", "dim"))
    names = [*status.cost_names, *(n for n in ("params",) if n not in status.cost_names)]
    text.append("".join(f"  {SHORT.get(n, n)} {human(n, point.costs[n])}" for n in names if n in point.costs))
    return text.append(f"  {point.name or 'baseline'}")


def candidates(status: Status, room: int) -> RenderableType:
    """The candidates of the round in at most `room` lines; of a sweep the latest ends."""
    if status.round is None:
        return recent(status, room)
    table = _table()
    for name in ("candidate", "state", "seeds", "loss", "gain"):
        table.add_column(name, **_column(name))
    for name in status.cost_names:
        table.add_column(SHORT.get(name, name), justify="right", no_wrap=True)
    room -= 2  # header and rule
    shown = status.candidates if len(status.candidates) <= room else status.candidates[: room - 1]
    for row in shown:
        gain = "-" if row.gain is None else f"{row.gain:+.4f}"
        costs = [human(name, row.costs.get(name)) for name in status.cost_names]
        table.add_row(Text(row.name), _state(row.state), _done(row), _loss(row.loss), gain, *costs)
    rest = Counter(row.state for row in status.candidates[len(shown) :])
    if rest:
        words = ", ".join(f"{count} {state}" for state, count in rest.items())
        table.add_row(Text(f"and {rest.total()} more: {words}", style="dim"))
    if not status.candidates:
        table.add_row(Text("none that needs a trial yet", style="dim"))
    return Constrain(table, TABLE_WIDTH)


def recent(status: Status, room: int) -> RenderableType:
    """The trials that ended last."""
    table = _table()
    for name in ("trial", "state", "seed", "loss", "seconds"):
        table.add_column(name, **_column(name))
    for end in status.recent[: room - 2]:
        told = Text(f"{end.name}: {end.reason}" if end.reason else end.name)
        table.add_row(told, _state(end.state), str(end.seed), _loss(end.loss), f"{end.seconds:.1f}")
    return Constrain(table, TABLE_WIDTH)


def bars(status: Status) -> Table:
    """Of every limit of the budget, how much is used."""
    grid = Table.grid(padding=(0, 2, 0, 0), expand=True)
    grid.add_column(no_wrap=True, style="dim", min_width=9)
    grid.add_column(no_wrap=True, justify="right")
    grid.add_column(ratio=1)
    for use in status.budget:
        if use.limit is not None:
            used = f"{_amount(use.name, use.used)} of {_amount(use.name, use.limit)}"
            full = min(use.used, use.limit) / use.limit
            grid.add_row(
                use.name.replace("_", " "), used, ProgressBar(total=1, completed=full, width=40, complete_style="cyan")
            )
    return grid


def rate(status: Status) -> Text:
    """How fast, and for how long at most."""
    per = status.trials_per_minute
    pace = "no rate yet" if per is None else f"{per:,.0f} trials/min" if per >= 100 else f"{per:.3g} trials/min"
    left = "time left -" if status.at_most_s is None else f"at most {clock(status.at_most_s)} of budget left"
    waiting = sum(status.counts.get(state, 0) for state in ("queued", "running"))
    if status.round is None and per and waiting:  # a sweep: all that is to come is known
        left = f"some {clock(60 * waiting / per)} left"
    return _titled("rate", Text(pace if status.phase == "finished" else f"{pace}, {left}"))


def counts(status: Status) -> Text:
    """`states 12 done, 2 running`, in colours."""
    parts = [Text(f"{count} {state}", COLOURS.get(state, "")) for state, count in status.counts.items()]
    return _titled("states", Text(", ").join(parts) if parts else Text("none"))


def _seeds(count: int) -> str:
    return f"{count} seed{'' if count == 1 else 's'}"


def _done(row: Row) -> str:
    """`2/3`: done of all; with the number of pairs the gain rests on where that is another one."""
    total, done = sum(row.counts.values()), row.counts.get("done", 0)
    return f"{done}/{total}" + (f" ({row.pairs}{' fresh' if row.fresh else ''})" if row.pairs not in (0, done) else "")


def _state(state: str) -> Text:
    return Text(state, COLOURS.get(state, ""))


def _loss(loss: float | None) -> str:
    return "-" if loss is None else f"{loss:.4f}"


def _amount(name: str, value: float) -> str:
    return clock(value) if name == "seconds" else f"{value:,.2f}" if name == "gpu_hours" else f"{value:,.0f}"


def _table() -> Table:
    return Table(box=box.SIMPLE_HEAD, padding=(0, 1), pad_edge=False, show_edge=False, expand=True)


def _column(name: str) -> dict:
    if name in ("candidate", "trial"):
        return {"ratio": 1, "no_wrap": True, "overflow": "ellipsis", "min_width": 12}
    return {"justify": "left" if name == "state" else "right", "no_wrap": True}


def _line(text: Text) -> Text:
    text.no_wrap, text.overflow = True, "ellipsis"
    return text
