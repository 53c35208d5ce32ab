"""The description of a search: what may stand in a file, and every mistake with its line before anything runs."""

import json
import math
from argparse import Namespace
from fractions import Fraction
from pathlib import Path

import pytest

from gptcore.config import identity
from gptcore.errors import UserError
from gptcore.loader import load as load_config
from search.classic import from_classic
from search.moves import candidates
from search.space import SpaceError, from_mapping, load

ROOT = Path(__file__).parents[2]
QUICKSTART = ROOT / "explorations" / "quickstart.yaml"
SIZE = "model.vocab_size=65"  # so that no data set is needed
HEAD = f"baseline: {QUICKSTART}\ncost: params\noverrides: [{SIZE}]\n"


def written(tmp_path, text, head=HEAD):
    path = tmp_path / "space.yaml"
    path.write_text(head + text)
    return path


def problems(tmp_path, text, head=HEAD):
    with pytest.raises(SpaceError) as error:
        load(written(tmp_path, text, head))
    return error.value.problems


FULL = """
hardware: edge-sky130
objective: {score: exp(-loss)}
stage: prefill
constraints: {area_m2: {max: 3e-4}, params: {min: 1000, max: 1.0e7}}
moves:
  model.n_layer: +1
  model.n_embd: [+16, -16, "+32", x2, x0.5]
  model.norm: {choices: [rmsnorm, {kind: layernorm}]}
  model.bits: {choices: [8]}
  hardware.array.rows, hardware.array.columns: [x2]
  layers: {duplicate: true, remove: false, change: {attention.n_head: [x2]}}
budget: {trials: 60, seconds: 1200}
seeds: {first: 3, min: 2, max: 5}
train: {max_iters: 300}
strategy: {kind: greedy, beam: 2}
rule: {confidence: 0.9, shrink_tolerance: 0.01}
results_file: out.yaml
"""


def test_a_file_with_everything_in_it(tmp_path):
    space = load(written(tmp_path, FULL))
    amounts = [(m.op, m.value) for m in space.moves if m.paths == (("model", "n_embd"),)]
    assert amounts == [("add", 16), ("add", -16), ("add", 32), ("multiply", 2), ("multiply", Fraction(1, 2))]
    assert [m.op for m in space.moves if m.per_layer] == ["duplicate", "multiply"]
    assert space.stage == "prefill" and space.score.name == "exp(-loss)" and space.cost.names == ("params",)
    assert space.baseline.config.train.max_iters == 300 and space.seeds.first == 3 and space.budget.tokens is None
    assert space.results_file == tmp_path / "out.yaml" and space.rule.shrink_tolerance == 0.01
    assert space.baseline_costs.params > 1000 and space.constraints["params"].max == 1e7
    assert len(space.notes) == 1 and "unrounded" in space.notes[0]
    json.dumps(space.as_dict())


def test_the_search_is_the_same_with_a_larger_budget_and_another_with_other_moves(tmp_path):
    path = written(tmp_path, FULL)
    assert load(path).identity == load(path, ["budget.trials=99", "budget.seconds=7"]).identity
    assert load(path).identity != load(path, ["seeds.max=6"]).identity
    assert load(path).identity != load(path, ["model.n_layer=3"]).identity
    assert load(path).identity != load(path, ["hardware.array.rows=8", "hardware.array.columns=8"]).identity
    assert load(path, ["train.max_iters=7"]).baseline.config.train.max_iters == 7


def test_the_baseline_is_trained_as_the_plain_configuration_is(tmp_path):
    space = load(written(tmp_path, "moves: {model.n_layer: [+1]}\n"))
    assert space.baseline.identity == identity(load_config(QUICKSTART, [SIZE]).config)
    mapping = load_config(QUICKSTART, [SIZE]).config.model_dump(mode="json")
    same = from_mapping({"baseline": mapping, "cost": "params", "moves": {"model.n_layer": 1}})
    assert same.baseline == space.baseline and same.identity == space.identity


MISTAKES = {
    "mvoes: {}": "unknown key 'mvoes'; did you mean 'moves'?",
    "budget: {trails: 3}": "unknown key 'budget.trails'; did you mean 'trials'?",
    "budget: {trials: 0}": "budget.trials: Input should be greater than or equal to 1, not 0",
    "seeds: {min: 1}": "seeds.min",
    "seeds: {min: 4, max: 3}": "max 3 is below min 4",
    "objective: {score: los}": "did you mean 'loss'?",
    "objective: {score: task:arc_eazy}": "arc_eazy",
    "constraints: {area_mm2: {max: 2}}": "no cost 'area_mm2'; did you mean 'area_m2'?",
    "constraints: {params: {maks: 2}}": "did you mean 'max'?",
    "constraints: {params: {max: 1000}}": "the baseline breaks a constraint: params 8.053e+05 is above 1000",
    "hardware: edge-sky13": "no hardware 'edge-sky13'; did you mean 'edge-sky130'",
    "train: {max_iter: 3}": "unknown key 'train.max_iter'; did you mean 'max_iters'?",
    "strategy: {kind: gready}": "'greedy', 'random', 'grid' or 'nsga2', not 'gready'",
    "strategy: {kind: random, beam: 2}": "beam belongs to greedy, not to random",
    "rule: {confidence: 1}": "rule.confidence",
    "stage: decoding": "stage: Input should be",
}


@pytest.mark.parametrize("line", MISTAKES)
def test_a_mistake_is_told_with_its_line(tmp_path, line):
    (said,) = problems(tmp_path, f"moves: {{model.n_layer: [+1]}}\n{line}\n")
    assert MISTAKES[line] in said and said.startswith(f"{tmp_path}/space.yaml:5: ")


MOVES = {
    "model.n_embd: [16, 64]": "16 has no sign: +16 and -16 are steps, x16 is a factor, and {choices: [16]} sets",
    "model.n_embd: 16": "16 has no sign",
    "layers: {change: {attention.n_head: [2]}}": "2 has no sign",
    "model.n_embd: [y2]": "y2 is no step",
    "model.n_embd: [x1]": "x1 is no step",
    "model.n_embd: [-0]": "is no step",
    "model.n_embd: [true]": "true is no step",
    "model.n_embd: [+0.5]": "n_embd is a whole number",
    "model.n_layr: [+1]": "no setting 'n_layr' here; did you mean 'n_layer'?",
    "n_layer: [+1]": "it is a flat name, of model.n_layer",
    "modl.n_layer: [+1]": "did you mean 'model'?",
    "model: [+1]": "settings are below model, train, data, hardware",
    "model.attention.softmax.initial_beta: [+1]": "no setting 'initial_beta' here of kind softmax",
    "model.attention.kind: {choices: [causal]}": "choose kinds at model.attention",
    "model.attention.softmax: {choices: [softmx]}": "no softmax kind 'softmx'; did you mean 'softmax'?",
    "model.attention.softmax: {choices: [{kind: consmax, initial_bet: 1}]}": "initial_bet",
    "model.attention.softmax: {chioces: [softmax]}": "unknown key 'chioces'; did you mean 'choices'?",
    "model.attention.softmax: {choices: []}": "choices is a list",
    "model.attention.softmax: [+1]": "softmax is softmax, which is no number",
    "model.attention.n_kv_head: [+1]": "n_kv_head is null here",
    "model.bias: [+1]": "which is no number",
    "model.bits: {choices: [0]}": "greater than or equal to 1",
    "model.n_embd: {choices: [wide]}": "n_embd",
    "train.seed: [+1]": "`seeds:` says which seeds",
    "train.log_interval: [+1]": "train.log_interval changes nothing about the result",
    "hardware.array.row: [x2]": "did you mean 'rows'?",
    "hardware.vector.score_buffer: {choices: [dram]}": "score_buffer",
    "hardware.technology.library: [+1]": "no number",
    "layers: {duplicat: true}": "layers.duplicat; did you mean 'duplicate'?",
    "layers: {remove: 1}": "must be true or false",
    "layers: true": "layers: expected",
    "layers: {change: {attention.n_hed: [+1]}}": "did you mean 'n_head'?",
}


@pytest.mark.parametrize("line", MOVES)
def test_a_wrong_move_is_told_with_its_line(tmp_path, line):
    (said, *more) = problems(tmp_path, f"moves:\n  {line}\n")
    assert MOVES[line] in said and said.startswith(f"{tmp_path}/space.yaml:5: ")
    assert not more or line.count(",")


def test_all_problems_are_told_at_once_in_the_order_of_the_file(tmp_path):
    text = "hardware: x\nbudget: {trials: no}\ntrain: {lr: 1}\nmoves: {model.n_embd: [16], n_layer: +1}\n"
    assert [p.split(":")[1] for p in problems(tmp_path, text)] == ["4", "5", "6", "7", "7"]
    said = problems(tmp_path, "train: {lr: 1}\nmoves: {model.n_embdd: [+1]}\n")
    assert [p.split(":")[1] for p in said] == ["4", "5"]


def test_what_cannot_be_read_or_is_missing(tmp_path):
    with pytest.raises(UserError, match="no configuration file"):
        load(tmp_path / "none.yaml")
    (said,) = problems(tmp_path, "baseline: [", "")
    assert said.startswith(f"{tmp_path}/space.yaml:1: ")
    assert "no file" in problems(tmp_path, "moves: {model.n_layer: [+1]}\n", "baseline: gone.yaml\ncost: params\n")[0]
    assert problems(
        tmp_path, "moves: {model.n_layer: [+1]}\n", f"baseline: {QUICKSTART}\noverrides: [model.vocab_size=65]\n"
    ) == ["given: cost is missing"]
    mapping = "baseline: {model: {n_layer: 2, n_embd: 60, attention: {n_head: 7}, vocab_size: 9}}\ncost: params\n"
    (said,) = problems(tmp_path, "hardware: h100\nmoves: {model.n_layer: [+1]}\n", mapping)
    assert "n_embd 60 is not a multiple of n_head 7" in said
    flat = "baseline: {n_layer: 2, n_embd: 60, n_head: 6, vocab_size: 9}\ncost: params\n"
    (said,) = problems(tmp_path, "moves: {model.n_layer: [+1]}\n", flat)
    assert "hardware is missing" in said
    assert load(written(tmp_path, "hardware: h100\nmoves: {model.n_layer: [+1]}\n", flat)).baseline_costs.latency_s > 0


def test_a_setting_of_a_kind_that_another_move_chooses(tmp_path):
    text = (
        "moves:\n  model.attention.softmax: {choices: [softmax, consmax]}\n"
        "  model.attention.softmax.initial_beta: [+0.5]\n"
    )
    space = load(written(tmp_path, text))
    here = candidates(space, space.baseline)
    assert here.dropped["does not apply"] == 1
    (there,) = (c.point for c in here.candidates)
    assert "softmax initial_beta" in " ".join(c.name for c in candidates(space, there).candidates)


@pytest.mark.parametrize("name", ["area_small", "params_small"])
def test_explorations_load(name):
    space = load(ROOT / "explorations" / "search" / f"{name}.yaml", [SIZE])
    found = candidates(space, space.baseline)
    assert len(found.candidates) >= 10 and set(found.dropped) == {"unchanged"} and not space.notes
    assert not any(c.same_training for c in found.candidates)
    if name == "area_small":  # with weights on the chip, width takes area
        by_name = {c.name: c.costs.area_m2 for c in found.candidates}
        assert by_name["n_embd 64 -> 80"] > space.baseline_costs.area_m2 > by_name["softmax -> consmax"]


def classic(**more):
    settings = {
        "orig_settings": str(QUICKSTART), "param_names": ["n_layer", "n_head", "n_embd"],
        "increments": ["1", "1", "16"],
        "iterations": 2, "num_iterations": 5, "results_file": "out.yaml", "overrides": [SIZE],
    }  # fmt: skip
    return Namespace(**{**settings, **more})


def test_the_classic_call():
    space = from_classic(classic())
    assert [m.paths[0] for m in space.moves] == [
        ("model", "n_layer"), ("model", "attention", "n_head"), ("model", "n_embd")
    ]  # fmt: skip
    assert [m.text for m in space.moves] == ["+1", "+1", "+16"] and space.cost.name == "params"
    assert (space.seeds.min, space.seeds.max, space.budget.rounds) == (2, 2, 5)
    assert space.results_file == Path("out.yaml").resolve()
    found = candidates(space, space.baseline)
    assert [c.name for c in found.candidates] == ["n_layer 4 -> 5", "n_embd 128 -> 144"]
    assert found.dropped == {"impossible combination": 1}  # 128 is no multiple of 5 heads
    both = from_classic(classic(param_names=["n_layer", "n_layer"], increments=[1, -1], cost="area_m2"))
    assert [m.text for m in both.moves] == ["+1", "-1"] and both.cost.name == "area_m2"


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"increments": [1]}, "3 names and --increments 1 numbers"),
        ({"param_names": []}, "needs --orig_settings FILE and --param_names"),
        ({"param_names": ["n_layr", "n_head", "n_embd"]}, "unknown key n_layr; did you mean 'n_layer'?"),
        ({"increments": ["1", "a", "1"]}, "'a' of n_head is no number"),
        ({"increments": [1, 0, 1]}, "\\+0 is no step"),
        ({"iterations": 1}, "at least 2"),
        ({"cost": "area"}, "did you mean 'area_m2'?"),
    ],
)
def test_mistakes_in_the_classic_call(wrong, said):
    with pytest.raises(UserError, match=said):
        from_classic(classic(**wrong))


def test_the_file_and_python_mean_the_same(tmp_path):
    steps = "moves: {train.learning_rate: [+1e-4, x2], model.dropout: [+0.1]}\n"
    space = load(written(tmp_path, steps))
    python = {"train.learning_rate": [1e-4, "x2"], "model.dropout": 0.1}
    same = from_mapping({"baseline": str(QUICKSTART), "cost": "params", "moves": python}, [SIZE])
    assert [m.value for m in same.moves] == [m.value for m in space.moves] == [Fraction(1, 10**4), 2, Fraction(1, 10)]
    names = [c.name for c in candidates(space, space.baseline).candidates]
    assert names == ["learning_rate 0.001 -> 0.0011", "learning_rate 0.001 -> 0.002", "dropout 0 -> 0.1"]
    assert math.isclose(space.baseline_costs.params, same.baseline_costs.params, rel_tol=0)
