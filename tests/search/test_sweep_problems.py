"""What is wrong in a sweep file: said with its place, all of it at once, before anything starts."""

import pytest

from search.sweep_runs import load
from search.sweepfile import SweepError

WRONG = {
    "n_layer: [1\n": "s.yaml:2:",
    "- 3\n": "a sweep is a mapping",
    "n_layer: []\n": "s.yaml:1: n_layer: an empty list",
    "n_layer: {range: {start: 1}}\n": "s.yaml:1: n_layer: range: expected start, end",
    "n_layer: {range: {start: 1, end: 3, step: 0}}\n": "no number from 1 to 3 by 0",
    "n_layer: {range: {start: a, end: 3}}\n": "start is no number: 'a'",
    "n_layer: {range: {start: 1, end: 1e400}}\n": "s.yaml:1: n_layer: range: end is no number: inf",
    "n_layer: {range: {start: 1, end: .inf}}\n": "s.yaml:1: n_layer: range: end is no number: inf",
    "n_layer: {range: {start: 0, end: 1e299, step: 1e-299}}\n": "s.yaml:1: n_layer: range: more than 100,000 values",
    "{}\n": "s.yaml:1: no setting in this entry; it would be a run of the defaults",
    "named_static_groups: [{named_group: a, n_layer: [1]}]\n": "s.yaml:1: no setting in this entry",
    "n_layer: {conditions: [[n_haed, 2]], options: [1]}\n": "a condition on n_haed, which this entry does not set",
    "n_layer: {conditions: [[n_head]], options: [1]}\n": "conditions: expected [[name, value], ...]",
    "named_group_static: [a]\n": "s.yaml:1: no static group 'a' (known: none)",
    "named_static_groups:\n  - {named_group: a, named_group_static: [a]}\nnamed_group_static: [a]\n":
        "s.yaml:2: group 'a' refers to itself: a > a",
    "named_static_groups:\n  - {named_group: a, n_layer: [1]}\nnamed_group_static: [a]\nn_layer: [2]\n":
        "s.yaml:2: n_layer is [1] here and [2] at s.yaml:4",
    "common_group: {n_layer: [1]}\nn_layer: [2]\n": "s.yaml:2: n_layer is part of common_group (s.yaml:1)",
    "common_group: {n_layer: [1, 2]}\n": "common_group: n_layer has 2 values",
    "baseline: nowhere.yaml\ngrid: {n_layer: [1]}\n": "s.yaml:1: baseline: no file",
    "baseline: {}\ngrdi: {n_layer: [1]}\n": "s.yaml:2: unknown key 'grdi'",
    "base: {}\noverrides: [n]\ngrid: {model.n_layer: [1]}\n": "expected key.path=value",
    "": "no runs in this file",
}  # fmt: skip


@pytest.mark.parametrize("text", WRONG)
def test_what_is_wrong_is_said_with_its_place(tmp_path, monkeypatch, text):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "s.yaml").write_text(text)
    with pytest.raises(SweepError) as error:
        load("s.yaml")
    assert WRONG[text] in str(error.value)


def test_all_errors_of_all_runs_come_at_once(tmp_path, monkeypatch, corpus):
    monkeypatch.chdir(tmp_path)
    text = f"dataset: [{corpus}]\nn_head: [2, 3]\nn_embd: [64]\nsoftmax_variant_attn: [softmax, sofmax]\nn_leyer: [1]\n"
    (tmp_path / "s.yaml").write_text(text)
    with pytest.raises(SweepError) as error:
        load("s.yaml", ["--max_iters=-1"])
    said = str(error.value)
    for place in ("s.yaml:2: ", "s.yaml:4: ", "s.yaml:5: unknown key n_leyer", "command line: --max_iters=-1"):
        assert place in said, said
    assert "n_head=3" in said and "in 2 of 4 runs" in said


def test_problems_of_form_and_of_meaning_come_together(tmp_path, monkeypatch, corpus):
    """Of every entry and every group; a run that lacks a group is not judged without it."""
    monkeypatch.chdir(tmp_path)
    text = f"""
named_static_groups: [{{named_group: a, n_layer: [1], named_group_static: [none1]}}]
dataset: [{corpus}]
n_embd: []
n_leyer: []
parameter_groups:
  - {{named_group_static: [a, none2], n_head: [7]}}
  - {{named_group_variations: [none3], n_head: [7]}}
  - {{n_head: [7], parameter_groups: [{{n_head: [8]}}]}}
  - {{bias: [true], parameter_groups: [{{dropout: []}}, {{named_group_alternates: none4}}]}}
---
dataset: [{corpus}]
n_embd: [96]
n_haed: [1]
"""
    (tmp_path / "s.yaml").write_text(text)
    with pytest.raises(SweepError) as error:
        load("s.yaml")
    said = "\n".join(error.value.problems)
    for words in (
        "s.yaml:2: no static group 'none1'", "s.yaml:7: no static group 'none2'",
        "s.yaml:8: no variation group 'none3'",
        "s.yaml:9: n_head is [8] here and [7] at s.yaml:9", "s.yaml:4: n_embd: an empty list",
        "s.yaml:5: n_leyer: an empty list", "s.yaml:10: dropout: an empty list", "s.yaml:10: no group 'none4'",
    "s.yaml:14: unknown key n_haed",
    ):  # fmt: skip
        assert words in said, (words, said)
    assert len(error.value.problems) == 9, said


def test_a_data_set_that_is_not_there_is_an_error_before_the_first_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "s.yaml").write_text("n_layer: [1]\ndataset: [no_such_data]\n")
    with pytest.raises(SweepError, match=r"s.yaml:2: data.dataset: .*no_such_data"):
        load("s.yaml")
