"""Every position kind against its paper's formula, written out number by number or as complex rotation."""

import math

import pytest
import torch

from gptcore.cache import KVCache
from gptcore.config import Dims, GPTConfig, Heads
from gptcore.model import GPT, declare
from gptcore.ops import Pass
from gptcore.registry import lookup

EPS64 = torch.finfo(torch.float64).eps
EPS32 = torch.finfo(torch.float32).eps
DIMS = Dims(n_embd=24, n_layer=2, block_size=16, bias=True, dropout=0.0)
LIKE = torch.empty(0, dtype=torch.float64)


def make(kind, heads=(Heads(4, 8), Heads(3, 8)), **knobs):
    """In float64, initialised as in a model."""
    torch.manual_seed(3)
    cls = lookup("position", kind)
    position = cls(cls.Config(**knobs), DIMS, heads)
    for module in position.modules():
        if hasattr(module, "init_weights"):
            module.init_weights(0.02)
    return position.double()


def small_model(position, **changes):
    values = {"n_layer": 2, "n_embd": 24, "block_size": 16, "vocab_size": 29, "attention": {"n_head": 4}}
    torch.manual_seed(0)
    return GPT(GPTConfig.model_validate({**values, "position": position, **changes})).double().eval()


PUBLISHED_SLOPES = {
    1: [2**-8],
    3: [2**-4, 2**-8, 2**-2],
    8: [2**-i for i in range(1, 9)],
    12: [*[2**-i for i in range(1, 9)], *[2 ** -(i + 0.5) for i in range(4)]],
}


@pytest.mark.parametrize("count", PUBLISHED_SLOPES)
def test_alibi_is_the_distance_times_the_published_slopes(count):
    bias = make("alibi", [Heads(count, 8)]).bias(count, 3, 7, 9, LIKE)
    assert bias.shape == (count, 3, 7) and bias.dtype == torch.float64
    for h, slope in enumerate(PUBLISHED_SLOPES[count]):
        for t in range(3):
            for s in range(5 + t):  # query t is key 4 + t
                assert bias[h, t, s].item() == pytest.approx(-slope * (4 + t - s), rel=EPS32)


def fire_by_hand(curve, h, distance, i, knobs):
    """The formula for one pair, in plain Python."""
    c, log_bias = curve.c.item(), knobs.get("log_bias", 1.0)
    psi = [math.log(c * x + log_bias) for x in (distance, max(i, curve.length.item() * knobs.get("init_L", 512.0)))]
    values = [psi[0] / psi[1]]
    for n, layer in enumerate(curve.layers):
        if n:
            values = [max(0.0, v) for v in values]
        rows = zip(layer.weight.tolist(), layer.bias.tolist(), strict=True)
        values = [b + sum(w * v for w, v in zip(row, values, strict=True)) for row, b in rows]
    return max(0.0, values[h]) if knobs.get("outermost") else values[h]


FIRES = [
    {},
    {"per": "model"},
    {"hidden_layers": 0},
    {"hidden_layers": 3, "mlp_width": 5, "outermost": True},
    {"init_L": 5.0, "init_c": 2.0, "log_bias": 1.5},
]


@pytest.mark.parametrize("knobs", FIRES, ids=str)
def test_fire_is_its_formula(knobs):
    T, S, start = 3, 6, 8  # queries at 8, 9, 10; keys at 5 ... 10
    position = make("fire", **knobs)
    for layer, count in enumerate((4, 3)):
        used = position.at(layer)
        assert used.has_bias and (used is position) == (knobs.get("per") == "model")
        bias = used.bias(count, T, S, start, LIKE)
        assert bias.shape == (count, T, S)
        curve = used.curves[str(count)]
        for h in range(count):
            for t in range(T):
                for s in range(S - T + t + 1):
                    expected = fire_by_hand(curve, h, S - T + t - s, start + t, knobs)
                    # Sums of at most mlp_width terms of about 1 in each of a few layers.
                    assert abs(bias[h, t, s].item() - expected) <= 64 * 32 * EPS64


def test_fire_of_layers_and_of_a_model():
    """Layers learn their own curves, or one learns from all of them."""
    for per, count in (("layer", 2), ("model", 1)):
        model = small_model({"kind": "fire", "per": per})
        names = [name for name, _ in model.named_parameters() if name.endswith(".c")]
        assert len(names) == count
        x = torch.arange(16)[None] % 29
        model(x, x)[1].backward()
        assert all(p.grad is not None for p in model.parameters())
        weights = declare(model.config, Pass("prefill", 1, 16, 16)).weights()
        assert set(weights) == {name for name, _ in model.named_parameters()}


def turned_by_hand(x, angles):
    """Pairs as complex numbers, times e^(i angle)."""
    turned = 2 * angles.shape[-1]
    real, imaginary = x[..., :turned].chunk(2, dim=-1)
    z = torch.complex(real, imaginary) * torch.polar(torch.ones_like(angles), angles)
    return torch.cat([z.real, z.imag, x[..., turned:]], dim=-1)


@pytest.mark.parametrize("length", [None, 2, 4, 8])
def test_rotary_turns_complex_numbers(length):
    position = make("rotary", length=length)
    q, k = (torch.randn(2, heads, 5, 8, dtype=torch.float64) for heads in (4, 2))
    frequency = torch.tensor([10000.0 ** (-2 * i / (length or 8)) for i in range((length or 8) // 2)]).double()
    angles = torch.outer(torch.arange(7.0, 12.0).double(), frequency)
    for got, x in zip(position.rotate(q, k, 7), (q, k), strict=True):
        # Tables and frequencies of fp32, angles up to 12.
        assert (got - turned_by_hand(x, angles)).abs().max().item() <= 16 * EPS32 * x.abs().max().item()
        assert torch.equal(got[..., length or 8 :], x[..., length or 8 :])


@pytest.mark.parametrize("length, reason", [(3, "multiple"), (10, "exceeds the head width 6")])
def test_rotary_refuses_what_cannot_turn(length, reason):
    values = {"n_embd": 24, "attention": {"n_head": 4}, "position": {"kind": "rotary", "length": length}}
    try:
        problems = [message for _, message in GPTConfig.model_validate(values).problems()]
    except ValueError as error:
        problems = [str(error)]
    assert any(reason in problem for problem in problems)


def test_soap_turns_every_pair_alike_around_the_circle():
    position = make("soap", angles=5, length=6)
    q = torch.randn(1, 4, 12, 8, dtype=torch.float64)
    angles = (torch.arange(12) % 5).double()[:, None].expand(12, 3) * (2 * math.pi / 5)
    got, _ = position.rotate(q, q, 0)
    assert (got - turned_by_hand(q, angles)).abs().max().item() <= 8 * EPS32 * q.abs().max().item()
    x = q[:, :, :1].expand(1, 4, 12, 8)
    around, _ = position.rotate(x, x, 0)
    assert torch.equal(around[:, :, :5], around[:, :, 5:10]) and not torch.equal(around[:, :, 0], around[:, :, 1])


def test_cyclic_repeats_its_table():
    position = make("cyclic", cycle=5)
    x = torch.randn(2, 7, 24, dtype=torch.float64)
    expected = x + position.weight.repeat(3, 1)[4:11]
    assert torch.equal(position.embed(x, 4), expected)


KINDS = [
    {"kind": "alibi"}, {"kind": "fire", "init_L": 3.0}, {"kind": "fire", "per": "model"},
    {"kind": "cyclic", "cycle": 5}, {"kind": "rotary", "length": 4}, {"kind": "soap", "angles": 6},
]  # fmt: skip


def decode_error(position):
    """Worst difference of decoding with a ring of fewer places than tokens, which turns over more than twice."""
    model = small_model(position, attention={"n_head": 4, "window": 5})
    x = torch.randint(29, (2, 16), generator=torch.Generator().manual_seed(1))
    cache = model.new_cache(2)
    parts = [model(part, cache=cache)[0] for part in x.split([3, 1, 1, 1, 4, 1, 1, 1, 1, 1, 1], dim=1)]
    return (torch.cat(parts, 1) - model(x)[0]).abs().max().item()


@pytest.mark.parametrize("position", KINDS, ids=str)
def test_decoding_in_a_ring(position):
    assert decode_error(position) <= 64 * EPS64 * math.sqrt(96) * 3


def test_a_ring_as_it_lies_is_seen(monkeypatch):
    """The fault: a bias by distance over keys out of order."""
    extend = KVCache.extend
    monkeypatch.setattr(KVCache, "extend", lambda self, k, v, *, ordered=False: extend(self, k, v))
    assert decode_error({"kind": "alibi"}) > 1e-6


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_counts_long_contexts(dtype):
    """Neighbours 4000 keys back differ in fp32 before the result is rounded, so halves err by their own rounding."""
    like = torch.empty(0, dtype=dtype)
    for kind in ("alibi", "fire"):
        position = make(kind, [Heads(4, 8)]).at(0)
        exact = position.bias(4, 1, 4096, 4095, LIKE)
        got = position.bias(4, 1, 4096, 4095, like)
        assert got.dtype == dtype
        assert (got - exact).abs().max() <= torch.finfo(dtype).eps * exact.abs().max()
