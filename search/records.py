"""The rows of the ledger as its readers see them."""

import json
from dataclasses import dataclass, field
from typing import Any

from .trial import Identity, Limits, State, TrialSpec


@dataclass(frozen=True, slots=True)
class Study:
    """A study; `space` is the text of its space file, `elapsed_s` the time its coordinators have spent."""

    name: str
    space_hash: str
    space: str
    elapsed_s: float


@dataclass(frozen=True, slots=True)
class NewTrial:
    """A trial to enter: queued, or at once in the state in which it ends (infeasible, with the reason)."""

    identity: Identity
    config: dict[str, Any]
    folder: str
    limits: Limits = Limits()
    state: State = "queued"
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Added:
    """What `add` did with each key: queued, reused (another study knew the result), or already part of the study."""

    queued: list[str] = field(default_factory=list)
    reused: list[str] = field(default_factory=list)
    known: list[str] = field(default_factory=list)
    ended: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Trial:
    """A row of the trial table.

    `attempts` counts starts, `interrupted` those of them that ended with the coordinator and not by themselves.
    `source` names the study that trained it, and spent its `seconds`, where that was another one. `ended` numbers the
    ends over the whole file.
    """

    key: str
    config_hash: str
    seed: int
    steps: int
    config_json: str
    folder: str
    limits_json: str
    state: State
    attempts: int
    interrupted: int
    reason: str
    log_tail: str
    loss: float | None
    seconds: float
    tokens: int
    params: int
    source: str | None
    ended: int | None

    @property
    def config(self) -> dict[str, Any]:
        return json.loads(self.config_json)

    @property
    def spec(self) -> TrialSpec:
        return TrialSpec(self.key, self.config, self.seed, self.folder, Limits(**json.loads(self.limits_json)))


@dataclass(frozen=True, slots=True)
class DecisionRow:
    """What a round came to: `content` is all that was considered, with the reasons for and against."""

    round: int
    chosen: str | None
    words: str
    content: dict[str, Any]
