"""The extra term of softmax by torch's fused kernels, against the definition differentiated by autograd, in fp64."""

import pytest
import torch

from kernels import attention_reference
from kernels.attention_reference import Weighting
from kernels.extra_term import extra_term_attention

SHAPES = [(2, 4, 2, 70, 16), (1, 3, 3, 33, 20), (2, 2, 1, 1, 8)]  # B, H, K, T, D


def outcomes(B, H, K, T, D):
    generator = torch.Generator().manual_seed(0)

    def random(*size):
        return torch.randn(size, generator=generator, dtype=torch.float64, requires_grad=True)

    leaves = random(B, H, T, D), random(B, K, T, D), random(B, K, T, D), random(H)
    cotangent = torch.randn(B, H, T, D, generator=generator, dtype=torch.float64)
    *qkv, b = leaves
    for out in (
        extra_term_attention(*qkv, b, 0.3), attention_reference.attention(*qkv, Weighting(), 0.3, lobo_H=b),
    ):  # fmt: skip
        yield out.detach(), *torch.autograd.grad(out, leaves, cotangent)


@pytest.mark.parametrize("shape", SHAPES)
def test_output_and_gradients(shape):
    for name, got, want in zip(("out", "q", "k", "v", "b"), *outcomes(*shape), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-13, msg=name)


def test_a_statistic_without_the_extra_term_is_noticed(monkeypatch):
    monkeypatch.setattr(torch, "logaddexp", lambda lse, b: lse)
    with pytest.raises(AssertionError):
        test_output_and_gradients(SHAPES[0])


def test_a_term_beyond_all_scores_leaves_nothing_and_one_below_them_changes_nothing():
    q, k, v = torch.randn(3, 1, 2, 9, 8).unbind()
    plain = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, scale=0.3)
    torch.testing.assert_close(extra_term_attention(q, k, v, torch.full((2,), -200.0), 0.3), plain)
    assert not extra_term_attention(q, k, v, torch.full((2,), 200.0), 0.3).any()
