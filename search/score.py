"""What a search improves, and how two trials compare by it: gains are positive where the second is better.

loss             validation loss, nats a token
exp(-loss)       the probability of a token (geometric mean)
bits_per_byte    loss by the bytes of the text, so that tokenizers compare
task:NAME        a task of lm-eval by its default metric; task:NAME:METRIC by another
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from gptcore.errors import DataError, UserError

from .trial import TrialResult

UNITS = {"loss": "nats", "exp(-loss)": "of probability", "bits_per_byte": "bits a byte"}
HIGHER = ("acc", "acc_norm", "exact_match")
LOWER = ("perplexity", "word_perplexity", "byte_perplexity", "bits_per_byte")
COUNTED = 1_000_000  # validation tokens, at most, that tell how many bytes a token has


@dataclass(frozen=True, slots=True)
class Score:
    """`tokens_per_byte` matters to bits_per_byte alone. `better`: whether more of it is better or less. `limit`: of a
    task, only so many documents."""

    name: str = "loss"
    tokens_per_byte: float = 1.0
    better: Literal["lower", "higher"] = "lower"
    limit: int | None = None

    @property
    def unit(self) -> str:
        return UNITS.get(self.name, self.name.removeprefix("task:").replace(":", " "))

    @property
    def tasks(self) -> tuple[str, ...]:
        """As trials are told them: NAME[:METRIC][@LIMIT]."""
        most = f"@{self.limit}" if self.limit else ""
        return (self.name.removeprefix("task:") + most,) if self.name.startswith("task:") else ()

    def value(self, trial: TrialResult) -> float | None:
        """None for a trial that has no loss. KeyError: it was not scored on the task."""
        if trial.loss is None:
            return None
        if self.tasks:
            return trial.scores[self.tasks[0]]
        return self.of_loss(trial.loss)

    def of_loss(self, loss: float) -> float:
        if self.name == "exp(-loss)":
            return math.exp(-loss)
        return loss / math.log(2) * self.tokens_per_byte if self.name == "bits_per_byte" else loss

    def gain(self, before: float, after: float) -> float:
        return before - after if self.better == "lower" else after - before


def tokens_per_byte(dataset: str) -> float:
    """Of the validation text, at most its first million tokens. DataError where the data set cannot be decoded."""
    from gptcore.data import find_dataset, open_dataset

    opened = open_dataset(find_dataset(dataset))
    tokens = opened.val[:COUNTED].tolist()
    text = opened.tokenizer().decode(tokens)
    if not text:
        raise DataError(f"the validation text of {dataset} is empty")
    return len(tokens) / len(text.encode())


def task_score(name: str, limit: int | None = None) -> Score:
    """Of `task:NAME` or `task:NAME:METRIC`. UserError where there is no such task or metric."""
    from gptcore.tasks import check_tasks, find_tasks, parse_spec

    spec = name.removeprefix("task:")
    if problems := check_tasks([spec]):
        raise UserError("; ".join(problems))
    (task,) = find_tasks([spec])
    metric = parse_spec(spec)[1] or task.default_metric
    listed = task.config.get("metric_list") or []
    said = next((entry.get("higher_is_better") for entry in listed if entry.get("metric") == metric), None)
    if said is None and metric not in (*HIGHER, *LOWER):
        raise UserError(f"{task.name} does not say whether more {metric} is better: set higher_is_better in its file")
    return Score(name, better="higher" if said or (said is None and metric in HIGHER) else "lower", limit=limit)


def task_scores(folder: Path, tasks: tuple[str, ...]) -> dict[str, float]:
    """What the model of a run folder scores on tasks, by what `Score.tasks` calls them."""
    from gptcore.task_run import score_tasks

    found = {}
    for text in tasks:
        spec, _, most = text.partition("@")
        found[text] = score_tasks(folder, [spec], limit=int(most) if most else None)[spec].value
    return found
