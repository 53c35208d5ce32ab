"""Samples kept in a file of JSON lines: one object a sample, with all that is needed to draw it again.

Lines are only ever added, all of a generation or none, and other processes may add to the same file at the same time.
"""

import fcntl
import json
import os
import stat
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .errors import RunError, UserError
from .sample import Samples

FORMAT = 1


def records(samples: Samples, origin: Mapping[str, Any], settings: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A line for each sample. `tokens_per_s` is that of all of them together.

    `origin`: which model; `settings`: how tokens were drawn. Recorded steps add logits, probabilities and ranks.
    """
    made = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    common = {"format": FORMAT, **origin, "time": made, "settings": dict(settings)}
    common |= {"elapsed_s": round(samples.elapsed_s, 6), "tokens_per_s": round(samples.tokens_per_s, 3)}
    found = []
    for i, sample in enumerate(samples.samples):
        line = {"sample": i, "prompt": samples.prompt, "text": sample.text, "tokens": sample.tokens}
        line["ended"] = sample.ended
        if sample.steps:
            line["logits"] = [round(step.logit, 5) for step in sample.steps]
            line["probabilities"] = [float(f"{step.probability:.6g}") for step in sample.steps]
            line["ranks"] = [step.rank for step in sample.steps]
        found.append({**common, **line})
    return found


class SampleFile:
    """A file that samples are added to; also a pipe or a terminal.

    It is opened, and made if need be, before anything is drawn. UserError where that is not possible, or where the
    file holds something else.
    """

    def __init__(self, path: Path):
        self.path = path
        self.made = not path.exists()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            ordinary = self.made or path.is_file()
            how = os.O_RDWR | os.O_CREAT if ordinary else os.O_WRONLY
            self.handle = os.open(path, how | os.O_APPEND, 0o666)
        except OSError as error:
            raise UserError(f"--sample_file: cannot write {path}: {error.strerror}; choose another file")
        self.ordinary = stat.S_ISREG(os.fstat(self.handle).st_mode)
        if self.ordinary:
            self._check()

    def _check(self) -> None:
        with open(self.path, "rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH)  # another may be in the middle of the first line
            first = file.readline()
        try:
            ours = not first or "format" in json.loads(first)
        except (ValueError, TypeError):
            ours = False
        if not ours:
            self.close()
            raise UserError(f"--sample_file: {self.path} holds something else than samples; choose another file")

    def add(self, lines: Sequence[Mapping[str, Any]]) -> None:
        """Adds all lines or none. RunError where the disk does not take them."""
        data = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines).encode()
        try:
            if self.ordinary:
                fcntl.flock(self.handle, fcntl.LOCK_EX)
            self._write(data)
        except OSError as error:
            raise RunError(f"--sample_file: cannot write {self.path}: {error.strerror}; it is as it was before")
        finally:
            if self.ordinary:
                fcntl.flock(self.handle, fcntl.LOCK_UN)

    def _write(self, data: bytes) -> None:
        if not self.ordinary:
            while data:
                data = data[os.write(self.handle, data) :]
            return
        size = os.fstat(self.handle).st_size
        if size and os.pread(self.handle, 1, size - 1) != b"\n":  # a line that a crash has cut short stays by itself
            data = b"\n" + data
        try:
            rest = data
            while rest:
                rest = rest[os.write(self.handle, rest) :]
            os.fsync(self.handle)
        except BaseException:
            os.ftruncate(self.handle, size)
            raise

    def close(self) -> None:
        """A file that was made here and that nothing came into is removed."""
        empty = self.ordinary and os.fstat(self.handle).st_size == 0
        os.close(self.handle)
        if self.made and empty:
            self.path.unlink(missing_ok=True)
