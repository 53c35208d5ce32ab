"""Every flag of the classic fork is placed or refused, and the page that lists them says what happens."""

from dataclasses import replace
from pathlib import Path

import pytest

from gptcore.analysis.classic_table import markdown, rows
from gptcore.classic import Flags, flags
from gptcore.cli import main
from gptcore.config import Config
from gptcore.flat import aliases, all_switches, configs_at, flat_names, parse_overrides
from gptcore.loader import ConfigError, from_dict, load
from gptcore.placing import place
from gptcore.registry import Strict, slot_of
from gptcore.yamlfile import Key

COUNT = 630  # flags of the two versions that classic_flags.yaml names


def gaps(known: Flags) -> list[str]:
    """What is wrong with the list: no meaning here for a flag, or two."""
    ours = {*flat_names(), *all_switches()}
    elsewhere = {*known.translated, *known.places, *known.refused}
    found = [f"{flag} is no flat name" for flag in known.here if flag not in ours]
    found += [f"{flag} is a flat name as well: it goes to `here`" for flag in elsewhere if flag in ours]
    found += [f"{flag} is in two classes" for flag in elsewhere if flag in known.here]
    found += [f"{flag} has a remark only" for flag in known.remarks if flag not in set(known)]
    return found + ([] if len(set(known)) == COUNT else [f"{len(set(known))} flags, not {COUNT}"])


def test_every_flag_is_in_one_class():
    known = flags()
    assert not gaps(known)
    assert len(list(known)) == COUNT == len(known.here) + len(known.translated) + len(known.places) + len(known.refused)


@pytest.mark.parametrize(
    "change, problem",
    [
        ({"refused": {"gate": "no"}}, "flags, not"),
        ({"refused": flags().refused | {"n_layer": "no"}}, "n_layer is a flat name as well"),
        ({"translated": flags().translated | {"n_head": {"path": "x"}}}, "n_head is a flat name as well"),
        ({"here": flags().here | {"gate": False}}, "gate is no flat name"),
        ({"remarks": {"n_lyer": "x"}}, "n_lyer has a remark only"),
    ],
)
def test_a_wrong_list_is_found(change, problem):
    assert any(problem in gap for gap in gaps(replace(flags(), **change)))


def test_a_list_that_contradicts_itself_is_not_read(monkeypatch, tmp_path):
    import gptcore.classic as classic

    here, refused = classic.FILES
    (tmp_path / "flags.yaml").write_text(refused.read_text().replace("flags: [gate]", "flags: [gate, n_layer]"))
    monkeypatch.setattr(classic, "FILES", [here, tmp_path / "flags.yaml"])
    with pytest.raises(ValueError, match="flags in two places: n_layer"):
        classic.flags.__wrapped__()


# --- without counterpart


@pytest.mark.parametrize("value", [True, False, None, 1, 0.5, "text", [1, 2], {"a": 1}], ids=str)
def test_a_flag_without_counterpart_is_an_error_whatever_its_value(value):
    refused = flags().refused
    with pytest.raises(ConfigError) as caught:
        from_dict(dict.fromkeys(refused, value))
    assert sorted(caught.value.problems) == sorted(
        f"given: {flag} is a flag of the classic fork without counterpart here: {why}" for flag, why in refused.items()
    )


@pytest.mark.parametrize("form", ["--{}", "--no-{}", "--{}=1", "--{} 1", "--{} a b c", "--{} -1.0 2"])
def test_a_flag_without_counterpart_is_one_error_on_the_command_line(form):
    for flag in flags().refused:
        with pytest.raises(ConfigError) as caught:
            load(None, ["--n_layer=2", *form.format(flag).split(), "--n_embd", "96"])
        (problem,) = caught.value.problems
        assert problem.startswith(f"command line: {form.format(flag).split()[0]}: {flag} is a flag of the classic fork")


def test_the_message_names_file_and_line_and_the_program_ends_with_2(tmp_path, capsys):
    path = tmp_path / "c.yaml"
    path.write_text("n_layer: 2\nuse_lsv: false\nwandb_log: true\n")
    assert main(["config", "show", str(path), "--gate"]) == 2
    printed = capsys.readouterr().err
    assert f"{path}:2: use_lsv is a flag of the classic fork without counterpart here: steering vectors" in printed
    assert f"{path}:3: wandb_log is a flag" in printed and "metrics.csv" in printed
    assert "command line: --gate: gate is a flag" in printed


# --- the same name


def home(flag: str, cls: type[Strict] = Config, path: tuple = (), kinds: tuple = ()) -> tuple | None:
    """(nested path of a flat name, the kinds it needs), by walking the configuration classes."""
    for field, info in cls.model_fields.items():
        here, slot = (*path, field), slot_of(info)
        if slot:
            if flag in slot.flat:
                return (*here, "kind"), kinds
            for config in configs_at(slot) if len(here) < 6 else ():
                if found := home(flag, config, here, (*kinds, (here, config.model_fields["kind"].default))):
                    return found
        elif isinstance(info.annotation, type) and issubclass(info.annotation, Strict):
            if found := home(flag, info.annotation, here, kinds):
                return found
        elif field not in ("kind", "layers") and flag in aliases(cls, field):
            return here, kinds
    return None


def nested(pairs) -> dict:
    tree: dict = {}
    for path, value in pairs:
        node = tree
        for part in path[:-1]:
            node = node.setdefault(part, {})
        node[path[-1]] = value
    return tree


def leaf(config, path):
    for part in path:
        config = getattr(config, part)
    return config


# Where the default there is null, which means that something else decides; and where another setting has to be there.
SAMPLES = {
    "max_sample_tokens": 20, "patience": 3, "n_qk_head_dim": 16, "n_v_head_dim": 24, "n_cproj": 2, "n_kv_group": 3,
    "quant_scheduler": "linear", "window_size": 100, "mlp_size": 500, "n_embd_wte": 96, "hsnorm_radius": 2.0,
    "import_wte_npy": "a.npy", "export_wte_npy": "b.npy", "distillation_teacher_ckpt": "out/x", "mlp_up_bias": False,
    "mlp_down_bias": False, "attn_logit_softcapping": 30.0, "max_seconds": 60.0, "max_tokens": 1000, "rope_length": 8,
    "strongermax_xmax_guess": 1.5, "full_quant_iteration": 10, "norm_variant_wte": "rmsnorm", "mla_latent_dim": 64,
    "linear_variant_q": "quantized_linear", "linear_variant_k": "kan", "linear_variant_v": "bitlinear",
    "linear_variant_attn_proj": "linear", "linear_variant_mlp_up": "bitlinear_1p58", "linear_variant_mlp_down": "kan",
}  # fmt: skip
CONTEXT = {
    "distillation_temperature": {"distillation_teacher_ckpt": "out/x"},
    "start_quant_level": {"quant_scheduler": "linear"},
    "full_quant_iteration": {"quant_scheduler": "linear"}, "import_wte_freeze": {"import_wte_npy": "a.npy"},
    "n_cproj": {"model": {"attention": {"kind": "infinite", "join": "sum"}}},
}  # fmt: skip
RENAMED = {"affine_quant": "affine", "symmetric_quant": "symmetric", "quantized_linear": "quantized", 2.0: "2"}


@pytest.mark.parametrize("flag", [flag for flag in flags().here if flag not in all_switches()])
def test_a_flag_of_the_same_name_arrives(flag):
    value = SAMPLES.get(flag, flags().here[flag])
    if value is None:
        assert flag.endswith("_bits"), f"{flag} is null there: say a sample"
        value = 6
    path, kinds = home(flag)
    given = CONTEXT.get(flag) or nested(((*where, "kind"), kind) for where, kind in kinds)
    words = RENAMED if flat_names()[flag].values else {}
    config = from_dict(given | {flag: value})
    assert leaf(config, path) == words.get(value, value)
    assert ".".join(path) in next(row.meaning for row in rows() if row.flag == flag)


@pytest.mark.parametrize("flag", [flag for flag in flags().here if flag in all_switches()])
def test_a_yes_or_no_of_the_same_name_arrives(flag):
    switch = all_switches()[flag]
    path = switch.paths[0]
    tree = place(parse_overrides([f"--{flag}"], []), {}, [])
    assert switch.on is not None and leaf_of(tree, path) == switch.on
    left = leaf_of(place([((Key(flag, "x"),), False)], nested([(path, switch.on)]), []), path)
    assert left == (switch.off or switch.default)


def leaf_of(tree, path):
    for part in path:
        tree = tree.get(part) if isinstance(tree, dict) else None
    return tree


def test_kinds_and_methods_by_their_names_there():
    config = from_dict({"softmax_variant_attn": "pfla_softmax", "linear_variant_mlp": "quantized_linear"}).model
    assert config.attention.softmax.kind == "pfla" and config.mlp.linear.kind == "quantized"
    straight = load(None, ["--softmax_variant_attn", "ste_argmax_softmax"]).config.model.attention.softmax
    assert straight.kind == "ste_argmax"
    flat = ["--linear_variant_attn=quantized_linear", "--quantize_linear_method=symmetric_quant"]
    assert load(None, flat).config.model.attention.linear.method == "symmetric"
    with pytest.raises(ConfigError, match="'symmetric' or 'affine', not 'ternary_quant'"):
        load(None, [*flat, "--quantize_linear_method=ternary_quant"])


def test_a_knob_of_a_kind_that_is_not_chosen_is_an_error():
    """Also where the chosen kind has a knob of the same nested name."""
    with pytest.raises(ConfigError, match="relumax_divisor is no knob of model.attention.softmax: polymax"):
        load(None, ["--softmax_variant_attn=polymax", "--relumax_divisor=4.0"])
    with pytest.raises(ConfigError, match="of that it is rmsnorm_eps"):
        from_dict({"norm_variant_attn": "rmsnorm", "layernorm_eps": 0.1})


# --- other names and values

SOFTMAX, QK, V = "model.attention.softmax", "model.attention.qk_norm", "model.attention.v_norm"
QUANTIZED = {f"linear_variant_{part}": "quantized" for part in ("q", "k", "v", "attn_proj", "mlp_up", "mlp_down")}
LINEARS = {
    "attn_q": "attention.linear_q", "attn_k": "attention.linear_k", "attn_v": "attention.linear_v",
    "attn_proj": "attention.linear_proj", "mlp_up": "mlp.linear_up", "mlp_down": "mlp.linear_down",
}  # fmt: skip
# flag -> (module, what gets length one unless said, with dim embed)
UNIT = {
    "attn_q": ("attention.linear_q", "input", "input"), "attn_k": ("attention.linear_k", "input", "input"),
    "attn_v": ("attention.linear_v", "input", "input"), "attn_cproj": ("attention.linear_proj", "output", "output"),
    "mlp_up": ("mlp.linear_up", "input", "input"), "mlp_down": ("mlp.linear_down", "input", "output"),
}  # fmt: skip
SPHERE = {"norm_variant_wte": "hyperspherenorm"}
INFINITE = {"n_layer": 2, "model": {"attention": {"kind": "infinite", "join": "sum"}}}
POINTS = {
    "attn": {
        "input": "input", "qk_mult_q_input": "q", "qk_mult_k_input": "k", "softmax_input": "scores",
        "pv_mult_p_input": "weights", "pv_mult_v_input": "v", "pv_mult_output": "heads", "output": "output",
    },
    "mlp": {name: name for name in ("input", "activation_input", "activation_output", "output")},
}  # fmt: skip
SECTION = {"attn": "attention", "mlp": "mlp"}


def layer(path: str, *values):
    return {f"model.layers.{i}.{path}": value for i, value in enumerate(values)}


CASES = [
    ({"adamw_betas": [0.8, 0.95]}, {"train.beta1": 0.8, "train.beta2": 0.95}),
    ({"decay_lr": True}, {"train.schedule": "cosine"}),
    ({"decay_lr": False}, {"train.schedule": "constant"}),
    ({"lr_scheduler": "none"}, {"train.schedule": "cosine"}),
    ({"lr_decay_match_max_iters": True}, {"train.lr_decay_iters": None}),
    ({"lr_decay_match_max_iters": False}, {"train.lr_decay_iters": 3500}),
    ({"lr_decay_match_max_iters": False, "lr_decay_iters": 10}, {"train.lr_decay_iters": 10}),
    ({"loss_fn": "cross_entropy"}, {"train.label_smoothing": 0.0, "train.focal_gamma": 0.0}),
    ({"loss_fn": "label_smoothing"}, {"train.label_smoothing": 0.1, "train.focal_gamma": 0.0}),
    ({"loss_fn": "focal", "focal_gamma": 3.0}, {"train.label_smoothing": 0.0, "train.focal_gamma": 3.0}),
    ({"distillation_loss": "kl_divergence", "distillation_teacher_ckpt": "x"}, {"train.distill_from": "x"}),
    ({"training_mode": "single", "sampling_method": "random"}, {"data.dataset": "shakespeare_char"}),
    (SPHERE | {"norm_wte_radius": 2.0, "norm_wte_scale": 3.0, "norm_wte_gain": True, "norm_wte_radius_learning": True},
     {f"model.norm_embedding.{k}": v for k, v in dict(radius=2.0, scale=3.0, gain=True, learned=True).items()}),
    ({"use_flash_lobo": True}, {f"{SOFTMAX}.lobo": "learned", f"{SOFTMAX}.lobo_per": "layer"}),
    ({"use_flash_lobo": False}, {f"{SOFTMAX}.lobo": "none"}),
    ({"use_flash_lobo_per_head": True, "use_flash_lobo": True},
     {f"{SOFTMAX}.lobo": "learned", f"{SOFTMAX}.lobo_per": "head"}),
    ({"use_flash_lobo_per_head": False}, {f"{SOFTMAX}.lobo_per": "layer"}),
    ({"use_flash_obo_const": True, "use_flash_lobo": True, "flash_lobo_log_const": 1.5},
     {f"{SOFTMAX}.lobo": "fixed", f"{SOFTMAX}.lobo_init": 1.5}),
    ({"use_flash_obo_const": False, "use_flash_lobo": True}, {f"{SOFTMAX}.lobo": "learned"}),
    ({"softmax_variant_attn": "consmax", "consmax_use_euler_base": False}, {f"{SOFTMAX}.base": "2"}),
    ({"softmax_variant_attn": "consmax", "consmax_use_euler_base": True}, {f"{SOFTMAX}.base": "e"}),
    ({"softmax_variant_attn": "sigsoftmax", "sigsoftmax_use_euler_base": False}, {f"{SOFTMAX}.base": 2.0}),
    ({"softmax_variant_attn": "exppolymax", "exppolymax_use_euler_base": False}, {f"{SOFTMAX}.base": 4.0}),
    ({"softmax_variant_attn": "exppolymax", "exppolymax_use_euler_base": False, "exppolymax_base": 3.0},
     {f"{SOFTMAX}.base": 3.0}),
    ({"softmax_variant_attn": "pfla_softmax", "pfla_softmax_use_obo": True, "pfla_softmax_obo": 1.0},
     {f"{SOFTMAX}.obo": 1.0}),
    ({"softmax_variant_attn": "pfla_softmax", "pfla_softmax_init_activation": "gelu"}, {f"{SOFTMAX}.kind": "pfla"}),
    *((QUANTIZED | {f"quantize_linear_{name}_method": "affine_quant", f"quantize_linear_{name}_bits": 3},
       {f"model.{path}.method": "affine", f"model.{path}.bits": 3}) for name, path in LINEARS.items()),
    ({"init_variant": "gaussian"}, {"model.embedding.init": "gaussian"}),
    ({"rope_variant": "rope", "use_rotary_embeddings": True}, {"model.position.kind": "rotary"}),
    ({"absolute_pos_embedding_variant": "learned"}, {"model.position.kind": "learned"}),
    ({"use_qk_norm": True, "use_v_norm": True},
     {f"{QK}.kind": "hyperspherenorm", f"{QK}.radius": 1.0, f"{V}.kind": "hyperspherenorm", f"{V}.radius": 1.0}),
    ({"use_qk_norm": False, "use_v_norm": False}, {QK: None, V: None}),
    *(({f"l2_norm_{name}": True}, {f"model.{path}.kind": "weight_norm", f"model.{path}.over": over})
      for name, (path, over, _) in UNIT.items()),
    *(({f"l2_norm_{name}": True, f"l2_norm_{name}_dim": "embed"}, {f"model.{path}.over": over})
      for name, (path, _, over) in UNIT.items()),
    ({"l2_norm_attn_q": False}, {"model.attention.linear_q": None}),
    ({"attention_variant": "mla", "use_mla_lobo": True, "mla_lobo_init": 0.5},
     {f"{SOFTMAX}.lobo": "learned", f"{SOFTMAX}.lobo_per": "head", f"{SOFTMAX}.lobo_init": 0.5}),
    # together
    ({"use_pre_ln": False, "use_peri_ln": True}, {"model.block.placement": "output"}),
    ({"use_pre_ln_attn": False, "use_peri_ln_attn": True}, {"model.block.placement_attn": "output"}),
    ({"use_pre_ln": True, "use_peri_ln": True}, {"model.block.placement": "peri"}),
    ({"use_pre_ln": True, "use_peri_ln": True, "use_post_ln": False}, {"model.block.placement": "peri"}),
    ({"use_pre_ln_attn": True, "use_peri_ln_attn": True, "use_pre_ln_mlp": True, "use_peri_ln_mlp": True},
     {"model.block.placement_attn": "peri", "model.block.placement_mlp": "peri"}),
    ({"use_pre_ln": False, "use_post_ln": True}, {"model.block.placement": "post"}),
    ({"use_rotary_embeddings": True, "rope_variant": "soap"}, {"model.position.kind": "soap"}),
    ({"rope_variant": "soap", "use_abs_pos_embeddings": False, "use_rotary_embeddings": True, "sym_rot_num_angles": 64},
     {"model.position.kind": "soap", "model.position.angles": 64}),
    ({"rope_variant": "soap", "use_abs_pos_embeddings": True, "use_rotary_embeddings": True},
     {"model.position.kind": "combined", "model.position.rotation.kind": "soap"}),
    # one value a layer, cycled
    ({"n_layer": 3, "n_head_layerlist": [2, 4]}, layer("attention.n_head", 2, 4, 2)),
    ({"n_layer": 2, "n_head": 4, "n_kv_group_layerlist": ["1", "2"]}, layer("attention.n_kv_head", 1, 2)),
    ({"n_layer": 2, "mlp_size_layerlist": [100, 200]}, layer("mlp.hidden_size", 100, 200)),
    ({"n_layer": 2, "window_size_layerlist": [8, None]}, layer("attention.window", 8, None)),
    (INFINITE | {"n_qk_head_dim_layerlist": [8, 16], "n_v_head_dim_layerlist": [4], "n_cproj_layerlist": [1, 2]},
     layer("attention.n_qk_head_dim", 8, 16) | layer("attention.n_v_head_dim", 4, 4)
     | layer("attention.n_cproj", 1, 2)),
    ({"n_layer": 3, "n_head": 4, "softmax_variant_attn": "consmax", "attention_list": ["causal", "identity", "linear"]},
     layer("attention.kind", "causal", "identity", "linear") | {"model.layers.0.attention.softmax.kind": "consmax"}
     | {"model.layers.0.attention.n_head": 4, "model.layers.2.attention.n_head": 4}),
    ({"n_layer": 2, "attention_variant_layerlist": "causal linear"}, layer("attention.kind", "causal", "linear")),
    # where and to how many bits to round
    *(({f"quantize_{part}_act": True}, {f"model.{SECTION[part]}.rounding.every": 8}) for part in POINTS),
    *(({f"quantize_{part}_act_{there}": True, f"quantize_{part}_act_bits": 5},
       {f"model.{SECTION[part]}.rounding.{here}": 5, f"model.{SECTION[part]}.rounding.every": None})
      for part, points in POINTS.items() for there, here in points.items()),
    ({"quantize_attn_act": True, "quantize_attn_act_bits": 4, "quantize_attn_act_input_bits": 6},
     {"model.attention.rounding.every": 4, "model.attention.rounding.input": 6}),
    ({"quantize_mlp_act": False, "quantize_mlp_act_bits": 8}, {"model.mlp.rounding.every": None}),
    ({"quantize_wte": True}, {"model.embedding.bits": 8}),
    ({"quantize_wte": False, "quantize_wte_bits": 4}, {"model.embedding.bits": None}),
]  # fmt: skip


def at(config, path: str):
    for part in path.split("."):
        config = config[int(part)] if isinstance(config, list) else getattr(config, part)
    return config


@pytest.mark.parametrize("given, expected", CASES, ids=lambda case: " ".join(case)[:60])
def test_a_flag_that_is_said_otherwise_here(given, expected):
    config = from_dict(given)
    assert {path: at(config, path) for path in expected} == expected


def test_every_flag_that_is_said_otherwise_here_is_tested():
    tested = {name for given, _ in CASES for name in given}
    assert {*flags().translated, *flags().places} <= tested


@pytest.mark.parametrize(
    "arguments, expected",
    [
        (["--lr_scheduler=plateau"], "lr_scheduler, a flag of the classic fork, cannot be 'plateau' here: schedule"),
        (["--rope_variant", "soap"], "or position_variant=soap"),
        (["--loss_fn=top1_focus"], "cannot be 'top1_focus' here: label_smoothing, focal_gamma and z_loss"),
        (["--adamw_betas", "0.9"], "adamw_betas takes 2 values, not 0.9"),
        (["--decay_lr=7"], "cannot be '7' here: it is true or false"),
        (["--quantize_attn_act=1"], "quantize_attn_act must be true or false, not 1"),
        (["--quantize_attn_act_input", "--quantize_attn_act_output_bits=4"],
         "quantize_attn_act_output_bits has no effect without quantize_attn_act_output"),
        (["--attention_list", "causal", "co4"], "no attention kind 'co4'"),
        (["--n_head_layerlist", "2", "model.layers=[{repeat: 6}]"],
         "n_head_layerlist and model.layers contradict each other"),
    ],
)  # fmt: skip
def test_values_without_counterpart(arguments, expected):
    with pytest.raises(ConfigError) as caught:
        load(None, arguments)
    (problem,) = {problem.split(" (known")[0] for problem in caught.value.problems}
    assert expected in problem and problem.startswith("command line: ")


def test_lists_and_yes_or_no_on_the_command_line():
    arguments = "--adamw_betas 0.8 0.9 --n_head_layerlist 2 4 8 --n_layer=3 --no-decay_lr --use_flash_lobo n_embd=64"
    config = load(None, arguments.replace("n_embd=64", "model.n_embd=64").split()).config
    assert (config.train.beta1, config.train.beta2, config.train.schedule) == (0.8, 0.9, "constant")
    assert [layer.attention.n_head for layer in config.model.layers] == [2, 4, 8] and config.model.n_embd == 64
    assert {layer.attention.softmax.lobo for layer in config.model.layers} == {"learned"}


def test_the_settings_that_the_page_gives_for_the_forks_defaults():
    page = " ".join(markdown().split("own defaults is, here, `")[1].split("`")[0].split())
    config = load(None, page.split()).config
    assert (config.model.norm.kind, config.model.bias, config.train.schedule) == ("rmsnorm", False, "constant")
    known = flags().here
    for flag in ("batch_size", "max_iters", "eval_iters", "learning_rate", "grad_clip", "dtype"):
        assert getattr(config.train, flag) == known[flag]


# --- the page and the command


def test_the_page_is_up_to_date():
    """Written by `gptcore config flags --markdown docs/classic_flags.md`."""
    assert (Path(__file__).parent.parent / "docs" / "classic_flags.md").read_text() == markdown()


def test_the_command(capsys, tmp_path):
    assert main(["config", "flags"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == COUNT
    assert main(["config", "flags", "use_lsv", "--eval_iters"]) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first.split() == "--eval_iters train.eval_iters [default there 200, here 100]".split()
    assert second.startswith("--use_lsv") and "error: steering vectors" in second
    assert main(["config", "flags", "wandb_logg"]) == 2
    assert "did you mean 'wandb_log'" in capsys.readouterr().err
    assert main(["config", "flags", "--markdown", str(tmp_path / "flags.md")]) == 0
    assert (tmp_path / "flags.md").read_text() == markdown()


@pytest.mark.parametrize("unit", ["", "_attn", "_mlp"])
def test_norms_that_no_placement_has_together(unit):
    """There the sum is normalised besides what goes into a sub-layer, or comes out of it."""
    for other in ("use_pre_ln", "use_peri_ln"):
        with pytest.raises(ConfigError, match="contradict"):
            from_dict({f"use_post_ln{unit}": True, f"{other}{unit}": True})


def test_a_block_without_any_norm_must_be_asked_for():
    with pytest.raises(ConfigError, match=r"false alone leaves nothing .* choose another model\.block\.placement"):
        from_dict({"use_pre_ln": False})
