"""Attention kinds with a state of constant size: parallel form, pieces and single steps against a loop over tokens."""

import math

import pytest
import torch
import torch.nn.functional as F

from gptcore.config import Dims
from gptcore.registry import build, lookup

C, T, B = 24, 19, 2
DIMS = Dims(n_embd=C, n_layer=1, block_size=T, bias=True, dropout=0.0)
LINEAR = [{"feature": f} for f in ("elu_plus_one", "rectified", "softmax")] + [{"qk_width": 5, "v_width": 3}]
STATE_SPACE = [{"state": 7}, {"state": 5, "conv": 2, "head_width": 3}]
CASES = [("linear", knobs) for knobs in LINEAR] + [("ssm", knobs) for knobs in STATE_SPACE]
every = pytest.mark.parametrize("kind, knobs", CASES, ids=lambda v: v if isinstance(v, str) else "-".join(map(str, v)))


def make(kind: str, knobs: dict):
    torch.manual_seed(0)
    module = build(lookup("attention", kind).Config(n_head=3, **knobs), DIMS).double()
    for p in module.parameters():
        torch.nn.init.normal_(p, std=0.5)
    return module, torch.randn(B, T, C, dtype=torch.float64, requires_grad=True)


def linear_loop(m, x):
    """Equations 18 to 20 of arXiv 2006.16236, one head and one token after the other; the sums over D, see the kind."""
    H, D, E = m.H, m.D, m.E
    phi = {
        "elu_plus_one": lambda t: F.elu(t) + 1,
        "rectified": F.relu,
        "softmax": lambda t: t.exp() / t.exp().sum(-1, keepdim=True),
    }[m.config.feature]
    qkv = m.c_attn(x)
    outs = []
    for h in range(H):
        q = phi(qkv[..., h * D : (h + 1) * D])
        k = phi(qkv[..., (H + h) * D : (H + h + 1) * D])
        v = qkv[..., 2 * H * D + h * E : 2 * H * D + (h + 1) * E]
        s, z, ys = 0.0, 0.0, []
        for t in range(x.shape[1]):
            s = s + torch.einsum("bd,be->bde", k[:, t], v[:, t])
            z = z + k[:, t]
            total = (q[:, t] * z).sum(-1, keepdim=True) + D * m.config.eps
            ys.append(torch.einsum("bd,bde->be", q[:, t], s) / total)
        outs.append(torch.stack(ys, 1))
    return m.c_proj(torch.cat(outs, -1))


def state_space_loop(m, x):
    """The recurrence of arXiv 2405.21060, section 2, with the convolution as torch computes it."""
    H, P, N, W = m.H, m.P, m.N, m.config.conv
    z, u, dt = m.c_attn(x).split([H * P, m.channels, H], dim=-1)
    u = F.conv1d(F.pad(u.mT, (W - 1, 0)), m.conv_weight.mT.unsqueeze(1), m.conv_bias, groups=m.channels).mT
    values, b, c = F.silu(u).split([H * P, N, N], dim=-1)
    outs = []
    for h in range(H):
        state, ys = x.new_zeros(x.shape[0], N, P), []
        for t in range(x.shape[1]):
            step = torch.log1p(torch.exp(dt[:, t, h] + m.dt_bias[h]))[:, None, None]
            v = values[:, t, h * P : (h + 1) * P]
            state = torch.exp(-step * m.A_log[h].exp()) * state + step * b[:, t, :, None] * v[:, None, :]
            ys.append((c[:, t, :, None] * state).sum(1) + m.D[h] * v)
        outs.append(torch.stack(ys, 1))
    return m.c_proj(torch.cat(outs, -1) * F.silu(z))


LOOPS = {"linear": linear_loop, "ssm": state_space_loop}


def close(got, want) -> bool:
    """Sums over T tokens of sums over up to 4 C terms, in another order, relative to the largest result."""
    eps = torch.finfo(torch.float64).eps
    return (got - want).abs().max().item() <= 64 * eps * T * math.sqrt(4 * C) * max(1.0, want.abs().max().item())


@every
def test_parallel_form_and_its_gradients_equal_the_loop(kind, knobs):
    module, x = make(kind, knobs)
    probe = torch.randn(B, T, C, dtype=torch.float64)
    inputs = [x, *module.parameters()]
    got, want = module(x, None, 0), LOOPS[kind](module, x)
    assert close(got, want)
    for g, w in zip(torch.autograd.grad(got, inputs, probe), torch.autograd.grad(want, inputs, probe), strict=True):
        assert close(g, w)


@every
@pytest.mark.parametrize("pieces", [[1] * T, [5, 3, 1, 3, 2, 5], [1, 18]], ids=["steps", "pieces", "rest"])
def test_pieces_after_a_state_equal_the_loop(kind, knobs, pieces):
    module, x = make(kind, knobs)
    cache = module.new_cache(B, T, torch.float64, "cpu")
    before = [t.data_ptr() for t in cache.tensors()]
    parts = [module(part, None, 0, cache) for part in x.detach().split(pieces, 1)]
    assert close(torch.cat(parts, 1), LOOPS[kind](module, x))
    assert [t.data_ptr() for t in cache.tensors()] == before


@every
def test_state_does_not_grow_with_the_context(kind, knobs):
    module, _ = make(kind, knobs)
    short, long = (module.new_cache(B, n, torch.float32, "cpu").tensors() for n in (1, 4096))
    assert [t.shape for t in short] == [t.shape for t in long]


@every
def test_a_lost_state_is_noticed(kind, knobs):
    """Seeded fault: a piece that starts from nothing differs by far more than the tolerance."""
    module, x = make(kind, knobs)
    fresh = module.new_cache(B, T, torch.float64, "cpu")
    assert not close(module(x[:, 5:], None, 5, fresh), LOOPS[kind](module, x)[:, 5:])


@every
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_long_half_precision_stays_finite(kind, knobs, dtype):
    torch.manual_seed(0)
    module = build(lookup("attention", kind).Config(n_head=3, **knobs), DIMS).to(dtype)
    for p in module.parameters():
        torch.nn.init.normal_(p, std=0.1)
    assert torch.isfinite(module(4 * torch.randn(1, 2000, C).to(dtype), None, 0)).all()
