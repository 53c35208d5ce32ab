"""How a run begins: which folder, fresh or resumed, and whether that is allowed."""

import contextlib
import fcntl
import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .checkpoint import Restored, config_of, read_newest, read_run
from .config import Config, GPTConfig, canonical, difference
from .distributed import World
from .errors import CheckpointError, UserError
from .files import write_atomically
from .yamlfile import dump


@contextlib.contextmanager
def open_folder(folder: Path, where: World) -> Iterator[None]:
    """Creates the run folder and keeps a second process from writing into it, until this one leaves or dies."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        before = os.listdir(folder)
        lock = open(folder / ".lock", "w")
    except OSError as error:
        raise UserError(f"cannot write the run folder {folder}: {error.strerror}; choose another --out_dir") from error
    with lock:
        if where.is_main and not _take(lock):
            raise UserError(f"{folder} is being trained by another process; wait for it or choose another --out_dir")
        if where.is_main:
            for leftover in folder.glob(".*.tmp"):  # of a process that was killed while writing
                leftover.unlink()
        try:
            yield
        finally:
            nothing = {".lock", *({"config.yaml"} - set(before))}  # but for what was there, which is somebody's
            if where.is_main and set(os.listdir(folder)) <= nothing:
                shutil.rmtree(folder)


def _take(lock) -> bool:
    """Tries for a moment: `gptcore inspect` holds the lock for microseconds to see whether a trainer lives."""
    for _ in range(5):
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except OSError:
            time.sleep(0.02)
    return False


@dataclass(frozen=True)
class Start:
    """What a run begins with: its final configuration, and a checkpoint or weights if there are any."""

    config: Config
    restored: Restored | None = None
    weights: dict[str, Any] | None = None
    messages: list[str] = field(default_factory=list)


def default_folder(config: Config, name: str, run_identity: str) -> Path:
    """`train.out_dir`, or out/<name>-<identity>: the same command always means the same folder."""
    return Path(config.train.out_dir or f"out/{name}-{run_identity[:8]}")


def begin(
    config: Config, folder: Path, run_identity: str, vocab_size: int, where: World,
    given: dict[str, Any] | None = None,
) -> Start:  # fmt: skip
    """Decides between a fresh start and a resume, inside `open_folder`. UserError where neither is right.

    `config` is as written; `vocab_size`, that of the data set, stands in where it says nothing. `given`: weights that
    the caller has, for a fresh start.
    """
    restored, mode = read_newest(folder), config.train.init_from
    where.barrier()  # all have read before rank 0 moves anything
    if restored is not None and where.is_main:
        _tidy(folder, restored)
    messages: list[str] = []
    weights = None
    if restored is not None:
        model = _trained_model(config, restored, folder)
        recorded = restored.payload.get("identity")
        if mode != "resume" and recorded != run_identity:
            raise UserError(
                f"{folder} holds another run ({_settings_changed(folder, config)});\n"
                "continue it with these settings by --init_from=resume, or choose another --out_dir"
            )
        if recorded != run_identity:
            messages.append(f"changed since: {_settings_changed(folder, config)}")
        if restored.warning:
            messages.append(f"warning: {restored.warning}")
    elif mode == "resume":
        name = folder.name.rsplit("-", 1)[0]
        others = sorted(str(path.parent) for path in folder.parent.glob(f"{name}-*/last.pt"))
        hint = f"; runs of that name: {', '.join(others)}" if others else ""
        raise UserError(f"nothing to resume: no checkpoint in {folder} (--out_dir names the run folder{hint})")
    elif mode == "scratch":
        model, weights = config.with_vocab(vocab_size).model, given
    else:
        model, weights = _pretrained(config)
        messages.append(f"starting from the weights of {mode}")
    final = config.model_copy(update={"model": model})
    if where.is_main:
        # As written where that says it all, so that the file has the identity of the run.
        same = canonical(config.with_vocab(vocab_size).model) == canonical(model)
        content = (config if same else final).model_dump(mode="json")
        write_atomically(folder / "config.yaml", f"# identity {run_identity}\n{dump(content)}".encode())
    return Start(final, restored, weights, messages)


def _tidy(folder: Path, restored: Restored) -> None:
    """Puts the checkpoint that was read in the place of the last, and damaged ones out of the way of the next."""
    for name in ("staged.pt", "last.pt"):
        if restored.warning and (folder / name).exists() and folder / name != restored.path:
            os.replace(folder / name, folder / "damaged.pt")
    if restored.path.name == "staged.pt":
        os.replace(restored.path, folder / "last.pt")


# What may change without making it another model.
FREE = ("dropout", "bits")


def _conflicts(config: Config, model: GPTConfig) -> dict[str, tuple[Any, Any]]:
    """Settings of the model that were asked for and that `model` does not have: path -> (has, asked)."""
    asked = config.model.model_fields_set - set(FREE)
    found = difference(model, config.model)
    return {key: pair for key, pair in found.items() if key.split(".")[0] in asked}


def _trained_model(config: Config, restored: Restored, folder: Path) -> GPTConfig:
    """The model of a checkpoint, with what may change as asked for. UserError when more was to change."""
    trained = GPTConfig.model_validate(restored.payload["model_config"])
    free = {name: getattr(config.model, name) for name in FREE if name in config.model.model_fields_set}
    trained = trained.model_copy(update=free)
    assert trained.vocab_size is not None
    if canonical(config.with_vocab(trained.vocab_size).model) != canonical(trained):
        changed = _conflicts(config, trained)
        if config.train.init_from == "scratch":  # here silence means the default
            whole = config.with_vocab(trained.vocab_size).model
            changed = {k: v for k, v in difference(trained, whole).items() if k.split(".")[0] not in FREE}
        if changed:
            raise UserError(
                f"{folder} was trained with another architecture:\n{_rows(changed)}\n"
                f"choose another --out_dir, or undo the change ({folder}/config.yaml holds its settings)"
            )
    return trained


def _rows(changed: dict[str, tuple[Any, Any]]) -> str:
    return "\n".join(f"  {key}: {old} -> {new}" for key, (old, new) in changed.items())


def _settings_changed(folder: Path, config: Config) -> str:
    try:
        changed = difference(config_of(folder), config)
    except UserError:
        changed = {}
    changed = {key: pair for key, pair in changed.items() if key not in ("train.out_dir", "train.init_from")}
    return ", ".join(f"{key}: {old} -> {new}" for key, (old, new) in changed.items()) or "an unknown difference"


def _pretrained(config: Config) -> tuple[GPTConfig, dict[str, Any]]:
    from .pretrained import load_pretrained

    source = config.train.init_from
    wanted = config.model.block_size if "block_size" in config.model.model_fields_set else None
    model, weights = load_pretrained(source, block_size=wanted)
    changed = _conflicts(config, model)
    if changed:
        raise UserError(f"the weights of {source} belong to another model:\n{_rows(changed)}\nleave these settings out")
    return model.model_copy(update={name: getattr(config.model, name) for name in FREE}), weights


def is_finished(folder: Path, run_identity: str) -> bool:
    """True when this very run has already reached its end."""
    try:
        content = read_run(folder)
    except CheckpointError:
        return False
    ended = content["status"] in ("finished", "stopped") and content.get("identity") == run_identity
    last = folder / "last.pt"
    return ended and last.exists() and last.stat().st_size > 0
