"""The model interface against lm-eval's own Hugging Face backend with the same weights and the same tokenizer.

Everything that imports lm_eval is in this file: the import costs seconds.
"""

import importlib.machinery
import importlib.util
import json
import math
import random
import shutil
import socket
import statistics
import sys
import types
from string import ascii_lowercase

import pytest
import torch

from gptcore import cli
from gptcore.checkpoint import save
from gptcore.errors import DataError, RunError, UserError
from gptcore.harness import Requests, harness_model, prepare_environment
from gptcore.loader import from_dict
from gptcore.model import GPT
from gptcore.pretrained import load_pretrained
from gptcore.scoring import windows
from gptcore.task_run import _resampled, run_task, score_tasks
from gptcore.tasks import DEFAULT_METRICS, OWN_FOLDER, find_tasks
from gptcore.tokenizer import CharTokenizer, Tokenizer
from tests.conftest import WORDS

prepare_environment()
pytest.importorskip("lm_eval", reason="needs pip install 'gptcore[eval]'")
transformers = pytest.importorskip("transformers", reason="needs pip install 'gptcore[hf]'")
tokenizers = pytest.importorskip("tokenizers", reason="comes with transformers")

BLOCK, END = 24, "<|endoftext|>"
TOLERANCE = 1e-3  # nats, of sums over up to some hundred tokens whose log-probabilities lie between -1 and -20


class Wrapped(Tokenizer):
    """The library's tokenizer behind our interface: what differs between the two sides is then the backend alone."""

    name = "wrapped"

    def __init__(self, theirs):
        self.theirs, self.vocab_size, self.eot = theirs, len(theirs), theirs.eos_token_id

    def encode(self, text):
        return self.theirs.encode(text, add_special_tokens=False)

    def decode(self, ids):
        return self.theirs.decode(ids, skip_special_tokens=True)

    def token_bytes(self, i):
        raise NotImplementedError


@pytest.fixture(scope="module")
def sides(tmp_path_factory):
    """(lm-eval's backend, our requests, the library's model): one random model, one byte-pair encoding."""
    rng = random.Random(3)
    text = [" ".join(rng.choice(WORDS) for _ in range(12)) for _ in range(60)]
    learner = tokenizers.trainers.BpeTrainer(
        vocab_size=300, special_tokens=[END], initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )  # fmt: skip
    pairs = tokenizers.Tokenizer(tokenizers.models.BPE())
    pairs.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    pairs.decoder = tokenizers.decoders.ByteLevel()
    pairs.train_from_iterator(text, learner)
    theirs = transformers.PreTrainedTokenizerFast(
        tokenizer_object=pairs, eos_token=END, bos_token=END, pad_token=END, clean_up_tokenization_spaces=False
    )
    end = theirs.eos_token_id
    config = transformers.GPT2Config(
        vocab_size=len(theirs), n_embd=32, n_layer=2, n_head=4, n_positions=BLOCK, bos_token_id=end, eos_token_id=end
    )
    torch.manual_seed(0)
    model = transformers.GPT2LMHeadModel(config).eval()
    for p in model.parameters():  # far from uniform predictions, so that mistakes show
        torch.nn.init.normal_(p, mean=1.0 if p.dim() == 1 else 0.0, std=0.25)
    folder = tmp_path_factory.mktemp("weights")
    model.save_pretrained(folder)
    ours, weights = load_pretrained(folder)
    gpt = GPT(ours)
    gpt.load_state_dict(weights)
    backend = backend_class()(pretrained=model, tokenizer=theirs, batch_size=4, device="cpu")
    assert backend.max_length == BLOCK
    return backend, Requests(gpt.eval(), Wrapped(theirs), batch_size=4), model


def backend_class():
    """lm-eval's backend imports accelerate, and uses it only where it loads models or has several processes."""
    if importlib.util.find_spec("accelerate") is None:
        stub = types.ModuleType("accelerate")
        stub.__spec__ = importlib.machinery.ModuleSpec("accelerate", None)
        stub.Accelerator = stub.InitProcessGroupKwargs = stub.find_executable_batch_size = None
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(sys.modules, "accelerate", stub)
            patch.setitem(sys.modules, "accelerate.utils", types.SimpleNamespace(get_max_memory=None))
            return importlib.import_module("lm_eval.models.huggingface").HFLM
    return importlib.import_module("lm_eval.models.huggingface").HFLM


def sentence(rng, low, high):
    return " ".join(rng.choice(WORDS) for _ in range(rng.randint(low, high)))


def instances(args):
    return [types.SimpleNamespace(args=arg, task_name="t") for arg in args]


def pairs_of_all_sorts():
    """Choices of one question, single words, empty contexts, white space at the seam, contexts beyond the block."""
    rng = random.Random(1)
    found = [("", "the quick"), ("", " fox"), ("dog", "s"), ("jum", "ps over"), ("a lazy \n", "dog"), ("kings ", "of")]
    for _ in range(8):
        question = sentence(rng, 1, 8)
        found += [(question, " " + sentence(rng, 1, 3)) for _ in range(4)]
    return found + [(sentence(rng, 20, 30), " " + sentence(rng, 1, 6)) for _ in range(6)]


def test_loglikelihoods_are_those_of_the_backend(sides):
    theirs, ours, _ = sides
    pairs = pairs_of_all_sorts()
    expected = theirs.loglikelihood(instances(pairs), disable_tqdm=True)
    found = ours.loglikelihood(pairs)
    assert max(abs(a[0] - b[0]) for a, b in zip(expected, found, strict=True)) < TOLERANCE
    assert [a[1] for a in expected] == [b[1] for b in found]
    assert min(a[0] for a in expected) < -10  # an error of the tolerance is a small one


@pytest.mark.parametrize("fault", ["space stays", "cut on the right", "no start token"])
def test_faults_are_seen(sides, fault, monkeypatch):
    theirs, ours, _ = sides
    pairs = pairs_of_all_sorts()
    if fault == "space stays":
        monkeypatch.setattr(ours, "_split", lambda context, continuation: (context, continuation))
    if fault == "no start token":
        monkeypatch.setattr(ours, "start", 5)
    if fault == "cut on the right":
        from gptcore import scoring

        whole = scoring._rows
        monkeypatch.setattr(
            scoring, "_rows", lambda i, pair, size: whole(i, (pair[0][: size + 1 - len(pair[1])], pair[1]), size)
        )
    expected = theirs.loglikelihood(instances(pairs), disable_tqdm=True)
    assert max(abs(a[0] - b[0]) for a, b in zip(expected, ours.loglikelihood(pairs), strict=True)) > 0.1


def test_greedy_flag_is_true_for_what_the_model_writes(sides):
    theirs, ours, _ = sides
    context = "seven kings"
    written = ours.generate_until([(context, {"until": [], "max_gen_toks": 3})])[0]
    pairs = [(context, written), (context, written + "x")]
    assert [greedy for _, greedy in ours.loglikelihood(pairs)] == [
        greedy for _, greedy in theirs.loglikelihood(instances(pairs), disable_tqdm=True)
    ]


def test_rolling_is_that_of_the_backend(sides):
    theirs, ours, _ = sides
    rng = random.Random(5)
    texts = ["", "a", *(sentence(rng, 1, 90) for _ in range(6))]
    assert max(len(ours.tokenizer.encode(text)) for text in texts) > 3 * BLOCK
    expected = theirs.loglikelihood_rolling(instances([(text,) for text in texts]), disable_tqdm=True)
    assert ours.loglikelihood_rolling(texts) == pytest.approx(expected, abs=TOLERANCE)


def test_continuation_longer_than_the_block(sides):
    """The backend refuses it; its rolling windows, begun from the last token of the context, are the reference."""
    theirs, ours, _ = sides
    context, continuation = "the quick brown", " " + sentence(random.Random(6), 60, 60)
    tokens = ours.tokenizer.encode(context + continuation)
    known = len(ours.tokenizer.encode(context))
    assert len(tokens) - known > 2 * BLOCK
    with pytest.raises(AssertionError):
        theirs.loglikelihood(instances([(context, continuation)]), disable_tqdm=True)
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

    rolling = get_rolling_token_windows(tokens[known:], tokens[known - 1], BLOCK, 1)
    parts = [(("", ""), *make_disjoint_window(pair)) for pair in rolling]
    expected = sum(value for value, _ in theirs._loglikelihood_tokens(parts, disable_tqdm=True))
    assert ours.loglikelihood([(context, continuation)])[0][0] == pytest.approx(expected, abs=TOLERANCE)


@pytest.mark.parametrize("block, least", [(1, 1), (4, 1), (4, 2), (4, 4), (7, 3), (50, 25)])
def test_windows_are_those_of_the_harness(block, least):
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

    for n in (0, 1, 3, 4, 5, 8, 23, 49, 50, 51):
        tokens = list(range(n))
        expected = [make_disjoint_window(pair) for pair in get_rolling_token_windows(tokens, 99, block, least)]
        assert [tuple(map(list, pair)) for pair in windows(tokens, 99, block, least)] == expected


def test_generated_texts_are_those_of_the_backend(sides):
    theirs, ours, _ = sides
    rng = random.Random(8)
    contexts = [sentence(rng, 1, 30) for _ in range(10)]
    assert max(len(ours.tokenizer.encode(c)) for c in contexts) > BLOCK
    for options in (
        {"until": [], "max_gen_toks": 9}, {"until": [" ", "e"], "max_gen_toks": 12, "do_sample": False},
        {"until": "o", "max_new_tokens": 5, "temperature": 0.0},
    ):  # fmt: skip
        requests = [(context, options) for context in contexts]
        expected = theirs.generate_until(instances(requests), disable_tqdm=True)
        assert ours.generate_until(requests) == expected
        assert len(set(expected)) > 1


def test_generation_beyond_the_block_goes_on(sides):
    _, ours, _ = sides
    text = ours.generate_until([("the", {"until": [], "max_gen_toks": 3 * BLOCK})])[0]
    assert len(ours.tokenizer.encode(text)) > BLOCK
    with pytest.raises(UserError, match="num_beams"):
        ours.generate_until([("the", {"until": [], "num_beams": 3})])


# ---- whole tasks, through the harness


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    """A folder with one task of each kind over one file."""
    folder = tmp_path_factory.mktemp("tasks")
    rng = random.Random(2)
    with open(folder / "docs.jsonl", "w") as file:
        for i in range(12):
            choices = [sentence(rng, 1, 3) for _ in range(2 + i % 3)]
            record = {"question": sentence(rng, 2, 6), "choices": choices, "gold": i % 2, "text": sentence(rng, 20, 30)}
            file.write(json.dumps(record) + "\n")
    base = "dataset_path: json\ndataset_kwargs: {data_files: {test: docs.jsonl}}\ntest_split: test\n"
    kinds = {
        "choose": 'output_type: multiple_choice\ndoc_to_text: "{{question}}"\ndoc_to_choice: "{{choices}}"\n'
        "doc_to_target: gold\n",
        "roll": 'output_type: loglikelihood_rolling\ndoc_to_text: ""\ndoc_to_target: "{{text}}"\n',
        "last": 'output_type: loglikelihood\ndoc_to_text: "{{question}}"\ndoc_to_target: "{{choices[0]}}"\n',
        "write": 'output_type: generate_until\ndoc_to_text: "{{question}}"\ndoc_to_target: "{{choices[0]}}"\n'
        'generation_kwargs: {until: [" "], max_gen_toks: 5}\n',
    }
    for name, lines in kinds.items():
        (folder / f"{name}.yaml").write_text(f"task: {name}\n{base}{lines}")
    return folder


def records(tasks):
    return [json.loads(line) for line in open(tasks / "docs.jsonl")]


@pytest.fixture
def no_network(monkeypatch):
    """Any attempt to reach another host fails, and is counted."""
    attempts = []

    def refuse(*args, **rest):
        attempts.append(args)
        raise OSError("no network in this test")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    return attempts


def test_every_kind_of_task_gives_what_the_backend_gives(sides, tasks, no_network):
    from lm_eval.evaluator import evaluate

    from gptcore.task_run import _build

    theirs, ours, _ = sides
    for task in find_tasks(["choose", "roll", "last", "write"], tasks):
        result = run_task(ours.model, ours.tokenizer, task, limit=10)
        expected = evaluate(theirs, {task.name: _build(task, None)}, limit=10, bootstrap_iters=0, log_samples=False)
        values = {m.metric: m.value for m in result.metrics}
        assert values.keys() == set(DEFAULT_METRICS[task.output_type])
        for name, value in values.items():
            assert value == pytest.approx(expected["results"][task.name][f"{name},none"], rel=1e-4), name
        assert (result.samples, result.documents) == (10, 12)
    assert no_network == []


def test_standard_errors_and_chance(sides, tasks, capfd):
    _, ours, _ = sides
    choose, last = (run_task(ours.model, ours.tokenizer, task) for task in find_tasks(["choose", "last"], tasks))
    accuracy = next(m for m in choose.metrics if m.metric == "acc")
    assert accuracy.stderr == pytest.approx(math.sqrt(accuracy.value * (1 - accuracy.value) / 11))
    assert choose.chance == pytest.approx((1 / 2 + 1 / 3 + 1 / 4) / 3)
    assert last.chance is None
    ppl = next(m for m in last.metrics if m.metric == "perplexity")
    nats = [nats for nats, _ in ours.loglikelihood([(r["question"], r["choices"][0]) for r in records(tasks)])]
    assert ppl.value == pytest.approx(math.exp(-statistics.mean(nats)))
    assert ppl.stderr > 0
    means = _resampled(statistics.mean, list(range(100)), 400)
    assert statistics.stdev(means) == pytest.approx(statistics.stdev(range(100)) / 10, rel=0.15)
    assert capfd.readouterr() == ("", "")


def test_few_shot_examples_come_into_the_prompt(sides, tasks, monkeypatch):
    _, ours, _ = sides
    seen = []
    answer = Requests.loglikelihood
    monkeypatch.setattr(Requests, "loglikelihood", lambda self, pairs: seen.extend(pairs) or answer(self, pairs))
    (task,) = find_tasks(["choose"], tasks)
    assert run_task(ours.model, ours.tokenizer, task, num_fewshot=2).num_fewshot == 2
    with pytest.raises(UserError, match="1000 examples in each prompt, but only"):
        run_task(ours.model, ours.tokenizer, task, num_fewshot=1000)
    assert all(context.count("\n\n") == 2 for context, _ in seen)


@pytest.fixture
def run_folder(tmp_path):
    """A run folder with a fresh model over small letters, space and line feed."""
    meta = CharTokenizer.from_text([ascii_lowercase + " \n"]).meta()
    sizes = {"n_layer": 1, "n_embd": 16, "attention": {"n_head": 2}, "vocab_size": meta["vocab_size"]}
    model = GPT(from_dict({"model": sizes}).model)
    payload = {"model_config": model.config.model_dump(mode="json"), "model": model.state_dict(), "step": 1}
    save(tmp_path, payload | {"tokenizer": meta, "identity": "x"}, best=True)
    (tmp_path / "run.json").write_text('{"status": "finished", "identity": "x"}')
    return tmp_path


def test_score_tasks_of_a_run(run_folder, tasks):
    scores = score_tasks(run_folder, ["choose", "choose:acc", "roll"], limit=6, task_path=tasks)
    assert [(s.metric, s.higher_is_better) for s in scores.values()] == [
        ("acc_norm", True), ("acc", True), ("bits_per_byte", False)
    ]  # fmt: skip
    assert list(scores) == ["choose", "choose:acc", "roll"]
    # A fresh model is near uniform over its characters, of one byte each.
    assert scores["roll"].value == pytest.approx(math.log2(28), abs=0.2)
    for path in run_folder.glob("*.pt"):
        path.unlink()
    with pytest.raises(RunError, match="holds no checkpoint"):
        score_tasks(run_folder, ["choose"], task_path=tasks)


def test_tasks_through_the_commands(run_folder, tasks, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(cli.COMMANDS, "eval", ("gptcore.commands.eval", "scores of a trained run"))
    named = ["eval", "--out_dir", str(run_folder), "--task_path", str(tasks)]
    assert cli.main([*named, "--tasks", "choose,write", "--limit", "5", "--num_fewshot", "1"]) == 0
    head, choose, *_ = capsys.readouterr().out.splitlines()
    assert head.split()[:4] == ["task", "metric", "value", "stderr"] and choose.split()[:2] == ["choose", "acc"]
    assert not (run_folder / "eval" / "choose.json").exists()  # the place of what is scored on all documents
    content = json.loads((run_folder / "eval" / "choose-1shot-first5.json").read_text())
    assert (content["identity"], content["limit"], content["result"]["num_fewshot"]) == ("x", 5, 1)
    assert content["result"]["config"]["doc_to_text"] == "{{question}}"
    assert content["versions"]["lm_eval"] and len(content["model_hash"]) == 64
    monkeypatch.chdir(tmp_path)
    shutil.copytree(tasks, OWN_FOLDER)
    assert cli.main(["sample", "--out_dir", str(run_folder), "--lm_eval_tasks", "choose"]) == 0
    short = json.loads((run_folder / "eval" / "choose.json").read_text())
    assert (short["model_hash"], short["identity"], short["run"]) == (content["model_hash"], "x", str(run_folder))
    assert short["dtype"] == "float32" and short["limit"] is None
    assert cli.main(["sample", "--out_dir", str(run_folder), "--lm_eval_tasks", "shakespeare_line"]) == 2
    assert "has no token for" in capsys.readouterr().err
    shutil.copytree(tasks, tmp_path / "damaged")
    (tmp_path / "damaged" / "docs.jsonl").write_text('{"question": "a", "choi')
    assert cli.main([*named[:-1], str(tmp_path / "damaged"), "--tasks", "choose"]) == 1
    assert "docs.jsonl, line 1: not JSON" in capsys.readouterr().err


@pytest.mark.parametrize(
    "change, words",
    [
        ("doc_to_text: '{{nothing}}'", "nothing"),
        ("doc_to_txt: x", "doc_to_txt"),
        ("metric_list: [{metric: no_such_metric}]", "no_such_metric"),
        ("doc_to_text: !function missing.f", "missing"),
    ],
)
def test_tasks_that_the_harness_refuses(sides, tasks, tmp_path, change, words, no_network):
    _, ours, _ = sides
    text = "\n".join(
        line for line in (tasks / "choose.yaml").read_text().splitlines() if not line.startswith(change.split(":")[0])
    )
    (tmp_path / "t.yaml").write_text(f"{text.replace('choose', 'broken', 1)}\n{change}\n")
    (tmp_path / "docs.jsonl").write_bytes((tasks / "docs.jsonl").read_bytes())
    with pytest.raises((UserError, DataError), match=words):
        run_task(ours.model, ours.tokenizer, find_tasks(["broken"], tmp_path)[0])


def test_an_answer_that_is_no_choice_is_an_error(sides, tasks, tmp_path):
    _, ours, _ = sides
    (tmp_path / "choose.yaml").write_bytes((tasks / "choose.yaml").read_bytes())
    lines = [json.dumps({"question": "a", "choices": ["b", "c"], "gold": gold}) + "\n" for gold in (1, 2)]
    (tmp_path / "docs.jsonl").write_text("".join(lines))
    with pytest.raises(DataError, match="document 2: 2 is none of its 2 choices"):
        run_task(ours.model, ours.tokenizer, find_tasks(["choose"], tmp_path)[0])


def test_defaults_are_those_of_the_harness():
    from lm_eval.api.model import LM
    from lm_eval.api.registry import DEFAULT_METRIC_REGISTRY

    assert {kind: tuple(names) for kind, names in DEFAULT_METRIC_REGISTRY.items()} == DEFAULT_METRICS
    assert isinstance(harness_model(None), LM)
