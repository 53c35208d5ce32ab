"""Checkpoints and the files of a run folder: written atomically, read without executing anything.

RUN/config.yaml    the resolved configuration
RUN/run.json       status, identity, progress (see `train`)
RUN/metrics.csv    losses by step
RUN/constants.csv  learned constants of attention by step, where there are any
RUN/last.pt        newest state; RUN/previous.pt the one before; RUN/best.pt the best validation loss
"""

import os
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError

from .config import Config, GPTConfig
from .errors import CheckpointError
from .files import sync_folder, write_atomically
from .model import GPT
from .runjson import read_run as read_run
from .runjson import write_json as write_json

FORMAT = 1


class VersionError(CheckpointError):
    """A checkpoint that another version of the program wrote: sound, and not to be replaced by an older one."""


def save(folder: Path, payload: dict[str, Any], *, best: bool) -> None:
    """Writes last.pt, keeping the old one as previous.pt, and best.pt with the same weights when `best`.

    Killed at any moment, at least one complete checkpoint remains under last.pt or previous.pt.
    """
    last, previous = folder / "last.pt", folder / "previous.pt"
    staged = folder / "staged.pt"
    _write(staged, payload)
    if best:  # weights only: a best checkpoint is for using, not for resuming
        _write(folder / "best.pt", {k: v for k, v in payload.items() if k not in ("optimizer", "scaler", "rng")})
    if last.exists():
        os.replace(last, previous)
    os.replace(staged, last)
    sync_folder(folder)


def _write(path: Path, payload: dict[str, Any]) -> None:
    """CheckpointError where the disk does not take it, for which torch has a RuntimeError of its own."""
    try:
        write_atomically(path, lambda file: torch.save(payload | {"format": FORMAT}, file))
    except (OSError, RuntimeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "is the disk full?"
        raise CheckpointError(
            f"cannot write {path}: {reason or error}; make room and run the same command again, "
            "the checkpoints before are kept"
        ) from error


def read(path: Path) -> dict[str, Any]:
    """The content of one checkpoint file, checked for damage. CheckpointError says what is wrong."""
    if not path.exists():
        raise CheckpointError(f"no checkpoint {path}")
    try:
        # torch stores a CRC for every record but checks it only on some paths; a zip check reads the file once.
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
        if damaged:
            raise CheckpointError(f"{path} is damaged (record {damaged})")
        payload = torch.load(path, map_location="cpu", weights_only=True)
    except (zipfile.BadZipFile, EOFError, OSError, RuntimeError) as error:
        raise CheckpointError(f"{path} is truncated or damaged ({type(error).__name__}: {error})") from error
    except Exception as error:  # torch.load refuses foreign pickles with UnpicklingError, whose text is a page
        reason = str(error).splitlines()[0]
        raise CheckpointError(f"{path} is not a checkpoint of this program ({reason})") from error
    if not isinstance(payload, dict) or "model_config" not in payload:
        raise CheckpointError(f"{path} is not a checkpoint of this program")
    if payload.get("format") != FORMAT:
        raise VersionError(
            f"{path} has format {payload.get('format')}, this version reads {FORMAT}; "
            "use the version of gptcore that wrote it, or train again"
        )
    return payload


@dataclass(frozen=True)
class Restored:
    """A checkpoint, where it came from, and what was wrong with a newer one."""

    payload: dict[str, Any]
    path: Path
    warning: str | None = None


def read_newest(folder: Path) -> Restored | None:
    """The newest readable checkpoint, with a warning when a newer one is damaged; None in a folder without any."""
    failures: list[str] = []
    for name in ("staged.pt", "last.pt", "previous.pt"):  # staged: killed between the two renames of `save`
        path = folder / name
        if path.exists():
            try:
                return Restored(read(path), path, "; ".join(failures) or None)
            except VersionError:
                raise
            except CheckpointError as error:
                failures.append(f"{error}; falling back to the checkpoint before")
    if failures:
        raise CheckpointError("; ".join(failures) + ", but there is no readable one")
    return None


@dataclass(frozen=True)
class LoadedModel:
    """A trained model in evaluation mode, ready to use, with what it was trained on."""

    model: GPT
    config: GPTConfig
    tokenizer_meta: dict[str, Any] | None
    step: int
    path: Path


def load_model(folder: str | Path, which: str | None = None, device: str = "cpu") -> LoadedModel:
    """The best (or else the newest) model of a run folder; `which` names a file of it, such as last.pt."""
    folder = Path(folder)
    if which is not None:
        payload, path = read(folder / which), folder / which
    elif (folder / "best.pt").exists():
        path = folder / "best.pt"
        try:
            payload = read(path)
        except CheckpointError as error:
            others = [name for name in ("last.pt", "previous.pt") if (folder / name).exists()]
            if isinstance(error, VersionError) or not others:
                raise
            raise CheckpointError(f"{error}; --checkpoint {others[0]} names another") from error
    else:
        restored = read_newest(folder)
        if restored is None:
            raise CheckpointError(f"{folder} holds no checkpoint; `gptcore inspect` lists runs")
        payload, path = restored.payload, restored.path
    try:
        config = GPTConfig.model_validate(payload["model_config"])
        model = GPT(config)
        model.load_state_dict(payload["model"])
        step, meta = int(payload["step"]), payload["tokenizer"]
        if not (meta is None or isinstance(meta, dict)):
            raise ValueError("its tokenizer is not a mapping")
    except (
        KeyError,
        TypeError,
        ValueError,
        RuntimeError,
    ) as error:  # a kind or a parameter that this version does not have
        reason = " ".join(_reason(error).split())[:300]
        raise CheckpointError(f"{path} does not fit this version of the program ({reason})") from error
    return LoadedModel(model.to(device).eval(), config, meta, step, path)


def _reason(error: Exception) -> str:
    """In words; pydantic's own text is for programmers."""
    if isinstance(error, ValidationError):
        return "; ".join(f"model.{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
    return str(error)


def config_of(folder: Path) -> Config:
    """The resolved configuration of a run."""
    from .loader import load

    return load(folder / "config.yaml").config
