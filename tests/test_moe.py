"""The mixture of experts against every expert on every token, transformers, and the bounds that it promises."""

import math

import pytest
import torch
import torch.nn.functional as F

from gptcore.config import Dims, GPTConfig
from gptcore.loader import load
from gptcore.losses import cross_entropy
from gptcore.mlp.moe import MixtureOfExperts
from gptcore.model import GPT, declare
from gptcore.ops import Pass

C, H = 24, 20
EPS32, EPS64 = torch.finfo(torch.float32).eps, torch.finfo(torch.float64).eps


def make(dtype=torch.float64, width=C, **knobs):
    torch.manual_seed(3)
    config = MixtureOfExperts.Config(**{"hidden_size": H, **knobs})
    module = MixtureOfExperts(config, Dims(width, 1, 16, bias=True, dropout=0.0))
    for stack in (module.router, module.c_fc, module.c_proj):
        stack.init_weights(0.3)
    return module.to(dtype)


def tokens(*lead, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*lead, C, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()


def every_expert_on_every_token(module, x, kept=None):
    """The definition: all experts compute all tokens, and all but the chosen ones get the weight 0."""
    config = module.config
    logits = F.linear(x, module.router.weight)
    chosen = torch.zeros_like(logits).scatter(-1, logits.topk(config.top_k).indices, 1.0)
    if config.gates == "chosen":
        gates = logits.masked_fill(chosen == 0, -math.inf).softmax(-1)
    else:
        gates = logits.softmax(-1) * chosen
    if kept is not None:
        gates = gates * kept
    outputs = torch.stack(
        [F.gelu(x @ up) @ down for up, down in zip(module.c_fc.weight, module.c_proj.weight, strict=True)], -1
    )
    return (outputs * gates.unsqueeze(-2)).sum(-1)


def check_against_every_expert(module, x, kept=None):
    """Values and every gradient; sums of at most max(C, H, tokens) terms, two of them in a row."""
    outcomes = []
    for run in (module, lambda x: every_expert_on_every_token(module, x, kept)):
        y = run(x)
        module.auxiliary = None
        (y * torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y)).sum().backward()
        outcomes.append((y.detach(), x.grad, *(p.grad for p in module.parameters())))
        x.grad = None
        module.zero_grad()
    for got, expected in zip(*outcomes, strict=True):
        terms = max(C, H, x.numel() // C)
        assert (got - expected).abs().max() <= 32 * EPS64 * math.sqrt(terms) * max(1.0, expected.abs().max().item())


@pytest.mark.parametrize("experts, top_k", [(1, 1), (4, 1), (4, 2), (8, 2), (5, 5), (16, 3)])
@pytest.mark.parametrize("gates", ["chosen", "all"])
@pytest.mark.parametrize("lead", [(1, 1), (3, 7), (2, 64)])
def test_equals_every_expert_on_every_token(experts, top_k, gates, lead):
    module = make(n_experts=experts, top_k=top_k, gates=gates)
    check_against_every_expert(module, tokens(*lead))
    assert torch.equal(module.train()(tokens(*lead)), module.eval()(tokens(*lead)))


def test_two_experts_exchanged_are_found():
    """The seeded fault of the check above."""
    module, x = make(), tokens(3, 7)
    lay_out = module.lay_out
    module.lay_out = lambda expert: lay_out(expert.where(expert > 1, 1 - expert))
    with pytest.raises(AssertionError):
        check_against_every_expert(module, x)


def first_come(expert_NK, experts, capacity):
    """1 where a choice is among the first `capacity` of its expert: plain Python, a token at a time."""
    taken, kept = [0] * experts, torch.zeros(len(expert_NK), experts, dtype=torch.float64)
    for n, row in enumerate(expert_NK.tolist()):
        for expert in row:
            kept[n, expert] = taken[expert] < capacity
            taken[expert] += 1
    return kept


def check_capacity(factor, top_k, shift=0):
    module, x = make(n_experts=4, top_k=top_k, gates="all", capacity_factor=factor), tokens(2, 20)
    expert_NK = F.linear(x, module.router.weight).topk(top_k).indices.view(-1, top_k)
    capacity = math.ceil(factor * 40 * top_k / 4) + shift
    kept = first_come(expert_NK, 4, capacity)
    check_against_every_expert(module, x, kept.view(2, 20, 4))
    dropped = 40 * top_k - int(kept.gather(1, expert_NK).sum())
    check_against_every_expert(module.eval(), x)  # evaluation drops nothing
    return dropped


@pytest.mark.parametrize("factor, top_k", [(0.5, 1), (1.0, 1), (1.0, 2), (0.75, 4), (0.1, 3)])
def test_capacity_drops_the_last_choices_of_a_full_expert(factor, top_k):
    assert check_capacity(factor, top_k) > 0


def test_ample_capacity_drops_nothing():
    assert check_capacity(4.0, 2) == 0


def test_a_capacity_wrong_by_one_is_found():
    with pytest.raises(AssertionError):
        check_capacity(1.0, 2, shift=1)


def test_no_routing_overflows_the_blocks():
    """Blocks are enough for the worst loads, one row more than whole blocks each, and at most a quarter too many."""
    for experts, top_k, count in [(8, 2, 768), (4, 1, 37), (16, 2, 5), (3, 3, 64), (8, 1, 1), (64, 4, 100)]:
        config = MixtureOfExperts.Config(n_experts=experts, top_k=top_k)
        blocks, rows = config.blocks(count, training=False)
        choices, used, loads = count * top_k, 0, []
        while used < choices and len(loads) < experts:
            loads.append(min(1, choices - used))
            used += loads[-1]
        loads[0] += (choices - used) // rows * rows  # whole blocks, then what is left
        loads[-1] += choices - sum(loads)
        needed = sum(-(-load // rows) for load in loads)
        assert needed <= blocks and blocks * rows <= 1.25 * choices


def test_balance_is_that_of_transformers():
    """Mixtral's sums over the chosen experts, ours takes their mean: f_e is a share of all choices."""
    mixtral = pytest.importorskip("transformers.models.mixtral.modeling_mixtral")
    module, x = make(torch.float32, balance=0.5, n_experts=8, top_k=2), tokens(4, 16, dtype=torch.float32)
    module(x)
    expected = mixtral.load_balancing_loss_func((F.linear(x, module.router.weight).flatten(0, 1),), 8, 2)
    torch.testing.assert_close(module.auxiliary, 0.5 * expected / 2, rtol=64 * EPS32, atol=0)
    module.auxiliary.backward()
    assert module.router.weight.grad.abs().max() > 0


def test_balance_is_smallest_when_all_experts_are_equal():
    module, x = make(n_experts=4, top_k=4, balance=0.25), tokens(2, 8)
    module(x)
    assert module.auxiliary.item() == pytest.approx(0.25)  # f_e = 1/E and sum P = 1
    module = make(n_experts=4, top_k=1, gates="all", balance=0.25)
    with torch.no_grad():
        module.router.weight.zero_()[2] = 100.0
    module(tokens(2, 8).abs())
    assert module.auxiliary.item() == pytest.approx(0.25 * 4)  # one expert does everything


def test_model_adds_the_balance_to_the_training_loss_only():
    config = GPTConfig(n_layer=2, n_embd=C, block_size=8, vocab_size=11, mlp=MixtureOfExperts.Config(balance=0.5))
    torch.manual_seed(0)
    model, x = GPT(config), torch.arange(16).view(2, 8) % 11
    logits, loss = model(x, x)
    assert loss.item() == pytest.approx(cross_entropy(logits, x, x).item() + 2 * 0.5, rel=0.05)  # fresh: nearly equal
    assert all(block.mlp.auxiliary is None for block in model.transformer.h)
    logits, loss = model.eval()(x, x)
    assert loss.item() == cross_entropy(logits, x, x).item()


def test_equals_switch_transformers():
    """One expert a token, its probability as gate, a capacity: Switch itself."""
    switch = pytest.importorskip("transformers.models.switch_transformers.modeling_switch_transformers")
    from transformers import SwitchTransformersConfig

    capacity, N, E = 9, 24, 4
    theirs = switch.SwitchTransformersSparseMLP(
        SwitchTransformersConfig(
            d_model=C,
            d_ff=H,
            num_experts=E,
            expert_capacity=capacity,
            router_bias=False,
            router_jitter_noise=0.0,
            dropout_rate=0.0,
        )
    )
    module = make(torch.float32, n_experts=E, top_k=1, gates="all", capacity_factor=capacity * E / N, activation="relu")
    with torch.no_grad():
        theirs.router.classifier.weight.copy_(module.router.weight)
        for e in range(E):
            theirs.experts[f"expert_{e}"].wi.weight.copy_(module.c_fc.weight[e].T)
            theirs.experts[f"expert_{e}"].wo.weight.copy_(module.c_proj.weight[e].T)
    x = tokens(1, N, dtype=torch.float32)
    expected = theirs(x)
    assert (expected == 0).all(-1).any()  # something was dropped
    assert (module(x) - expected).abs().max() <= 32 * EPS32 * math.sqrt(C) * max(1.0, expected.abs().max().item())


def test_training_traces_as_one_graph_for_every_routing():
    config = MixtureOfExperts.Config(hidden_size=H, capacity_factor=0.75)
    model = GPT(GPTConfig(n_layer=1, n_embd=C, block_size=8, vocab_size=11, mlp=config))
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    with torch._dynamo.config.patch(error_on_recompile=True):
        for seed in range(3):
            model.zero_grad()
            x = torch.randint(11, (2, 8), generator=torch.Generator().manual_seed(seed))
            loss = compiled(x, x)[1]
            loss.backward()
    traced = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    expected = model(x, x)[1]
    expected.backward()
    torch.testing.assert_close(loss, expected)
    for got, p in zip(traced, model.parameters(), strict=True):
        torch.testing.assert_close(got, p.grad, rtol=1e-4, atol=1e-6)


def test_the_router_decides_in_full_precision():
    module, x = make(torch.float32), tokens(4, 16, dtype=torch.float32)
    logits, _, expected = module.route(x.flatten(0, 1))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded, _, expert = module.route(x.flatten(0, 1))
        assert module(x).dtype == torch.bfloat16
    assert torch.equal(rounded, logits) and torch.equal(expert, expected)
    assert make(torch.bfloat16).route(x.bfloat16().flatten(0, 1))[0].dtype == torch.float32


def declared(run, **knobs):
    model = GPTConfig(
        n_layer=1, n_embd=C, block_size=256, vocab_size=11, mlp=MixtureOfExperts.Config(hidden_size=H, **knobs)
    )
    return [op for op in declare(model, run).ops if op.slot == "mlp"]


def expert_macs(run, causal=False, **knobs):
    ops = [op for op in declared(run, **knobs) if not op.name.split(".mlp.")[1].startswith("router")]
    return sum(op.macs_causal if causal else op.macs for op in ops)


def test_work_follows_the_chosen_experts_not_all_of_them():
    """8 or 64 experts, of which 2 compute: what is needed is the same, what is computed at most a quarter more."""
    prefill, train = Pass("prefill", 4, 256, 256), Pass("train", 4, 256, 256)
    needed = 4 * 256 * 2 * (2 * C * H)
    for experts in (8, 64):
        assert expert_macs(prefill, causal=True, n_experts=experts) == needed
        assert needed <= expert_macs(prefill, n_experts=experts) <= 1.25 * needed
        assert expert_macs(train, n_experts=experts, capacity_factor=1.0) == 3 * needed  # forward, and twice backward
    assert expert_macs(prefill, causal=True, top_k=4) == 2 * needed


def test_decode_reads_the_weights_of_the_chosen_experts_only():
    for batch, read in ((1, 2), (3, 6), (16, 8)):  # no more than there are
        ops = declared(Pass("decode", batch, 1, 5), n_experts=8, top_k=2)
        weight_bytes = sum(nbytes for op in ops for role, nbytes in op.moved() if role == "weight")
        assert weight_bytes == 2 * (read * 2 * C * H + 8 * C)  # 16 bits; the router is read whole
    assert expert_macs(Pass("decode", 1, 1, 5), n_experts=64) == 2 * 2 * C * H  # no padded row


def test_flat_names():
    config = load(None, ["--use_moe", "--n_experts=4", "--moe_top_k=3", "--mlp_expansion_factor=2"]).config.model.mlp
    assert isinstance(config, MixtureOfExperts.Config)
    assert (config.n_experts, config.top_k, config.expansion_factor) == (4, 3, 2.0)
