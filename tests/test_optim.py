"""Optimizers: each against its published rule, which parameters it moves, exact resume, declared costs."""

import pytest
import torch
from test_train import rows, run, same_state, settings  # noqa: F401 (a fixture)
from torch.utils.flop_counter import FlopCounterMode

from gptcore import optim
from gptcore.config import TrainConfig
from gptcore.errors import UserError
from gptcore.loader import from_dict
from gptcore.model import GPT, declare
from gptcore.ops import Graph, Pass
from gptcore.registry import kinds

KINDS = ["adamw", "muon", "lion", "adafactor"]
MODEL = {"n_layer": 2, "n_embd": 16, "block_size": 8, "vocab_size": 23, "attention": {"n_head": 2}}
LINEAR = {
    f"transformer.h.{i}.{n}.weight" for i in (0, 1) for n in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
}


def make(dtype=torch.float64, **train) -> tuple[GPT, TrainConfig]:
    config = from_dict({"model": MODEL, "train": {"learning_rate": 0.01, **train}})
    torch.manual_seed(0)
    return GPT(config.model).to(dtype), config.train


def some_gradients(model, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for p in model.parameters():
        p.grad = torch.randn(p.shape, generator=generator, dtype=p.dtype)


def lion_by_the_paper(p, grads, rates, beta1, beta2, decay):
    """Chen et al., arXiv 2302.06675, program 1, one element at a time."""
    values, m = p.flatten().tolist(), [0.0] * p.numel()
    for grad, rate in zip(grads, rates, strict=True):
        for i, g in enumerate(grad.flatten().tolist()):
            u = beta1 * m[i] + (1 - beta1) * g
            sign = (u > 0) - (u < 0)
            m[i] = beta2 * m[i] + (1 - beta2) * g
            values[i] -= rate * (sign + decay * values[i])
    return torch.tensor(values, dtype=p.dtype).view(p.shape)


def lion_difference() -> float:
    model, t = make(optimizer="lion", weight_decay=0.3)
    optimizer = optim.make_optimizer(model, t)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    grads: dict[str, list] = {n: [] for n in before}
    rates = [0.01, 0.02, 0.005]
    for seed, rate in enumerate(rates):
        some_gradients(model, seed)
        for n, p in model.named_parameters():
            grads[n].append(p.grad.clone())
        optim.set_rate(optimizer, rate)
        optimizer.step()
    return max(
        (p - lion_by_the_paper(before[n], grads[n], rates, 0.9, 0.99, 0.3 if p.dim() > 1 else 0.0)).abs().max().item()
        for n, p in model.named_parameters()
    )


# Three updates of weights of size 1 at most, each a few roundings of float64.
ROUNDING = 32 * torch.finfo(torch.float64).eps


def test_lion_is_that_of_the_paper():
    assert lion_difference() < ROUNDING


def test_lion_with_swapped_moments_is_noticed(monkeypatch):
    original = optim.Lion.__init__
    monkeypatch.setattr(optim.Lion, "__init__", lambda self, params, lr, betas: original(self, params, lr, betas[::-1]))
    assert lion_difference() > ROUNDING


def test_the_default_is_adamw_as_torch_has_it():
    model, t = make(torch.float32)
    plain, _ = make(torch.float32)
    groups = [[p for p in plain.parameters() if (p.dim() >= 2) == matrix] for matrix in (True, False)]
    theirs = torch.optim.AdamW(
        [{"params": groups[0], "weight_decay": 0.1}, {"params": groups[1], "weight_decay": 0.0}],
        lr=0.01, betas=(0.9, 0.99), fused=True,
    )  # fmt: skip
    ours = optim.make_optimizer(model, t)
    for seed in range(3):
        for m, optimizer in ((model, ours), (plain, theirs)):
            some_gradients(m, seed)
            optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), plain.parameters(), strict=True))


def test_muon_moves_the_matrices_of_the_blocks_and_adamw_the_rest():
    model, t = make(torch.float32, optimizer="muon", muon_learning_rate=0.05)
    apart, _ = make(torch.float32)
    ours = optim.make_optimizer(model, t)
    names = {p: n for n, p in model.named_parameters()}
    assert {names[p] for p in ours.param_groups[0]["params"]} == LINEAR
    assert sum(len(g["params"]) for g in ours.param_groups) == len(names)

    linear = [p for n, p in apart.named_parameters() if n in LINEAR]
    rest = [p for n, p in apart.named_parameters() if n not in LINEAR]
    muon = torch.optim.Muon(linear, weight_decay=0.1, momentum=0.95)
    adamw = torch.optim.AdamW(
        [{"params": [p for p in rest if p.dim() == 2], "weight_decay": 0.1},
         {"params": [p for p in rest if p.dim() == 1], "weight_decay": 0.0}], betas=(0.9, 0.99), fused=True,
    )  # fmt: skip
    for seed, share in enumerate((0.5, 1.0, 0.25)):  # of the peak
        some_gradients(model, seed)
        some_gradients(apart, seed)
        optim.set_rate(ours, 0.01 * share)
        ours.step()
        optim.set_rate(muon, 0.05 * share)
        optim.set_rate(adamw, 0.01 * share)
        muon.step()
        adamw.step()
    for (name, a), b in zip(model.named_parameters(), apart.parameters(), strict=True):
        # The rate of Muon is a product of the ratio of the peaks: one rounding of a step of at most 0.05 x 1.5.
        torch.testing.assert_close(a, b, rtol=0, atol=1e-8 if name in LINEAR else 0, msg=name)


def test_product_weights_are_operands_of_linear_layers_only():
    g = Graph(Pass("prefill", 1, 2, 2))
    x = g.tensor("x", 2, 4)
    with g.at("transformer.h.0.attn", slot="attention"):
        table = g.weight("relative", 4, 4)
        x = g.matmul("table", x, table, (2, 4), m=2, k=4, n=4)  # a table that is multiplied
        g.pointwise("gain", x, g.weight("gain", 2, 4), mul=1)  # a constant a head
        with g.at("rounded", slot="linear"):
            rounded = g.pointwise("round", g.weight("weight", 4, 4), role="weight", round=1)
            g.matmul("matmul", x, rounded, (2, 4), m=2, k=4, n=4)
            g.pointwise("scale", x, g.weight("scale", 4, 1), mul=1)
        with g.at("experts", slot="linear"):
            g.matmul("matmul", x, g.weight("weight", 3, 4, 4), (3, 2, 4), batch=3, m=2, k=4, n=4)
    with g.at("lm_head", slot="linear"):
        g.matmul("matmul", x, g.weight("weight", 9, 4), (2, 9), m=2, k=4, n=9)
    assert optim.product_weights(g) == {"transformer.h.0.attn.rounded.weight"}


@pytest.mark.parametrize("kind", kinds("linear"))
def test_product_weights_of_every_linear_kind_are_matrices_of_the_module(kind):
    chosen = {"attention": {"n_head": 2, "linear": kind}, "mlp": {"linear": kind}}
    config = from_dict({"model": {**MODEL, **chosen}}).model
    names = optim.product_weights(declare(config, Pass("prefill", 1, 1, 1)))
    shapes = {n: tuple(p.shape) for n, p in GPT(config).named_parameters()}
    assert names and all(len(shapes[n]) == 2 and n.startswith("transformer.h.") for n in names)


def test_joined_optimizers_share_state_and_groups_after_loading():
    model, t = make(torch.float32, optimizer="muon")
    first = optim.make_optimizer(model, t)
    some_gradients(model, 0)
    first.step()
    saved = first.state_dict()
    second = optim.make_optimizer(model, t)
    second.load_state_dict(saved)
    assert [g for part in second.parts for g in part.param_groups] == second.param_groups
    assert all(part.state is second.state for part in second.parts)
    assert set(second.state) == set(model.parameters())


@pytest.mark.parametrize("name", ["Muon", "Adafactor"])
def test_a_torch_without_the_optimizer_is_named(name, monkeypatch):
    monkeypatch.delattr(torch.optim, name)
    model, t = make(optimizer=name.lower())
    with pytest.raises(UserError, match=f"{name.lower()} needs torch.optim.{name}"):
        optim.make_optimizer(model, t)


@pytest.mark.parametrize("kind", KINDS)
def test_a_continued_run_has_the_same_bits(kind, settings, tmp_path):  # noqa: F811
    """20 updates at once, or 10 and 10; dropout, accumulation and gradient clipping on."""
    fixed = {"optimizer": kind, "lr_decay_iters": 20}
    whole = run(settings, **fixed, max_iters=20, out_dir=str(tmp_path / "whole")).folder
    parts = run(settings, **fixed, max_iters=10, out_dir=str(tmp_path / "parts")).folder
    run(settings, **fixed, max_iters=20, out_dir=str(parts), init_from="resume")
    assert rows(whole) == rows(parts) and same_state(whole, parts)
    other = "lion" if kind == "adamw" else "adamw"
    with pytest.raises(UserError, match=f"trained with {kind}: its state is of no use to {other}"):
        run(settings, max_iters=30, optimizer=other, out_dir=str(parts), init_from="resume")


def test_changed_settings_hold_after_a_resume(settings, tmp_path):  # noqa: F811
    from gptcore import checkpoint

    run(settings, max_iters=10)
    folder = run(settings, max_iters=20, weight_decay=0.5, beta2=0.9, init_from="resume").folder
    group = checkpoint.read(folder / "last.pt")["optimizer"]["param_groups"][0]
    assert group["weight_decay"] == 0.5 and group["betas"] == (0.9, 0.9)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_muon_in_low_precision(dtype, settings):  # noqa: F811
    found = [float(r["val_loss"]) for r in rows(run(settings, optimizer="muon", dtype=dtype).folder) if r["val_loss"]]
    assert found[-1] < found[0] - 0.2


def step_ops(kind: str, **train):
    config = from_dict({"model": MODEL}).model
    g = declare(config, Pass("prefill", 1, 1, 1))
    before = len(g.ops)
    optim.declare(g, TrainConfig(optimizer=kind, **train))
    return g, g.ops[before:]


@pytest.mark.parametrize("kind", KINDS)
def test_declared_step_is_what_torch_computes_and_keeps(kind):
    """Matrix FLOPs integer-equal to the counter, states of the declared sizes; AdamW's step number is left out."""
    _, ops = step_ops(kind)
    model, t = make(torch.float32, optimizer=kind)
    optimizer = optim.make_optimizer(model, t)
    some_gradients(model, 0)
    with FlopCounterMode(display=False) as counter:
        optimizer.step()
    assert 2 * sum(op.macs for op in ops) == counter.get_total_flops()
    assert (counter.get_total_flops() > 0) == (kind in ("muon", "adafactor"))
    declared = {t.name: t.numel for op in ops for t in op.writes if t.role == "optimizer"}
    kept = sum(v.numel() for s in optimizer.state.values() for k, v in s.items() if k != "step")
    assert sum(declared.values()) == kept
    assert {op.phase for op in ops} == {"optimizer"} and {op.slot for op in ops} == {"optimizer"}


def test_declared_default_is_one_operation_a_parameter():
    g, ops = step_ops("adamw")
    assert [op.name for op in ops] == [name + ".step" for name in g.weights()]
    for op, w in zip(ops, g.weights().values(), strict=True):
        assert op.per_element == (("mul", 8), ("add", 5), ("sqrt", 1), ("div", 1)) and op.kind == "adamw"
        assert [t.role for t in op.reads] == ["weight", "gradient", "optimizer", "optimizer"]
        assert [t.role for t in op.writes] == ["weight", "optimizer", "optimizer"]
        assert {t.shape for t in op.reads + op.writes} == {w.shape}


def test_a_frozen_table_is_neither_differentiated_nor_updated():
    config = from_dict({"model": MODEL}).model
    g = declare(config, Pass("train", 2, 8, 8), train=TrainConfig(import_wte_npy="x.npy", import_wte_freeze=True))
    assert not [op.name for op in g.ops if any(t.name == "d:" + optim.TABLE for t in op.writes)]
    assert optim.TABLE + ".step" not in {op.name for op in g.ops}
    with torch.device("meta"):
        model = GPT(config)
    model.get_parameter(optim.TABLE).requires_grad_(False)
    x = torch.zeros(2, 8, dtype=torch.long, device="meta")
    with FlopCounterMode(display=False) as counter:
        model(x, x)[1].backward()
    assert 2 * sum(op.macs for op in g.ops if op.phase != "optimizer") == counter.get_total_flops()
