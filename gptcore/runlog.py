"""What a run tells: metrics.csv, run.json, TensorBoard when asked, and the terminal."""

import contextlib
import csv
import io
import re
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from .files import write_atomically
from .runjson import write_json


@dataclass(frozen=True)
class Row:
    """One line of metrics.csv; `step` updates are done. Losses in nats per token, None where not measured."""

    step: int
    tokens: int
    train_loss: float | None
    val_loss: float | None
    learning_rate: float
    grad_norm: float | None
    step_s: float
    elapsed_s: float


COLUMNS = tuple(f.name for f in fields(Row))


def _line(values) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(
        ["" if v is None else repr(v) if isinstance(v, float) else v for v in values]
    )
    return text.getvalue()


class StepTable:
    """A CSV file whose rows begin with a step: append-only and flushed, so that nothing is lost to kill -9."""

    def __init__(self, path: Path, columns: Sequence[str], resume_step: int | None):
        self.path, self._columns = path, columns
        if resume_step is None or not self.path.exists():
            write_atomically(self.path, _line(columns).encode())
        else:
            self._drop_after(resume_step)
        self._file = open(self.path, "a", encoding="utf-8", newline="")

    def _drop_after(self, step: int) -> None:
        """Rows that a killed process wrote after its last checkpoint will be written again by this one."""
        kept = [_line(self._columns)]
        with open(self.path, encoding="utf-8", newline="") as file:
            for values in csv.reader(file):
                if len(values) == len(self._columns) and values[0].isdigit() and int(values[0]) <= step:
                    kept.append(",".join(values) + "\n")
        write_atomically(self.path, "".join(kept).encode())

    def append(self, rows: Iterable[Iterable[Any]]) -> None:
        self._file.write("".join(_line(values) for values in rows))
        self._file.flush()

    def close(self) -> None:
        self._file.close()


class Metrics(StepTable):
    """metrics.csv, open for writing."""

    def __init__(self, folder: Path, resume_step: int | None):
        super().__init__(folder / "metrics.csv", COLUMNS, resume_step)

    def write(self, row: Row) -> None:
        self.append([[getattr(row, name) for name in COLUMNS]])


class SampleLog:
    """samples.txt: what the model wrote at each checkpoint."""

    HEAD = "--- step {} ---\n"

    def __init__(self, folder: Path, resume_step: int | None):
        self.path = folder / "samples.txt"
        if self.path.exists():
            sections = re.split(r"^(?=--- step \d+ ---$)", self.path.read_text(encoding="utf-8"), flags=re.M)
            kept = [s for s in sections if resume_step is not None and s and int(s.split()[2]) <= resume_step]
            write_atomically(self.path, "".join(kept).encode())

    def write(self, step: int, text: str) -> str:
        """Appends a sample; returns it with its heading."""
        section = f"{self.HEAD.format(step)}{text}\n"
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(section)
        return section


class RunFile:
    """run.json: one small description of the run, always complete on disk."""

    def __init__(self, folder: Path, content: dict[str, Any]):
        self.path, self.content = folder / "run.json", content

    def update(self, **changes: Any) -> None:
        self.content.update(changes, updated=time.strftime("%Y-%m-%dT%H:%M:%S%z"))
        write_json(self.path, self.content)


class Screen:
    """Progress bar on a terminal, one plain line every few seconds elsewhere, nothing when `quiet`."""

    PLAIN_INTERVAL_S = 5.0

    def __init__(self, total: int, quiet: bool):
        self.quiet, self.total, self._bar = quiet, total, None
        self._last_line = float("-inf")
        self._last_tokens: int | None = None
        self._val_loss: float | None = None
        if not quiet and sys.stderr.isatty():
            from rich import progress
            from rich.console import Console

            self._bar = progress.Progress(
                progress.TextColumn("training"), progress.BarColumn(), progress.MofNCompleteColumn(),
                progress.TextColumn("{task.fields[status]}"), progress.TimeRemainingColumn(),
                console=Console(stderr=True),
            )  # fmt: skip
            self._task = self._bar.add_task("training", total=total, status="")
            self._bar.start()

    def step(self, step: int, tokens: int, loss: float, val_loss: float | None) -> None:
        """`tokens` since the start of the run; the speed shown is that since the last line."""
        self._val_loss = self._val_loss if val_loss is None else val_loss
        now = time.monotonic()
        plain_is_due = now - self._last_line >= self.PLAIN_INTERVAL_S or step == self.total
        if self.quiet or (self._bar is None and not plain_is_due):
            return
        status = f"loss {loss:.3f}" + (f"  val {self._val_loss:.3f}" if self._val_loss is not None else "")
        if self._last_tokens is not None and now > self._last_line:
            status += f"  {(tokens - self._last_tokens) / (now - self._last_line):,.0f} tokens/s"
        self._last_line, self._last_tokens = now, tokens
        if self._bar is not None:
            self._bar.update(self._task, completed=step, status=status)
        else:
            self._print(f"step {step}/{self.total}  {status}")

    def say(self, text: str) -> None:
        if self.quiet:
            return
        if self._bar is not None:
            self._bar.console.print(text, markup=False, highlight=False)
        else:
            self._print(text)

    @staticmethod
    def _print(text: str) -> None:
        with contextlib.suppress(OSError):  # a reader that went away must not end a training
            print(text, file=sys.stderr, flush=True)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.stop()


class Board:
    """TensorBoard events, when asked for."""

    def __init__(self, folder: Path, wanted: bool, resume_step: int | None):
        self._writer: Any = None
        if wanted:
            from .errors import UserError

            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError as error:
                raise UserError("train.tensorboard needs the package tensorboard: pip install tensorboard") from error
            self._writer = SummaryWriter(str(folder / "tensorboard"), purge_step=resume_step and resume_step + 1)

    def write(self, row: Row) -> None:
        if self._writer is not None:
            for name in ("train_loss", "val_loss", "learning_rate", "grad_norm"):
                if getattr(row, name) is not None:
                    self._writer.add_scalar(name, getattr(row, name), row.step)

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
