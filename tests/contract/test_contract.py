"""The contract: what every kind must satisfy, checked for each kind alone and for 100 random combinations.

Each check compares the declaration with something independent: the module itself, torch's FLOP counter on the meta
device, fvcore, or the model run in another way. `tests/contract/test_seeded_faults.py` shows that each can fail.
"""

import logging
import math
import types

import pytest
import torch
from configs import config_for, kind_ids, random_config, random_models

from gptcore.config import GPTConfig, identity
from gptcore.loader import from_dict
from gptcore.model import GPT, declare
from gptcore.ops import Bits, Pass
from gptcore.softmax import Softmax
from gptcore.yamlfile import dump, parse

KINDS = [pytest.param(config_for(*pair), id="-".join(pair)) for pair in kind_ids()]
RANDOM = [pytest.param(model, id=f"random{i}") for i, model in enumerate(random_models(100, seed=20240229))]
each = pytest.mark.parametrize("config", KINDS + RANDOM)
# Tracing takes a second or two a layer; most random models are left to `make check-all`, and what stands in every layer
# alike is traced in one.
SELDOM = [pytest.param(*p.values, id=p.id, marks=pytest.mark.slow) for p in RANDOM[6:]]
ALIKE = ("activation", "norm", "softmax", "linear", "mlp")
SHALLOW = [
    pytest.param(model.model_copy(update={"n_layer": 1}) if p.id.startswith(ALIKE) else model, id=p.id)
    for p in KINDS
    for (model,) in [p.values]
]
traced_each = pytest.mark.parametrize("config", SHALLOW + RANDOM[:6] + SELDOM)
EPS64 = torch.finfo(torch.float64).eps


def make(config: GPTConfig, dtype: torch.dtype = torch.float32, device: str = "cpu") -> GPT:
    torch.manual_seed(0)
    with torch.device(device):
        return GPT(config).to(dtype)


def tokens(config: GPTConfig, batch: int = 2, length: int | None = None, seed: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(config.vocab_size, (batch, length or config.block_size), generator=generator)


def tolerance(config: GPTConfig, reference: torch.Tensor) -> float:
    """Rounding of float64 sums of up to max(width, context) terms in every layer, with a constant of 64."""
    terms = max(4 * config.n_embd, config.block_size)
    return 64 * EPS64 * math.sqrt(terms) * (1 + config.n_layer) * max(1.0, reference.abs().max().item())


@each
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_forward_and_backward_are_finite(config, dtype):
    model, x = make(config, dtype), tokens(config)
    logits, loss = model(x, x.roll(-1, 1))
    loss.backward()
    assert logits.shape == (*x.shape, config.vocab_size) and logits.dtype == dtype
    assert torch.isfinite(logits).all()
    for name, p in model.named_parameters():
        assert p.grad is not None, f"{name} gets no gradient"
        assert torch.isfinite(p.grad).all(), name


@each
def test_causal(config):
    """Changing token t changes nothing before t, and something from t on."""
    model, x = make(config, torch.float64).eval(), tokens(config)
    reference = model(x)[0]
    for t in (1, config.block_size // 2, config.block_size - 1):
        changed = x.clone()
        changed[:, t] = (changed[:, t] + 1) % config.vocab_size
        logits = model(changed)[0]
        assert torch.equal(logits[:, :t], reference[:, :t])
        assert not torch.equal(logits[:, t:], reference[:, t:])


@each
def test_deterministic_for_a_seed(config):
    x = tokens(config)
    results = []
    for _ in range(2):
        model = make(config)
        loss = model(x, x)[1]
        loss.backward()
        results.append((loss, *(p.grad for p in model.parameters())))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
    torch.manual_seed(1)
    assert not torch.equal(GPT(config).lm_head.weight, make(config).lm_head.weight)


@each
def test_state_dict_round_trip(config):
    first, x = make(config), tokens(config)
    with torch.no_grad():
        for p in first.parameters():
            p.add_(torch.randn_like(p) * 0.01)
    torch.manual_seed(5)
    second = GPT(config)
    second.load_state_dict(first.state_dict(), strict=True)
    assert torch.equal(first.eval()(x)[0], second.eval()(x)[0])


@each
def test_cached_decode_equals_full_forward(config):
    model, x = make(config, torch.float64).eval(), tokens(config)
    cache = model.new_cache(x.shape[0])
    assert cache is not None
    full = model(x)[0]
    pieces = [5, 1, 1, 3] + [1] * (config.block_size - 10)  # a prompt, single steps, and a chunk in between
    parts = [model(part, cache=cache)[0] for part in x.split(pieces, dim=1)]
    assert (torch.cat(parts, 1) - full).abs().max().item() <= tolerance(config, full)


@traced_each
def test_traces_as_one_graph(config):
    model = make(config).eval()  # dropout would draw other numbers in another order
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    with torch._dynamo.config.patch(error_on_recompile=True):
        for step in range(20):
            with torch.no_grad():
                for p in model.parameters() if step else ():
                    p.sub_(p.grad, alpha=1e-3)
            model.zero_grad()
            x = tokens(config, seed=step)
            compiled(x, x)[1].backward()
    traced = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    model(x, x)[1].backward()
    for got, (name, p) in zip(traced, model.named_parameters(), strict=True):
        torch.testing.assert_close(got, p.grad, rtol=1e-4, atol=1e-6, msg=name)


def test_inductor():
    """One full compilation; the C++ compiler takes most of the time."""
    config = config_for("softmax", "consmax")
    model, x = make(config), tokens(config)
    torch._dynamo.reset()
    loss = torch.compile(model, fullgraph=True)(x, x)[1]
    torch.testing.assert_close(loss, model(x, x)[1], rtol=1e-5, atol=1e-6)


def counted_flops(run) -> int:
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


def declared_flops(config: GPTConfig, run: Pass) -> int:
    return 2 * sum(op.macs for op in declare(config, run).ops)


@each
def test_flops_equal_flop_counter_on_meta(config):
    """Integer-equal. On the CPU the counter misses fused attention, so the meta device it is."""
    B, T, C = 2, config.block_size, config.block_size - 2
    model = make(config, device="meta")
    x = torch.zeros(B, T, dtype=torch.long, device="meta")
    assert counted_flops(lambda: model(x, x)[1].backward()) == declared_flops(config, Pass("train", B, T, T))
    model.eval()
    assert counted_flops(lambda: model(x)) == declared_flops(config, Pass("prefill", B, T, T))
    cache = model.new_cache(B, C)
    model(x[:, : C - 1], cache=cache)
    assert counted_flops(lambda: model(x[:, :1], cache=cache)) == declared_flops(config, Pass("decode", B, 1, C))


def use_explicit_attention(model: GPT) -> GPT:
    """Scores, weights and weighted sum one by one, in place of a fused form."""
    for module in model.modules():
        if isinstance(module, Softmax):
            module.attend = types.MethodType(Softmax.attend, module)
    return model


@each
def test_fvcore_agrees_on_what_it_supports(config):
    """fvcore counts MACs (and calls them FLOPs). It knows linear layers and explicit products, not fused attention."""
    fvcore = pytest.importorskip("fvcore.nn")
    logging.getLogger("fvcore").setLevel(logging.ERROR)
    T = config.block_size
    ops = declare(config, Pass("prefill", 1, T, T)).ops
    linear = sum(op.macs for op in ops if any(t.role == "weight" for t in op.reads))
    batched = sum(op.macs for op in ops) - linear
    # The products of attention are visible in each layer that has no fused form, and so are all others.
    allowed = {batched}
    for layer in range(config.n_layer):
        fused = sum(op.macs for op in ops if op.slot == "attention" and op.layer == layer)
        allowed |= {rest - fused for rest in allowed}
    for model, sums in ((make(config), allowed), (use_explicit_attention(make(config)), {batched})):
        by_operator = fvcore.FlopCountAnalysis(model.eval(), tokens(config, batch=1)).by_operator()
        assert by_operator["linear"] == linear > 0
        assert by_operator["matmul"] + by_operator["bmm"] in sums


@each
def test_fused_attention_equals_its_definition(config):
    model, x = make(config, torch.float64).eval(), tokens(config)
    fused = model(x, x)
    fused[1].backward()
    gradients = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    explicit = use_explicit_attention(model)(x, x)
    explicit[1].backward()
    assert (fused[0] - explicit[0]).abs().max().item() <= tolerance(config, fused[0])
    for got, p in zip(gradients, model.parameters(), strict=True):
        assert (got - p.grad).abs().max().item() <= tolerance(config, p.grad)


@each
def test_declared_parameters_are_those_of_the_module(config):
    weights = declare(config, Pass("prefill", 1, 2, 2)).weights()
    model = make(config, device="meta")
    assert {name: w.shape for name, w in weights.items()} == {n: tuple(p.shape) for n, p in model.named_parameters()}
    assert sum(w.numel for w in weights.values()) == model.parameter_count()


@each
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_declared_cache_is_that_of_the_module(config, dtype):
    for context in (1, 5, config.block_size):
        g = declare(config, Pass("decode", 3, 1, context), Bits(kv=torch.finfo(dtype).bits))
        declared = sum(t.nbytes for t in g.cache_tensors().values())
        assert declared == make(config, dtype).new_cache(3, context).nbytes


@each
def test_config_to_yaml_to_config(config):
    whole = random_config(config, seed=config.n_embd)
    problems: list[str] = []
    text = dump(whole.model_dump(mode="json"))
    again = from_dict(parse(text, "text", problems))
    assert again == whole and identity(again) == identity(whole) and problems == []
