"""Attention kinds with a state of constant size: chunks, pieces and single steps against a loop over tokens."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from gptcore.config import Dims, GPTConfig
from gptcore.model import GPT, declare
from gptcore.ops import Pass
from gptcore.registry import build, lookup

C, T, B = 24, 19, 2
DIMS = Dims(n_embd=C, n_layer=1, block_size=T, bias=True, dropout=0.0)
# One chunk, several of which the last is short (4, 5) or a single token (6), as many chunks as tokens.
CHUNKS = [{"chunk": 4}, {"chunk": 5}, {"chunk": 6}, {"chunk": 1}]
LINEAR = [{"feature": f} for f in ("elu_plus_one", "rectified", "softmax")] + [{"qk_width": 5, "v_width": 3}, *CHUNKS]
STATE_SPACE = [{"state": 7}, {"state": 5, "conv": 2, "head_width": 3}, *({"state": 6, **chunk} for chunk in CHUNKS)]
CASES = [("linear", knobs) for knobs in LINEAR] + [("ssm", knobs) for knobs in STATE_SPACE]
every = pytest.mark.parametrize(
    "kind, knobs", CASES, ids=lambda v: v if isinstance(v, str) else "-".join(map(str, v.values()))
)


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


@pytest.mark.parametrize("kind", LOOPS)
def test_chunks_that_do_not_hear_of_each_other_are_noticed(kind):
    """Seeded fault: each chunk as if it were alone."""
    module, x = make(kind, {"chunk": 5})
    alone = torch.cat([module(part, None, 0) for part in x.split(5, 1)], 1)
    want = LOOPS[kind](module, x)
    assert close(module(x, None, 0), want) and not close(alone, want)


@every
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_long_half_precision_stays_finite(kind, knobs, dtype):
    torch.manual_seed(0)
    module = build(lookup("attention", kind).Config(n_head=3, **knobs), DIMS).to(dtype)
    for p in module.parameters():
        torch.nn.init.normal_(p, std=0.1)
    assert torch.isfinite(module(4 * torch.randn(1, 2000, C).to(dtype), None, 0)).all()


@pytest.mark.parametrize("size", [0.5, 30.0])
def test_decay_of_any_strength_keeps_values_and_gradients(size):
    """Factors down to 2^-10000 a token: nothing is divided by what has decayed, no power overflows."""
    module, x = make("ssm", {"chunk": 4, "state": 6})
    with torch.no_grad():
        module.dt_bias.fill_(size), module.A_log.copy_(torch.tensor([0.0, 2.0, 5.5]))
    inputs = [x, *module.parameters()]
    got, want = module(x, None, 0), state_space_loop(module, x)
    assert close(got, want)
    got, want = (torch.autograd.grad(y.sum(), inputs) for y in (got, want))
    # That of a rate is a difference of sums, whose terms are as large as those of the other gradients.
    assert close(*(torch.cat([g.flatten() for g in gradients]) for gradients in (got, want)))


def test_state_space_equals_mamba_2_of_transformers():
    """Its mixer without the norm between gate and projection, which a kind here does not hold."""
    mamba = pytest.importorskip("transformers.models.mamba2.modeling_mamba2")
    sizes = {"hidden_size": C, "num_heads": 3, "head_dim": C // 3, "expand": 1, "n_groups": 1, "num_hidden_layers": 1}
    options = {"state_size": 6, "conv_kernel": 4, "chunk_size": 8, "use_bias": True, "layer_norm_epsilon": 1e-6}
    mixer = mamba.Mamba2Mixer(mamba.Mamba2Config(**sizes, **options), layer_idx=0).eval()
    mixer.norm = Gate()
    module, x = make("ssm", {"state": 6, "chunk": 5})
    ours = dict(module.float().named_parameters())
    names = {"in_proj": "c_attn", "out_proj": "c_proj"}
    with torch.no_grad():
        for name, p in mixer.named_parameters():
            first, _, rest = name.partition(".")
            source = ours[f"{names[first]}.{rest}" if first in names else name.replace("1d.", "_")]
            p.copy_(source.mT.unsqueeze(1) if name == "conv1d.weight" else source)
    want = mixer(x.float())
    # Both round to fp32 at every step: sums of up to 4 C products, and decays that are powers of sums over T tokens.
    bound = 64 * torch.finfo(torch.float32).eps * math.sqrt(4 * C) * max(1.0, want.abs().max().item())
    assert (module(x.float(), None, 0) - want).abs().max().item() <= bound


class Gate(torch.nn.Module):
    def forward(self, y, z):
        return y * F.silu(z)


def model_of(kind: str, **knobs) -> GPTConfig:
    attention = {"kind": kind, "n_head": 2, **knobs}
    return GPTConfig.model_validate(
        {"n_layer": 1, "n_embd": C, "block_size": 48, "vocab_size": 29, "attention": attention}
    )


def counted(run) -> int:
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


@pytest.mark.parametrize("length", [48, 40, 17, 16, 3])
@pytest.mark.parametrize("kind", LOOPS)
def test_declared_flops_of_chunks_equal_what_torch_counts(kind, length):
    config = model_of(kind, chunk=16)
    with torch.device("meta"):
        model, x = GPT(config), torch.zeros(2, length, dtype=torch.long)
    cache = model.new_cache(2, length + 1)
    runs = {
        Pass("prefill", 2, length, length): lambda: model(x),
        Pass("train", 2, length, length): lambda: model(x, x)[1].backward(),
        Pass("decode", 2, 1, length + 1): lambda: model(x[:, :1], cache=cache),
    }
    for run, call in runs.items():
        assert counted(call) == 2 * sum(op.macs for op in declare(config, run).ops), run


@pytest.mark.parametrize("kind", LOOPS)
def test_needed_products_of_chunks_are_counted_one_by_one(kind):
    """T = 40 in chunks of 16: pairs inside a chunk, tokens into states, states into later ones, states to tokens."""
    H, D, N, L, length = 2, C // 2, 6, 16, 40
    config = model_of(kind, chunk=L, **({"state": N} if kind == "ssm" else {}))
    pairs = sum(s <= t and s // L == t // L for t in range(length) for s in range(length))
    told = sum(s // L < (length - 1) // L for s in range(length))
    hear = sum(t >= L for t in range(length))
    joined = sum(i <= j for i in range(2) for j in range(2))
    if kind == "ssm":
        want = pairs * (N + H * D) + told * N * H * D + joined * H * N * D + hear * N * H * D
    else:
        want = H * (pairs * 2 * D + told * D * D + hear * D * (D + 1))
    ops = declare(config, Pass("prefill", 1, length, length)).ops
    assert sum(op.macs_causal for op in ops if not any(t.role == "weight" for t in op.reads)) == want


@pytest.mark.parametrize("kind", LOOPS)
def test_memory_grows_in_proportion_to_the_text(kind):
    """What a training step keeps for its backward pass, for four times the tokens; one chunk shows the difference."""

    def kept(length: int, chunk: int) -> int:
        module = build(lookup("attention", kind).Config(n_head=2, chunk=chunk), DIMS)
        sizes: dict[int, int] = {}

        def keep(t):
            sizes[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
            return t

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
            module(torch.randn(1, length, C), None, 0)
        return sum(sizes.values())

    assert kept(1024, 16) < 4.2 * kept(256, 16)
    assert kept(1024, 1024) > 8 * kept(256, 1024)


@pytest.mark.parametrize("kind", LOOPS)
def test_products_grow_almost_in_proportion_to_the_text(kind):
    """Pairs of tokens became pairs of chunks: at 64 tokens a chunk hardly anything is left of the square."""
    counts = []
    for length in (512, 4096):
        config = model_of(kind).model_copy(update={"block_size": length})
        ops = declare(config, Pass("prefill", 1, length, length)).ops
        counts.append(sum(op.macs for op in ops if op.slot == "attention"))
    assert counts[1] < 1.5 * 8 * counts[0]
