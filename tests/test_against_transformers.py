"""Models of the Hugging Face library with random weights, and ours with the same weights: the same logits.

The library computes norms, softmax and rotation in fp32 whatever the model's type; here both sides are made to compute
everything in float64, so that a tolerance of rounding errors tells an epsilon of 1e-6 from one of 1e-5.
"""

import math

import pytest
import torch
from torch import Tensor

from gptcore.loader import from_dict
from gptcore.model import GPT

transformers = pytest.importorskip("transformers")

V, C, T, EPS = 29, 24, 16, torch.finfo(torch.float64).eps


@pytest.fixture(autouse=True)
def float64_everywhere(monkeypatch):
    before = torch.get_default_dtype()
    for name in ("float", "float32"):
        monkeypatch.setattr(torch, name, torch.float64)
    monkeypatch.setattr(Tensor, "float", Tensor.double)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


def reference(family, **changes):
    """A small model with weights that are far from those of a fresh one."""
    config = getattr(transformers, family + "Config")(
        vocab_size=V, hidden_size=C, num_hidden_layers=2, attn_implementation="eager", **changes
    )
    torch.manual_seed(0)
    model = getattr(transformers, family + "ForCausalLM")(config).double().eval()
    for p in model.parameters():
        torch.nn.init.normal_(p, mean=1.0 if p.dim() == 1 else 0.0, std=0.3)
    return model


def difference(model, values: dict, weights: dict[str, Tensor]) -> float:
    """Of the logits, in units of the tolerance: roundings of sums of up to 4 C terms in every layer, times 64."""
    ours = GPT(from_dict({"model": {"n_layer": 2, "n_embd": C, "block_size": T, "vocab_size": V, **values}}).model)
    ours.double().eval().load_state_dict(weights)
    x = torch.randint(V, (2, T), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        theirs = model(x).logits
        return ((ours(x)[0] - theirs).abs().max() / (64 * EPS * math.sqrt(4 * C) * 3 * theirs.abs().max())).item()


def renamed(model, names: dict[str, str | tuple[str, ...]], outside: dict[str, str]) -> dict[str, Tensor]:
    """Our weights of all layers; several of theirs are put on top of each other."""
    theirs, weights = model.state_dict(), {ours: model.state_dict()[name] for ours, name in outside.items()}
    layers = next(name for name in theirs if ".0." in name).split("0.")[0]
    for i in range(2):
        for ours, parts in names.items():
            parts = (parts,) if isinstance(parts, str) else parts
            weights[f"transformer.h.{i}.{ours}"] = torch.cat([theirs[f"{layers}{i}.{part}"] for part in parts])
    return weights


LLAMA = {
    "ln_1.weight": "input_layernorm.weight",
    "attn.c_attn.weight": tuple(f"self_attn.{n}_proj.weight" for n in "qkv"),
    "attn.c_proj.weight": "self_attn.o_proj.weight",
    "ln_2.weight": "post_attention_layernorm.weight",
    "mlp.c_fc.weight": ("mlp.gate_proj.weight", "mlp.up_proj.weight"),
    "mlp.c_proj.weight": "mlp.down_proj.weight",
}
OUTSIDE = {
    "transformer.wte.weight": "model.embed_tokens.weight", "transformer.ln_f.weight": "model.norm.weight",
    "lm_head.weight": "lm_head.weight",
}  # fmt: skip
SIZES = {"num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 40, "max_position_embeddings": T}


def llama(**values):
    norm = {"kind": "rmsnorm", "eps": 1e-6}
    attention = {"n_head": 4, "n_kv_head": 2, **values.pop("attention", {})}
    return {
        "bias": False, "norm": norm, "position": "rotary", "attention": attention,
        "mlp": {"kind": "swiglu", "hidden_size": 40}, **values,
    }  # fmt: skip


@pytest.mark.parametrize("tied", [False, True])
def test_llama(tied):
    model = reference("Llama", **SIZES, tie_word_embeddings=tied)
    assert difference(model, llama(tie_embeddings=tied), renamed(model, LLAMA, OUTSIDE)) <= 1


@pytest.mark.parametrize("fault", ["pairs", "epsilon", "order of heads", "gate and up"])
def test_faults_are_seen(fault):
    model, values = reference("Llama", **SIZES, tie_word_embeddings=True), llama()
    weights = renamed(model, LLAMA, OUTSIDE)
    for i in range(2):
        attention, mlp = (f"transformer.h.{i}.{name}.weight" for name in ("attn.c_attn", "mlp.c_fc"))
        q, k, v = weights[attention].split([C, C // 2, C // 2])
        if fault == "pairs":  # neighbours instead of halves, as in the paper
            q, k = (t.view(-1, 3, 2, C).transpose(1, 2).reshape(-1, C) for t in (q, k))
        if fault == "order of heads":  # query heads 0 and 2 share a key head, not 0 and 1
            q = q.view(2, 2, 6, C).transpose(0, 1).reshape(-1, C)
        weights[attention] = torch.cat([q, k, v])
        if fault == "gate and up":
            weights[mlp] = weights[mlp].roll(40, 0)
    if fault == "epsilon":
        values["norm"] = {"kind": "rmsnorm", "eps": 1.001e-6}
    assert difference(model, values, weights) > 100


def test_qwen3_normalises_queries_and_keys_of_each_head():
    model = reference("Qwen3", **SIZES, head_dim=6)
    names = LLAMA | {f"attn.{n}_norm.weight": f"self_attn.{n}_norm.weight" for n in "qk"}
    values = llama(attention={"qk_norm": {"kind": "rmsnorm", "eps": 1e-6}}, tie_embeddings=False)
    assert difference(model, values, renamed(model, names, OUTSIDE)) <= 1


def test_gemma2_caps_scores_slides_a_window_and_norms_on_both_sides():
    caps = {"attn_logit_softcapping": 2.0, "final_logit_softcapping": None}
    model = reference("Gemma2", **SIZES, head_dim=6, query_pre_attn_scalar=6, sliding_window=5, **caps)
    names = LLAMA | {
        "ln_1_out.weight": "post_attention_layernorm.weight",
        "ln_2.weight": "pre_feedforward_layernorm.weight",
        "ln_2_out.weight": "post_feedforward_layernorm.weight",
    }
    weights = renamed(model, names, OUTSIDE)
    for name, weight in weights.items():
        weights[name] = 1 + weight if weight.dim() == 1 else weight  # theirs is what is added to one
    assert model.config.layer_types == ["sliding_attention", "full_attention"]
    layers = [{"attention": {"window": 5}}, {"attention": {"window": None}}]
    values = llama(
        attention={"softcap": 2.0}, embedding={"scale": "sqrt"}, block={"placement": "peri"}, layers=layers,
        mlp={"kind": "geglu", "hidden_size": 40, "activation": {"kind": "gelu", "approximate": "tanh"}},
    )  # fmt: skip
    assert difference(model, values, weights) <= 1
    values["layers"][0]["attention"]["window"] = 6
    assert difference(model, values, weights) > 100


def by_head(t: Tensor, heads: int) -> Tensor:
    """From queries, keys and values of one head after the other to all queries, all keys, all values."""
    return t.view(heads, 3, C // heads, -1).transpose(0, 1).reshape(t.shape)


FUSED = {
    "attn.c_attn": "query_key_value", "attn.c_proj": "dense", "mlp.c_fc": "dense_h_to_4h",
    "mlp.c_proj": "dense_4h_to_h", "ln_1": "input_layernorm", "ln_2": "post_attention_layernorm",
}  # fmt: skip


def fused_weights(model, attention: str, heads: int, outside: dict[str, str]) -> dict[str, Tensor]:
    prefix = {"attn.c_attn": attention, "attn.c_proj": attention, "mlp.c_fc": "mlp.", "mlp.c_proj": "mlp."}
    names = {
        f"{ours}.{p}": f"{prefix.get(ours, '')}{name}.{p}" for ours, name in FUSED.items() for p in ("weight", "bias")
    }
    weights = renamed(model, names, outside)
    return {name: by_head(t, heads) if ".c_attn." in name else t for name, t in weights.items()}


def test_gpt_neox_turns_a_part_of_each_head_beside_its_mlp():
    rope = {"rope_type": "default", "rope_theta": 500.0, "partial_rotary_factor": 2 / 3}
    sizes = {"num_attention_heads": 4, "intermediate_size": 40, "max_position_embeddings": T}
    model = reference("GPTNeoX", **sizes, rope_parameters=rope, use_parallel_residual=True)
    head = next(name for name in ("lm_head.weight", "embed_out.weight") if name in model.state_dict())
    outside = {
        "transformer.wte.weight": "gpt_neox.embed_in.weight", "lm_head.weight": head,
        "transformer.ln_f.weight": "gpt_neox.final_layer_norm.weight",
        "transformer.ln_f.bias": "gpt_neox.final_layer_norm.bias",
    }  # fmt: skip
    values = {
        "attention": {"n_head": 4}, "tie_embeddings": False, "block": {"kind": "parallel", "norms": "two"},
        "position": {"kind": "rotary", "length": 4, "theta": 500.0}, "mlp": {"kind": "mlp", "hidden_size": 40},
    }  # fmt: skip
    weights = fused_weights(model, "attention.", 4, outside)
    assert difference(model, values, weights) <= 1
    values["position"]["length"] = 6
    assert difference(model, values, weights) > 100


def test_bloom_has_alibi():
    """Six heads: no power of two, so that the slopes in between matter."""
    model = reference("Bloom", n_head=6)
    norms = {"transformer.ln_f": "ln_f", "norm_embedding": "word_embeddings_layernorm"}
    outside = {f"{ours}.{p}": f"transformer.{name}.{p}" for ours, name in norms.items() for p in ("weight", "bias")}
    table = "transformer.word_embeddings.weight"
    outside |= {"transformer.wte.weight": table, "lm_head.weight": table}
    values = {
        "attention": {"n_head": 6}, "position": "alibi", "norm_embedding": "layernorm",
        "mlp": {"kind": "mlp", "activation": {"kind": "gelu", "approximate": "tanh"}},
    }  # fmt: skip
    # Its gelu has sqrt(2 / pi) as 0.79788456, short by a relative 1e-9, in both layers.
    short = 1e-9 * 2 / (64 * EPS * math.sqrt(4 * C) * 3)
    weights = fused_weights(model, "self_attention.", 6, outside)
    assert difference(model, values, weights) <= 1 + 8 * short
    values["position"] = "none"
    assert difference(model, values, weights) > 1000 * short
