"""Options of the model, attention, block and embedding, each against a plain formula written here."""

import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from gptcore.analysis.catalogue import markdown
from gptcore.config import Dims, GPTConfig, ShareConfig
from gptcore.loader import ConfigError, from_dict
from gptcore.model import GPT, declare
from gptcore.ops import Pass
from gptcore.quantize import fake_quantize, quantize, set_strength
from gptcore.registry import build, lookup

EPS = torch.finfo(torch.float64).eps
DIMS = Dims(n_embd=24, n_layer=1, block_size=16, bias=True, dropout=0.0)


def model_of(**changes) -> GPT:
    values = {"n_layer": 2, "n_embd": 24, "block_size": 16, "vocab_size": 29, "attention": {"n_head": 4}} | changes
    torch.manual_seed(0)
    return GPT(from_dict({"model": values}).model).double()


def tokens() -> torch.Tensor:
    return torch.randint(29, (2, 16), generator=torch.Generator().manual_seed(1))


def attention(**knobs):
    config = lookup("attention", "causal").Config.model_validate({"n_head": 4, **knobs})
    torch.manual_seed(0)
    module = build(config, DIMS).double()
    for p in module.parameters():
        torch.nn.init.normal_(p, std=0.5)
    return module


def plain_attention(module, x, heads, kv_of, change=lambda s: s, norm=lambda t: t, scale=None):
    """Scores one head at a time; `kv_of[h]` is the key head of query head h."""
    D, K = 24 // heads, max(kv_of) + 1
    q, k, v = F.linear(x, module.c_attn.weight, module.c_attn.bias).split([24, K * D, K * D], dim=-1)
    out = []
    for h in range(heads):
        own = slice(kv_of[h] * D, (kv_of[h] + 1) * D)
        s = norm(q[..., h * D : (h + 1) * D]) @ norm(k[..., own]).transpose(1, 2)
        s = change(s * (1 / math.sqrt(D) if scale is None else scale[h]))
        s = s.masked_fill(torch.ones_like(s[0]).triu(1).bool(), float("-inf"))
        out.append(torch.softmax(s, -1) @ v[..., own])
    return F.linear(torch.cat(out, -1), module.c_proj.weight, module.c_proj.bias)


def close(a, b):
    assert (a - b).abs().max().item() <= 64 * EPS * math.sqrt(24 * 16) * max(1.0, b.abs().max().item())


NONE = lookup("position", "none")
POSITION = NONE(NONE.Config(), DIMS, [])


def test_even_uneven_and_single_key_heads():
    x = torch.randn(2, 16, 24, dtype=torch.float64)
    for knobs, kv_of in (
        ({"n_kv_head": 2}, [0, 0, 1, 1]),
        ({"n_kv_head": 3, "groups": "uneven"}, [0, 0, 1, 2]),
        ({"n_kv_head": 1}, [0, 0, 0, 0]),
    ):
        module = attention(**knobs)
        close(module(x, POSITION, 0), plain_attention(module, x, 4, kv_of))
    with pytest.raises(ConfigError, match="groups: uneven"):
        from_dict({"model": {"n_embd": 24, "attention": {"n_head": 4, "n_kv_head": 3}}})


def test_soft_cap_and_learned_scale_and_normalised_queries():
    x = torch.randn(2, 16, 24, dtype=torch.float64)
    module = attention(softcap=0.7)
    close(module(x, POSITION, 0), plain_attention(module, x, 4, range(4), lambda s: 0.7 * torch.tanh(s / 0.7)))
    module = attention(qk_norm={"kind": "rmsnorm", "scale": "none", "eps": 1e-12}, qk_scale="learned")
    rms = lambda t: t / t.square().mean(-1, keepdim=True).add(1e-12).sqrt()  # noqa: E731
    close(module(x, POSITION, 0), plain_attention(module, x, 4, range(4), norm=rms, scale=module.scale))


@pytest.mark.parametrize(
    "norm, length", [("rmsnorm", 6), ("layernorm", 6), ({"kind": "hyperspherenorm", "radius": 1.0}, 1)], ids=str
)
def test_learned_scale_begins_with_cosines(norm, length):
    """Whatever length the norm leaves, the first score of two equal directions is log2(T^2 - T)."""
    knobs = {"n_head": 4, "qk_norm": norm, "qk_scale": "learned"}
    module = build(lookup("attention", "causal").Config.model_validate(knobs), DIMS)
    torch.testing.assert_close(
        module.scale * length, torch.full_like(module.scale, math.log2(16 * 16 - 16)), rtol=1e-4, atol=0
    )


def test_separate_projections_compute_what_the_fused_one_does():
    fused, apart = attention(), attention(linear_q="linear")
    with torch.no_grad():
        for i, name in enumerate(("c_attn_q", "c_attn_k", "c_attn_v")):
            getattr(apart, name).weight.copy_(fused.c_attn.weight[24 * i : 24 * i + 24])
            getattr(apart, name).bias.copy_(fused.c_attn.bias[24 * i : 24 * i + 24])
        apart.c_proj.load_state_dict(fused.c_proj.state_dict())
    x = torch.randn(2, 16, 24, dtype=torch.float64)
    close(apart(x, POSITION, 0), fused(x, POSITION, 0))


def test_infinite_sums_heads_by_group():
    knobs = {"n_head": 4, "n_qk_head_dim": 5, "n_v_head_dim": 7, "join": "sum", "n_cproj": 2}
    module = build(lookup("attention", "infinite").Config.model_validate(knobs), DIMS).double()
    y = torch.randn(2, 4, 16, 7, dtype=torch.float64)
    torch.nn.init.normal_(module.c_proj.weight)
    torch.nn.init.normal_(module.c_proj.bias)
    first, second = module.c_proj.weight.split(7, dim=1)
    expected = (y[:, 0] + y[:, 1]) @ first.T + (y[:, 2] + y[:, 3]) @ second.T + module.c_proj.bias
    close(module._project(y), expected)


def test_norm_placements_and_the_parallel_block():
    x = tokens()
    for block, formula in (
        ({"placement": "post"}, lambda b, x, a, m: b.ln_2((y := b.ln_1(x + a(x))) + m(y))),
        (
            {"placement": "peri"},
            lambda b, x, a, m: (y := x + b.ln_1_out(a(b.ln_1(x)))) + b.ln_2_out(m(b.ln_2(y))),
        ),
        (
            {"placement_attn": "output", "placement_mlp": "pre"},
            lambda b, x, a, m: (y := x + b.ln_1(a(x))) + m(b.ln_2(y)),
        ),
        ({"kind": "parallel"}, lambda b, x, a, m: x + a(b.ln_1(x)) + m(b.ln_1(x))),
        ({"kind": "parallel", "norms": "two"}, lambda b, x, a, m: x + a(b.ln_1(x)) + m(b.ln_2(x))),
    ):
        model = model_of(block=block).eval()
        h = model.position.embed(model.transformer.wte(x), 0)
        for b in model.transformer.h:
            h = formula(b, h, lambda t, b=b, p=model.position: b.attn(t, p, 0), b.mlp)
        close(model(x)[0], model.lm_head(model.transformer.ln_f(h)))


def test_residual_formulas():
    x, y = torch.randn(2, 3, 5, 24, dtype=torch.float64)
    cases = {
        ("add", 0.5): x + 0.5 * y, ("lerp", 0.25): 0.75 * x + 0.25 * y, ("rezero", 0.0): x,
        ("slerp", 0.0): x, ("slerp", 1.0): y,
    }  # fmt: skip
    for (kind, scale), expected in cases.items():
        module = build(lookup("residual", kind).Config.model_validate({"scale": scale}), DIMS)
        close(module(x, y), expected)
    halfway = build(lookup("residual", "slerp").Config(), DIMS)(x, y)
    for end in (x, y):  # half of the angle, whichever end one measures from
        half = torch.acos(F.cosine_similarity(halfway, end, dim=-1))
        close(2 * half, torch.acos(F.cosine_similarity(x, y, dim=-1)))


def test_slerp_survives_parallel_opposite_and_zero_branches():
    x = torch.randn(4, 24, dtype=torch.float64)
    for y in (x, -x, 2 * x, torch.zeros_like(x)):
        for stream in (x, torch.zeros_like(x)):
            a, b = stream.clone().requires_grad_(), y.clone().requires_grad_()
            out = build(lookup("residual", "slerp").Config(), DIMS)(a, b)
            out.sum().backward()
            assert out.isfinite().all() and a.grad.isfinite().all() and b.grad.isfinite().all()


def test_depth_scales_the_residual():
    model = model_of(block={"residual": {"kind": "add", "depth_power": 0.5}})
    assert [b.residual_1.initial for b in model.transformer.h] == [1.0, 1 / math.sqrt(2)]


@pytest.mark.parametrize(
    "share, owners", [(dict(mlp=3), [0, 0, 0, 3, 3, 3, 6]), (dict(mlp=2, mlp_symmetric=True), [0, 0, 2, 2, 2, 0, 0])]
)
def test_layers_share_parameters(share, owners):
    assert [ShareConfig(**share).owner("mlp", i, 7) for i in range(7)] == owners
    model, alone = model_of(n_layer=7, share=share), model_of(n_layer=7)
    one = sum(p.numel() for p in alone.transformer.h[0].mlp.parameters())
    assert model.parameter_count() == alone.parameter_count() - (7 - len(set(owners))) * one
    config = model.config
    names = {n: tuple(p.shape) for n, p in model.named_parameters()}
    assert names == {n: w.shape for n, w in declare(config, Pass("prefill", 1, 4, 4)).weights().items()}


def test_sharing_wants_equal_layers():
    layers = [{"mlp": {"kind": "mlp"}}, {"mlp": {"kind": "swiglu"}}]
    with pytest.raises(ConfigError, match="layers 0 and 1 share their mlp, but are configured differently"):
        from_dict({"model": {"n_layer": 2, "share": {"mlp": 2}, "layers": layers}})


def test_output_distribution():
    x, plain = tokens(), model_of().eval()
    same = model_of(softmax_output="softmax").eval()
    close(same(x)[0], torch.log_softmax(plain(x)[0], -1))
    close(same(x, x)[1], plain(x, x)[1])
    with pytest.raises(ConfigError, match="no distribution"):
        from_dict({"model": {"softmax_output": "relumax"}})


def test_embeddings():
    model = model_of(embedding={"width": 8, "init": "hypersphere", "scale": "sqrt"}, norm_embedding="rmsnorm")
    wte, x = model.transformer.wte, tokens()
    assert wte.weight.shape == (29, 8) and model.lm_head.weight is wte.weight
    radius = 0.02 * math.sqrt(8)
    assert (wte.weight.norm(dim=1) - radius).abs().max() <= 8 * torch.finfo(torch.float32).eps * radius
    close(wte(x), wte.weight[x] @ wte.up.weight.T * math.sqrt(24))
    untied = model_of(tie_embeddings=False, embedding={"width": 8})
    h = torch.randn(2, 3, 24, dtype=torch.float64)
    close(untied.lm_head(h), h @ untied.lm_head.down.weight.T @ untied.lm_head.weight.T)
    rounded = model_of(embedding={"bits": 4}).transformer.wte(torch.arange(29)[None])
    assert all(len(row.unique()) <= 15 for row in rounded[0])


@pytest.mark.parametrize("method, levels", [("symmetric", 2**4 - 1), ("affine", 2**4)])
def test_fake_quantize(method, levels):
    x = torch.randn(6, 500, dtype=torch.float64, requires_grad=True)
    y = fake_quantize(x, 4, method, -1)
    assert all(1 < len(row.unique()) <= levels for row in y)
    codes, scale, zero = quantize(x.detach(), 4, method, -1)
    assert torch.equal(codes, codes.round()) and (y - x).abs().max() <= scale.max() / 2 * (1 + 1e-9)
    y.sum().backward()
    assert torch.equal(x.grad, torch.ones_like(x))
    assert torch.equal(fake_quantize(torch.zeros(3), 4, method), torch.zeros(3))
    assert torch.allclose(fake_quantize(x, 4, method, -1, 0.0), x)


PLACES = "input q k scores weights v heads output".split()


@pytest.mark.parametrize("range_", ["token", "learned"])
def test_every_place_of_attention_is_rounded_and_priced(range_):
    x = tokens()
    exact = model_of().eval()(x)[0]
    for place in PLACES:
        changes = {"attention": {"n_head": 4, "rounding": {place: 3}}, "rounding": {"range": range_}}
        model = model_of(**changes).eval()
        model.load_state_dict(model_of().state_dict(), strict=False)
        assert not torch.equal(model(x)[0], exact), place
        set_strength(model, 0.0)
        close(model(x)[0], exact)
        widths = {t.bits for op in declare(model.config, Pass("prefill", 1, 4, 4)).ops for t in op.writes}
        assert 3 in widths
    cached = declare(model_of(attention={"n_head": 4, "rounding": {"k": 3, "v": 5}}).config, Pass("decode", 1, 1, 8))
    assert {t.bits for t in cached.cache_tensors().values()} == {3, 5}


def test_every_place_of_an_mlp_is_rounded():
    x, exact = tokens(), model_of().eval()(tokens())[0]
    for place in ("input", "activation_input", "activation_output", "output"):
        model = model_of(mlp={"kind": "mlp", "rounding": {place: 3}}).eval()
        assert not torch.equal(model(x)[0], exact), place
        set_strength(model, 0.0)
        close(model(x)[0], exact)


def test_a_rounded_value_never_sees_the_future():
    model, x = model_of(attention={"n_head": 4, "rounding": {"every": 4}}).eval(), tokens()
    reference = model(x)[0]
    x[:, 9:] = (x[:, 9:] + 1) % 29
    assert torch.equal(model(x)[0][:, :9], reference[:, :9])


def test_flat_switches():
    flat = {"use_qk_norm": True, "use_qk_norm_scale": True, "use_peri_ln_attn": True, "shared_mlp_size": 2}
    model = from_dict({"n_layer": 4, "linear_variant_q": "quantized", "linear_variant_attn": "quantized"} | flat).model
    assert model.attention.qk_norm.kind == "hyperspherenorm" and model.attention.qk_scale == "learned"
    assert model.block.placements() == ("peri", "pre") and model.share.mlp == 2
    assert from_dict({"use_qk_norm": False, "use_post_ln": False}).model == GPTConfig()
    bits = from_dict({"linear_variant_mlp": "quantized", "linear_variant_attn": "quantized", "quantize_linear_bits": 4})
    assert (bits.model.mlp.linear.bits, bits.model.attention.linear.bits) == (4, 4)
    with pytest.raises(ConfigError, match="contradict"):
        from_dict({"use_post_ln": True, "use_peri_ln": True})


def test_the_page_of_variants_is_up_to_date():
    """Made by `gptcore variants --markdown docs/variants.md`."""
    page = Path(__file__).parent.parent / "docs" / "variants.md"
    assert page.read_text() == markdown()
