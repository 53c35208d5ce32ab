"""The runs of a sweep: from what a file says to configurations that are known to be good, or to every problem at once.

A run is what its resolved configuration is (search.trial.Identity): runs that come to the same are one run, and a file
that is written in another way stands for the same runs. Names say what differs between the runs of a file.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from gptcore.config import Config
from gptcore.data import find_dataset
from gptcore.errors import DataError, UserError
from gptcore.flat import flat_names, parse_overrides
from gptcore.loader import ConfigError, from_dict, merge
from gptcore.loader import load as load_config
from gptcore.placing import place
from gptcore.yamlfile import Key

from .sweep_expand import Draft
from .sweepfile import DEFAULT, SweepError, SweepFile, read
from .trial import Identity

SEED = ("seed", "train.seed")
# What the sweep itself decides on, or what only says how a run is recorded: left out of a classic file, with a note.
RECORDING = (
    "out_dir", "tensorboard_run_name", "tensorboard_log_name", "tensorboard_log_dir", "wandb_run_name", "csv_log",
    "csv_dir", "csv_name", "csv_ckpt_dir", "never_save_checkpoint", "always_save_checkpoint", "eta_variant",
    "log_rankme", "log_areq", "only_save_checkpoint_at_end", "print_model_info", "create_statistics",
)  # fmt: skip


@dataclass(frozen=True)
class Run:
    """A run that may start. `name` is what differs, `point` the same without the seed."""

    name: str
    point: str
    config: Config
    draft: Draft

    @cached_property
    def identity(self) -> Identity:
        """Only once its data set is prepared."""
        return Identity.of(self.config)

    @property
    def folder(self) -> str:
        """Of its run folder: a name for people, made unique."""
        plain = re.sub(r"[^A-Za-z0-9._=+-]+", "_", self.name).strip("_.")[:80]
        return f"{plain}-{hashlib.sha256(self.identity.key.encode()).hexdigest()[:8]}"


@dataclass(frozen=True)
class Plan:
    """All runs of a file, in its order. `notes` are for whoever starts it."""

    file: SweepFile
    runs: tuple[Run, ...]
    notes: tuple[str, ...]

    @property
    def name(self) -> str:
        return self.file.path.stem

    @property
    def datasets(self) -> list[str]:
        return list(dict.fromkeys(run.config.data.dataset for run in self.runs))

    def unique(self) -> tuple[Run, ...]:
        """The runs without those that are another one; the data sets must be prepared."""
        found: dict[str, Run] = {}
        for run in self.runs:
            found.setdefault(run.identity.key, run)
        return tuple(found.values())


def load(path: str | Path, overrides: Iterable[str] = (), ignore: Iterable[str] = ()) -> Plan:
    """Reads and checks a file. `overrides` (key.path=value, --flat_name=value) are on top of every run; settings named
    in `ignore` are left out. SweepError with every problem of every run."""
    formal: list[str] = []  # runs with a problem of form are not among the drafts
    file = read(Path(path), formal)
    general: list[str] = []
    problems: dict[str, list[str]] = {}  # with the names of the runs
    base = _base(file, general)
    top = parse_overrides(overrides, general)
    unclear = bool(general)  # without a baseline every run would be wrong
    left_out: dict[str, None] = {}
    ignore = set(ignore)
    unknown = sorted(ignore - {str(key) for draft in file.drafts for key in draft.settings})
    if unknown and not formal:
        general.append(f"--ignore {','.join(unknown)}: no setting of {path}")
    recording = [n for n in RECORDING if file.classic and n not in ignore and (n == "out_dir" or n not in flat_names())]
    drafts = [_without(draft, {*ignore, *recording}, left_out) for draft in file.drafts]
    names = _named(drafts)
    runs: list[Run] = []
    for draft, (name, point) in zip(drafts, names, strict=True):
        found = None if unclear else _config(draft, base, top, name, problems)
        if found is not None:
            runs.append(Run(name, point, found, draft))
    for dataset in dict.fromkeys(run.config.data.dataset for run in runs):
        try:
            find_dataset(dataset)
        except (DataError, UserError) as error:
            users = [run for run in runs if run.config.data.dataset == dataset]
            mark = next((k.mark for k in users[0].draft.settings if k in ("dataset", "data.dataset")), str(path))
            problems[f"{mark}: data.dataset: {error}"] = [run.name for run in users]
    if formal or general or problems:
        told = [_concerning(p, who, len(drafts)) for p, who in sorted(problems.items(), key=_at)]
        raise SweepError([*formal, *general, *told])
    noted = [n for n in left_out if n not in ignore and n != "out_dir"]
    notes = [f"left out, since it only says how a run is recorded: {', '.join(noted)}"] if noted else []
    return Plan(file, tuple(runs), tuple(notes))


def _without(draft: Draft, names: set[str], left_out: dict[str, None]) -> Draft:
    gone = [key for key in draft.settings if key in names]
    left_out.update(dict.fromkeys(map(str, gone)))
    return replace(draft, settings={k: v for k, v in draft.settings.items() if k not in gone}) if gone else draft


def _at(item: tuple[str, Any]) -> tuple[str, int, str]:
    source, _, rest = item[0].partition(":")
    line = rest.partition(":")[0]
    return source, int(line) if line.isdigit() else 0, rest


def _concerning(problem: str, who: list[str], total: int) -> str:
    if len(who) == total:
        return problem
    return f"{problem}\n      in {len(who)} of {total} runs{', first' if len(who) > 1 else ''}: {who[0]}"


def _base(file: SweepFile, problems: list[str]) -> dict:
    """The nested tree that every run is written on top of."""
    said, folder = file.base, file.path.parent
    try:
        if isinstance(said, str):
            if not (folder / said).exists():
                problems.append(
                    f"{file.base_mark}: baseline: no file {folder / said}; it is looked up relative to this file"
                )
                return {}
            return load_config(folder / said, file.overrides).config.model_dump(mode="json")
        tree = merge({}, place([(_path(k), v) for k, v in (said or {}).items()], {}, problems), Config)
        tree = merge(tree, place(parse_overrides(file.overrides, problems), tree, problems), Config)
        if said is not None and not problems:
            from_dict(tree)
        return tree
    except ConfigError as error:
        problems += error.problems
    except UserError as error:
        problems.append(f"{file.base_mark}: baseline: {error}")
    return {}


def _path(key: Key) -> tuple[Key, ...]:
    return tuple(Key(part, key.mark) for part in key.split("."))


def _config(
    draft: Draft, base: dict, top: list[tuple[tuple[Key, ...], Any]], name: str, problems: dict[str, list[str]]
) -> Config | None:
    found: list[str] = []
    pairs = [(_path(key), value) for key, value in draft.settings.items() if value != DEFAULT]
    tree = merge(base, place(pairs, base, found), Config)
    tree = merge(tree, place(top, tree, found), Config)
    try:
        config = from_dict(tree)
    except ConfigError as error:
        found += error.problems
    for problem in dict.fromkeys(found):
        problems.setdefault(problem, []).append(name)
    if found:
        return None
    # A run has a folder of the sweep, and says nothing but its losses.
    train = config.train.model_copy(update={"out_dir": None, "sample_tokens": 0, "pause_at": None})
    return config.model_copy(update={"train": train})


# -- names ----------------------------------------------------------------------------------------------------


def _named(drafts: list[Draft]) -> list[tuple[str, str]]:
    """(what differs, the same without the seed) of each."""
    absent = object()
    keys = list(dict.fromkeys(str(key) for draft in drafts for key in draft.settings))
    values = [{str(k): v for k, v in draft.settings.items()} for draft in drafts]
    first = values[0] if values else {}
    vary = {k for k in keys if any(v.get(k, absent) != first.get(k, absent) for v in values)}
    short = _short(vary)
    everywhere = {group for draft in drafts[:1] for group in draft.groups if all(group in d.groups for d in drafts)}

    def said(draft: Draft, value: Mapping[str, Any], groups: bool, seed: bool) -> str:
        hidden = draft.titled | (draft.grouped | draft.named if groups else frozenset())
        parts = [draft.name] if draft.name else []
        parts += [g for g in dict.fromkeys(draft.groups) if g not in everywhere] if groups else []
        parts += [f"{short[k]}={shown(v)}" for k, v in value.items() if k in vary - hidden and (seed or k not in SEED)]
        return ", ".join(parts) or "as the file says"

    brief = [said(d, v, True, True) for d, v in zip(drafts, values, strict=True)]
    # Names and groups stand for their settings where they tell the runs apart.
    groups = len(set(brief)) == len({json.dumps(v, sort_keys=True) for v in values})
    return [
        (said(d, v, groups, True), said(d, v, groups, False)) for d, v in zip(drafts, values, strict=True)
    ]  # fmt: skip


def _short(names: Iterable[str]) -> dict[str, str]:
    """The last part of a dotted name, unless two names end alike."""
    last = {name: name.removesuffix(".kind").rpartition(".")[2] for name in names}
    return {name: end if list(last.values()).count(end) == 1 else name for name, end in last.items()}


def shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, dict) and isinstance(value.get("kind"), str):
        knobs = ", ".join(f"{k}={shown(v)}" for k, v in value.items() if k != "kind")
        return value["kind"] + (f"({knobs})" if knobs else "")
    return value if isinstance(value, str) else json.dumps(value)


__all__ = ["Plan", "Run", "load", "shown"]
