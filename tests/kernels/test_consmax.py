"""ConSmax attention: the closed-form backward against autograd of the definition, and against finite differences."""

import itertools
import math

import pytest
import torch

from kernels import consmax

CASES = list(itertools.product([(4, 4), (4, 2), (3, 1)], [(7, 7), (1, 9), (3, 8)], [math.e, 2.0], [None, 0.3]))


def inputs(heads, sizes, dtype=torch.float64, width=5, value_width=3):
    (H, K), (T, S) = heads, sizes
    generator = torch.Generator().manual_seed(0)

    def random(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()

    beta = (0.5 + random(H)).detach().requires_grad_()
    gamma = (3 + random(H).abs()).detach().requires_grad_()
    live = torch.ones(T, S).tril(S - T).bool()
    return random(2, H, T, width), random(2, K, S, width), random(2, K, S, value_width), beta, gamma, live


@pytest.mark.parametrize("heads, sizes, base, clamp", CASES)
def test_closed_form_equals_autograd(heads, sizes, base, clamp):
    q, k, v, beta, gamma, live = inputs(heads, sizes)
    leaves = (q, k, v, beta, gamma)
    results = []
    for function, mask in ((consmax.consmax_attention_naive, live), (consmax.consmax_attention, live)):
        out = function(*leaves, mask, 0.6, base, clamp)
        cotangent = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out)
        results.append((out, *torch.autograd.grad(out, leaves, cotangent)))
    for name, want, got in zip(("out", "q", "k", "v", "beta", "gamma"), *results, strict=True):
        # float64 sums of at most 2 * 9 * 5 terms, a few operations deep
        assert (want - got).abs().max() <= 64 * torch.finfo(torch.float64).eps * 90 * want.abs().max(), name


def test_gradcheck():
    q, k, v, beta, gamma, live = inputs((2, 1), (3, 3))
    assert torch.autograd.gradcheck(
        lambda *leaves: consmax.consmax_attention(*leaves, None, 0.6), (q, k, v, beta, gamma), rtol=1e-6, atol=1e-8
    )


def test_none_means_square_causal():
    q, k, v, beta, gamma, live = inputs((2, 2), (6, 6))
    explicit = consmax.consmax_attention(q, k, v, beta, gamma, live, 0.6)
    assert torch.equal(consmax.consmax_attention(q, k, v, beta, gamma, None, 0.6), explicit)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_large_scores_of_masked_keys_do_no_harm(dtype):
    """A masked score may overflow; it must still weigh exactly nothing, forward and backward."""
    q, k, v, beta, gamma, live = inputs((1, 1), (4, 4), dtype)
    with torch.no_grad():
        k[:, :, -1] = 100 * q[:, :, 0].sign()  # the last key, seen by the last query only, shouts at the first
        q[:, :, -1] = 0
    out = consmax.consmax_attention(q, k, v, beta, gamma, None, 30.0)
    out[:, :, 0].sum().backward()
    assert torch.isfinite(out[:, :, 0]).all()
    assert k.grad[:, :, -1].abs().max() == 0 and v.grad[:, :, -1].abs().max() == 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_types_reach_as_far_as_the_weights(dtype):
    """exp(s - beta) = 1e5 does not fit fp16, the weight 1e5 / gamma does."""
    q = torch.ones(1, 1, 1, 1, dtype=dtype, requires_grad=True)
    k, v = (torch.ones(1, 1, 1, 1, dtype=dtype) for _ in range(2))
    beta, gamma = torch.zeros(1, requires_grad=True), torch.full((1,), 100.0, requires_grad=True)
    out = consmax.consmax_attention(q, k, v, beta, gamma, None, 11.5)
    out.sum().backward()
    expected = math.exp(11.5) / 100
    # The product of q and k is rounded to the type with its scale, 11.5 log2(e) = 16.6, half a unit of which is a
    # relative error of 16.6 ln(2) eps / 2 in the weight; a few roundings more in the gradients.
    tolerance = (16.6 * math.log(2) / 2 + 4) * torch.finfo(dtype).eps
    for got, want in (
        (out, expected), (gamma.grad, -expected / 100), (beta.grad, -expected), (q.grad, 11.5 * expected),
    ):  # fmt: skip
        assert abs(got.item() / want - 1) < tolerance


@pytest.mark.parametrize("fault", ["beta sign", "gamma", "mask", "scale"])
def test_the_comparison_would_notice(fault, monkeypatch):
    """Seeded faults in the backward pass and in the mask turn the comparison red."""
    original = consmax._ConSmaxAttention.backward

    def backward(ctx, d_out):
        d_q, d_k, d_v, d_beta, d_gamma, *rest = original(ctx, d_out)
        if fault == "beta sign":
            d_beta = -d_beta
        if fault == "gamma":
            d_gamma = d_gamma * ctx.saved_tensors[5]
        if fault == "scale":
            d_q = d_q / 0.6
        return d_q, d_k, d_v, d_beta, d_gamma, *rest

    monkeypatch.setattr(consmax._ConSmaxAttention, "backward", staticmethod(backward))
    if fault == "mask":
        tril = torch.Tensor.tril_
        monkeypatch.setattr(torch.Tensor, "tril_", lambda self: tril(self, 1))
        with pytest.raises(AssertionError):
            test_none_means_square_causal()
    else:
        with pytest.raises(AssertionError):
            test_closed_form_equals_autograd((4, 2), (7, 7), math.e, None)
