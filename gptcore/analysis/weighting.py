"""What goes into the attention weighting of every head and what comes out, and its learned constants over the training.

    scores      what the weighting reads: scaled products of queries and keys, capped and biased; live pairs only
    weights     what it writes
    row sums    of the weights of a query: 1 for what normalises, anything for what does not

Constants (beta, gamma, an extra term of the sum, ...) are those that the training wrote into constants.csv. For the
steps before its first row, of a run that an earlier version began, they are read from the checkpoints that the run
folder holds, and from the configuration for step 0. Copies of checkpoints (NAME.pt) put there count, too.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from torch import Tensor

from ..checkpoint import load_model
from ..config import Config, GPTConfig
from ..constants import Constant, constants_of, read_constants
from ..errors import CheckpointError, RunError
from ..model import GPT
from .measure import Source
from .probe import SCORES, WEIGHTS, Place, watch
from .tensor_statistics import Spread

SUMS = "row_sums"
QUANTITIES = (SCORES, WEIGHTS, SUMS)


@dataclass(frozen=True)
class HeadRange:
    """One quantity of one head."""

    layer: int
    head: int
    kind: str
    quantity: str
    count: int
    low: float
    high: float
    mean: float
    std: float
    abs_p50: float
    zero_share: float


def head_ranges(source: Source) -> list[HeadRange]:
    """By layer, quantity and head. RunError where no layer weighs scores."""
    spreads: dict[tuple[int, str, int], Spread] = {}

    def note(layer: int, quantity: str, head: int, x: Tensor) -> None:
        spread = spreads.setdefault((layer, quantity, head), Spread(f"{source.loaded.path}: {quantity} of h.{layer}"))
        spread.update(x)

    def take(place: Place, x_BHTS: Tensor, live: Tensor | None) -> None:
        quantity = place.label.removeprefix("attn.")
        if place.layer is None or live is None or quantity not in QUANTITIES:
            return
        for head in range(x_BHTS.shape[1]):
            note(place.layer, quantity, head, x_BHTS[:, head][live[:, head]])
            if quantity == WEIGHTS:
                note(place.layer, SUMS, head, x_BHTS[:, head].double().sum(-1))

    watch(source.loaded.model, source.batches, source.config.train.dtype, take)
    if not spreads:
        raise RunError(f"{source.folder}: no layer of this model weighs scores, so there is nothing to show")
    kinds = [_kind(layer.attention) for layer in source.loaded.config.layer_configs()]
    return [
        HeadRange(
            layer, head, kinds[layer], quantity, s.count, s.low, s.high, s.mean, s.std, s.percentile(0.5),
            s.zeros / s.count,
        )
        for (layer, quantity, head), s in sorted(
            spreads.items(), key=lambda item: (item[0][0], QUANTITIES.index(item[0][1]), item[0][2])
        )
    ]  # fmt: skip


def _kind(attention: Any) -> str:
    return attention.softmax.kind if hasattr(attention, "softmax") else ""


def trajectories(folder: Path, config: Config, model: GPTConfig) -> tuple[list[Constant], list[str]]:
    """Constants by step, and a note for each checkpoint that could not be read."""
    logged = read_constants(folder)
    if logged and logged[0].step == 0:
        return logged, []
    notes: list[str] = []
    configured = constants_of(GPT(model), 0)
    if not configured:
        return [], []
    by_step: dict[int, list[Constant]] = {}
    for path in sorted(folder.glob("*.pt")):
        try:
            loaded = load_model(folder, path.name)
        except CheckpointError as error:
            notes.append(f"left out: {error}")
            continue
        by_step.setdefault(loaded.step, constants_of(loaded.model, loaded.step))
    by_step.pop(0, None)
    if config.train.init_from in ("scratch", "resume"):
        by_step[0] = configured
    for step, rows in groupby(logged, lambda c: c.step):
        by_step[step] = list(rows)
    return [c for step in sorted(by_step) for c in by_step[step]], notes


def drift(constants: Sequence[Constant]) -> list[tuple[str, int, float, float, float, float]]:
    """(name, layer, lowest and highest of the heads at the first step, and at the last) of each constant."""
    rows = []
    for name, layer in dict.fromkeys((c.name, c.layer) for c in constants):
        mine = [c for c in constants if (c.name, c.layer) == (name, layer)]
        ends = [[c.value for c in mine if c.step == mine[i].step] for i in (0, -1)]
        rows.append((name, layer, min(ends[0]), max(ends[0]), min(ends[1]), max(ends[1])))
    return rows
