"""Learned constants of attention weightings: beta and gamma of the ConSmax paper (arXiv 2402.10930), an extra term.

RUN/constants.csv holds them by step, a row a head: those before training, and those of every evaluation. Models without
such constants have no such file.
"""

import csv
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import Any

from torch import Tensor

from .attention.scored import ScoredAttention
from .model import GPT
from .runlog import StepTable

FILE = "constants.csv"


@dataclass(frozen=True)
class Constant:
    """A constant of a head after `step` updates."""

    step: int
    layer: int
    head: int
    name: str
    value: float


COLUMNS = tuple(f.name for f in fields(Constant))


def constants_of(model: GPT, step: int) -> list[Constant]:
    """All that the weightings have learned, one value a head. Sharded weights need every process to take part."""
    found = []
    blocks: Any = model.transformer.h
    for layer, block in enumerate(blocks):
        if not isinstance(block.attn, ScoredAttention):
            continue
        softmax, heads = block.attn.softmax, block.attn.H
        device = model.lm_head.weight.device
        values = {name.removesuffix("_H"): x for name, x in softmax.head_constants(device).items()}
        values = dict(softmax.named_parameters()) | values
        for name, x in values.items():
            if x.numel() in (1, heads):
                each = _whole(x).detach().cpu().double().flatten().expand(heads).tolist()
                found += [Constant(step, layer, head, name, value) for head, value in enumerate(each)]
    return found


def _whole(x: Any) -> Tensor:
    return x.full_tensor() if hasattr(x, "full_tensor") else x


class ConstantsLog:
    """RUN/constants.csv of a model in training; nothing where the model has no constants.

    Every process makes one and calls `write`; the one that `is_main` has the file.
    """

    def __init__(self, model: GPT, folder: Path, resume_step: int | None, *, is_main: bool):
        self._model, self._exist = model, bool(constants_of(model, 0))
        self._table = StepTable(folder / FILE, COLUMNS, resume_step) if self._exist and is_main else None
        if is_main and not self._exist:
            (folder / FILE).unlink(missing_ok=True)  # of another run, whose checkpoints are gone

    def write(self, step: int) -> None:
        rows = constants_of(self._model, step) if self._exist else []
        if self._table is not None:
            self._table.append(astuple(row) for row in rows)

    def close(self) -> None:
        if self._table is not None:
            self._table.close()


def read_constants(folder: Path) -> list[Constant]:
    """What the training wrote, as far as it can be read: a run that was killed may have left half a line."""
    found = []
    try:
        with open(folder / FILE, encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                try:
                    step, layer, head = (int(row[name]) for name in COLUMNS[:3])
                    found.append(Constant(step, layer, head, row["name"], float(row["value"])))
                except (KeyError, TypeError, ValueError):
                    continue
    except (OSError, UnicodeDecodeError, csv.Error):
        return []
    return found


__all__ = ["FILE", "Constant", "ConstantsLog", "constants_of", "read_constants"]
