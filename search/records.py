"""The rows of the ledger as its readers see them."""

import json
from dataclasses import dataclass, field
from typing import Any

from .trial import Identity, Limits, State, TrialSpec


@dataclass(frozen=True, slots=True)
class Study:
    """A study; `space` is the text of its space file, `elapsed_s` the time its coordinators have spent.

    `settings` says in plain values what is searched for: score and its unit, cost, machine, budget, baseline ...
    """

    name: str
    space_hash: str
    space: str
    elapsed_s: float
    settings: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class NewTrial:
    """A trial to enter: queued, or at once in the state in which it ends (infeasible, with the reason)."""

    identity: Identity
    config: dict[str, Any]
    folder: str
    limits: Limits = Limits()
    state: State = "queued"
    reason: str = ""
    pause_at: int | None = None
    parent: tuple[str, str] | None = None
    tasks: tuple[str, ...] = ()
    name: str = ""

    @property
    def extra(self) -> dict[str, Any]:
        """What a specification holds beside these columns, and the name of the move for people."""
        return {"pause_at": self.pause_at, "parent": self.parent, "tasks": self.tasks, "name": self.name}


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
    ends over the whole file; no number is given twice, so that one that goes on keeps its old one until it ends again.
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
    scores_json: str
    extra_json: str
    words: str

    @property
    def name(self) -> str:
        """Of the candidate that it was first trained for."""
        return json.loads(self.extra_json).get("name", "")

    @property
    def scores(self) -> dict[str, float]:
        return json.loads(self.scores_json)

    @property
    def config(self) -> dict[str, Any]:
        return json.loads(self.config_json)

    @property
    def spec(self) -> TrialSpec:
        extra = json.loads(self.extra_json)
        limits = Limits(**json.loads(self.limits_json))
        parent, tasks = extra.get("parent"), tuple(extra.get("tasks", ()))
        return TrialSpec(
            self.key, self.config, self.seed, self.folder, limits, extra.get("pause_at"),
            (parent[0], parent[1]) if parent else None, tasks,
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class DecisionRow:
    """What a round came to: `content` is all that was considered, with the reasons for and against."""

    round: int
    chosen: str | None
    words: str
    content: dict[str, Any]
