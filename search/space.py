"""The file that describes a search: what is tried, how it is judged, what it may cost. Strict, checked before anything
runs: every problem at once with its line, and every move is made once from the baseline.

    baseline: ../quickstart.yaml       a configuration file, relative to this one, or a mapping
    overrides: [model.n_layer=2]       on top of it; hardware.array.rows=8 changes the machine
    hardware: edge-sky130              default: that of the baseline
    objective: {score: loss}           loss (nats a token), exp(-loss), bits_per_byte, or task:NAME[:METRIC] of lm-eval
    cost: area_m2                      or {weights: {area_m2: 1, latency_s: 0.5}} relative to the baseline, or
                                       {lexicographic: [area_m2, params]}: the next one only where the first is equal
    stage: decode                      of energy, latency, FLOPs and bytes: decode, prefill or train
    constraints: {params: {max: 1e6}}
    moves:                             one of them at a time
      model.n_layer: [+1, -1]          steps; a step has a sign
      model.n_embd: [x2, x0.5]         factors
      model.norm: {choices: [a, {kind: b, knob: 1}]}
      model.bits: {choices: [8, 4]}    every field of a section
      hardware.array.rows, hardware.array.columns: [x2]     several settings in one move
      layers: {duplicate: true, remove: true, change: {attention.n_head: [x2]}}     any one layer
    budget: {trials: 60}               also seconds, tokens, gpu_hours, rounds; what is not given has no limit
    seeds: {first: 1, min: 2, max: 5}
    train: {max_iters: 300}            of every trial
    strategy: {kind: greedy, beam: 1}  or random, grid, nsga2; rungs: [100] prunes at that step, start: warm goes on
                                       from the weights of the incumbent (fields: Strategy)
    rule: {confidence: 0.95, shrink_tolerance: null}
    results_file: out.yaml             the YAML log of results; default: beside the ledger

Steps of a file need their sign: `[64, 128]` may be meant as values. In JSON they are text, "+16". From Python numbers
are steps.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from gptcore.config import Config
from gptcore.data import open_dataset
from gptcore.errors import DataError, RunError, UserError
from gptcore.flat import parse_overrides
from gptcore.loader import ConfigError, from_dict, merge
from gptcore.loader import load as load_config
from gptcore.ops import Stage
from gptcore.placing import place
from gptcore.prepare import ensure_prepared
from gptcore.registry import nearest
from gptcore.yamlfile import Key, parse_value, read_mapping
from ppa.machine import Machine, load_machine

from .cost import COSTS, CostName, Costs, costs, violations
from .movefile import keyed, notes, read_moves, unsigned, wrong
from .moves import Move, Rejected, apply
from .point import Point
from .score import Score, task_score, tokens_per_byte
from .spacefile import Bound, Budget, CostRule, DecisionRule, Objective, Seeds, SpaceFile, Strategy
from .trial import Identity


class SpaceError(UserError):
    """One or more problems in the description of a search; `problems` holds one line each."""

    def __init__(self, problems: list[str]):
        self.problems = sorted(dict.fromkeys(problems), key=_place_of)
        count = len(self.problems)
        head = f"{count} problem{'s' if count > 1 else ''} in the search space:"
        super().__init__("\n".join([head, *(f"  {p}" for p in self.problems)]))


def _place_of(problem: str) -> tuple[str, int]:
    source, _, rest = problem.partition(":")
    line = rest.partition(":")[0]
    return source, int(line) if line.isdigit() else 0


@dataclass(frozen=True)
class Space:
    """A search that can run: everything is looked up, and each move exists."""

    name: str
    baseline: Point
    baseline_costs: Costs
    vocab_size: int
    score: Score
    cost: CostRule
    stage: Stage
    constraints: Mapping[CostName, Bound]
    moves: tuple[Move, ...]
    budget: Budget
    seeds: Seeds
    strategy: Strategy
    rule: DecisionRule
    results_file: Path | None = None
    notes: tuple[str, ...] = field(default=())

    def as_dict(self) -> dict[str, Any]:
        """Plain values: what the search depends on, without its budget, so that a finished search can be extended."""
        return {
            "baseline": self.baseline.key, "vocab_size": self.vocab_size,
            "objective": "".join(self.score.tasks) or self.score.name,
            "cost": self.cost.model_dump(exclude_none=True), "stage": self.stage,
            "constraints": {name: bound.model_dump() for name, bound in self.constraints.items()},
            "moves": [move.as_dict() for move in self.moves], "seeds": self.seeds.model_dump(),
            "strategy": self.strategy.model_dump(exclude_defaults=True), "rule": self.rule.model_dump(),
        }  # fmt: skip

    @property
    def measures_steps(self) -> bool:
        """Whether it asks for the time of a training step, which takes a measurement."""
        return "step_time_s" in (*self.cost.names, *self.constraints)

    def settings(self) -> dict[str, Any]:
        """As the ledger keeps them for whoever shows the study."""
        baseline, config = self.baseline_costs, self.baseline.config
        return {
            "name": self.name, "strategy": self.strategy.model_dump(), "score": self.score.name,
            "unit": self.score.unit, "cost": self.cost.model_dump(exclude_none=True), "stage": self.stage,
            "machine": self.baseline.machine.title, "vocab_size": self.vocab_size, "budget": self.budget.model_dump(),
            "seeds": self.seeds.model_dump(), "better": self.score.better,
            "tokens_per_byte": self.score.tokens_per_byte,
            "rule": {**self.rule.model_dump(), "selection_confidence": self.rule.selection_confidence},
            "constraints": {name: bound.model_dump() for name, bound in self.constraints.items()},
            "baseline": {
                "key": self.baseline.key, "config_hash": Identity.of(config).config_hash, "costs": baseline.as_dict(),
                "intervals": {name: list(ends) for name, ends in baseline.intervals.items()},
                "config": config.model_dump(mode="json"),
            },
        }  # fmt: skip

    @property
    def identity(self) -> str:
        return hashlib.sha256(json.dumps(self.as_dict(), sort_keys=True).encode()).hexdigest()


def load(path: str | Path, overrides: Iterable[str] = ()) -> Space:
    """Reads a file. `overrides` as `key.path=value`: of the file where it has such a section (budget.trials=20), else
    of the baseline (model.n_layer=2, --n_layer=2). SpaceError with every problem."""
    problems: list[str] = []
    path = Path(path)
    raw = read_mapping(path, str(path), problems)
    if problems and not raw:
        raise SpaceError(problems)
    if not problems:
        problems += unsigned(path.read_text(encoding="utf-8"), str(path))
    return _build(raw, path.parent, path.stem, list(overrides), problems)


def from_mapping(
    raw: Mapping[str, Any], overrides: Iterable[str] = (), *, name: str = "search", folder: Path = Path()
) -> Space:
    """As from a file that holds `raw` and lies in `folder`."""
    return _build(dict(raw), folder, name, list(overrides), [])


def _build(raw: dict, folder: Path, name: str, overrides: list[str], problems: list[str]) -> Space:
    own, others = _split(overrides)
    for token in own:
        _put(raw, token)
    file = _validated(raw, problems)
    listed = raw.get("overrides", [])
    others = [*(o for o in listed if isinstance(o, str)), *others] if isinstance(listed, list) else others
    of_machine = [o for o in others if o.startswith("hardware.")]
    config = _config(raw, folder, [o for o in others if o not in of_machine], problems)
    machine = _machine(raw, folder, config, problems) if config else None
    moves = read_moves(raw.get("moves"), problems)
    if config is None or machine is None:
        raise SpaceError(problems)
    baseline = Point(config, machine)
    for token in of_machine:
        baseline = _overridden(baseline, token, problems)
    problems += [f"{move.mark}: {words}" for move in moves if (words := wrong(move, baseline, moves))]
    vocab_size = _vocab_size(config, problems)
    if problems or file is None or vocab_size is None:
        raise SpaceError(problems)
    results = folder / file.results_file if file.results_file else None
    problems += [
        f"{_mark(raw, 'strategy')}: strategy: {words}"
        for words in _unfit(file.strategy, file.objective.score, config, moves)
    ]
    score = _score(raw, file.objective, config, problems)
    if problems or score is None:
        raise SpaceError(problems)
    space = Space(
        name, baseline, _NOTHING, vocab_size, score, file.cost, file.stage, file.constraints, tuple(moves),
        file.budget, file.seeds, file.strategy, file.rule, results, tuple(notes(moves)),
    )  # fmt: skip
    found = costs(baseline, space)
    problems += [
        f"{_mark(raw, 'constraints')}: the baseline breaks a constraint: {w}"
        for w in violations(found, file.constraints)
    ]
    if problems:
        raise SpaceError(problems)
    return replace(space, baseline_costs=found)


_NOTHING = Costs(0, 0, 0, 0, 0, 0)


def _mark(raw: Any, name: str) -> str:
    return next((getattr(key, "mark", "given") for key in raw if key == name), "given")


def _split(overrides: list[str]) -> tuple[list[str], list[str]]:
    """(those of sections of the file, those of the baseline and the machine)."""
    sections = SpaceFile.model_fields.keys() - {"moves", "baseline", "overrides"}
    own = [
        o
        for o in overrides
        if "=" in o and re.split(r"[.=]", o)[0] in sections and not o.startswith(("--", "hardware."))
    ]
    return own, [o for o in overrides if o not in own]


def _put(raw: dict, token: str) -> None:
    path, _, text = token.partition("=")
    *above, last = (Key(part, f"command line: {token}") for part in path.split("."))
    node = raw
    for part in above:
        child = node.pop(part, None)
        node[part] = dict(child) if isinstance(child, dict) else {}
        node = node[part]
    node.pop(last, None)
    node[last] = parse_value(text)


def _validated(raw: dict, problems: list[str]) -> SpaceFile | None:
    try:
        return SpaceFile.model_validate(raw)
    except ValidationError as error:
        problems += [_explain(raw, item) for item in error.errors(include_url=False)]
    return None


def _explain(raw: dict, item: Any) -> str:
    """file:line: path: what is wrong, with the nearest name of what may stand there."""
    path = [step for step in item["loc"] if step not in ("[key]", "str") and not str(step).startswith("dict[")]
    mark, node = "given", raw
    for step in path:
        mark = (
            next((k.mark for k in node if k == step and hasattr(k, "mark")), mark) if isinstance(node, dict) else mark
        )
        node = node.get(step) if isinstance(node, dict) else None  # type: ignore[assignment]
    where, given, said = ".".join(map(str, path)), item["input"], item["msg"].removeprefix("Value error, ")
    if item["type"] == "missing":
        return f"{mark}: {where} is missing"
    if item["type"] == "extra_forbidden":
        section: Any = SpaceFile if len(path) == 1 else SpaceFile.model_fields[str(path[0])].annotation
        known = list((Bound if path[0] == "constraints" else section).model_fields)
        hint = nearest(str(path[-1]), known) or f" (known here: {', '.join(known)})"
        return f"{mark}: unknown key {where!r}{hint}"
    if item["type"] == "literal_error" and repr(COSTS[0]) in item["msg"]:
        return f"{mark}: {where}: no cost {given!r}{nearest(str(given), list(COSTS))} (known: {', '.join(COSTS)})"
    shown = "" if isinstance(given, (dict, list)) or said != item["msg"] else f", not {given!r}"
    return f"{mark}: {where}: {said}{shown}"


def _config(raw: dict, folder: Path, overrides: list[str], problems: list[str]) -> Config | None:
    """The baseline with everything on top that holds for every trial."""
    mark, said, train = _mark(raw, "baseline"), raw.get("baseline"), raw.get("train", {})
    try:
        if isinstance(said, str):
            if not (folder / said).exists():
                problems.append(f"{mark}: baseline: no file {folder / said}; it is looked up relative to this file")
                return None
            config = load_config(folder / said, overrides).config
        elif isinstance(said, dict):
            wrong: list[str] = []
            tree = merge({}, place([((key,), value) for key, value in keyed(said)], {}, wrong), Config)
            tree = merge(tree, place(parse_overrides(overrides, wrong), tree, wrong), Config)
            if wrong:
                raise ConfigError(wrong)
            config = from_dict(tree)
        else:
            return None
    except ConfigError as error:
        problems += error.problems
        return None
    except UserError as error:
        problems.append(f"{mark}: baseline: {error}")
        return None
    try:
        if isinstance(train, dict) and train:
            return from_dict(merge(config.model_dump(mode="json"), {"train": train}, Config))
    except ConfigError as error:
        problems += error.problems
    return config


def _machine(raw: dict, folder: Path, config: Config, problems: list[str]) -> Machine | None:
    mark, name = _mark(raw, "hardware"), raw.get("hardware") or config.hardware
    if not isinstance(name, str):
        problems.append(f"{mark}: hardware is missing: name a machine here or in the baseline, such as edge-sky130")
        return None
    if name.endswith((".yaml", ".yml")) and "hardware" in raw:
        name = str(folder / name)
    try:
        return load_machine(name)
    except UserError as error:
        problems.append(f"{mark}: hardware: {error}")
    return None


def _overridden(point: Point, token: str, problems: list[str]) -> Point:
    path, _, text = token.partition("=")
    try:
        return apply(Move((tuple(path.split(".")),), "set", parse_value(text), text), point)[0]
    except Rejected as no:
        problems.append(f"{token}: {no.words}")
    return point


def _unfit(strategy: Strategy, score: str, config: Config, moves: list[Move]) -> Iterator[str]:
    """What of a strategy does not go with the rest."""
    t = config.train
    for step in strategy.rungs:
        if step % t.eval_interval or step >= t.max_iters:
            yield (
                f"rung {step}: losses are compared where they are measured, at multiples of train.eval_interval "
                f"({t.eval_interval}) below train.max_iters ({t.max_iters})"
            )
    if strategy.rungs and score.startswith("task:"):
        yield f"rungs compare learning curves, which tell the loss, not {score}: leave `rungs` out"
    of_layers = [move for move in moves if move.per_layer or move.op in ("duplicate", "remove")]
    if strategy.kind in ("grid", "nsga2") and of_layers:
        yield f"{strategy.kind} goes over a grid, and moves of single layers span none: leave `layers` out"


def _score(raw: dict, objective: Objective, config: Config, problems: list[str]) -> Score | None:
    mark, name = _mark(raw, "objective"), objective.score
    try:
        if name == "bits_per_byte":
            return Score(name, tokens_per_byte(config.data.dataset))
        if name.startswith("task:"):
            return task_score(name, objective.limit)
    except (DataError, UserError) as error:
        problems.append(f"{mark}: objective.score {name}: {error}")
        return None
    return Score(name, better="higher" if name == "exp(-loss)" else "lower")


def _vocab_size(config: Config, problems: list[str]) -> int | None:
    if config.model.vocab_size is not None:
        return config.model.vocab_size
    try:
        return open_dataset(ensure_prepared(config.data.dataset)).vocab_size
    except (DataError, RunError, UserError) as error:
        problems.append(
            f"model.vocab_size is not set, and the data set {config.data.dataset!r} does not tell it: {error}\n"
            "    Prepare the data set, or give the size: model.vocab_size=65"
        )
    return None


__all__ = ["Bound", "CostRule", "Space", "SpaceError", "SpaceFile", "from_mapping", "load"]
