"""How far a trial is that runs now, from the metrics.csv of its run folder: its last lines, and nothing is written."""

import csv
from dataclasses import dataclass
from pathlib import Path

TAIL_BYTES = 64 * 1024  # some 800 lines; the last validation may lie further back, and is then left out


@dataclass(frozen=True, slots=True)
class Progress:
    """`loss`: that of the last validation, nats a token, None before the first; `seconds`: all attempts together."""

    step: int
    loss: float | None
    seconds: float

    def words(self, steps: int) -> str:
        """`step 1,500 of 3,000, loss 2.4512`."""
        return f"step {self.step:,} of {steps:,}" + ("" if self.loss is None else f", loss {self.loss:.4f}")


def progress(folder: str | Path) -> Progress | None:
    """None as long as there is no line, or no such file on this machine."""
    try:
        with open(Path(folder) / "metrics.csv", "rb") as file:
            head = file.readline().decode().strip().split(",")
            start = file.tell()
            end = file.seek(0, 2)
            file.seek(max(start, end - TAIL_BYTES))
            if end - start > TAIL_BYTES:
                file.readline()  # cut off
            lines = file.read().decode().split("\n")[:-1]  # the last one may be half written
        rows = [dict(zip(head, row, strict=True)) for row in csv.reader(lines)]
        losses = [row["val_loss"] for row in rows if row["val_loss"]]
        last = rows[-1]
        return Progress(int(last["step"]), float(losses[-1]) if losses else None, float(last["elapsed_s"]))
    except (OSError, ValueError, LookupError):  # not there yet, on another machine, or being written
        return None


__all__ = ["Progress", "progress"]
