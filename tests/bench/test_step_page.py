"""The page on a training step: it is the one that the program writes, and plain torch moves what it says."""

import pytest
import torch

from benchmarks import step_page
from gptcore.loader import from_dict
from gptcore.model import GPT
from kernels.attention_reference import Weighting
from kernels.elementwise import elementwise_attention
from tests.kernels.counting import Bytes


def test_the_page_is_what_the_program_writes():
    assert (step_page.DOCS / "training_step.md").read_text() == step_page.page(), "python -m benchmarks.step_page"


def test_bytes_of_a_score_of_consmax():
    """Counted on tensors without storage, as on a GPU: in one tile."""
    B, H, T, D = 2, 3, 64, 16
    q, k, v = (torch.empty(B, H, T, D, dtype=torch.bfloat16, device="meta", requires_grad=True) for _ in range(3))
    beta, gamma = (torch.empty(H, device="meta", requires_grad=True) for _ in range(2))
    with Bytes(B * H * T * T) as moved:
        out = elementwise_attention(q, k, v, Weighting("consmax"), 0.25, beta_H=beta, gamma_H=gamma)
        torch.autograd.grad(out, (q, k, v, beta, gamma), torch.empty_like(out))
    assert moved.total == sum(step_page.SCORE) * B * H * T * T


@pytest.mark.parametrize("m", step_page.MODELS, ids=lambda m: m.name)
def test_parameters_are_those_of_the_model(m):
    config = {
        "n_layer": m.L, "n_embd": m.C, "block_size": m.T, "vocab_size": m.V, "bias": m.bias,
        "attention": {"n_head": m.H, "softmax": m.weighting},
        "mlp": {"kind": "swiglu" if m.gated else "mlp", "hidden_size": m.F},
        "norm": "layernorm" if m.centred else "rmsnorm", "position": "rotary" if m.rotary else "learned",
    }  # fmt: skip
    with torch.device("meta"):
        model = GPT(from_dict({"model": config}).model)
    of_heads = 2 * m.L * m.H * (m.weighting == "consmax")
    assert model.parameter_count() - of_heads == m.parameters


@pytest.mark.parametrize("m", step_page.MODELS, ids=lambda m: m.name)
def test_kernels_never_move_more(m):
    for part in step_page.parts(m):
        assert sum(w.bytes for w in part.after) <= sum(w.bytes for w in part.torch), part.name
        assert step_page.seconds(part.after) <= step_page.seconds(part.torch), part.name
