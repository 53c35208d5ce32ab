"""Several position kinds at once: each does what it does alone, and flat names of classic forks find their place."""

import itertools
import math

import pytest
import torch

from gptcore.config import Config, Dims, GPTConfig, Heads
from gptcore.loader import ConfigError, from_dict, load
from gptcore.model import GPT, declare
from gptcore.ops import Pass
from gptcore.registry import build, kinds, lookup

EPS64 = torch.finfo(torch.float64).eps
DIMS = Dims(n_embd=24, n_layer=2, block_size=16, bias=True, dropout=0.0)
HEADS = (Heads(4, 6), Heads(3, 8))
MIXTURES = [
    {},
    {"embedding": "none", "bias": {"kind": "fire", "init_L": 3.0}},
    {"embedding": "none", "rotation": {"kind": "soap", "angles": 6}, "bias": "alibi"},
    {"rotation": "none", "bias": "alibi"},
    {"embedding": {"kind": "cyclic", "cycle": 5}, "rotation": {"kind": "rotary", "length": 4},
     "bias": {"kind": "fire", "per": "model"}},
]  # fmt: skip


def combined(**fields):
    cls = lookup("position", "combined")
    torch.manual_seed(3)
    position = build(cls.Config.model_validate(fields), DIMS, HEADS)
    for module in position.modules():
        if hasattr(module, "init_weights"):
            module.init_weights(0.02)
    return position.double()


def check_parts(position):
    """Each place as by the part alone, built anew from its own configuration with the same numbers."""
    alone = {}
    for place in ("embedding", "rotation", "bias"):
        alone[place] = build(getattr(position.config, place), DIMS, HEADS).double()
        alone[place].load_state_dict(position.parts[place].state_dict())
    x = torch.randn(2, 5, 24, dtype=torch.float64)
    assert torch.equal(position.embed(x, 7), alone["embedding"].embed(x, 7))
    for layer, heads in enumerate(HEADS):
        used = position.at(layer)
        q, k = (torch.randn(2, heads.count, 5, heads.width, dtype=torch.float64) for _ in range(2))
        for got, expected in zip(used.rotate(q, k, 7), alone["rotation"].at(layer).rotate(q, k, 7), strict=True):
            assert torch.equal(got, expected)
        scores = alone["bias"].at(layer)
        assert used.has_bias == scores.has_bias == position.has_bias
        got, expected = (p.bias(heads.count, 5, 9, 7, x) for p in (used, scores))
        assert (got is None and expected is None) or torch.equal(got, expected)


@pytest.mark.parametrize("fields", MIXTURES, ids=str)
def test_every_part_does_what_it_does_alone(fields):
    check_parts(combined(**fields))


def test_a_layer_that_takes_anothers_part_is_seen(monkeypatch):
    cls = lookup("position", "combined")
    monkeypatch.setattr(cls, "at", lambda self, layer: self.layers[0])
    with pytest.raises((AssertionError, KeyError, AttributeError)):
        check_parts(combined(bias="fire"))


def test_the_default_is_a_table_and_rotation():
    """Attention of one layer and one head, written out: a table added, then pairs turned as complex numbers."""
    values = {"n_layer": 1, "n_embd": 8, "block_size": 16, "vocab_size": 29, "attention": {"n_head": 1}}
    torch.manual_seed(0)
    model = GPT(GPTConfig.model_validate(values | {"position": "combined"})).double().eval()
    table = model.position.parts["embedding"].weight
    x = torch.arange(16)[None] % 29
    block = model.transformer.h[0]
    h = model.transformer.wte.weight[x] + table
    q, k, v = block.attn.c_attn(block.ln_1(h)).chunk(3, dim=-1)
    angle = torch.outer(torch.arange(16.0).double(), 10000.0 ** (-torch.arange(0, 8, 2).double() / 8))
    q, k = (torch.complex(t[..., :4], t[..., 4:]) * torch.polar(torch.ones_like(angle), angle) for t in (q, k))
    scores = (q @ k.mH).real / math.sqrt(8)
    weights = scores.masked_fill(torch.ones(16, 16).triu(1).bool(), float("-inf")).softmax(-1)
    h = h + block.attn.c_proj(weights @ v)
    h = h + block.mlp(block.ln_2(h))
    expected = model.lm_head(model.transformer.ln_f(h))
    # The tables of cosines are fp32; scores of a fresh model are small, so that their error of 2^-24 shrinks.
    assert (model(x)[0] - expected).abs().max().item() <= 16 * torch.finfo(torch.float32).eps


@pytest.mark.parametrize("fields", MIXTURES, ids=str)
def test_models_train_decode_and_declare(fields):
    values = {"n_layer": 2, "n_embd": 24, "block_size": 16, "vocab_size": 29, "attention": {"n_head": 4, "window": 5}}
    torch.manual_seed(0)
    model = GPT(GPTConfig.model_validate(values | {"position": {"kind": "combined", **fields}})).double()
    x = torch.randint(29, (2, 16))
    model(x, x)[1].backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    declared = {n: w.shape for n, w in declare(model.config, Pass("prefill", 1, 16, 16)).weights().items()}
    assert declared == {n: tuple(p.shape) for n, p in model.named_parameters()}
    model.eval()
    cache = model.new_cache(2)
    parts = [model(part, cache=cache)[0] for part in x.split([3, 1, 1, 4, 1, 1, 1, 4], dim=1)]
    assert (torch.cat(parts, 1) - model(x)[0]).abs().max().item() <= 64 * EPS64 * math.sqrt(96) * 3


def test_parameters_are_named_by_place_and_layer():
    names = set(combined(bias={"kind": "fire", "hidden_layers": 0}).state_dict())
    assert "parts.embedding.weight" in names and "parts.bias.layers.1.curves.3.c" in names


@pytest.mark.parametrize(
    "position, expected",
    [
        ({"rotation": "alibi"}, "model.position.rotation: position kind 'alibi' cannot stand here"),
        ({"embedding": "combined"}, "(possible: cyclic, learned, none)"),
        ({"bias": "fier"}, "no position kind 'fier'; did you mean 'fire'?"),
        ({"rotation": {"kind": "rotary", "length": 80}}, "model.position.rotation.length: length 80 exceeds the head"),
        ({"rotation": {"kind": "soap", "theta": 3.0}}, "a knob of position rotary, not of soap"),
    ],
)
def test_what_cannot_be_combined(position, expected):
    with pytest.raises(ConfigError) as caught:
        from_dict({"model": {"position": {"kind": "combined", **position}}})
    assert expected in str(caught.value)


def test_a_part_with_nothing_to_act_on_is_an_error():
    with pytest.raises(ConfigError, match="combined turns queries and keys, but no layer has any"):
        from_dict({"model": {"attention": "identity", "position": "combined"}})


def test_a_schema_does_not_hold_itself():
    field = GPTConfig.model_json_schema()["$defs"]["CombinedPositionConfig"]["properties"]
    assert [field[place]["anyOf"][0]["enum"] for place in ("embedding", "rotation", "bias")] == [
        ["cyclic", "learned", "none"], ["none", "rotary", "soap"], ["alibi", "fire", "none"],
    ]  # fmt: skip
    assert set(kinds("position")) > {"combined", "learned"}


def position_of(source, tmp_path, lines, base=None):
    """Of flat names (text as in YAML), given on the command line or in a file."""
    arguments, path = [f"--{line.replace(': ', '=')}" for line in lines], None
    if source == "file":
        lines, arguments = [*(["base: base.yaml"] if base else []), *lines], []
    if base:
        path = tmp_path / "base.yaml"
        path.write_text("\n".join(base))
    if source == "file":
        path = tmp_path / "c.yaml"
        path.write_text("\n".join(lines))
    return load(path, arguments).config.model.position


TABLE, TURN, FIRE = "use_abs_pos_embeddings: true", "use_rotary_embeddings: true", "use_fire_embeddings: true"
NO_TABLE, NO_TURN = "use_abs_pos_embeddings: false", "use_rotary_embeddings: false"
both = pytest.mark.parametrize("source", ["command line", "file"])


@both
@pytest.mark.parametrize(
    "lines, expected",
    [
        ([TABLE, TURN], {"kind": "combined"}),
        ([TURN, FIRE], {"kind": "combined", "embedding": "none", "bias": "fire"}),
        ([TABLE, FIRE], {"kind": "combined", "rotation": "none", "bias": "fire"}),
        ([TABLE, TURN, FIRE], {"kind": "combined", "bias": "fire"}),
        ([NO_TABLE, TURN], {"kind": "rotary"}),
        ([NO_TABLE, "position_variant: alibi"], {"kind": "alibi"}),
        ([NO_TABLE, TURN, FIRE], {"kind": "combined", "embedding": "none", "bias": "fire"}),
        ([NO_TURN, TABLE, "position_cycle: 9"], None),
        ([TABLE, TURN, "rope_theta: 5.0", "rope_length: 8"],
         {"kind": "combined", "rotation": {"kind": "rotary", "theta": 5.0, "length": 8}}),
        ([TURN, "rope_theta: 5.0"], {"kind": "rotary", "theta": 5.0}),
        ([TURN, FIRE, "fire_mlp_width: 8", "shared_fire_embeddings: true"],
         {"kind": "combined", "embedding": "none", "bias": {"kind": "fire", "mlp_width": 8, "per": "model"}}),
        ([FIRE, "shared_fire_embeddings: true"], {"kind": "fire", "per": "model"}),
        (["position_variant: combined", "rope_theta: 5.0"],
         {"kind": "combined", "rotation": {"kind": "rotary", "theta": 5.0}}),
        ([TABLE, TURN, "sym_rot_num_angles: 8"], None),
    ],
    ids=str,
)  # fmt: skip
def test_flat_names_in_any_order(source, lines, expected, tmp_path):
    for order in itertools.permutations(lines):
        if expected is None:
            with pytest.raises(ConfigError, match="a knob of position (cyclic, not of learned|soap, not of combined)"):
                position_of(source, tmp_path, order)
        else:
            assert position_of(source, tmp_path, order) == from_dict({"model": {"position": expected}}).model.position


@both
@pytest.mark.parametrize(
    "base, lines, expected",
    [
        ([TABLE, TURN], [NO_TABLE], {"kind": "combined", "embedding": "none"}),
        ([TABLE, TURN, "rope_theta: 5.0"], [NO_TABLE],
         {"kind": "combined", "embedding": "none", "rotation": {"kind": "rotary", "theta": 5.0}}),
        ([TABLE, TURN], [NO_TURN], {"kind": "combined", "rotation": "none"}),
        ([TABLE, TURN], ["use_fire_embeddings: false"], {"kind": "combined"}),
        ([TABLE, TURN], ["rope_theta: 5.0"], {"kind": "combined", "rotation": {"kind": "rotary", "theta": 5.0}}),
        ([TABLE, TURN], [TURN], {"kind": "rotary"}),
        ([TURN], [TABLE], {"kind": "learned"}),
        (["model: {position: {kind: combined, bias: fire}}"], ["fire_init_c: 0.5"],
         {"kind": "combined", "bias": {"kind": "fire", "init_c": 0.5}}),
    ],
    ids=str,
)  # fmt: skip
def test_flat_names_on_top_of_a_file(source, base, lines, expected, tmp_path):
    found = position_of(source, tmp_path, lines, base)
    assert found == from_dict({"model": {"position": expected}}).model.position


def test_the_last_word_on_a_switch_counts_on_the_command_line():
    assert load(None, ["--use_rotary_embeddings", "--no-use_rotary_embeddings"]).config == Config()
    assert load(None, ["--no-use_rotary_embeddings", "--use_rotary_embeddings"]).config.model.position.kind == "rotary"


def test_kinds_of_one_place_contradict_each_other():
    joined = lookup("position", "combined").joined
    assert joined(["rotary", "soap"]) is None and joined(["combined"]) is None and joined(["none"]) is None
    assert joined(["alibi", "cyclic"]) == {"embedding": "cyclic", "rotation": "none", "bias": "alibi"}


def test_a_fault_in_joining_is_seen(monkeypatch):
    """Two of one place would leave one out without a word."""
    cls = lookup("position", "combined")
    monkeypatch.setattr(cls, "joined", classmethod(lambda cls, names: {"rotation": names[-1]}))
    with pytest.raises(AssertionError):
        test_kinds_of_one_place_contradict_each_other()
