"""Evaluation tasks: YAML files of the lm-evaluation-harness found by name, and their documents read from JSON lines.

A task is looked up by its `task:` line, in `task_path` (a folder, or one file), in explorations/tasks of the working
directory and of this checkout, and among the harness's own, in this order. Only the file that is asked for is parsed,
so nothing waits for the harness's index of all its tasks.

Documents of `dataset_path: json` with `data_files` are read here; a relative name is looked up beside the YAML file, in
`task_path`, and in the working directory. Any other data set is loaded by the harness, from the local cache of the
Hugging Face library. Nothing in this module imports the harness. Not covered: groups and tags (name their tasks), and
tasks that are Python classes.
"""

import functools
import importlib
import importlib.util
import json
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from .errors import DataError, RunError, UserError
from .registry import nearest

# What the harness computes where a task names no metrics (lm_eval.api.registry.DEFAULT_METRIC_REGISTRY).
DEFAULT_METRICS = {
    "loglikelihood": ("perplexity", "acc"),
    "loglikelihood_rolling": ("word_perplexity", "byte_perplexity", "bits_per_byte"),
    "multiple_choice": ("acc", "acc_norm"),
    "generate_until": ("exact_match",),
}
# The score of a task where none is named: the first of these that it has.
PREFERRED = ("acc_norm", "acc", "exact_match", "bits_per_byte", "byte_perplexity", "perplexity", "word_perplexity")
LOCAL = "json"  # dataset_path of documents that are read here
OWN_FOLDER = Path("explorations/tasks")
_NAME = re.compile(rb"""^task:[ \t]*["']?([^\s"'#]+)""", re.MULTILINE)


@dataclass(frozen=True)
class Function:
    """`!function module.name` of a task file: `name` of module.py beside the file, or of an installed module."""

    qualified: str
    folder: Path

    def load(self) -> Any:
        """The function. UserError where there is none of that name."""
        module_name, _, name = self.qualified.rpartition(".")
        file = self.folder / f"{module_name.replace('.', '/')}.py"
        try:
            if file.is_file():
                spec = importlib.util.spec_from_file_location(f"task_functions_of_{self.folder.name}_{file.stem}", file)
                assert spec is not None and spec.loader is not None
                module = importlib.util.module_from_spec(spec)
                spec.loader.exec_module(module)
            else:
                module = importlib.import_module(module_name)
            return getattr(module, name)
        except Exception as error:  # it is the user's code that runs here
            reason = f"{type(error).__name__}: {error}"
            raise UserError(
                f"!function {self.qualified} of a task in {self.folder} cannot be used ({reason})"
            ) from error


@dataclass(frozen=True)
class TaskFile:
    """A task as written. `files` are its documents by split; None where the harness loads them."""

    name: str
    path: Path
    config: dict[str, Any]
    files: dict[str, list[Path]] | None

    @property
    def output_type(self) -> str:
        return self.config.get("output_type", "generate_until")

    @property
    def metrics(self) -> tuple[str, ...]:
        """Names of what it computes, in its order."""
        listed = self.config.get("metric_list")
        if listed is None:
            return DEFAULT_METRICS[self.output_type]
        names = [entry["metric"] for entry in listed]
        return tuple(n.qualified.rpartition(".")[2] if isinstance(n, Function) else n for n in names)

    @property
    def default_metric(self) -> str:
        return next((name for name in PREFERRED if name in self.metrics), self.metrics[0])


def parse_spec(spec: str) -> tuple[str, str | None]:
    """(task, metric) of "task" or "task:metric"."""
    name, _, metric = spec.strip().partition(":")
    return name, metric or None


def find_tasks(specs: Sequence[str], task_path: Path | None = None) -> list[TaskFile]:
    """The tasks of `specs`, each "task" or "task:metric", checked as far as that is possible without the harness.

    UserError with all problems at once; RunError where a file of documents is damaged.
    """
    if not specs:
        raise UserError("no task is named")
    found, problems = [], []
    for spec in specs:
        try:
            found.append(_find(spec, task_path))
        except UserError as error:
            problems.append(str(error))
    if problems:
        raise UserError("\n".join(problems))
    return found


def check_tasks(tasks: Sequence[str], task_path: Path | None = None) -> list[str]:
    """What is wrong with tasks and their documents, one line each, empty where all is well. Needs no model."""
    problems = []
    if importlib.util.find_spec("lm_eval") is None:
        problems.append("tasks need the lm-evaluation-harness: pip install 'gptcore[eval]'")
    for spec in tasks:
        try:
            documents(_find(spec, task_path))
        except (UserError, RunError) as error:
            problems.append(str(error))
    return problems


def documents(task: TaskFile) -> dict[str, list[dict[str, Any]]] | None:
    """The documents of a task by split; None where the harness loads them.

    DataError for a damaged line, an empty file, or a document without a field that others have and the task uses.
    """
    if task.files is None:
        return None
    templates = " ".join(str(value) for key, value in task.config.items() if key.startswith("doc_to"))
    used = set(re.findall(r"\w+", templates))
    splits = {}
    for split, files in task.files.items():
        lines = [(path, number, record) for path in files for number, record in _read_lines(path)]
        if not lines:
            raise DataError(f"task {task.name}: no document in {', '.join(map(str, files))}")
        fields = {field: None for _, _, record in lines for field in record}
        for path, number, record in lines:
            for field in fields:
                if field not in record and field in used:
                    raise DataError(f"{path}, line {number}: no field {field!r}, which other lines have")
        splits[split] = [fields | record for _, _, record in lines]
    return splits


def _read_lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                record = json.loads(line)
            except ValueError as error:  # not UTF-8 is one too
                raise DataError(f"{path}, line {number}: not JSON ({error}); is the file complete?") from error
            if not isinstance(record, dict):
                raise DataError(f"{path}, line {number}: a {type(record).__name__}, not an object with named fields")
            yield number, record


def _find(spec: str, task_path: Path | None) -> TaskFile:
    name, metric = parse_spec(spec)
    if task_path is not None and not task_path.exists():
        raise UserError(f"no folder or file {task_path} (task_path)")
    own: dict[str, Path] = {}
    for place in _places(task_path):
        own = _names(place) | own
    path = own.get(name)
    if path is None:
        harness = _harness_names()
        if name not in harness:
            known = ", ".join(sorted(own)) or "none"
            alike = [known for known in harness if known[:2] == name[:2]]  # comparing with all 11,000 takes 1.5 s
            hint = nearest(name, list(own)) or nearest(name, alike)
            raise UserError(
                f"no task {name!r}{hint} (own tasks: {known}; --task_path names a folder with more; "
                "groups of the harness are not read, name their tasks)"
            )
        path = harness[name]
    task = _checked(name, path, task_path)
    if metric is not None and metric not in task.metrics:
        known = ", ".join(task.metrics)
        raise UserError(f"task {name} has no metric {metric!r}{nearest(metric, list(task.metrics))} (it has: {known})")
    return task


def _places(task_path: Path | None) -> list[Path]:
    checkout = Path(__file__).parent.parent / OWN_FOLDER
    return [place for place in (task_path, OWN_FOLDER, checkout) if place is not None and place.exists()]


def _names(place: Path) -> dict[str, Path]:
    """Task name -> file, of one file or of everything below a folder."""
    files = [place] if place.is_file() else [
        Path(folder, file) for folder, _, names in os.walk(place) for file in names if file.endswith((".yaml", ".yml"))
    ]  # fmt: skip
    found = {}
    for file in sorted(files, reverse=True):  # of two with the same name the first
        try:
            match = _NAME.search(file.read_bytes())
        except OSError as error:
            raise UserError(f"cannot read {file}: {error.strerror}") from error
        if match:
            found[match[1].decode(errors="replace")] = file
    return found


@functools.cache
def _harness_names() -> dict[str, Path]:
    """The harness's own tasks. Reading 14,000 small files takes 0.5 s of CPU; parsing them, as its index does, 7 s."""
    spec = importlib.util.find_spec("lm_eval")
    places = spec.submodule_search_locations if spec is not None else None
    return _names(Path(places[0]) / "tasks") if places else {}


def _checked(name: str, path: Path, task_path: Path | None) -> TaskFile:
    config = _read(path)
    if not isinstance(config.get("task"), str) or "class" in config:
        raise UserError(f"{path}: {name} is no task of its own but a group or a Python class; name single tasks")
    kind = config.get("output_type", "generate_until")
    if kind not in DEFAULT_METRICS:
        raise UserError(f"{path}: output_type {kind!r} is none of {', '.join(DEFAULT_METRICS)}")
    metrics = config.get("metric_list")
    if metrics is not None and (
        not isinstance(metrics, list) or not metrics or not all(isinstance(m, dict) and "metric" in m for m in metrics)
    ):
        raise UserError(f"{path}: metric_list is not a list of entries with a `metric` each")
    if config.get("test_split") is None and config.get("validation_split") is None:
        raise UserError(f"{path}: neither test_split nor validation_split says which documents to score")
    files = _data_files(path, config, task_path)
    if files is None:
        _check_cached(name, config)
    else:
        for key in ("test_split", "validation_split", "training_split", "fewshot_split"):
            if config.get(key) is not None and config[key] not in files:
                raise UserError(f"{path}: {key} is {config[key]!r}, but data_files has {', '.join(files)}")
    return TaskFile(name, path, config, files)


def _read(path: Path, seen: tuple[Path, ...] = ()) -> dict[str, Any]:
    """A task file with what it includes; its own keys win, as in the harness."""
    path = path.resolve()
    if path in seen:
        raise UserError(f"{path} includes itself")

    class Loader(yaml.SafeLoader):
        pass

    def function(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> Function:
        return Function(loader.construct_scalar(node), path.parent)

    Loader.add_constructor("!function", function)
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), Loader)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"{path} cannot be read as YAML ({' '.join(str(error).split())})") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} is not a task: no mapping of names to values")
    included = content.pop("include", [])
    merged: dict[str, Any] = {}
    for other in included if isinstance(included, list) else [included]:
        merged |= _read(path.parent / other, (*seen, path))
    return merged | content


def _data_files(path: Path, config: dict[str, Any], task_path: Path | None) -> dict[str, list[Path]] | None:
    options = config.get("dataset_kwargs") or {}
    if config.get("dataset_path") != LOCAL or set(options) != {"data_files"}:
        return None
    named = options["data_files"]
    by_split = named if isinstance(named, dict) else {"train": named}  # as the Hugging Face library calls it
    beside = task_path.parent if task_path is not None and task_path.is_file() else task_path
    folders = [folder for folder in (path.parent, beside, Path()) if folder is not None]

    def locate(name: Any) -> Path:
        for folder in folders:
            if (folder / str(name)).is_file():
                return folder / str(name)
        looked = ", ".join(dict.fromkeys(str(folder.resolve()) for folder in folders))
        raise UserError(f"{path}: no file {name} of data_files (looked in {looked}; --task_path adds a folder)")

    return {
        split: [locate(name) for name in (names if isinstance(names, list) else [names])]
        for split, names in by_split.items()
    }


def _check_cached(name: str, config: dict[str, Any]) -> None:
    """UserError unless the data set of the hub is in the local cache, or the user has allowed downloads."""
    source = str(config.get("dataset_path"))
    if os.environ.get("HF_HUB_OFFLINE") == "0" or config.get("custom_dataset") or "/" not in source:
        return
    home = Path(os.environ.get("HF_HOME", "~/.cache/huggingface")).expanduser()
    prepared = Path(os.environ.get("HF_DATASETS_CACHE", home / "datasets")) / source.replace("/", "___").lower()
    cloned = Path(os.environ.get("HF_HUB_CACHE", home / "hub")) / f"datasets--{source.replace('/', '--')}"
    if not (prepared.exists() or cloned.exists() or Path(source).exists()):
        raise UserError(
            f"task {name} needs the data set {source}, which is not in the local cache ({home}).\n"
            "Set HF_HUB_OFFLINE=0 to allow its download, or write a task over a local file (see explorations/tasks)"
        )
