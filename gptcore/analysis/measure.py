"""What `gptcore inspect` measures: the activations of a run at every place, and its weights."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..checkpoint import LoadedModel, config_of, load_model
from ..config import Config
from ..data import Batch, eval_batches
from ..errors import CheckpointError, UserError
from ..evaluate import check_vocabulary, read_text
from ..quantize import Method
from ..tokenizer import from_meta
from .formats import NumberFormat
from .probe import Place, own_bits, watch
from .ptq_run import open_run
from .rounding import matrices_of
from .tensor_statistics import Errors, Spread, TensorStatistics


@dataclass(frozen=True)
class Measured:
    """Statistics of a place or of a weight. `own_bits`: the width to which the model rounds it by itself."""

    place: Place
    statistics: TensorStatistics
    own_bits: int | None = None


@dataclass(frozen=True)
class Source:
    """A trained run and the tokens that it is looked at with; `described` says where both come from."""

    folder: Path
    loaded: LoadedModel
    config: Config
    batches: list[Batch]
    described: dict[str, Any]

    @property
    def tokens(self) -> int:
        return sum(x.numel() for x, _ in self.batches)


def open_source(
    folder: Path, *, checkpoint: str | None, dataset: str | None, text: Path | None, tokens: int, device: str
) -> Source:
    """A run with at least `tokens` tokens in windows that lie evenly in the validation split, or in a text.

    Whole batches of the run's own size; a text may be shorter. UserError for what was named and is not there, or is
    not text of the run's tokenizer; errors of `open_run`.
    """
    if text is None:
        size = _tokens_of_a_batch(folder)
        subject = open_run(
            folder, checkpoint=checkpoint, dataset=dataset, eval_iters=max(1, -(-tokens // size)), device=device
        )
        return Source(folder, subject.loaded, subject.config, subject.batches, subject.provenance())
    loaded, config = _load(folder, checkpoint, device), _config_of(folder)
    tokenizer = from_meta(loaded.tokenizer_meta)
    check_vocabulary(loaded.model, tokenizer)
    ids = np.array(tokenizer.encode(read_text(text)), dtype=np.int64)
    if len(ids) < 2:
        raise UserError(f"--text: {text} has {len(ids)} tokens; at least 2 are needed")
    block_size = min(loaded.config.block_size, len(ids) - 1)
    rows = min(-(-tokens // block_size), len(ids) // block_size or 1)
    size = min(rows, config.train.batch_size)
    batches = list(eval_batches(ids, batches=-(-rows // size), batch_size=size, block_size=block_size))
    described = {
        "run": str(folder), "checkpoint": loaded.path.name, "step": loaded.step, "dtype": config.train.dtype,
        "batches": {"text": str(text), "tokens": sum(x.numel() for x, _ in batches), "block_size": block_size},
    }  # fmt: skip
    return Source(folder, loaded, config, batches, described)


def open_weights(folder: Path, checkpoint: str | None) -> Source:
    """A run without any tokens."""
    loaded = _load(folder, checkpoint, "cpu")
    described = {"run": str(folder), "checkpoint": loaded.path.name, "step": loaded.step}
    return Source(folder, loaded, _config_of(folder), [], described)


def _load(folder: Path, checkpoint: str | None, device: str) -> LoadedModel:
    if checkpoint is not None and not (folder / checkpoint).is_file():
        present = ", ".join(sorted(path.name for path in folder.glob("*.pt"))) or "none"
        raise UserError(f"--checkpoint: no file {checkpoint} in {folder} (checkpoints there: {present})")
    return load_model(folder, checkpoint, device)


def _config_of(folder: Path) -> Config:
    if not (folder / "config.yaml").is_file():
        raise CheckpointError(f"{folder} has no config.yaml, which the settings come from; bring it back from the run")
    return config_of(folder)


def _tokens_of_a_batch(folder: Path) -> int:
    config = _config_of(folder)
    return config.train.batch_size * config.model.block_size


def measure_activations(source: Source, *, method: Method, formats: Sequence[NumberFormat]) -> list[Measured]:
    """Every place in the order in which values pass; groups are tokens. The model reads its tokens twice."""
    model, dtype = source.loaded.model, source.config.train.dtype
    spreads: dict[Place, Spread] = {}

    def first(place, x, live):
        spread = spreads.setdefault(place, Spread(f"{source.loaded.path}: {place}"))
        spread.update(x if live is None else x[live])

    watch(model, source.batches, dtype, first)
    errors = {place: Errors(spread, method, formats, -1) for place, spread in spreads.items()}
    watch(model, source.batches, dtype, lambda place, x, live: errors[place].update(x, live))
    own = own_bits(model)
    return [Measured(place, found.statistics(), own.get(place)) for place, found in errors.items()]


def measure_weights(source: Source, *, formats: Sequence[NumberFormat]) -> list[Measured]:
    """Every parameter, a tied one once; groups are the channels of matrices, ranges symmetric."""
    matrices = {matrix.name: matrix for matrix in matrices_of(source.loaded.config)}
    found = []
    for name, weight in source.loaded.model.named_parameters():
        matrix = matrices.get(name)
        spread = Spread(f"{source.loaded.path}: {name}")
        spread.update(weight)
        errors = Errors(spread, "symmetric", formats, matrix.dim if matrix is not None else None)
        errors.update(weight)
        found.append(Measured(place_of(name), errors.statistics(), matrix.own_bits if matrix is not None else None))
    return found


def place_of(name: str) -> Place:
    """transformer.h.2.attn.c_proj.weight is attn.c_proj of layer 2."""
    short = name.removeprefix("transformer.").removesuffix(".weight")
    within = re.fullmatch(r"h\.(\d+)\.(.+)", short)
    return Place(int(within[1]), within[2]) if within else Place(None, short)
