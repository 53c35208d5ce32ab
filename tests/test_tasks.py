"""Task files: found by name without an index, checked without the harness, their documents read line by line."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from gptcore.errors import DataError, UserError
from gptcore.tasks import OWN_FOLDER, Function, check_tasks, documents, find_tasks, parse_spec

ROOT = Path(__file__).parent.parent
TASK = """task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{query}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: gold
"""
DOC = {"query": "one plus one is", "choices": ["two", "three"], "gold": 0}


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "mine.yaml").write_text(TASK.format(name="mine", data="docs.jsonl"))
    (tmp_path / "docs.jsonl").write_text(json.dumps(DOC) + "\n\n" + json.dumps(DOC | {"extra": 1}) + "\n")
    return tmp_path


def refusal(folder, spec="mine") -> str:
    """The one problem of a task, which `find_tasks` or `documents` raises with the same words."""
    (problem,) = [text for text in check_tasks([spec], folder) if "gptcore[eval]" not in text]
    with pytest.raises((UserError, DataError)) as caught:
        documents(find_tasks([spec], folder)[0])
    assert str(caught.value) == problem
    return problem


def test_a_task_of_a_folder(folder):
    (task,) = find_tasks(["mine"], folder)
    assert (task.name, task.output_type, task.metrics) == ("mine", "multiple_choice", ("acc", "acc_norm"))
    assert task.default_metric == "acc_norm"
    assert documents(task) == {"test": [DOC | {"extra": None}, DOC | {"extra": 1}]}
    assert find_tasks(["mine"], folder / "mine.yaml") == [task]


def test_specifications():
    assert parse_spec("a") == ("a", None)
    assert parse_spec(" a:acc ") == ("a", "acc")


def test_own_folder_comes_before_the_harness_and_task_path_before_both(folder):
    (folder / "shakespeare_line.yaml").write_text(TASK.format(name="shakespeare_line", data="docs.jsonl"))
    (task,) = find_tasks(["shakespeare_line"], folder)
    assert task.path.parent == folder
    (task,) = find_tasks(["shakespeare_line"])
    assert task.path.parent.resolve() == (ROOT / OWN_FOLDER).resolve()


def test_included_files_and_functions(folder):
    (folder / "child.yaml").write_text("include: mine.yaml\ntask: child\nprocess_docs: !function helpers.twice\n")
    (folder / "helpers.py").write_text("def twice(docs):\n    return docs * 2\n")
    (task,) = find_tasks(["child"], folder)
    assert task.config["doc_to_target"] == "gold" and task.name == "child"
    assert task.config["process_docs"] == Function("helpers.twice", folder.resolve())
    assert task.config["process_docs"].load()([1]) == [1, 1]
    with pytest.raises(UserError, match="helpers.thrice"):
        Function("helpers.thrice", folder).load()


def test_data_files_are_looked_up_beside_the_task_then_in_task_path(tmp_path):
    (tmp_path / "arc_easy.jsonl").write_text(json.dumps(DOC) + "\n")
    assert check_tasks(["local_arc_easy"], tmp_path) == []
    assert "no file arc_easy.jsonl" in check_tasks(["local_arc_easy"])[0]


@pytest.mark.parametrize(
    "bad, words",
    [
        ('{"query": "x", "choi', "line 4: not JSON"),
        ("[1, 2]", "line 4: a list, not an object"),
        ('{"query": "x", "gold": 0}', "line 4: no field 'choices'"),
        (b'{"query": "\xff"}', "line 4: not JSON"),
    ],
)
def test_damaged_documents(folder, bad, words):
    with open(folder / "docs.jsonl", "ab") as file:
        file.write((bad if isinstance(bad, bytes) else bad.encode()) + b"\n")
    assert words in refusal(folder) and "docs.jsonl" in refusal(folder)


def test_no_documents(folder):
    (folder / "docs.jsonl").write_text("\n")
    assert "no document in" in refusal(folder)


@pytest.mark.parametrize(
    "spec, words",
    [
        ("mien", "no task 'mien'; did you mean 'mine'?"),
        ("mine:acc_nrm", "no metric 'acc_nrm'; did you mean 'acc_norm'?"),
    ],
)
def test_wrong_names(folder, spec, words):
    assert words in refusal(folder, spec)


@pytest.mark.parametrize(
    "line, words",
    [
        ("output_type: multiple", "output_type 'multiple' is none of"),
        ("test_split: tset", "test_split is 'tset', but data_files has test"),
        ("test_split: null", "neither test_split nor validation_split"),
        ("metric_list: [acc]", "metric_list is not a list of entries"),
        ("include: gone.yaml", "gone.yaml cannot be read"),
        ("include: mine.yaml", "includes itself"),
        ("class: x.Y", "a group or a Python class"),
        ("doc_to_text: [", "cannot be read as YAML"),
        ("dataset_path: some/hub_set", "not in the local cache"),
    ],
)
def test_wrong_definitions(folder, line, words, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(folder / "hf"))
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    key = line.split(":")[0]
    lines = [row for row in TASK.format(name="mine", data="docs.jsonl").splitlines() if not row.startswith(key)]
    (folder / "mine.yaml").write_text("\n".join([*lines, line]) + "\n")
    assert words in refusal(folder)


def test_a_data_set_of_the_hub_may_be_cached_or_allowed(folder, monkeypatch):
    text = TASK.format(name="mine", data="docs.jsonl").replace("dataset_path: json", "dataset_path: Some/Set")
    (folder / "mine.yaml").write_text(text)
    monkeypatch.setenv("HF_HOME", str(folder / "hf"))
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    assert "HF_HUB_OFFLINE=0" in refusal(folder)
    (folder / "hf" / "datasets" / "some___set").mkdir(parents=True)
    assert documents(find_tasks(["mine"], folder)[0]) is None
    (folder / "hf" / "datasets" / "some___set").rmdir()
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    assert documents(find_tasks(["mine"], folder)[0]) is None


def test_missing_path_and_all_problems_at_once(folder):
    assert "no folder or file" in check_tasks(["mine"], folder / "gone")[0]
    with pytest.raises(UserError, match="(?s)no task 'a1'.*no task 'b2'"):
        find_tasks(["a1", "mine", "b2"], folder)


def test_examples_are_sound():
    names = ["shakespeare_line", "shakespeare_speech", "shakespeare_word"]
    assert check_tasks(names) == []
    line, _, word = find_tasks(names)
    records = documents(line)["test"]
    assert len(records) == 60
    for r in records:  # the right choice is the second line of the speech, and only that one
        assert r["speech"].split("\n")[:2] == [r["speaker"], r["line"]]
        assert [choice == r["speech"].split("\n")[2] for choice in r["choices"]].index(True) == r["gold"]
        assert len(set(r["choices"])) == 4
        assert r["choices"][r["gold"]].startswith(f"{r['start']} {r['word']}")
    assert word.default_metric == "exact_match"


def test_checking_imports_no_harness():
    script = "import sys; from gptcore.tasks import check_tasks; check_tasks(['shakespeare_line', 'nothing'])\n"
    script += "print(*{name.split('.')[0] for name in sys.modules} & {'lm_eval', 'datasets', 'pandas'})"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.split() == []
