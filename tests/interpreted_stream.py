"""Residual sums that norms take into their kernels, in Triton's interpreter: the same as by plain torch, and counted;
run by test_stream.py in a process of its own."""

import pytest
import torch
import torch.distributed as dist
from interpreted_model import PARTS, close, gradients, made, small_tiles, tokens  # noqa: F401
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from benchmarks import step_page
from gptcore.block import Block
from gptcore.norm import Norm
from kernels import norms
from kernels.norms_work import floor_bytes
from kernels.roofline import Work


def sequential(**knobs):
    return {"block": {"kind": "sequential", **knobs}}


# A layer, and: can its first norm take a sum, does the one in its middle, may the sum at its end be left to others?
LAYERS = {
    "pre": ({}, 1, 1, 1),
    "parallel": ({"block": {"kind": "parallel", "norms": "two"}}, 1, 0, 1),
    "peri, balanced": ({**sequential(placement="peri"), "mlp": "moe", "norm": "rmsnorm"}, 1, 1, 1),
    "post, pre": (sequential(placement_attn="post", placement_mlp="pre"), 0, 0, 1),
    "output, post": (sequential(placement_attn="output", placement_mlp="post"), 0, 0, 0),
    "scaled": (sequential(residual={"kind": "add", "scale": 0.5}), 1, 0, 0),
    "reference": ({}, 0, 0, 1),
}
EVERY_PAIR = [x for i, a in enumerate(LAYERS) for b in list(LAYERS)[i:] for x in dict.fromkeys((a, b))] + ["pre"]


def layered(order, kernel, **more):
    """(model whose norms run by `kernel`, how many of them take a sum)."""
    layers = [LAYERS[name][0] for name in order]
    model = made("layernorm, gelu", kernel, ("norm",), n_layer=len(layers), layers=layers, **more)
    for name, block in zip(order, model.transformer.h, strict=True):
        for module in block.modules():
            if name == "reference" and isinstance(module, Norm):
                module.kernel = "reference"
    first, middle, last = zip(*(LAYERS[name][1:] for name in order), strict=True)
    return model, sum(middle) + sum(a * b for a, b in zip(last, [*first[1:], 1], strict=True))


def sums_done_at_once(model):
    """Blocks that leave the sum at their end to nobody."""
    for block in model.transformer.h:
        block.forward = lambda *args, apart, _forward=block.forward: _forward(*args)
    return model


def alter_parts(monkeypatch, fault):
    """A fault in what blocks hand on."""
    join = Block.join

    def wrong(*args):
        x = join(*args)
        return fault(*x) if isinstance(x, tuple) else x

    monkeypatch.setattr(Block, "join", wrong)


@pytest.fixture
def launched(monkeypatch):
    """Of every launch of the norms' forward kernel: does it take a sum?"""
    found, kernel = [], norms.kernels.forward

    class Spy:
        def __getitem__(self, grid):
            return lambda x, y, *args, **named: (found.append(y is not None), kernel[grid](x, y, *args, **named))

    monkeypatch.setattr(norms.kernels, "forward", Spy())
    return found


def same(got, want, layers=1):
    """As `close`; roundings of layers add up like a random walk."""
    for name, x in want.items():
        assert (got[name] - x).abs().max() <= 1e-5 * layers**0.5 * max(x.abs().max(), 1e-6), name


@pytest.mark.parametrize("kind, sums", [("sequential", 4), ("parallel", 2)])
def test_norms_take_every_sum_of_a_model(kind, sums, launched):
    """All of a model by kernels: only the very first norm finds no sum before it."""
    shape = {"n_layer": 2, "block": kind}
    want = gradients(made("layernorm, gelu", "reference", **shape))[1]
    same(gradients(made("layernorm, gelu", "triton", PARTS, **shape))[1], want)
    assert launched == [False] + [True] * sums


def test_layers_in_any_order(launched):
    """Every kind of layer behind every other, and dropout of the branches."""
    outcomes = []
    for kernel in ("reference", "triton"):
        model, sums = layered(EVERY_PAIR, kernel, dropout=0.2)
        torch.manual_seed(3)
        outcomes.append(gradients(model)[1])
        assert all(block.mlp.auxiliary is None for block in model.transformer.h)
    same(outcomes[1], outcomes[0], len(EVERY_PAIR))
    assert sum(launched) == sums


def test_layers_that_share_their_parts(launched):
    shape = {"n_layer": 4, "share": {"attention": 2, "mlp": 4}}
    want = gradients(made("layernorm, gelu", "reference", **shape))[1]
    same(gradients(made("layernorm, gelu", "triton", ("norm",), **shape))[1], want)
    assert sum(launched) == 8


def test_cached_decode(launched):
    x, order = tokens(12), list(LAYERS)
    want = layered(order, "reference")[0].eval()(x)[0]
    model, sums = layered(order, "triton")
    cache = model.eval().new_cache(1)
    with torch.inference_mode():
        parts = [model(piece, cache=cache)[0] for piece in (x[:, :9], x[:, 9:10], x[:, 10:12])]
    close(torch.cat(parts, 1), want, "logits")
    assert sum(launched) == 3 * sums


def kept(model):
    """(storages that a forward pass keeps for the backward pass, their bytes)."""
    found = {}

    def pack(x):
        found[x.untyped_storage().data_ptr()] = x.untyped_storage()
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        model(tokens(), tokens(seed=2))
    return len(found), sum(storage.nbytes() for storage in found.values())


def test_no_more_is_kept_for_the_backward_pass(monkeypatch):
    at_once = kept(sums_done_at_once(layered(LAYERS, "triton")[0]))
    assert kept(layered(LAYERS, "triton")[0]) == at_once
    alter_parts(monkeypatch, lambda x, y: (x, y * y))  # which keeps the branch
    assert kept(layered(LAYERS, "triton")[0]) > at_once


class Moved(TorchDispatchMode):
    """Bytes of tensors of `numbers` that `operators` read and write."""

    def __init__(self, numbers, *operators):
        super().__init__()
        self.numbers, self.operators, self.total = numbers, operators, 0

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        out = operator(*args, **(kwargs or {}))
        if operator.overloadpacket in self.operators:
            tensors = (t for t in tree_leaves((args, kwargs, out)) if isinstance(t, torch.Tensor))
            self.total += sum(t.nbytes for t in tensors if t.numel() == self.numbers)
        return out


def test_the_page_on_a_step_counts_what_norms_and_sums_move(monkeypatch):
    """Rows alone, without statistics and parameters; with a branch of 16 bits."""
    monkeypatch.setattr(step_page, "norm_work", lambda op, norm: Work(0, floor_bytes(op, norm), 0))
    point = step_page.Model("small", B=1, T=24, L=2, C=32, H=2, F=128, V=31)
    moved = []
    for model in (layered(["pre"] * 2, "triton")[0], sums_done_at_once(layered(["pre"] * 2, "triton")[0])):
        ops = torch.ops.gptkernels
        with Moved(24 * 32, ops.norm_forward) as forward, torch.autocast("cpu", torch.float16):
            loss = model(tokens(), tokens(seed=2))[1]
        with Moved(24 * 32, ops.norm_backward, torch.ops.aten.add) as backward:
            loss.backward()
        moved.append(forward.total + backward.total)
    assert step_page.norms(point).after[1].bytes == moved[0] != moved[1]


def test_norms_run_where_fsdp_gathers_their_parameters():
    """In a world of one; outside of its block a norm has shards."""
    from torch.distributed.fsdp import fully_shard

    order = ["pre", "parallel", "pre", "parallel"]
    want = gradients(layered(order, "triton")[0])[1]
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        model, mesh = layered(order, "triton")[0], dist.init_device_mesh("cpu", (1,))
        for block in model.transformer.h:
            fully_shard(block, mesh=mesh)
        fully_shard(model, mesh=mesh)
        with pytest.raises(RuntimeError, match="DTensor"):
            model.transformer.h[1].ln_1(torch.randn(2, 32))
        got = gradients(model)[1]
        assert all(torch.equal(got[name] if name == "loss" else got[name].full_tensor(), x) for name, x in want.items())
    finally:
        dist.destroy_process_group()


@pytest.mark.parametrize("fault", [lambda x, y: (x, 0 * y), lambda x, y: (x + y, y), lambda x, y: (x, y + y)])
def test_a_branch_lost_or_added_twice_is_seen(fault, monkeypatch):
    order = ["pre", "parallel"]
    want = gradients(layered(order, "reference")[0])[1]
    alter_parts(monkeypatch, fault)
    with pytest.raises(AssertionError, match="loss"):
        same(gradients(layered(order, "triton")[0])[1], want)


def test_sums_done_too_early_are_seen(launched):
    model, sums = layered(["pre", "pre"], "triton")
    gradients(sums_done_at_once(model))
    assert sum(launched) == 2 and sums == 4


@pytest.mark.slow
def test_one_graph(launched):
    """torch.compile sees one graph, in which blocks hand on what they would without it."""
    model, sums = layered(["pre", "parallel", "post, pre", "peri, balanced", "scaled"], "triton")
    want = gradients(model)[1]
    model.zero_grad()
    launched.clear()
    got = gradients(torch.compile(model, fullgraph=True, backend="aot_eager"))[1]
    same({name.removeprefix("_orig_mod."): x for name, x in got.items()}, want)
    assert sum(launched) == sums
