"""Every format of a sweep against expansions that were written out by hand, and what is wrong in a file."""

import json
from itertools import zip_longest

import pytest

from search import sweep_expand
from search.sweep_runs import load
from search.sweepfile import SweepError, read


def written(tmp_path, text, name="s.yaml"):
    path = tmp_path / name
    path.write_text(text if isinstance(text, str) else json.dumps(text))
    return path


def drafts(path):
    problems = []
    file = read(path, problems)
    if problems:
        raise SweepError(problems)
    return file.drafts


def expanded(path):
    return [{str(k): v for k, v in draft.settings.items()} for draft in drafts(path)]


LISTS = [{"n_layer": ["1", "2"], "n_head": [2], "n_embd": [32, 64]}, {"n_layer": 3}]
LISTS_BY_HAND = [
    {"n_layer": 1, "n_head": 2, "n_embd": 32}, {"n_layer": 1, "n_head": 2, "n_embd": 64},
    {"n_layer": 2, "n_head": 2, "n_embd": 32}, {"n_layer": 2, "n_head": 2, "n_embd": 64},
    {"n_layer": 3},
]  # fmt: skip
CONDITIONS = [
    {
        "n_layer": [1, 2], "use_rotary_embeddings": [True, False],
        "n_kv_group": {"conditions": [["n_layer", "2"], ["use_rotary_embeddings", True]], "options": ["1", "2"]},
        "rope_theta": {"conditions": [["n_kv_group", 2]], "options": 500},
    }
]  # fmt: skip
CONDITIONS_BY_HAND = [
    {"n_layer": 1, "use_rotary_embeddings": True}, {"n_layer": 1, "use_rotary_embeddings": False},
    {"n_layer": 2, "use_rotary_embeddings": True, "n_kv_group": 1},
    {"n_layer": 2, "use_rotary_embeddings": True, "n_kv_group": 2, "rope_theta": 500},
    {"n_layer": 2, "use_rotary_embeddings": False},
]  # fmt: skip
EITHER = """
n_layer: [1, 2, 3]
n_head: {conditions: [{n_layer: 1}, {n_layer: 3}], options: [4]}
bias: {conditions: {n_layer: 2}, options: [yes]}
"""
EITHER_BY_HAND = [{"n_layer": 1, "n_head": 4}, {"n_layer": 2, "bias": True}, {"n_layer": 3, "n_head": 4}]
RANGES = """
dropout: {range: {start: 0.1, end: 0.3, step: 0.1}}
---
n_layer: {range: {start: 2, end: 4}}
---
n_embd: {range: {start: "96", end: 32, step: -32}}
--- # what a document may look like
n_layer: [{range: {start: 1, end: 2}}, 8, default]
"""
RANGES_BY_HAND = [
    *({"dropout": v} for v in (0.1, 0.2, 0.3)), *({"n_layer": v} for v in (2, 3, 4)),
    *({"n_embd": v} for v in (96, 64, 32)), *({"n_layer": v} for v in (1, 2, 8, "default")),
]  # fmt: skip
GROUPS = """
---
named_static_groups:
  - {named_group: rotary, use_rotary_embeddings: [true], use_abs_pos_embeddings: [false]}
  - {named_group: learned, use_rotary_embeddings: [false]}
  - {named_group: small, named_group_static: [rotary], n_layer: [1]}
named_variation_groups:
  - {named_group: positions, named_group_alternates: [rotary, learned]}
  - {named_group: widths, n_embd: [32, 64]}
common_group: {dataset: [x], max_iters: ["9"]}
n_head: [2]
parameter_groups:
  - named_group_variations: [positions, widths]
  - named_group_static: small
    named_group_settings: {n_embd: [96]}
    parameter_groups: [{bias: [true]}, {bias: [false], dropout: ["0.5"]}]
  - named_group_alternates: [learned, widths]
"""
BASE = {"dataset": "x", "max_iters": 9, "n_head": 2}
ROTARY, LEARNED = {"use_rotary_embeddings": True, "use_abs_pos_embeddings": False}, {"use_rotary_embeddings": False}
GROUPS_BY_HAND = [
    BASE | ROTARY | {"n_embd": 32}, BASE | ROTARY | {"n_embd": 64},
    BASE | LEARNED | {"n_embd": 32}, BASE | LEARNED | {"n_embd": 64},
    BASE | ROTARY | {"n_layer": 1, "n_embd": 96, "bias": True},
    BASE | ROTARY | {"n_layer": 1, "n_embd": 96, "bias": False, "dropout": 0.5},
    BASE | LEARNED, BASE | {"n_embd": 32}, BASE | {"n_embd": 64},
]  # fmt: skip
OURS = """
baseline: {model: {n_layer: 2}}
grid:
  - {model.n_embd: [32, 64], train.seed: {range: {start: 1, end: 2}}}
  - {model.norm: {kind: rmsnorm}}
runs:
  - {name: deep, model.n_layer: 4}
  - {name: plain}
"""
OURS_BY_HAND = [
    *({"model.n_layer": 4, "model.n_embd": w, "train.seed": s} for w in (32, 64) for s in (1, 2)),
    {"model.n_layer": 4, "model.norm": {"kind": "rmsnorm"}},
    *({"model.n_embd": w, "train.seed": s} for w in (32, 64) for s in (1, 2)),
    {"model.norm": {"kind": "rmsnorm"}},
]  # fmt: skip
FORMATS = {
    "lists": ("s.json", LISTS, LISTS_BY_HAND), "conditions": ("s.json", CONDITIONS, CONDITIONS_BY_HAND),
    "either": ("s.yaml", EITHER, EITHER_BY_HAND), "ranges": ("s.yaml", RANGES, RANGES_BY_HAND),
    "groups": ("s.yaml", GROUPS, GROUPS_BY_HAND), "ours": ("s.yaml", OURS, OURS_BY_HAND),
}  # fmt: skip


@pytest.mark.parametrize("name", FORMATS)
def test_a_format_expands_as_by_hand(tmp_path, name):
    file, content, by_hand = FORMATS[name]
    assert expanded(written(tmp_path, content, file)) == by_hand


@pytest.mark.parametrize("name", ["lists", "groups", "ours"])
def test_an_expansion_that_pairs_values_instead_of_combining_them_is_caught(tmp_path, name, monkeypatch):
    monkeypatch.setattr(sweep_expand, "product", lambda *values: zip_longest(*values, fillvalue=None))
    file, content, by_hand = FORMATS[name]
    assert expanded(written(tmp_path, content, file)) != by_hand


def test_groups_name_their_runs(tmp_path, corpus):
    plan = load(written(tmp_path, GROUPS.replace("[x]", f"[{corpus}]")))
    names = [run.name for run in plan.runs]
    assert names[:3] == ["rotary, n_embd=32", "rotary, n_embd=64", "learned, n_embd=32"]
    assert names[4] == "rotary, small, n_embd=96, bias=true" and len(set(names)) == len(names)


def test_settings_reach_the_configuration(tmp_path, corpus):
    """Flat, dotted, text, `default`; the command line is on top of all."""
    entry = {
        "dataset": [corpus], "n_layer": ["2"], "n_embd": [64], "n_head": ["4"], "softmax_variant_attn": ["consmax"],
        "train.seed": [7], "dropout": ["default"], "learning_rate": ["5e-4"], "bias": ["yes"],
        "out_dir": ["elsewhere"], "tensorboard_run_name": ["x"],
    }  # fmt: skip
    plan = load(written(tmp_path, [entry], "s.json"), ["--n_layer=3"])
    (run,) = plan.runs
    m, t = run.config.model, run.config.train
    assert (m.n_layer, m.n_embd, m.attention.n_head, m.attention.softmax.kind) == (3, 64, 4, "consmax")
    assert (t.seed, t.learning_rate, m.dropout, m.bias, t.out_dir) == (7, 5e-4, 0.0, True, None)
    assert plan.notes == ("left out, since it only says how a run is recorded: tensorboard_run_name",)


def test_what_comes_to_the_same_is_one_run(tmp_path, corpus):
    """The first of them, in its place."""
    plan = load(written(tmp_path, f"{{dataset: [{corpus}], n_layer: [6, 5, default]}}"), ["--device=cpu"])
    assert len(plan.runs) == 3 and [run.name for run in plan.unique()] == ["n_layer=6", "n_layer=5"]


NAMED = """
baseline: {{data.dataset: {corpus}, model.n_layer: 1}}
grid: {{train.seed: [1, 2]}}
runs: [{{name: small}}, {{name: {wide}, model.n_embd: 96, model.norm: {{kind: rmsnorm}}}}]
"""


def test_a_name_stands_for_the_settings_of_its_run(tmp_path, corpus):
    plan = load(written(tmp_path, NAMED.format(corpus=corpus, wide="wide")))
    assert [run.name for run in plan.runs] == ["small, seed=1", "small, seed=2", "wide, seed=1", "wide, seed=2"]
    assert plan.runs[2].config.model.n_embd == 96 and plan.runs[2].point == "wide"
    twice = load(written(tmp_path, NAMED.format(corpus=corpus, wide="small")))  # the name tells nothing
    assert twice.runs[2].name == "small, n_embd=96, norm=rmsnorm, seed=1"


LIBRARY = """
---
named_static_groups:
  - {named_group: rotary, use_rotary_embeddings: [true], use_abs_pos_embeddings: [false]}
  - {named_group: learned, use_rotary_embeddings: [false]}
named_variation_groups:
  - {named_group: positions, named_group_alternates: [rotary, learned]}
"""
WITH_LIBRARY = """
---
named_group_libraries: [shared/groups.yaml]
named_static_groups: [{named_group: wide, n_embd: ["64"]}]
common_group: {dataset: [x], tensorboard_run_name: ["common-${RUN_NAME}"]}
n_layer: [1, 2]
dropout: {conditions: [[use_rotary_embeddings, true]], options: [0.5]}
export_wte_npy: ["npy/${RUN_NAME}.npy"]
never_save_checkpoint: [true]
parameter_groups:
  - {named_group_static: [wide], named_group_variations: [positions], import_wte_npy: ["${RUN_NAME}-${RUN_NAME}"]}
"""


def with_library(tmp_path, library=LIBRARY, text=WITH_LIBRARY):
    (tmp_path / "shared").mkdir(exist_ok=True)
    (tmp_path / "shared" / "groups.yaml").write_text(library)
    return written(tmp_path, text)


def by_hand():
    """Names as the classic runner makes them: the file, groups, then values but those of groups and of what is common;
    what holds the name is not in it."""
    found = []
    for position, middle in ((ROTARY, ["rotary"]), (LEARNED, ["learned"])):
        for n_layer in (1, 2):
            more = {"dropout": 0.5} if position is ROTARY else {}
            name = "-".join(["s", "wide", *middle, str(n_layer), "True", *(str(v) for v in more.values())])
            found.append(
                {"dataset": "x", "tensorboard_run_name": f"common-{name}", "n_layer": n_layer, "n_embd": 64}
                | {"export_wte_npy": f"npy/{name}.npy", "never_save_checkpoint": True}
                | {"import_wte_npy": f"{name}-{name}"} | position | more
            )  # fmt: skip
    return found


def test_libraries_of_groups_and_the_name_of_the_run(tmp_path):
    assert expanded(with_library(tmp_path)) == by_hand()
    titles = [draft.title for draft in drafts(with_library(tmp_path))]
    assert titles[0] == "s-wide-rotary-1-True-0.5" and len(set(titles)) == 4


def test_a_name_that_names_itself_is_caught(tmp_path, monkeypatch):
    """Seeded fault: what holds the name would be part of it."""
    monkeypatch.setattr(sweep_expand, "frozenset", lambda _values: frozenset(), raising=False)
    assert expanded(with_library(tmp_path)) != by_hand()


def test_the_name_of_the_run_stays_out_of_what_people_read(tmp_path, corpus):
    text = f"{{dataset: [{corpus}], n_layer: [1, 2], export_wte_npy: ['${{RUN_NAME}}.npy']}}"
    plan = load(written(tmp_path, text), ["--device=cpu"])
    assert [run.name for run in plan.runs] == ["n_layer=1", "n_layer=2"]
    assert [run.config.train.export_wte_npy for run in plan.runs] == [f"s-{corpus}-{n}.npy" for n in (1, 2)]


TWICE = "named_static_groups: [{named_group: wide, n_embd: [32]}]"
WRONG_LIBRARIES = {
    TWICE: "s.yaml:3: named_group_libraries: group 'wide' is defined in shared/groups.yaml and in s.yaml",
    "named_variation_groups: [{named_group: wide, n_embd: [32]}]": "group 'wide' is defined in shared/groups.yaml and",
    "n_embd: [32]": "groups.yaml:1: a library of groups has named_static_groups and named_variation_groups, not n_embd",
    "---\n" + TWICE + "\n---\n" + TWICE: "groups.yaml: a library of groups is one mapping, not 2 entries",
    "- 3": "groups.yaml: a sweep is a mapping",
    "named_static_groups: [{n_embd: [32]}]": "groups.yaml:1: named_static_groups: each entry is a mapping",
    TWICE.replace("wide", "a") + "\nnamed_variation_groups: [{named_group: b, named_group_static: [nowhere]}]":
        "no static group 'wide2'",
}  # fmt: skip


@pytest.mark.parametrize("library", WRONG_LIBRARIES)
def test_what_is_wrong_with_a_library(tmp_path, library):
    text = WITH_LIBRARY.replace("[positions]", "[]").replace("static: [wide]", "static: [wide2]")
    with pytest.raises(SweepError) as error:
        drafts(with_library(tmp_path, library, text))
    assert WRONG_LIBRARIES[library] in str(error.value)


def test_a_library_that_is_not_there(tmp_path):
    with pytest.raises(SweepError, match=r"s.yaml:3: named_group_libraries: no file .*shared/groups.yaml"):
        drafts(written(tmp_path, WITH_LIBRARY))
    with pytest.raises(SweepError, match="expected files, not 3"):
        drafts(written(tmp_path, "named_group_libraries: 3\nn_layer: [1]\n"))
