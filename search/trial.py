"""What a trial is, and how one ended: the words that coordinator, ledger, executors and workers share.

Nothing here imports torch before `Identity.of` is called, so that a monitor and a worker start fast.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

if TYPE_CHECKING:
    from gptcore.config import Config

State = Literal["queued", "running", "done", "pruned", "failed", "diverged", "oom", "timeout", "infeasible"]
STATES: tuple[State, ...] = get_args(State)
# How a run can end. Only these two depend on nothing but the configuration, and so hold in every study: the others
# depend on limits, on the machine or on the candidates beside them.
ENDED: tuple[State, ...] = ("done", "pruned", "failed", "diverged", "oom", "timeout", "infeasible")
REUSABLE: tuple[State, ...] = ("done", "diverged")


@dataclass(frozen=True, slots=True)
class Identity:
    """What makes a trial that very trial, and nothing else."""

    config_hash: str
    """SHA-256 of the configuration without its seed and its number of steps."""
    seed: int
    steps: int

    @property
    def key(self) -> str:
        return f"{self.config_hash[:20]}-s{self.seed}-n{self.steps}"

    @classmethod
    def of(cls, config: "Config") -> "Identity":
        """Cosmetic settings (device, run folder, log interval ...) make no difference."""
        from gptcore.config import TrainConfig, identity

        t, plain = config.train, TrainConfig()
        same = t.model_copy(update={"seed": plain.seed, "max_iters": plain.max_iters})
        return cls(identity(config.model_copy(update={"train": same})), t.seed, t.max_iters)


@dataclass(frozen=True, slots=True)
class Limits:
    """What a trial may use. `memory_bytes` is that of all its processes together; `attempts` counts the first one."""

    seconds: float | None = None
    memory_bytes: int | None = None
    attempts: int = 2


@dataclass(frozen=True, slots=True)
class TrialSpec:
    """A trial to run. `config` is the nested mapping that `gptcore.loader.from_dict` accepts, with its seed inside."""

    key: str
    config: dict[str, Any]
    seed: int
    folder: str
    limits: Limits = Limits()

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "TrialSpec":
        values = json.loads(text)
        return cls(**values | {"limits": Limits(**values["limits"])})


@dataclass(frozen=True, slots=True)
class TrialResult:
    """How a trial ended: `loss` is its best validation loss in nats, None unless done; `curve` is (step, loss)."""

    key: str
    state: State
    loss: float | None
    curve: tuple[tuple[int, float], ...] = ()
    reason: str = ""
    log_tail: str = ""
    seconds: float = 0.0
    tokens: int = 0
    params: int = 0

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def of_mapping(cls, values: Mapping[str, Any]) -> "TrialResult":
        """From parsed JSON. ValueError, TypeError or KeyError when it is no result."""
        result = cls(**{**values, "curve": tuple((int(step), float(loss)) for step, loss in values.get("curve", ()))})
        if result.state not in ENDED:
            raise ValueError(f"{result.state!r} is no end of a trial")
        return result
