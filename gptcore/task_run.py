"""Runs evaluation tasks through the lm-evaluation-harness: metrics of a model, with standard errors.

The harness and the data-set library are imported when the first task is built (1 to 4 s); they work offline unless
HF_HUB_OFFLINE=0 is set.
"""

import copy
import logging
import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .errors import DataError, RunError, UserError
from .harness import SEED, Requests, harness_model, prepare_environment
from .model import GPT
from .registry import nearest
from .scoring import Progress
from .tasks import Function, TaskFile, documents, find_tasks, parse_spec
from .tokenizer import Tokenizer, from_meta

BOOTSTRAP = 200  # resamples for the standard error of what is not a mean, which is so known to 5 %
MAX_REASON = 400


@dataclass(frozen=True)
class Metric:
    """One figure of a task. `stderr` is None where the harness has no estimate of it."""

    metric: str
    value: float
    stderr: float | None
    higher_is_better: bool | None
    filter: str = "none"


@dataclass(frozen=True)
class TaskResult:
    """What a model scores on a task. `chance`: the accuracy to expect of guessing, where there are choices."""

    task: str
    metrics: tuple[Metric, ...]
    samples: int
    documents: int
    num_fewshot: int
    chance: float | None
    dropped: int
    requests: int
    elapsed_s: float
    version: str
    config: dict[str, Any] = field(repr=False)


@dataclass(frozen=True)
class Score:
    """One figure of one task, for those who compare models by it."""

    value: float
    stderr: float | None
    metric: str
    higher_is_better: bool | None


def score_tasks(
    run_folder: Path, tasks: Sequence[str], *, limit: int | None = None, task_path: Path | None = None
) -> dict[str, Score]:
    """The score of the best (or else newest) model of a run on each of `tasks`, by what they are called there.

    A task is "name" or "name:metric"; without a metric it is the first of `tasks.PREFERRED` that the task has. `limit`
    takes the first documents only. What can be told without a model, `tasks.check_tasks` tells. Errors: as `run_task`;
    UserError for an unknown task; CheckpointError for a folder without a model.
    """
    from .checkpoint import load_model

    files = find_tasks(tasks, task_path)
    loaded = load_model(run_folder)
    tokenizer = from_meta(loaded.tokenizer_meta)
    results: dict[str, TaskResult] = {}
    scores = {}
    for spec, task in zip(tasks, files, strict=True):
        if task.name not in results:
            results[task.name] = run_task(loaded.model, tokenizer, task, limit=limit)
        name = parse_spec(spec)[1] or task.default_metric
        found = next(metric for metric in results[task.name].metrics if metric.metric == name)
        scores[spec] = Score(found.value, found.stderr, found.metric, found.higher_is_better)
    return scores


def run_task(
    model: GPT, tokenizer: Tokenizer, task: TaskFile, *, limit: int | None = None, num_fewshot: int | None = None,
    batch_size: int = 32, drop_unknown: bool = False, progress: Progress | None = None,
) -> TaskResult:  # fmt: skip
    """Scores a model on the first `limit` documents of a task.

    `num_fewshot` replaces what the task says, but not a 0, by which a task forbids examples. Errors: UserError for a
    task that the harness refuses and for text that the tokenizer does not cover; DataError for documents that do not
    fit the task; RunError when the logits are not finite.
    """
    began = time.perf_counter()
    where = f"task {task.name}"
    requests = Requests(
        model, tokenizer, batch_size=batch_size, drop_unknown=drop_unknown, name=where, progress=progress
    )
    _import_harness()
    from lm_eval.evaluator import evaluate

    with _few_words():
        built = _build(task, num_fewshot)
        chance = _guarded(lambda: _check_choices(task, built, limit), f"{where} fails on its documents", DataError)
        found: Any = _guarded(
            lambda: evaluate(
                harness_model(requests), {task.name: built}, limit=limit, bootstrap_iters=BOOTSTRAP, log_samples=False
            ),
            f"{where} ({task.path}) fails on its documents",
            DataError,
        )  # fmt: skip
    samples = found["n-samples"][task.name]
    return TaskResult(
        task=task.name, metrics=tuple(_metrics(found, task.name)), samples=samples["effective"],
        documents=samples["original"], num_fewshot=int(found["n-shot"][task.name] or 0), chance=chance,
        dropped=requests.coverage.dropped, requests=len(built.instances), elapsed_s=time.perf_counter() - began,
        version=str(found["versions"][task.name]), config=_plain(task.config),
    )  # fmt: skip


def _import_harness() -> None:
    prepare_environment()
    try:
        import datasets  # noqa: F401
        import lm_eval.evaluator  # noqa: F401
    except ImportError as error:
        raise UserError(f"tasks need the lm-evaluation-harness ({error}): pip install 'gptcore[eval]'") from error


def _build(task: TaskFile, num_fewshot: int | None) -> Any:
    """The harness's object of a task, straight from its definition."""
    import datasets
    from lm_eval.api.task import ConfigurableTask

    splits = documents(task)

    class LocalTask(ConfigurableTask):
        def download(self, dataset_kwargs=None, **options):
            if splits is None:
                return super().download(dataset_kwargs, **options)
            lists = {split: datasets.Dataset.from_list(rows) for split, rows in splits.items()}
            self.dataset = datasets.DatasetDict(lists)

    _check_metrics(task)
    config = _resolved(task.config)
    built: Any = _guarded(
        lambda: LocalTask(config=config), f"{task.path}: the harness does not accept this task", UserError
    )
    own = built.get_config("num_fewshot")
    if own is None or (num_fewshot is not None and own != 0):
        built.set_config(key="num_fewshot", value=num_fewshot or 0)
    built.set_fewshot_seed(seed=SEED)
    _check_examples(task, built)
    return built


def _check_examples(task: TaskFile, built: Any) -> None:
    """UserError where there are too few documents to take examples from; one that is asked about is none of them."""
    shots = built.get_config("num_fewshot") or 0
    if not shots:
        return
    read = built.get_config
    given = [split for split in ("training_split", "validation_split", "test_split") if read(split)]
    asked = read("test_split") or read("validation_split")
    source = read("fewshot_split") or (read(given[0]) if given else None)
    spare = len(built.fewshot_docs()) - (source == asked)
    if shots > spare:
        raise UserError(f"task {task.name}: {shots} examples in each prompt, but only {spare} documents for them")


def _check_metrics(task: TaskFile) -> None:
    """UserError for a metric that the harness does not have: it would look for it on the network, then carry on."""
    from lm_eval.api.registry import METRIC_REGISTRY, get_metric

    get_metric("acc")  # fills the registry
    for entry in task.config.get("metric_list") or []:
        name = entry["metric"]
        computed = isinstance(name, Function) or entry.get("hf_evaluate") or task.config.get("process_results")
        if not computed and name not in METRIC_REGISTRY:
            known = list(METRIC_REGISTRY)
            raise UserError(f"{task.path}: no metric {name!r}{nearest(name, known)} (known: {', '.join(known)})")


def _check_choices(task: TaskFile, built: Any, limit: int | None) -> float | None:
    """The expected accuracy of guessing. DataError where the right answer is none of the choices, which the harness
    would count as a wrong answer of the model."""
    if task.output_type != "multiple_choice":
        return None
    inverse = []
    for number, doc in enumerate(built.eval_docs, 1):
        if limit is not None and number > limit:
            break
        choices = built.doc_to_choice(doc)
        answer = built.doc_to_text(doc) if built.multiple_input else built.doc_to_target(doc)
        for gold in answer if isinstance(answer, list) else [answer]:
            if not (0 <= gold < len(choices) if isinstance(gold, int) else gold in choices):
                raise DataError(f"task {task.name}, document {number}: {gold!r} is none of its {len(choices)} choices")
        inverse.append(1 / len(choices))
    return sum(inverse) / len(inverse)


def _metrics(found: dict[str, Any], task: str) -> Iterator[Metric]:
    better, values = found["higher_is_better"][task], found["results"][task]
    for key, value in values.items():
        name, comma, filter_name = key.partition(",")
        if comma and not name.endswith("_stderr"):
            stderr = values.get(f"{name}_stderr,{filter_name}")
            known = float(stderr) if isinstance(stderr, (int, float)) else None  # else the text "N/A"
            yield Metric(name, float(value), known, better.get(name), filter_name)


def _guarded(action: Callable[[], Any], what: str, kind: type[Exception]) -> Any:
    """`action()`; whatever the harness, a template or a function of a task raises becomes one line."""
    try:
        return action()
    except (UserError, RunError):
        raise
    except Exception as error:
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise kind(f"{what} ({reason[:MAX_REASON]})") from error


def _resolved(value: Any) -> Any:
    """A copy of a definition with its functions instead of their names."""
    if isinstance(value, Function):
        return value.load()
    if isinstance(value, dict):
        return {key: _resolved(child) for key, child in value.items()}
    return [_resolved(child) for child in value] if isinstance(value, list) else copy.copy(value)


def _plain(value: Any) -> Any:
    """A definition as it can be written as JSON."""
    if isinstance(value, dict):
        return {str(key): _plain(child) for key, child in value.items()}
    if isinstance(value, list):
        return [_plain(child) for child in value]
    return f"!function {value.qualified}" if isinstance(value, Function) else value


@contextmanager
def _few_words() -> Iterator[None]:
    """Inside, the harness prints nothing, and logs errors only: its warnings are about its own defaults."""
    import lm_eval.api.metrics
    import lm_eval.api.task

    quiet: list[tuple[Any, str, Any]] = [
        (lm_eval.api.task, "tqdm", lambda items, **_: items),
        (lm_eval.api.metrics, "_bootstrap_internal_no_mp", _resampled),
    ]
    logger = logging.getLogger("lm_eval")
    before, functions = logger.level, [getattr(module, name) for module, name, _ in quiet]
    logger.setLevel(logging.ERROR)
    for module, name, function in quiet:
        setattr(module, name, function)
    try:
        yield
    finally:
        logger.setLevel(before)
        for (module, name, _), function in zip(quiet, functions, strict=True):
            setattr(module, name, function)


def _resampled(statistic: Callable[[list], float], values: Sequence[Any], times: int) -> list[float]:
    """The statistic of `times` samples drawn with replacement; the same ones for the same values."""
    rng = random.Random(SEED)
    return [statistic(rng.choices(values, k=len(values))) for _ in range(times)]
