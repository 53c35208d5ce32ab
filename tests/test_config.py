"""Configuration: strictness, merging, flat names, identity, and errors that name the place."""

import json

import pytest

from gptcore.cli import main
from gptcore.config import Config, GPTConfig, difference, identity
from gptcore.flat import flat_names
from gptcore.loader import ConfigError, from_dict, load
from gptcore.registry import lookup
from gptcore.yamlfile import dump, parse


@pytest.fixture
def write(tmp_path):
    def write(text: str, name: str = "c.yaml") -> str:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
        return str(tmp_path / name)

    return write


def problems_of(path, *overrides) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load(path, overrides)
    return caught.value.problems


def test_a_file_wrong_in_many_ways_reports_all_of_them(write):
    path = write(
        "model:\n"
        "  n_layers: 4\n"  # 2 unknown, near n_layer
        "  n_embd: 130\n"
        "  attention: {kind: causl, n_head: 3}\n"  # 4 unknown kind, near causal
        "  mlp: {kind: swiglu, activaton: silu}\n"  # 5 unknown knob
        "  dropout: true\n"  # 6 wrong type
        "train:\n"
        '  batch_size: "12"\n'  # 8 wrong type
        "  learning_rate: 3e-4\n"  # a number, as in YAML 1.2
        "  learning_rate: 1e-4\n"  # 10 twice
        "sofmax_variant_attn: consmax\n"  # 11 unknown flat name
    )
    found = problems_of(path)
    lines = [int(problem.removeprefix(path + ":").split(":")[0]) for problem in found]
    assert lines == [2, 4, 5, 6, 8, 10, 11]
    for line, hint in {2: "'n_layer'", 4: "'causal'", 5: "'activation'", 11: "'softmax_variant_attn'"}.items():
        assert hint in found[lines.index(line)]
    assert "not True" in found[lines.index(6)] and "not '12'" in found[lines.index(8)]


def test_impossible_combinations_are_reported_with_the_rest(write):
    path = write(
        "model:\n  n_embd: 130\n  attention: {n_head: 4, n_kv_head: 3}\n  n_layer: 3\n"
        "  layers:\n    - {repeat: 2}\n    - {repeat: 2, mlp: swigl}\ntrain: {max_iter: 5}\n"
    )
    found = "\n".join(problems_of(path))
    assert f"{path}:3: model.attention.n_head: n_embd 130 is not a multiple of n_head 4" in found
    assert "n_head 4 is not a multiple of n_kv_head 3" in found
    assert f"{path}:5: model.layers: repeats add up to 4 layers but n_layer is 3" in found
    assert f"{path}:7: model.mlp: no mlp kind 'swigl'; did you mean 'swiglu'?" in found
    assert f"{path}:8: unknown key 'train.max_iter'; did you mean 'max_iters'?" in found


@pytest.mark.parametrize(
    "text, expected",
    [
        ("model: [1, 2]", "c.yaml:1: model"),
        ("model: {n_layer: 2", "c.yaml:1"),
        ("- a\n- b", "expected `key: value`"),
        ("model: {n_layer: 2.5}", "model.n_layer"),
        ("model: {n_layer: yes}", "not 'yes'"),
        ("model: {n_layer: 0}", "greater than or equal to 1"),
        ("model: {dropout: 1.0}", "less than 1"),
        ("train: {dtype: fp8}", "'float32', 'bfloat16' or 'float16'"),
        (
            "model: {attention: {softmax: {kind: softmax, initial_beta: 2}}}",
            "saturatingconsmax, not of softmax",
        ),
        ("consmax_initial_beta: 2", "saturatingconsmax, not of softmax"),
        ("model: {position: rotary, n_embd: 36, attention: {n_head: 12}}", "even head width, not 3"),
        ("train: {min_lr: 1.0}", "exceeds learning_rate"),
        ("base: [a, b]", "must be one file name"),
        ("base: c.yaml", "leads back"),
        ("\nbase: d.yaml", "c.yaml:2: base: no file"),
        ("use_rotary_embeddings: 1", "must be true or false"),
        ("use_post_ln: true\nuse_peri_ln: true", "contradict"),
        ("n_layer: 6\nmodel: {n_layer: 4}", "c.yaml:2: n_layer is given twice, first at"),
        ("model: {n_layer: 4}\nn_layer: 6", "c.yaml:2: n_layer is given twice, first at"),
        ("n_kv_head: 2\nn_kv_group: 3", "given twice"),
        ("model: {softmax_variant_attn: consmax}", "stands at the top level (it means model.attention.softmax.kind)"),
        ("model: {norm: RMSNorm}", "did you mean 'rmsnorm'"),
        ("train: {learning_rate: .inf}", "finite number"),
        ("model: &a {x: *a}", "alias that contains itself"),
    ],
)
def test_single_mistakes(write, text, expected):
    assert expected in "\n".join(problems_of(write(text)))


def test_yaml_1_1_traps_do_not_exist(write):
    path = write("train: {learning_rate: 3e-4, sample_start: no}\nhardware: on\n")
    config = load(path).config
    assert (config.train.learning_rate, config.train.sample_start, config.hardware) == (3e-4, "no", "on")
    for value in ("no", "3e-4", "1_000", "null", "", "~", "0o17", "12", "a: b", "é\n", ".inf"):
        problems: list[str] = []
        assert parse(dump({"x": value}), "t", problems) == {"x": value} and not problems


def test_json_is_read_too(write):
    content = {"model": {"n_layer": 2, "mlp": {"kind": "swiglu"}}, "n_embd": 96, "learning_rate": 0.5}
    path = write(json.dumps(content, indent="\t"), "c.json")
    assert load(path).config == from_dict(content)
    assert "c.json:2" in problems_of(write('{\n"n_layr": 2}', "c.json"))[0]


def test_base_files_merge_maps_replace_lists_and_a_new_kind_drops_old_knobs(write):
    write("model: {n_layer: 3, n_embd: 64, attention: {n_head: 4, softmax: {kind: consmax, initial_beta: 1.0}}}\n"
          "train: {max_iters: 7}\n", "base/parent.yaml")  # fmt: skip
    same = load(write("base: base/parent.yaml\nmodel: {attention: {softmax: {initial_gamma: 5.0}}}\n")).config
    assert (same.model.n_layer, same.train.max_iters, same.model.attention.n_head) == (3, 7, 4)
    assert (same.model.attention.softmax.initial_beta, same.model.attention.softmax.initial_gamma) == (1.0, 5.0)
    other = load(write("base: base/parent.yaml\nmodel: {attention: {softmax: softermax}}\n")).config
    assert other.model.attention.softmax == lookup("softmax", "softermax").Config()
    assert other.model.attention.n_head == 4


def test_marks_follow_the_last_writer(write):
    write("model: {n_embd: 64, attention: {n_head: 4}}\n", "base/parent.yaml")
    path = write("base: base/parent.yaml\n\nmodel:\n  attention:\n    n_head: 5\n")
    assert problems_of(path)[0].startswith(f"{path}:5: model.attention.n_head")
    assert problems_of(path, "--n_head=7")[0].startswith("command line: --n_head=7: model.attention.n_head")


def test_layer_schedule(write):
    text = "model: {n_layer: 3, n_embd: 64, attention: {n_head: 4, softmax: {kind: consmax, initial_beta: 1.0}}"
    scheduled = load(write(text + ", layers: [{repeat: 2, attention: {softmax: softmax}}, {}]}")).config
    kinds = [layer.attention.softmax.kind for layer in scheduled.model.layer_configs()]
    heads = [layer.attention.n_head for layer in scheduled.model.layer_configs()]
    assert kinds == ["softmax", "softmax", "consmax"] and heads == [4, 4, 4]
    assert scheduled.model.layer_configs()[2].attention.softmax.initial_beta == 1.0
    # Two ways of writing the same model are the same experiment.
    same = load(write(text + ", layers: [{repeat: 3}]}")).config
    assert identity(same) == identity(load(write(text + "}")).config) != identity(scheduled)


FLAT = (
    "--n_layer=4 --softmax_variant_attn=consmax --consmax_initial_beta=2.0 --norm_variant_attn=rmsnorm "
    "--use_rotary_embeddings --mlp_variant=swiglu --n_kv_group=2 --no-bias --n_embd 96 --compile"
).split()


def test_flat_names_of_the_forks(write):
    config = load(None, FLAT).config
    assert config == from_dict(
        {
            "model": {
                "n_layer": 4, "n_embd": 96, "bias": False, "norm": "rmsnorm", "position": "rotary", "mlp": "swiglu",
                "attention": {"n_kv_head": 2, "softmax": {"kind": "consmax", "initial_beta": 2.0}},
            },
            "train": {"compile": True},
        }
    )  # fmt: skip
    assert load(None, reversed([f for f in FLAT if f not in ("--n_embd", "96")])).config.model.mlp.kind == "swiglu"
    assert load(None, ["--no-use_abs_pos_embeddings"]).config.model.position.kind == "none"
    both = ["--softmax_variant_attn=consmax", "--no-use_abs_pos_embeddings"]  # whatever else the source says, and when
    assert [load(None, order).config.model.position.kind for order in (both, both[::-1])] == ["none", "none"]
    assert load(None, ["--use_rotary_embeddings", "--no-use_abs_pos_embeddings"]).config.model.position.kind == "rotary"
    assert load(None, ["--no-use_rotary_embeddings"]).config == Config()
    path = write("position_variant: rotary\nn_head: 3\n")
    assert load(path, ["use_rotary_embeddings=false"]).config.model.position.kind == "learned"
    assert load(path, ["model.attention={n_head: 2, window: 5}"]).config.model.attention.window == 5


def test_the_last_word_counts_on_the_command_line():
    assert load(None, ["--n_layer=6", "model.n_layer=4"]).config.model.n_layer == 4
    assert load(None, ["model.n_layer=4", "--n_layer=6"]).config.model.n_layer == 6
    knob_first = load(None, ["--consmax_initial_beta=1.0", "--softmax_variant_attn=consmax"]).config
    assert knob_first.model.attention.softmax.initial_beta == 1.0
    merged = load(None, ["--n_head=2", "model={attention: {n_kv_head: 1}, n_layer: 3}", "--n_embd=64"]).config.model
    assert (merged.attention.n_head, merged.attention.n_kv_head, merged.n_layer, merged.n_embd) == (2, 1, 3, 64)


def test_flat_and_nested_names_in_one_file(write):
    """A section, a kind by its alias and a knob: nothing is said twice, and what was read is not written to."""
    text = "model: {n_layer: 2, attention: {n_kv_head: 2}}\nsoftmax_variant_attn: consmax\nn_head: 4\n"
    attention = load(write(text + "consmax_initial_beta: 1.0\n")).config.model.attention
    assert (attention.n_head, attention.n_kv_head, attention.softmax.initial_beta) == (4, 2, 1.0)
    values = {"model": {"n_layer": 2}, "mlp_variant": "swiglu", "n_head": 4}
    assert from_dict(values).model.mlp.kind == "swiglu" and values["model"] == {"n_layer": 2}


def test_text_on_the_command_line_stays_text():
    config = load(None, ["--sample_start=ROMEO: # hi", "--out_dir=2024", "--dataset", "no", "--compile=False"]).config
    assert (config.train.sample_start, config.train.out_dir, config.data.dataset) == ("ROMEO: # hi", "2024", "no")
    assert config.train.compile is False and load(None, ["--out_dir=null"]).config.train.out_dir is None


def test_every_flat_name_points_to_a_field():
    for name, target in flat_names().items():
        assert target.paths, name
        assert all(path[0] in Config.model_fields for path in target.paths)


@pytest.mark.parametrize(
    "arguments, expected",
    [
        (["--n_lyer=3"], "did you mean 'n_layer'"),
        (["--n_lay=3"], "unknown option --n_lay"),  # no abbreviations
        (["--n_layer"], "needs a value"),
        (["n_layer"], "expected key.path=value"),
        (["model.n_layr=3"], "did you mean 'n_layer'"),
        (["--n_layer=two"], "not 'two'"),
        (["--wandb_logs=true"], "unknown option --wandb_logs"),
    ],
)
def test_command_line_mistakes(arguments, expected):
    found = "\n".join(problems_of(None, *arguments))
    assert expected in found and "command line: " in found


def test_identity():
    base = identity(Config())
    assert identity(from_dict({"train": {"out_dir": "x", "compile": True, "log_interval": 3}})) == base  # cosmetic
    assert identity(from_dict({"model": {"n_layer": 6}})) == base  # a default written out
    assert identity(from_dict({"train": {"seed": 1}})) != base
    assert identity(from_dict({"train": {"init_from": "resume"}})) == base
    # The norm before the head follows model.norm even where every layer has its own.
    layers = [{"repeat": 2, "norm": "layernorm"}]
    heads = [from_dict({"model": {"n_layer": 2, "norm": norm, "layers": layers}}) for norm in ("rmsnorm", "layernorm")]
    assert identity(heads[0]) != identity(heads[1])
    assert identity(from_dict({"model": {"attention": {"softmax": "softermax"}}})) != base
    # Frozen: runs and caches are found again by these digits in every later version.
    assert base.startswith("d20982cc")
    model = {"n_layer": 2, "layers": [{"mlp": "swiglu"}, {"norm": "rmsnorm"}]}
    assert identity(from_dict({"model": model})).startswith("0e20e3fe")


def test_difference():
    changed = from_dict({"model": {"n_layer": 3, "attention": {"softmax": "consmax"}}})
    found = difference(Config(), changed)
    assert found["model.n_layer"] == (6, 3) and found["model.attention.softmax.kind"] == ("softmax", "consmax")
    assert found["model.attention.softmax.initial_gamma"] == (None, 100.0) and "train.seed" not in found


def test_configurations_never_change_in_place():
    with pytest.raises(Exception, match="frozen"):
        GPTConfig().n_layer = 3


def test_commands(write, capsys):
    path = write("model: {n_layer: 3}\n")
    assert main(["config", "show", path, "--n_embd=96"]) == 0
    shown = capsys.readouterr().out
    problems: list[str] = []
    assert from_dict(parse(shown, "shown", problems)) == load(path, ["--n_embd=96"]).config
    assert shown.splitlines()[0] == f"# identity {identity(load(path, ['--n_embd=96']).config)}"
    assert main(["config", "diff", path, write("model: {n_layer: 4}\n", "d.yaml")]) == 0
    assert capsys.readouterr().out.split() == ["model.n_layer", "3", "4"]
    assert main(["config", "schema"]) == 0
    schema = json.loads(capsys.readouterr().out)
    assert {"model", "data", "train", "hardware"} <= set(schema["properties"])
    assert {"base", "softmax_variant_attn", "use_rotary_embeddings"} <= set(schema["properties"])
    assert {"rmsnorm", "layernorm"} <= set(schema["$defs"]["GPTConfig"]["properties"]["norm"]["anyOf"][0]["enum"])
    assert main(["config", "flat"]) == 0
    assert "--softmax_variant_attn" in capsys.readouterr().out
    assert main(["config", "shw"]) == 2
    assert main(["variants", "softmax"]) == 0
    assert "initial_beta" in capsys.readouterr().out
    assert main(["variants", "sofmax"]) == 2
    assert "did you mean 'softmax'" in capsys.readouterr().err
