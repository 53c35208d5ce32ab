"""What a sweep has come to, from its plan and its ledger: rows by run, groups by configuration.

Runs that differ by their seed alone are a group: its loss is their mean, with the two-sided 95 % interval of the true
mean (Student's t; search.paired). Intervals are those of each configuration by itself: two configurations whose
intervals overlap may still differ by a gain that pairs of equal seeds would show. Losses are the best validation losses
in nats a token.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import yaml

from gptcore.yamlfile import Key

from .ledger import Ledger
from .paired import Interval, interval
from .records import Trial
from .sweep_runs import Plan, Run
from .trial import FAILED
from .view_records import Curve

CONFIDENCE = 0.95


@dataclass(frozen=True, slots=True)
class Row:
    run: Run
    trial: Trial
    curve: tuple[tuple[int, float], ...]


@dataclass(frozen=True, slots=True)
class Group:
    """The runs of a configuration. `loss` is None until one of them is done."""

    name: str
    rows: tuple[Row, ...]
    loss: Interval | None
    curve: Curve | None

    @property
    def params(self) -> int:
        return max(row.trial.params for row in self.rows)

    @property
    def states(self) -> str:
        """`3 done, 1 failed`."""
        found = [row.trial.state for row in self.rows]
        return ", ".join(f"{found.count(state)} {state}" for state in dict.fromkeys(found))


@dataclass(frozen=True, slots=True)
class Results:
    """`groups`: the lowest loss first, then those without one. `others`: trials of the ledger not in the file now."""

    name: str
    rows: tuple[Row, ...]
    groups: tuple[Group, ...]
    others: int
    seconds: float

    @property
    def bad(self) -> list[Row]:
        return [row for row in self.rows if row.trial.state in FAILED]

    @property
    def finished(self) -> bool:
        return all(row.trial.state == "done" or row.trial.state in FAILED for row in self.rows)


def results(plan: Plan, ledger: Ledger) -> Results:
    trials = {trial.key: trial for trial in ledger.trials(plan.name)}
    runs = plan.unique()
    rows = [
        Row(run, trials[run.identity.key], ledger.curve(plan.name, run.identity.key))
        for run in runs
        if run.identity.key in trials
    ]
    together: dict[tuple[str, int], list[Row]] = {}
    for row in rows:
        together.setdefault((row.trial.config_hash, row.trial.steps), []).append(row)
    groups = [_group(found) for found in together.values()]
    groups.sort(key=lambda group: math.inf if group.loss is None else group.loss.mean)
    others = len(trials) - len(rows)
    return Results(plan.name, tuple(rows), tuple(groups), others, ledger.study(plan.name).elapsed_s)


def _group(rows: list[Row]) -> Group:
    name = rows[0].run.point if len(rows) > 1 else rows[0].run.name
    done = [row for row in rows if row.trial.state == "done"]
    losses = [row.trial.loss for row in done if row.trial.loss is not None]
    loss = interval(losses, CONFIDENCE) if losses else None
    return Group(name, tuple(rows), loss, Curve.of(name, [row.curve for row in done]))


def loss_words(loss: Interval | None) -> str:
    """1.5021 [1.4870, 1.5172], as text."""
    if loss is None:
        return "-"
    ends = "" if loss.low is None or loss.high is None else f" [{loss.low:.4f}, {loss.high:.4f}]"
    return f"{loss.mean:.4f}{ends}"


def table(found: Results) -> str:
    """The configurations, best first, as text."""
    several = any(len(group.rows) > 1 for group in found.groups)
    heads = ["loss" + (" (mean, 95 % interval)" if several else ""), "params", "seconds", "state", "run"]
    lines = [
        [
            loss_words(group.loss), f"{group.params:,}" if group.params else "-",
            f"{math.fsum(row.trial.seconds for row in group.rows):.1f}", group.states, group.name,
        ]
        for group in found.groups
    ]  # fmt: skip
    wide = [max(len(line[i]) for line in [heads, *lines]) for i in range(len(heads))]

    def aligned(line: list[str]) -> str:
        cells = [c.rjust(w) if 1 <= i <= 2 else c.ljust(w) for i, (c, w) in enumerate(zip(line, wide, strict=True))]
        return "  ".join(cells).rstrip()

    return "\n".join(map(aligned, [heads, *lines]))


def classic_log(found: Results, stem: str) -> str:
    """The YAML log of the classic runner, a document a run, with what it leaves out: state, reason and run folder.

    A run without a loss has `.nan` there, as in the classic log.
    """
    documents: list[dict[str, Any]] = []
    for row in found.rows:
        trial, best = row.trial, min(row.curve, key=lambda point: point[1], default=None)
        documents.append(
            {
                "formatted_name": row.run.draft.title, "config": _plain(row.run.draft.settings),
                "best_val_loss": math.nan if trial.loss is None else trial.loss,
                "best_val_iter": best[0] if best and trial.loss is not None else None,
                "num_params": trial.params or None, "tokens": trial.tokens, "seconds": trial.seconds,
                "state": trial.state, "reason": trial.reason, "folder": trial.folder,
            }
        )  # fmt: skip
    return yaml.safe_dump_all(documents, explicit_start=True, sort_keys=False, width=120, allow_unicode=True)


def _plain(value: Any) -> Any:
    """Without the marks of its keys."""
    if isinstance(value, dict):
        return {str(key): _plain(child) for key, child in value.items()}
    if isinstance(value, list):
        return [_plain(child) for child in value]
    return str(value) if isinstance(value, Key) else value


def failures(rows: Iterable[Row]) -> str:
    """Why runs failed, a line each."""
    return "\n".join(
        f"  {row.run.name}: {row.trial.state}{', ' + row.trial.reason if row.trial.reason else ''}" for row in rows
    )
