"""The CPU path of weights that stand alone: closed form against autograd of the definition, whatever the tiles."""

import itertools
import math

import pytest
import torch

from kernels import attention_reference, elementwise
from kernels.attention_reference import Weighting
from kernels.elementwise import elementwise_attention

WEIGHTINGS = [
    Weighting("consmax"), Weighting("consmax", base=2.0, clamp=0.3), Weighting("consmax", clamp=9.0),
    Weighting("sigmoid", log_keys=True), Weighting("sigmoid", divisor=3.0, by_keys=True, shift=0.2),
    Weighting("relu", shift=1.0, by_keys=True), Weighting("relu2", shift=1.0, divisor=3.0),
    Weighting("softplus", divisor=0.7, by_keys=True),
    *(Weighting("polymax", power=power, x_intercept=-1.0, y_intercept=1.5, by_keys=True) for power in (1, 2, 3, 4)),
]  # fmt: skip
# sequences, heads, key heads, queries, keys
SHAPES = [(2, 4, 2, 7, 7), (2, 4, 1, 1, 9), (1, 3, 3, 9, 13)]
# query rows and bytes of a tile: all in one; many of one key head; several sequences
TILES = [(128, 4 << 20), (3, 300), (4, 2500)]


def random(*shape, dtype=torch.float64, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def inputs(weighting, shape, bias=False):
    B, H, K, T, S = shape
    # Heads inside tokens, as projections leave them.
    sizes = {"q": (B, T, H, 5), "k": (B, S, K, 5), "v": (B, S, K, 3)}
    named = {name: random(*size, seed=i).transpose(1, 2) for i, (name, size) in enumerate(sizes.items())}
    if weighting.kind == "consmax":
        named |= {"beta_H": random(H, seed=3) * 0.5, "gamma_H": random(H, seed=4).abs() + 1}
    if bias:
        named["bias_HTS"] = random(H, T, S, seed=5)
    return {name: x.requires_grad_() for name, x in named.items()}


def outcome(function, weighting, named, **options):
    rest = {name: x for name, x in named.items() if name not in "qkv"}
    out = function(named["q"], named["k"], named["v"], weighting, 0.6, **rest, **options).transpose(1, 2).contiguous()
    cotangent = torch.linspace(-1, 1.1, out.numel(), dtype=out.dtype).view(out.shape)
    return [out.detach(), *torch.autograd.grad(out, list(named.values()), cotangent)]


def compare(weighting, shape, window=None, bias=False):
    named = inputs(weighting, shape, bias)
    want = outcome(attention_reference.attention, weighting, named, window=window)
    got = outcome(elementwise_attention, weighting, named, window=window)
    for name, a, b in zip(("out", *named), want, got, strict=True):
        # float64 sums of at most 2 * 13 * 9 terms, a few operations deep
        assert (a - b).abs().max() <= 64 * torch.finfo(torch.float64).eps * max(1.0, a.abs().max().item()), name


@pytest.fixture
def tiles(monkeypatch):
    def choose(rows, size):
        monkeypatch.setattr(elementwise, "ROWS", rows)
        monkeypatch.setattr(elementwise, "TILE_BYTES", size)

    return choose


@pytest.mark.parametrize("size", TILES, ids=str)
@pytest.mark.parametrize("weighting", WEIGHTINGS, ids=str)
def test_closed_form_equals_autograd(weighting, size, tiles):
    tiles(*size)
    for shape, window, bias in itertools.product(SHAPES, (None, 4, 50), (False, True)):
        compare(weighting, shape, window, bias)


@pytest.mark.parametrize("weighting", WEIGHTINGS[:2], ids=str)
def test_finite_differences(weighting, tiles):
    tiles(2, 200)
    named = inputs(weighting, (1, 2, 1, 3, 4))

    def function(*leaves):
        q, k, v, beta, gamma = leaves
        return elementwise_attention(q, k, v, weighting, 0.6, beta_H=beta, gamma_H=gamma, window=3)

    assert torch.autograd.gradcheck(function, tuple(named.values()), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("clamp", [None, 0.3])
def test_a_negative_gamma(clamp):
    """Which the definition allows, and training may reach."""
    named = inputs(Weighting("consmax", clamp=clamp), SHAPES[0])
    named["gamma_H"] = (-named["gamma_H"]).detach().requires_grad_()
    want = outcome(attention_reference.attention, Weighting("consmax", clamp=clamp), named)
    got = outcome(elementwise_attention, Weighting("consmax", clamp=clamp), named)
    assert all((a - b).abs().max() <= 1e-13 * max(1.0, a.abs().max().item()) for a, b in zip(want, got, strict=True))


def test_one_pass_covers_what_is_seen_and_keeps_no_more():
    """Of T x T scores the backward pass finds the lower triangle in tiles, and outputs of the size of the inputs."""
    T, H, kept = 512, 2, []
    q, k, v = (random(1, H, T, 8, dtype=torch.float32, seed=i).requires_grad_() for i in range(3))
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.numel()) or x, lambda x: x):
        out = elementwise_attention(q, k, v, Weighting("relu", shift=1.0), 0.3)
    rows = elementwise.ROWS
    triangle = H * sum(rows * (t + rows) for t in range(0, T, rows))
    assert sum(kept) <= triangle + 3 * q.numel() + T
    out.sum().backward()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("weighting", [Weighting("consmax"), Weighting("relu2"), Weighting("polymax")], ids=str)
def test_large_scores_of_masked_keys_do_no_harm(dtype, weighting):
    """A masked score may overflow; it must still weigh exactly nothing, forward and backward."""
    q, k, v = (random(1, 1, 4, n, dtype=dtype, seed=i) for i, n in enumerate((5, 5, 3)))
    k[:, :, -1] = 100 * q[:, :, 0].sign()  # the last key, seen by the last query only, shouts at the first
    q[:, :, -1] = 0
    k, v = k.requires_grad_(), v.requires_grad_()
    constants = {"beta_H": torch.zeros(1), "gamma_H": torch.ones(1)} if weighting.kind == "consmax" else {}
    out = elementwise_attention(q, k, v, weighting, 3.0, **constants)
    out[:, :, 0].sum().backward()
    assert torch.isfinite(out[:, :, 0]).all()
    assert k.grad[:, :, -1].abs().max() == 0 and v.grad[:, :, -1].abs().max() == 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_types_reach_as_far_as_the_weights(dtype):
    """exp(s - beta) = 1e5 does not fit fp16, the weight 1e5 / gamma does."""
    q = torch.ones(1, 1, 1, 1, dtype=dtype, requires_grad=True)
    k, v = (torch.ones(1, 1, 1, 1, dtype=dtype) for _ in range(2))
    beta, gamma = torch.zeros(1, requires_grad=True), torch.full((1,), 100.0, requires_grad=True)
    out = elementwise_attention(q, k, v, Weighting("consmax"), 11.5, beta_H=beta, gamma_H=gamma)
    out.sum().backward()
    expected = math.exp(11.5) / 100
    # The product of q and k is rounded to the type with its scale, 11.5 log2(e) = 16.6, half a unit of which is a
    # relative error of 16.6 ln(2) eps / 2 in the weight; a few roundings more in the gradients.
    tolerance = (16.6 * math.log(2) / 2 + 4) * torch.finfo(dtype).eps
    for got, want in (
        (out, expected), (gamma.grad, -expected / 100), (beta.grad, -expected), (q.grad, 11.5 * expected),
    ):  # fmt: skip
        assert abs(got.item() / want - 1) < tolerance


@pytest.mark.parametrize("weighting", [Weighting("consmax", clamp=0.5), Weighting("sigmoid", by_keys=True)], ids=str)
def test_autocast_takes_mixed_types(weighting, tiles):
    """Rotated queries may be wider than values; bf16 sums over tiles are kept in fp32."""
    tiles(2, 200)
    named = {name: x.detach().float().requires_grad_() for name, x in inputs(weighting, (1, 2, 1, 6, 6)).items()}
    want = outcome(elementwise_attention, weighting, named)

    def narrow(q, k, v, *rest, **options):
        with torch.autocast("cpu", torch.bfloat16):
            return elementwise_attention(q, k, v.bfloat16(), *rest, **options).float()

    for a, b in zip(want, outcome(narrow, weighting, named), strict=True):
        # Sums of up to 12 terms, each of a few roundings to 8 bits.
        assert (a - b).norm() <= 4 * math.sqrt(12) * torch.finfo(torch.bfloat16).eps * a.norm()


def test_a_row_sum_is_refused():
    with pytest.raises(ValueError, match="softmax"):
        elementwise_attention(*(torch.ones(1, 1, 2, 2) for _ in range(3)), Weighting(), 1.0)


def wrong_backward(change):
    original = elementwise._Attention.backward

    def backward(ctx, d_out):
        gradients = list(original(ctx, d_out))
        change(gradients)
        return tuple(gradients)

    return staticmethod(backward)


FAULTS = {
    "none": lambda m: None,
    "beta sign": lambda m: m.setattr(
        elementwise._Attention, "backward", wrong_backward(lambda g: g.__setitem__(3, -g[3]))
    ),
    "mask": lambda m: m.setattr(
        elementwise._Tile, "clear", lambda self, x: x[..., self.first :].tril_(1) is None or x
    ),
    "left of the window": lambda m: m.setattr(
        elementwise._Tile, "clear", lambda self, x, right=elementwise._Tile.clear: right(self._replace(window=None), x)
    ),
    "sums over tiles": lambda m: m.setattr(
        elementwise, "_add_product",
        lambda total, a, b, factor, first, right=elementwise._add_product: right(total, a, b, factor, True),
    ),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_the_comparison_would_notice(fault, tiles, monkeypatch):
    tiles(3, 300)
    FAULTS[fault](monkeypatch)
    if fault == "none":
        return compare(WEIGHTINGS[0], SHAPES[2], window=4)
    with pytest.raises(AssertionError):
        compare(WEIGHTINGS[0], SHAPES[2], window=4)
