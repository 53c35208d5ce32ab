"""An executor that trains nothing: it looks losses up in a table of what was trained before.

For comparing strategies, many times in seconds, on losses with the noise of real seeds. A table is a CSV file: the name
and the hash of its data set, then one row a configuration, with the identity of the configuration (gptcore.config,
number of steps included, seed left out) and the validation loss in nats of each seed; empty where training diverged.

What that costs in honesty. There are only so many seeds: seed s of a search is seed s modulo their number, in an order
of the caller's choice. A round stays honest, selected and confirmed on seeds of its own, where 2 `seeds.max` is no more
than the number of seeds; later rounds meet the same numbers again, which trials do not. Trials take no time and no
tokens here, so only budgets of trials and rounds mean something. Nothing is known of the way to the last step.
"""

import csv
import json
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from gptcore.errors import UserError

from .trial import TrialResult, TrialSpec, data_hash

if TYPE_CHECKING:
    from gptcore.config import Config

NAMED = 20  # digits of an identity in a table


class Tabulated:
    """Answers from the table at `path`. `order`: which seed of the table is seed 0, 1, ... of the search.

    UserError where the table was made on other data than what is prepared here. Data that is not prepared passes.
    """

    capacity = 1024

    def __init__(self, path: Path, order: Sequence[int] | None = None):
        self.path = path
        self.losses: dict[str, tuple[float | None, ...]] = {}
        try:
            with open(path, newline="", encoding="utf-8") as file:
                mark, dataset, made_on = file.readline().split()
                rows = list(csv.DictReader(file))
            for row in rows:
                seeds = sorted((name for name in row if name.isdigit()), key=int)
                self.losses[row["identity"]] = tuple(float(row[s]) if row[s] else None for s in seeds)
        except (OSError, ValueError, KeyError) as error:
            raise UserError(f"{path} is no table of losses: {error}") from error
        counts = {len(losses) for losses in self.losses.values()}
        if mark != "#" or len(counts) != 1 or counts == {0}:
            raise UserError(f"{path} is no table of losses: it has rows of {sorted(counts)} seeds")
        here = data_hash(dataset)
        if here not in ("unprepared", made_on):
            raise UserError(f"{path} was made on other data than the {dataset} prepared here: make it anew")
        self.seeds = counts.pop()
        self.order = tuple(range(self.seeds)) if order is None else tuple(order)
        if sorted(self.order) != list(range(self.seeds)):
            raise UserError(f"the order of {self.seeds} seeds is a permutation of them, not {list(self.order)}")
        self._results: list[TrialResult] = []

    def of(self, name: str) -> tuple[float | None, ...]:
        """The losses of a configuration, by its name and then by seed of the table. UserError where it has none."""
        if name not in self.losses:
            raise UserError(
                f"{self.path} has no configuration {name}: it is outside the grid, or the table is older than the "
                "space; benchmarks/search_table.py makes it anew"
            )
        return self.losses[name]

    def start(self, spec: TrialSpec) -> None:
        if spec.pause_at is not None or spec.parent is not None or spec.tasks:
            raise UserError("a table holds losses of whole trainings from scratch: no rungs, no warm start, no tasks")
        train = spec.config["train"]
        name = _named(json.dumps({**spec.config, "train": {**train, "seed": 0}}, sort_keys=True))
        loss = self.of(name)[self.order[spec.seed % self.seeds]]
        if loss is None:
            result = TrialResult(spec.key, "diverged", None, reason="it diverged when the table was made")
        else:
            result = TrialResult(spec.key, "done", loss, ((train["max_iters"], loss),))
        self._results.append(result)

    def wait(self, timeout_s: float) -> list[TrialResult]:
        results, self._results = self._results, []
        return results

    def running(self) -> list[str]:
        return [result.key for result in self._results]

    def close(self) -> None:
        self._results.clear()


def named(config: "Config") -> str:
    """What the table calls a configuration, whatever its seed."""
    from gptcore.config import TrainConfig, identity

    train = config.train.model_copy(update={"seed": TrainConfig().seed})
    return identity(config.model_copy(update={"train": train}))[:NAMED]


@lru_cache(maxsize=1 << 12)
def _named(text: str) -> str:
    from gptcore.loader import from_dict

    return named(from_dict(json.loads(text)))


__all__ = ["Tabulated", "named"]
