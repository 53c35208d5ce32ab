"""Models whose attention runs by the kernels, in Triton's interpreter, against the same models by plain torch; run by
test_kernel_choice.py in a process of its own."""

import os

os.environ["TRITON_INTERPRET"] = "1"

import pytest
import torch

import kernels.attention
from gptcore.errors import UserError
from gptcore.kernel_choice import PARTS, use_kernels
from gptcore.loader import from_dict
from gptcore.losses import CrossEntropy
from gptcore.model import GPT
from kernels import launch_table
from kernels.launch_table import Launch

CONSMAX = {"kind": "consmax", "initial_gamma": 3.0}
VARIANTS = {
    "softmax, groups": {"attention": {"n_head": 2, "n_kv_head": 1}},
    "lobo, window, alibi": {
        "attention": {"n_head": 2, "window": 7, "softmax": {"kind": "softmax", "lobo": "learned"}}, "position": "alibi",
    },
    "consmax, groups, alibi": {
        "attention": {"n_head": 2, "n_kv_head": 1, "softmax": CONSMAX}, "position": "alibi",
    },
    "consmax_v2, window, fire": {
        "attention": {"n_head": 2, "window": 7, "softmax": {**CONSMAX, "kind": "consmax_v2"}}, "position": "fire",
    },
    "sigmoid, softcap": {"attention": {"n_head": 2, "softcap": 3.0, "softmax": {"kind": "sigmoidmax"}}},
    "latent": {"attention": {"kind": "mla", "n_head": 2, "softmax": CONSMAX}, "position": "rotary"},
}  # fmt: skip
MODEL = {
    "n_layer": 1,
    "n_embd": 32,
    "attention": {"n_head": 2},
    "block_size": 24,
    "vocab_size": 31,
    "embedding": {"init_std": 1.0},
}


@pytest.fixture(autouse=True)
def small_tiles():
    with launch_table.forced(**{op: Launch(32, 32, 4, 1) for op in launch_table.OPS}):
        yield


@pytest.fixture
def calls(monkeypatch):
    """Names of the kernel functions called."""
    made = []
    for name in ("attention", "attention_decode"):

        def spy(*args, _function=getattr(kernels.attention, name), _name=name, **kwargs):
            made.append(_name)
            return _function(*args, **kwargs)

        monkeypatch.setattr(kernels.attention, name, spy)
    return made


def made(variant, kernel, parts=("attention",), **more):
    torch.manual_seed(0)
    model = GPT(from_dict({"model": {**MODEL, **(VARIANTS | WHOLE)[variant], **more}}).model)
    # At first all heads weigh alike, scores are next to nothing, and ConSmax adds little to the residual stream.
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "softmax" in name:
                p += torch.linspace(0.0, 0.3, len(p))
            elif "attn" in name and p.dim() == 2:
                p *= 10
    use_kernels(model, lambda part: kernel if part in parts else "reference", torch.device("cpu"), torch.float32)
    return model


def tokens(length=24, seed=1):
    return torch.randint(31, (1, length), generator=torch.Generator().manual_seed(seed))


def close(got, want, name):
    """1e-5 of the largest value: some hundred roundings of fp32."""
    assert (got - want).abs().max() <= 1e-5 * max(want.abs().max(), 1e-6), name


@pytest.mark.parametrize("variant", VARIANTS)
def test_logits_and_gradients(variant, calls):
    x, outcomes = tokens(), {}
    for kernel in ("reference", "triton"):
        assert not calls
        model = made(variant, kernel)
        logits, loss = model(x, tokens(seed=2))
        loss.backward()
        outcomes[kernel] = {"logits": logits.detach()} | {n: p.grad for n, p in model.named_parameters()}
    assert calls == ["attention"]
    for name, want in outcomes["reference"].items():
        close(outcomes["triton"][name], want, name)


WHOLE = {
    "layernorm, gelu": {},
    "rmsnorm, swiglu, rotary, normed queries": {
        "attention": {"n_head": 2, "n_kv_head": 1, "qk_norm": "rmsnorm"}, "mlp": "swiglu", "norm": "rmsnorm",
        "position": {"kind": "rotary", "length": 10}, "bias": False,
    },
    "peri, squared relu, narrow table": {
        "block": {"kind": "sequential", "placement": "peri"}, "embedding": {"width": 24, "init_std": 1.0},
        "mlp": {"kind": "mlp", "activation": "squared_relu"}, "position": "soap",
    },
    "rounded": {
        "attention": {"n_head": 2, "linear": {"kind": "quantized", "per": "channel"}, "rounding": {"input": 8, "v": 6}},
        "mlp": {"kind": "mlp", "activation": "piecewise_int", "linear_up": "bitlinear_1p58", "linear_down": "quantized",
                "rounding": {"output": 5}},
        "rounding": {"method": "affine"},
    },
    "table": {"mlp": {"kind": "swiglu", "activation": {"kind": "lut_int", "function": "silu"}}},
    "parallel, reglu": {
        "block": "parallel", "mlp": "reglu", "position": "combined", "norm": {"kind": "layernorm", "scale": "none"},
    },
}  # fmt: skip


def gradients(model, objective=None):
    model.objective = objective or model.objective
    logits, loss = model(tokens(), tokens(seed=2))
    loss.backward()
    return logits, {"loss": loss.detach()} | {n: p.grad for n, p in model.named_parameters()}


@pytest.mark.parametrize("variant", WHOLE)
def test_every_part_by_a_kernel(variant):
    """Loss and gradients of a model all of whose parts run by kernels; its logits never exist."""
    objective = CrossEntropy(smoothing=0.1, z=1e-2) if variant.startswith("rms") else None
    _, want = gradients(made(variant, "reference"), objective)
    plain = ("mlp",) if variant in ("rounded", "table") else ()  # which has no kernel with what is inside of it
    model = made(variant, "triton", [part for part in PARTS if part not in plain])
    model.transformer.h[0].mlp.recompute = variant.startswith("peri")
    logits, got = gradients(model, objective)
    assert logits is None
    for name, x in want.items():
        close(got[name], x, name)


@pytest.mark.parametrize("variant", ["lobo, window, alibi", "consmax, groups, alibi", "latent"])
def test_cached_decode(variant, calls):
    """Token after token by the decode kernel: the logits of the whole."""
    x = tokens(12)
    want = made(variant, "reference").eval()(x)[0]
    model = made(variant, "triton").eval()
    cache, parts = model.new_cache(1), []
    with torch.inference_mode():
        for piece in (x[:, :9], x[:, 9:10], x[:, 10:11], x[:, 11:12]):
            parts.append(model(piece, cache=cache)[0])
    assert calls == ["attention"] + ["attention_decode"] * 3
    close(torch.cat(parts, 1), want, "logits")


@pytest.mark.parametrize("variant", ["rmsnorm, swiglu, rotary, normed queries", "peri, squared relu, narrow table"])
def test_cached_decode_by_every_kernel(variant):
    """Tokens in the middle of a sequence turn by their own angles."""
    x = tokens(12)
    want = made(variant, "reference").eval()(x)[0]
    model = made(variant, "triton", PARTS).eval()
    cache = model.new_cache(1)
    with torch.inference_mode():
        parts = [model(piece, cache=cache)[0] for piece in (x[:, :9], x[:, 9:10], x[:, 10:12])]
    close(torch.cat(parts, 1), want, "logits")


def test_dropout_is_for_plain_torch_and_evaluation_is_not(calls):
    model = made("softmax, groups", "reference", dropout=0.1)
    for block in model.transformer.h:
        block.attn.kernel = "triton"
    with pytest.raises(UserError, match=r"dropout 0\.1"):
        model(tokens())
    model.eval()(tokens())
    assert calls == ["attention"]


def test_bfloat16_is_refused_in_the_interpreter():
    with pytest.raises(UserError, match="bfloat16"), torch.autocast("cpu", torch.bfloat16):
        made("softmax, groups", "triton")(tokens())


@pytest.mark.slow
@pytest.mark.parametrize("variant, parts", [
    ("consmax, groups, alibi", ("attention",)), ("rmsnorm, swiglu, rotary, normed queries", PARTS),
    ("peri, squared relu, narrow table", PARTS),
])  # fmt: skip
def test_one_graph(variant, parts):
    """torch.compile sees one graph with the kernels in it, forward and backward."""
    model, x = made(variant, "triton", parts), tokens()
    want = gradients(model)[1]
    model.zero_grad()
    loss = torch.compile(model, fullgraph=True, backend="aot_eager")(x, tokens(seed=2))[1]
    loss.backward()
    assert torch.equal(loss.detach(), want["loss"])
    for name, p in model.named_parameters():
        close(p.grad, want[name], name)


def test_the_comparison_would_notice(monkeypatch):
    """A slope of half the size, where both could have been wrong alike."""
    from gptcore.position.alibi import ALiBi

    right = ALiBi.slopes
    monkeypatch.setattr(ALiBi, "slopes", lambda self, heads: right(self, heads) / 2)
    with pytest.raises(AssertionError):
        close(made("consmax, groups, alibi", "triton")(tokens())[0],
              made("consmax, groups, alibi", "reference")(tokens())[0], "logits")  # fmt: skip
