"""What a trial is, and how one ended: the words that coordinator, ledger, executors and workers share.

Nothing here imports torch before `Identity.of` is called, so that a monitor and a worker start fast.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal, get_args

if TYPE_CHECKING:
    from gptcore.config import Config

State = Literal["queued", "running", "done", "pruned", "failed", "diverged", "oom", "timeout", "infeasible"]
STATES: tuple[State, ...] = get_args(State)
# How a run can end. Only these two depend on nothing but the configuration, and so hold in every study: the others
# depend on limits, on the machine or on the candidates beside them.
ENDED: tuple[State, ...] = ("done", "pruned", "failed", "diverged", "oom", "timeout", "infeasible")
REUSABLE: tuple[State, ...] = ("done", "diverged")
FAILED: tuple[State, ...] = ("failed", "diverged", "oom", "timeout", "infeasible")
RETRIED: tuple[State, ...] = ("failed", "oom", "timeout")  # what another attempt may change


@dataclass(frozen=True, slots=True)
class Identity:
    """What makes a trial that very trial, and nothing else."""

    config_hash: str
    """SHA-256 of the configuration without its seed and its number of steps, and of the tokens it is trained on."""
    seed: int
    steps: int
    more: str = ""
    """A hash of what else the result depends on: the trial whose weights it grew from, the tasks it is scored on."""

    @property
    def key(self) -> str:
        return f"{self.config_hash[:20]}-s{self.seed}-n{self.steps}" + (f"-{self.more}" if self.more else "")

    @classmethod
    def of(cls, config: "Config", parent: str | None = None, tasks: tuple[str, ...] = ()) -> "Identity":
        """`parent` is the key of the trial that it grows from. Cosmetic settings (device, run folder, log interval ...)
        make no difference; the contents of the data set do."""
        from gptcore.config import TrainConfig

        from .point import identity_of

        t, plain = config.train, TrainConfig()
        same = t.model_copy(update={"seed": plain.seed, "max_iters": plain.max_iters})
        whole = f"{identity_of(config.model_copy(update={'train': same}))} {data_hash(config.data.dataset)}"
        more = json.dumps([parent, tasks]) if parent or tasks else ""
        short = hashlib.sha256(more.encode()).hexdigest()[:10] if more else ""
        return cls(hashlib.sha256(whole.encode()).hexdigest(), t.seed, t.max_iters, short)


@lru_cache
def data_hash(dataset: str) -> str:
    """What tells the tokens of a prepared data set from those of another preparation; `unprepared` where none is."""
    from gptcore.data import find_dataset, open_dataset, tokens_of
    from gptcore.errors import DataError, UserError

    try:
        opened = open_dataset(find_dataset(dataset))
    except (DataError, UserError):
        return "unprepared"
    said = {**tokens_of(opened.meta), "sizes": [len(opened.train), len(opened.val)]}
    return hashlib.sha256(json.dumps(said, sort_keys=True, default=str).encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Limits:
    """What a trial may use. `memory_bytes` is that of all its processes together; `attempts` counts the first one."""

    seconds: float | None = None
    memory_bytes: int | None = None
    attempts: int = 2


@dataclass(frozen=True, slots=True)
class TrialSpec:
    """A trial to run. `config` is the nested mapping that `gptcore.loader.from_dict` accepts, with its seed inside.

    `pause_at`: the step at which it ends as "pruned", with a checkpoint; without it the same trial goes on from there.
    `parent`: key and run folder of the trial that it grows from. `tasks` of lm-eval score it once it is trained.
    """

    key: str
    config: dict[str, Any]
    seed: int
    folder: str
    limits: Limits = Limits()
    pause_at: int | None = None
    parent: tuple[str, str] | None = None
    tasks: tuple[str, ...] = ()

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "TrialSpec":
        values = json.loads(text)
        parent = values.get("parent")
        known = {"limits": Limits(**values["limits"]), "tasks": tuple(values.get("tasks", ()))}
        return cls(**values | known | {"parent": tuple(parent) if parent else None})


@dataclass(frozen=True, slots=True)
class TrialResult:
    """How a trial ended: `loss` is its best validation loss in nats, None unless done; `curve` is (step, loss).

    `scores` are those of its tasks. `words` say what is special about it: how it grew from its parent.
    """

    key: str
    state: State
    loss: float | None
    curve: tuple[tuple[int, float], ...] = ()
    reason: str = ""
    log_tail: str = ""
    seconds: float = 0.0
    tokens: int = 0
    params: int = 0
    scores: Mapping[str, float] = field(default_factory=dict)
    words: str = ""

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def of_mapping(cls, values: Mapping[str, Any]) -> "TrialResult":
        """From parsed JSON. ValueError, TypeError or KeyError when it is no result."""
        result = cls(**{**values, "curve": tuple((int(step), float(loss)) for step, loss in values.get("curve", ()))})
        if result.state not in ENDED:
            raise ValueError(f"{result.state!r} is no end of a trial")
        return result
