"""The reference of the attention family: finite differences, an independent softmax, and special cases by hand."""

import math

import pytest
import torch
import torch.nn.functional as F

from kernels import attention_reference as reference
from kernels.attention_reference import Weighting
from kernels.elementwise import elementwise_attention

CURVES = [
    Weighting("sigmoid", log_keys=True), Weighting("relu", shift=0.4, by_keys=True), Weighting("relu2", shift=0.4),
    Weighting("polymax", power=3, x_intercept=-1.3, divisor=2.0), Weighting("softplus", divisor=0.7),
]  # fmt: skip


def inputs(H=4, K=2, T=5, S=7, D=4, E=3):
    generator = torch.Generator().manual_seed(0)

    def random(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()

    return random(2, H, T, D), random(2, K, S, D), random(2, K, S, E), random(H), random(H, T, S)


@pytest.mark.parametrize("options", [{"window": 2}, {"softcap": 0.8, "causal": False}], ids=str)
@pytest.mark.parametrize("weighting", [Weighting(), Weighting(base=2.0), Weighting("consmax"), *CURVES], ids=str)
def test_gradcheck(weighting, options):
    q, k, v, c, bias = inputs(H=2, K=1, T=2, S=3)
    names = {"softmax": ("lobo_H",), "consmax": ("beta_H", "gamma_H")}.get(weighting.kind, ())
    values = (c, (1 + c.detach().square()).requires_grad_())[: len(names)]

    def function(q, k, v, bias, *values):
        named = dict(zip(names, values, strict=True))
        return reference.attention(q, k, v, weighting, 0.6, bias_HTS=bias, **named, **options)

    assert torch.autograd.gradcheck(function, (q, k, v, bias, *values), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("base", [math.e, 2.0])
def test_softmax_is_that_of_torch(base):
    q, k, v, _, bias = inputs()
    live = reference.live_TS(5, 7, True, 3)
    mask = (bias * math.log(base)).masked_fill(~live, -math.inf)
    want = F.scaled_dot_product_attention(q, k, v, mask, scale=0.6 * math.log(base), enable_gqa=True)
    got = reference.attention(q, k, v, Weighting(base=base), 0.6, window=3, bias_HTS=bias)
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-13)


def test_lobo_is_one_more_key_of_value_zero():
    q, k, v, lobo, _ = inputs(K=4)
    scores = torch.cat([q @ k.mT * 0.6, lobo.view(-1, 1, 1).expand(2, 4, 5, 1)], dim=-1)
    want = torch.softmax(scores, dim=-1)[..., :-1] @ v
    got = reference.attention(q, k, v, Weighting(), 0.6, causal=False, lobo_H=lobo)
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("causal", [True, False])
def test_slopes_are_a_bias_by_distance(causal):
    """Query t of T is token t + S - T: it loses `slope` for every token that a key lies back."""
    q, k, v, _, _ = inputs(T=5, S=7)
    slopes = [0.5, 0.25, 2.0, 0.0]
    bias = [[[-slope * (t + 2 - s) for s in range(7)] for t in range(5)] for slope in slopes]
    want = reference.attention(q, k, v, Weighting(), 0.6, causal=causal, bias_HTS=torch.tensor(bias).double())
    got = reference.attention(q, k, v, Weighting(), 0.6, causal=causal, slopes_H=torch.tensor(slopes).double())
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("clamp", [None, 0.3])
def test_consmax_is_that_of_the_cpu_path(clamp):
    q, k, v, beta, _ = inputs()
    gamma = 1 + beta.detach().square()
    weighting, constants = Weighting("consmax", 2.0, clamp), {"beta_H": beta, "gamma_H": gamma}
    want = elementwise_attention(q, k, v, weighting, 0.6, **constants)
    got = reference.attention(q, k, v, weighting, 0.6, **constants)
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("weighting", [Weighting(), *CURVES], ids=str)
def test_a_query_without_keys_gets_zeros(weighting):
    q, k, v, _, _ = inputs(T=7, S=5)
    out = reference.attention(q, k, v, weighting, 0.6)
    assert out[:, :, :2].abs().max() == 0 and torch.isfinite(out).all()


def test_refusals():
    with pytest.raises(ValueError, match="hardmax"):
        Weighting("hardmax")
    with pytest.raises(ValueError, match="power"):
        Weighting("polymax", power=7)
