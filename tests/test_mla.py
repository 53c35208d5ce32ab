"""Multi-head latent attention against the equations of its paper, transformers, and hand counts of its decode step."""

import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from gptcore.attention.mla import LatentAttention
from gptcore.cache import RowCache
from gptcore.config import Dims, GPTConfig
from gptcore.linear.linear import Dense
from gptcore.model import GPT, declare
from gptcore.ops import Pass
from gptcore.quantize import set_strength
from gptcore.registry import build, lookup

C, H, T, B = 24, 3, 17, 2
DIMS = Dims(n_embd=C, n_layer=1, block_size=T, bias=True, dropout=0.0)
ODD = {"kv_latent": 7, "nope_width": 5, "rope_width": 4, "v_width": 6}
CASES = [{}, {"q_latent": 9}, ODD, {**ODD, "q_latent": 10, "window": 4}, {"softcap": 2.0}]
POSITIONS = ["rotary", "none", "alibi"]
each_case = pytest.mark.parametrize("knobs", CASES, ids=lambda k: "-".join(k) or "default")
each_position = pytest.mark.parametrize("position", POSITIONS)


def make(knobs: dict, position: str = "rotary"):
    """A module with random weights (norms and biases too), its position module and an input, in float64."""
    torch.manual_seed(0)
    cls, place = lookup("attention", "mla"), lookup("position", position)
    config = cls.Config(n_head=H, **knobs)
    module = build(config, DIMS).double()
    for p in module.parameters():
        torch.nn.init.normal_(p, std=0.5)
    turn = place(place.Config(), DIMS, [cls.heads(config, DIMS)]).double()
    return module, turn, torch.randn(B, T, C, dtype=torch.float64, requires_grad=True)


def rotated(x, t: int):
    """R_t x with pairs (x_i, x_{i+R/2}) as complex numbers; sines are tables in fp32, as the model has them."""
    half = x.shape[-1] // 2
    angle = t * 10000.0 ** (-torch.arange(half, dtype=torch.float64) / half)
    turn = torch.complex(angle.cos().float().double(), angle.sin().float().double())
    turned = torch.complex(x[..., :half], x[..., half:]) * turn
    return torch.cat([turned.real, turned.imag], -1)


def paper(m, x, position: str = "rotary"):
    """Equations 9 to 19 of arXiv 2405.04434, one token and one head after the other."""
    H, L, N, R, E, config = m.H, m.L, m.N, m.R, m.E, m.config
    W_q, W_dkv, W_kr = m.c_attn.weight.split([m.Q, L, R])
    b_q, b_dkv, b_kr = m.c_attn.bias.split([m.Q, L, R])
    W_uk, W_uv = m.kv_up.weight[: H * N].view(H, N, L), m.kv_up.weight[H * N :].view(H, E, L)

    def rms(v, norm):
        return v / torch.sqrt((v * v).mean(-1, keepdim=True) + 1e-6) * norm.weight

    turn = rotated if position == "rotary" else lambda v, t: v
    c_kv, k_rope, queries = [], [], []
    for t in range(x.shape[1]):
        h_t = x[:, t]
        c_kv.append(rms(h_t @ W_dkv.T + b_dkv, m.kv_norm))  # (9), normalised as section 3.1.2 says
        k_rope.append(turn(h_t @ W_kr.T + b_kr, t))  # (15)
        q = h_t @ W_q.T + b_q
        if config.q_latent:
            q = rms(q, m.q_norm) @ m.q_up.weight.T  # (12), (13)
        queries.append(q.view(-1, H, N + R))
    outs = []
    for t in range(x.shape[1]):
        first = max(0, t + 1 - config.window) if config.window else 0
        heads = []
        for h in range(H):
            q_nope, q_rope = queries[t][:, h, :N], turn(queries[t][:, h, N:], t)  # (14), (16)
            scores = []
            for j in range(first, t + 1):
                k_nope = c_kv[j] @ W_uk[h].T  # (10)
                score = ((q_nope * k_nope).sum(-1) + (q_rope * k_rope[j]).sum(-1)) / math.sqrt(N + R)  # (17), (18)
                if config.softcap:
                    score = config.softcap * torch.tanh(score / config.softcap)
                if position == "alibi":  # of three heads: the slopes of two, and the first of four
                    score = score - [2**-4, 2**-8, 2**-2][h] * (t - j)
                scores.append(score)
            weights = torch.softmax(torch.stack(scores, -1), -1)
            values = torch.stack([c_kv[j] @ W_uv[h].T for j in range(first, t + 1)], 1)  # (11)
            heads.append((weights.unsqueeze(-1) * values).sum(1))
        outs.append(torch.cat(heads, -1) @ m.c_proj.weight.T + m.c_proj.bias)  # (19)
    return torch.stack(outs, 1)


def close(got, want) -> bool:
    """Three products one after the other, of sums of up to 2 C terms, in another order, and one over T tokens."""
    eps = torch.finfo(torch.float64).eps
    return (got - want).abs().max().item() <= 64 * eps * math.sqrt(T) * (2 * C) * max(1.0, want.abs().max().item())


@each_position
@each_case
def test_forward_and_gradients_equal_the_paper(knobs, position):
    module, turn, x = make(knobs, position)
    probe = torch.randn(B, T, C, dtype=torch.float64)
    inputs = [x, *module.parameters()]
    got, want = module(x, turn, 0), paper(module, x, position)
    assert close(got, want)
    for g, w in zip(torch.autograd.grad(got, inputs, probe), torch.autograd.grad(want, inputs, probe), strict=True):
        assert close(g, w)


def through_cache(module, turn, x, pieces):
    cache, start, parts = module.new_cache(B, T, torch.float64, "cpu"), 0, []
    for part in x.detach().split(pieces, 1):
        parts.append(module(part, turn, start, cache))
        start += part.shape[1]
    return torch.cat(parts, 1), cache


@each_position
@each_case
@pytest.mark.parametrize("pieces", [[1] * T, [5, 3, 1, 1, 2, 5], [1, 16]], ids=["steps", "pieces", "rest"])
def test_cached_pieces_equal_the_paper(knobs, position, pieces):
    module, turn, x = make(knobs, position)
    assert close(through_cache(module, turn, x, pieces)[0], paper(module, x, position))


def scaled_by_half_of_the_width(patch):
    original = LatentAttention._scoring

    def scoring(self, q, S, scale, position, start):
        return original(self, q, S, 1 / math.sqrt(self.N), position, start)

    patch.setattr(LatentAttention, "_scoring", scoring)


def shared_key_not_turned(patch):
    cls = lookup("position", "rotary")
    original = cls.rotate
    patch.setattr(cls, "rotate", lambda self, q, k, start: (original(self, q, k, start)[0], k))


def latent_not_normalised(patch):
    cls = lookup("norm", "rmsnorm")
    patch.setattr(cls, "forward", lambda self, x: x * self.weight)


def keys_of_another_head(patch):
    original = LatentAttention._by_head
    patch.setattr(LatentAttention, "_by_head", staticmethod(lambda x, w: original(x, w.roll(1, 0))))


FAULTS = [scaled_by_half_of_the_width, shared_key_not_turned, latent_not_normalised, keys_of_another_head]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda f: f.__name__)
def test_a_seeded_fault_is_noticed(fault, monkeypatch):
    module, turn, x = make({})
    fault(monkeypatch)
    assert not close(through_cache(module, turn, x, [1] * T)[0], paper(module, x))


@pytest.mark.parametrize("q_latent", [None, 20])
def test_equals_deepseek_v3_of_transformers(q_latent):
    """Same weights, but for the order of rows: there a head's keys lie beside its values."""
    transformers = pytest.importorskip("transformers")
    v3 = pytest.importorskip("transformers.models.deepseek_v3.modeling_deepseek_v3")
    L, N, R, E = 12, 6, 4, 5
    theirs_config = transformers.DeepseekV3Config(
        hidden_size=C, num_attention_heads=H, num_key_value_heads=H, kv_lora_rank=L, q_lora_rank=q_latent,
        qk_nope_head_dim=N, qk_rope_head_dim=R, v_head_dim=E, max_position_embeddings=T, rope_interleave=False,
        attn_implementation="sdpa",
    )  # fmt: skip
    torch.manual_seed(0)
    theirs = v3.DeepseekV3Attention(theirs_config, 0).double().eval()
    for p in theirs.parameters():
        torch.nn.init.normal_(p, std=0.5)
    knobs = {"kv_latent": L, "nope_width": N, "rope_width": R, "v_width": E, "q_latent": q_latent}
    module, turn, x = make({**knobs, "bias_qkv": False, "bias_proj": False})
    by_head = theirs.kv_b_proj.weight.view(H, N + E, L)
    q_down = theirs.q_proj if q_latent is None else theirs.q_a_proj
    weights = {
        "c_attn.weight": torch.cat([q_down.weight, theirs.kv_a_proj_with_mqa.weight]),
        "kv_norm.weight": theirs.kv_a_layernorm.weight,
        "kv_up.weight": torch.cat([by_head[:, :N].reshape(-1, L), by_head[:, N:].reshape(-1, L)]),
        "c_proj.weight": theirs.o_proj.weight,
    }
    if q_latent is not None:
        weights |= {"q_norm.weight": theirs.q_a_layernorm.weight, "q_up.weight": theirs.q_b_proj.weight}
    module.load_state_dict(weights)
    turns = v3.DeepseekV3RotaryEmbedding(theirs_config)(x, torch.arange(T)[None])
    mask = torch.full((T, T), float("-inf"), dtype=torch.float64).triu(1)[None, None]
    want = theirs(x, position_embeddings=turns, attention_mask=mask)[0]
    # Their angles, and the square of a latent, are computed in fp32: t theta of up to T errs by T eps.
    tolerance = 64 * T * torch.finfo(torch.float32).eps * want.abs().max().item()
    assert (module(x, turn, 0) - want).abs().max().item() <= tolerance
    assert (through_cache(module, turn, x, [4] + [1] * (T - 4))[0] - want).abs().max().item() <= tolerance


DEEPSEEK_V2 = {
    "n_head": 128, "kv_latent": 512, "q_latent": 1536, "nope_width": 128, "rope_width": 64, "v_width": 128,
}  # fmt: skip


def test_size_of_deepseek_v2():
    """Section 3.1.2 of the paper: (d_c + d_h^R) values a token and layer (table 1), 4.5 d_h of them."""
    model = GPTConfig.model_validate({
        "n_layer": 1, "n_embd": 5120, "block_size": 4096, "vocab_size": 8, "bias": False,
        "position": "rotary", "attention": {"kind": "mla", **DEEPSEEK_V2},
    })  # fmt: skip
    g = declare(model, Pass("decode", 1, 1, 1000))
    assert sum(t.numel for t in g.cache_tensors().values()) == 1000 * (512 + 64) == 1000 * 4.5 * 128
    shapes = [(5120, 1536 + 512 + 64), (1536, 128 * (128 + 64)), (512, 128 * (128 + 128)), (128 * 128, 5120)]
    weights = sum(w.numel for name, w in g.weights().items() if ".attn." in name)
    assert weights == sum(a * b for a, b in shapes) + 1536 + 512


@each_case
def test_cache_holds_a_latent_and_a_shared_key_a_token(knobs):
    module, turn, x = make(knobs)
    _, cache = through_cache(module, turn, x, [6] + [1] * (T - 6))
    kept = min(T, module.config.window or T)
    assert sum(t.numel() for t in cache.tensors()) == B * kept * (module.L + module.R)
    (rows,) = cache.tensors()
    for t in range(T - kept, T):  # latents after the norm, keys after the rotation
        _, latent, shared = module.c_attn(x[:, t]).split([module.Q, module.L, module.R], -1)
        assert close(rows[:, 0, t % kept], torch.cat([module.kv_norm(latent), rotated(shared, t)], -1))


LONG = {"n_layer": 1, "n_embd": 64, "block_size": 256, "vocab_size": 8, "position": "rotary"}
MLA = {"kind": "mla", "n_head": 4}
S, L, N, R, E = 200, 16, 16, 8, 16  # context, and what the null widths come to


def flops(run) -> int:
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


def step(device: str = "meta", batch: int = 3):
    """The attention of one more token after S - 1, ready to run."""
    torch.manual_seed(0)
    with torch.device(device):
        model = GPT(GPTConfig.model_validate({**LONG, "attention": MLA})).double().eval()
        module, x = model.transformer.h[0].attn, torch.randn(batch, S, 64, dtype=torch.float64)
    cache = module.new_cache(batch, S, torch.float64, device)
    with torch.no_grad():
        module(x[:, :-1], model.position, 0, cache)
    return lambda: module(x[:, -1:], model.position, S - 1, cache)


def by_hand(batch: int, absorbed: bool) -> int:
    """MACs of a decode step: both projections of the token, and what the two ways take for S tokens seen."""
    projections = 64 * (4 * (N + R) + L + R) + 4 * E * 64
    if absorbed:  # q W_uk, scores over rows, sums of latents, W_uv
        return batch * (projections + 4 * (N * L + S * (L + R) + S * L + L * E))
    return batch * (projections + 4 * (S * L * (N + E) + S * (N + R) + S * E))


def test_a_decode_step_costs_what_the_absorbed_form_does(monkeypatch):
    batch = 3
    config = GPTConfig.model_validate({**LONG, "attention": MLA})
    declared = sum(op.macs for op in declare(config, Pass("decode", batch, 1, S)).ops if ".attn." in op.name)
    assert flops(step(batch=batch)) == 2 * declared == 2 * by_hand(batch, absorbed=True)
    monkeypatch.setattr(LatentAttention.Config, "absorbs", lambda *_: False)
    assert flops(step(batch=batch)) == 2 * by_hand(batch, absorbed=False)
    assert by_hand(batch, absorbed=False) > 5 * by_hand(batch, absorbed=True)  # the longer the context, up to L / 2


class Largest(TorchDispatchMode):
    """Elements of the largest tensor that an operation computes, views left out."""

    found = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        old = {t.untyped_storage().data_ptr() for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)}
        for t in tree_leaves(out):
            if isinstance(t, torch.Tensor) and t.untyped_storage().data_ptr() not in old:
                self.found = max(self.found, t.numel())
        return out


def test_a_decode_step_forms_neither_keys_nor_values(monkeypatch):
    batch = 3
    run = step("cpu", batch)
    with torch.no_grad(), Largest() as largest:
        absorbed = run()
    assert 0 < largest.found <= batch * 4 * S  # the scores
    monkeypatch.setattr(LatentAttention.Config, "absorbs", lambda *_: False)
    run = step("cpu", batch)
    with torch.no_grad(), Largest() as largest:
        formed = run()
    assert largest.found >= batch * 4 * S * (N + E)
    assert (absorbed - formed).abs().max().item() < 1e-12 * formed.abs().max().item()


@pytest.mark.parametrize("T", [1, 2, 8, 30, 100, 199])
def test_a_piece_takes_the_cheaper_way(T):
    config = LatentAttention.Config(n_head=4)
    latents = T * L * (N + E) + T * S * (L + R + L)
    heads = S * L * (N + E) + T * S * (N + R + E)
    assert config.absorbs(64, T, S) == (latents < heads)
    assert config.absorbs(64, 1, 2) and not config.absorbs(64, S, S)


def test_rounding_points(monkeypatch):
    """Every place changes the result; a cached decode rounds the same numbers, and the cache has the declared width."""
    x = torch.randint(8, (2, 24), generator=torch.Generator().manual_seed(0))

    def model(**rounding):
        torch.manual_seed(0)
        values = {**LONG, "attention": {**MLA, "rounding": rounding}}
        return GPT(GPTConfig.model_validate(values)).double().eval()

    exact = model()(x)[0]
    for place in "input q k scores weights v heads output".split():
        rounded = model(**{place: 3})
        full = rounded(x)[0]
        assert not torch.equal(full, exact), place
        cache = rounded.new_cache(2)
        parts = [rounded(part, cache=cache)[0] for part in x.split([5, 3] + [1] * 16, 1)]
        assert (torch.cat(parts, 1) - full).abs().max() < 1e-12, place
        assert 3 in {t.bits for op in declare(rounded.config, Pass("decode", 1, 1, 9)).ops for t in op.writes}, place
        set_strength(rounded, 0.0)
        assert (rounded(x)[0] - exact).abs().max() < 1e-12, place
    cached = declare(model(k=3, v=5).config, Pass("decode", 1, 1, 8)).cache_tensors()
    assert sorted((t.bits, t.numel) for t in cached.values()) == [(3, 8 * R), (5, 8 * L)]


def test_up_projections_are_plain_whatever_the_others_are():
    module = build(LatentAttention.Config(n_head=H, linear={"kind": "kan"}, q_latent=8), DIMS)
    assert type(module.kv_up) is Dense and module.kv_up.bias is None
    assert {type(m).__name__ for m in (module.c_attn, module.q_up, module.c_proj)} == {"KAN"}


def test_row_cache_keeps_the_last_rows_in_order():
    """Against a list of everything, for one and for three tensors."""
    for widths in ([3], [2, 1, 4]):
        cache, seen = (
            RowCache(1, 2, 5, widths, torch.float64, "cpu"),
            [torch.empty(1, 2, 0, w).double() for w in widths],
        )
        for n in (2, 1, 4, 1, 1, 7, 1):
            new = [torch.randn(1, 2, n, w, dtype=torch.float64) for w in widths]
            seen = [torch.cat(pair, 2) for pair in zip(seen, new, strict=True)]
            for got, everything in zip(cache.extend(*new, ordered=True), seen, strict=True):
                assert torch.equal(got[:, :, -5:], everything[:, :, -min(5, everything.shape[2]) :])
