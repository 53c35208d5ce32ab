"""A run as post-training quantisation needs it: model and validation batches; and a rounded model written as a run."""

import csv
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..checkpoint import LoadedModel, config_of, load_model, read_run, save, write_json
from ..config import Config
from ..data import Batch, Dataset, eval_batches, find_dataset, open_dataset, tokens_of
from ..errors import CheckpointError, DataError, UserError
from ..files import write_atomically
from ..model import GPT
from ..yamlfile import dump
from .ptq import Row


@dataclass(frozen=True)
class Subject:
    """A trained run with the batches of its own evaluations. `recorded`: the loss that training noted for them."""

    folder: Path
    loaded: LoadedModel
    config: Config
    dataset: Dataset
    eval_iters: int
    recorded: float | None
    identity: str | None

    @property
    def batches(self) -> list[Batch]:
        t = self.config.train
        return list(
            eval_batches(
                self.dataset.val, batches=self.eval_iters, batch_size=t.batch_size,
                block_size=self.loaded.config.block_size,
            )
        )  # fmt: skip

    def provenance(self) -> dict[str, Any]:
        """Where the numbers come from."""
        t, meta = self.config.train, self.dataset.meta or {}
        return {
            "run": str(self.folder), "checkpoint": self.loaded.path.name, "step": self.loaded.step,
            "identity": self.identity, "recorded_loss": self.recorded, "torch": torch.__version__,
            "device": str(self.loaded.model.lm_head.weight.device), "dtype": t.dtype,
            "batches": {
                "dataset": str(self.dataset.folder), "split": "val", "file": (meta.get("files") or {}).get("val.bin"),
                "eval_iters": self.eval_iters, "batch_size": t.batch_size, "block_size": self.loaded.config.block_size,
                "tokens": self.eval_iters * t.batch_size * self.loaded.config.block_size,
            },
        }  # fmt: skip


def open_run(
    folder: Path, *, checkpoint: str | None, dataset: str | None, eval_iters: int | None, device: str
) -> Subject:
    """The best (or newest) model of a run, or that of a file of it, with the run's validation batches.

    UserError for a checkpoint or data set that was named and is not there; DataError where the run's own data set is
    gone or holds other tokens.
    """
    if checkpoint is not None and not (folder / checkpoint).is_file():
        present = ", ".join(sorted(path.name for path in folder.glob("*.pt"))) or "none"
        raise UserError(f"--checkpoint: no file {checkpoint} in {folder} (checkpoints there: {present})")
    loaded = load_model(folder, checkpoint, device)
    if not (folder / "config.yaml").is_file():
        raise CheckpointError(f"{folder} has no config.yaml, which names its data set; bring it back from the run")
    config = config_of(folder)
    data = _open_data(folder, config, dataset)
    if tokens_of(data.meta) != tokens_of(loaded.tokenizer_meta):
        raise DataError(
            f"{data.folder} does not hold the tokens that {folder} was trained on: it was prepared anew from another "
            "text or tokenizer. Bring them back, or name their folder by --dataset"
        )
    assert loaded.config.vocab_size is not None
    data.check(loaded.config.vocab_size, loaded.config.block_size)
    same = eval_iters in (None, config.train.eval_iters)
    try:
        described = read_run(folder)
    except CheckpointError:  # the checkpoint alone is enough
        described = {}
    recorded = _recorded(folder, described, loaded.step) if same else None
    return Subject(
        folder, loaded, config, data, eval_iters or config.train.eval_iters, recorded, described.get("identity")
    )


def _open_data(folder: Path, config: Config, named: str | None) -> Dataset:
    if named is not None:
        return open_dataset(find_dataset(named))
    try:
        return open_dataset(find_dataset(config.data.dataset))
    except (UserError, DataError) as error:
        raise DataError(
            f"the data set {config.data.dataset} of {folder} cannot be opened: {error}\n"
            "If it has moved, name its folder by --dataset."
        ) from error


def _recorded(folder: Path, described: dict[str, Any], step: int) -> float | None:
    """The validation loss of a step, from metrics.csv, or else from run.json if it is the best one."""
    try:
        with open(folder / "metrics.csv", encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                if row.get("step") == str(step) and row.get("val_loss"):
                    return float(row["val_loss"])
    except (OSError, ValueError):
        pass  # a run that was written by `save_run` has none
    best = described.get("best_loss")
    return best if described.get("best_step") == step and isinstance(best, float) else None


def check_target(folder: Path) -> None:
    """UserError where a rounded run cannot be written: something is there already."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"--save: {folder} is there already; name a new folder")


def save_run(subject: Subject, model: GPT, row: Row, rounding: dict[str, Any], folder: Path) -> None:
    """Writes a run folder with the rounded weights, in floating point; it can be sampled and inspected, not resumed.

    The weights are in last.pt without an optimizer, under an identity of their own: training there is refused.
    """
    check_target(folder)
    source = {key: value for key, value in subject.provenance().items() if key != "batches"}
    text = json.dumps([subject.identity, str(subject.loaded.path.name), subject.loaded.step, rounding], sort_keys=True)
    identity = hashlib.sha256(text.encode()).hexdigest()
    folder.mkdir(parents=True, exist_ok=True)
    step, count = subject.loaded.step, model.parameter_count()
    payload = {
        "model_config": model.config.model_dump(mode="json"), "model": model.state_dict(), "step": step,
        "tokenizer": subject.loaded.tokenizer_meta, "identity": identity, "rounding": rounding,
    }  # fmt: skip
    save(folder, payload, best=False)
    train = subject.config.train.model_copy(update={"out_dir": str(folder)})
    written = model.config.model_copy(update={"vocab_size": subject.config.model.vocab_size})  # as in the run's own
    config = subject.config.model_copy(update={"model": written, "train": train})
    write_atomically(folder / "config.yaml", f"# identity {identity}\n{dump(config.model_dump(mode='json'))}".encode())
    write_json(
        folder / "run.json",
        {
            "status": "finished", "reason": f"rounded from {subject.loaded.path}", "identity": identity,
            "name": folder.resolve().name, "dataset": subject.config.data.dataset, "parameters": count,
            "vocab_size": model.config.vocab_size, "step": step, "best_step": step, "best_loss": row.loss,
            "weight_bytes": row.weight_bytes, "rounding": rounding, "source": source, "folder": str(folder),
        },
    )  # fmt: skip
