"""How a run begins: which folder, fresh or resumed, and whether that is allowed."""

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .checkpoint import Restored, config_of, read_newest, read_run
from .config import Config, GPTConfig, canonical, difference
from .distributed import World
from .errors import UserError
from .files import write_atomically
from .yamlfile import dump


@contextlib.contextmanager
def open_folder(folder: Path, where: World) -> Iterator[None]:
    """Creates the run folder and keeps a second process from writing into it, until this one leaves or dies."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = open(folder / ".lock", "w")
    except OSError as error:
        raise UserError(f"cannot write the run folder {folder}: {error.strerror}; choose another --out_dir") from error
    with lock:
        if where.is_main and not _take(lock):
            raise UserError(f"{folder} is being trained by another process; wait for it or choose another --out_dir")
        yield


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


def begin(config: Config, folder: Path, run_identity: str, where: World) -> Start:
    """Decides between a fresh start and a resume, inside `open_folder`. UserError where neither is right."""
    restored = read_newest(folder)
    mode = config.train.init_from
    if restored is None and mode == "resume":
        name = folder.name.rsplit("-", 1)[0]
        others = sorted(str(path.parent) for path in folder.parent.glob(f"{name}-*/last.pt"))
        hint = f"; runs of that name: {', '.join(others)}" if others else ""
        raise UserError(f"nothing to resume: no checkpoint in {folder} (--out_dir names the run folder{hint})")
    messages: list[str] = []
    weights = None
    if mode not in ("scratch", "resume"):
        config, weights = _pretrained(config)
        messages.append(f"starting from the weights of {mode}")
    if restored is not None:
        _check_same_architecture(folder, restored, config)
        recorded = restored.payload.get("identity")
        if mode != "resume" and recorded != run_identity:
            raise UserError(
                f"{folder} holds another run ({_settings_changed(folder, config)});\n"
                "continue it with these settings by --init_from=resume, or choose another --out_dir"
            )
        weights = None
        messages += [f"changed since: {_settings_changed(folder, config)}"] if recorded != run_identity else []
    if where.is_main:
        text = f"# identity {run_identity}\n{dump(config.model_dump(mode='json'))}"
        write_atomically(folder / "config.yaml", text.encode())
    return Start(config, restored, weights, messages)


def _check_same_architecture(folder: Path, restored: Restored, config: Config) -> None:
    trained = GPTConfig.model_validate(restored.payload["model_config"])
    if canonical(trained) == canonical(config.model):
        return
    rows = "\n".join(f"  {key}: {old} -> {new}" for key, (old, new) in difference(trained, config.model).items())
    raise UserError(
        f"{folder} was trained with another architecture:\n{rows}\n"
        f"choose another --out_dir, or undo the change ({folder}/config.yaml holds its settings)"
    )


def _settings_changed(folder: Path, config: Config) -> str:
    changed = difference(config_of(folder), config)
    changed = {key: pair for key, pair in changed.items() if key not in ("train.out_dir", "train.init_from")}
    return ", ".join(f"{key}: {old} -> {new}" for key, (old, new) in changed.items()) or "an unknown difference"


def _pretrained(config: Config) -> tuple[Config, dict[str, Any]]:
    from .pretrained import load_pretrained

    wanted = config.model.block_size if "block_size" in config.model.model_fields_set else None
    model, weights = load_pretrained(config.train.init_from, block_size=wanted)
    model = model.model_copy(update={"dropout": config.model.dropout, "bits": config.model.bits})
    return config.model_copy(update={"model": model}), weights


def is_finished(folder: Path, run_identity: str) -> bool:
    """True when this very run has already reached its end."""
    if not (folder / "run.json").exists():
        return False
    content = read_run(folder)
    return (
        content["status"] in ("finished", "stopped")
        and content.get("identity") == run_identity
        and os.path.exists(folder / "last.pt")
    )
