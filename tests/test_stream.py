"""The residual stream from block to block in plain torch: every sum where it belongs, to the last bit.

That kernels of norms take sums over is in interpreted_stream.py, which test_kernel_choice.py runs.
"""

import torch

from gptcore.loader import from_dict
from gptcore.losses import cross_entropy
from gptcore.model import GPT


def sequential(**knobs):
    return {"block": {"kind": "sequential", **knobs}}


def pre(b, x, a, m):
    y = x + a(b.ln_1(x))
    return y + m(b.ln_2(y))


def peri(b, x, a, m):
    y = x + b.ln_1_out(a(b.ln_1(x)))
    return y + b.ln_2_out(m(b.ln_2(y)))


def output_post(b, x, a, m):
    y = x + b.ln_1(a(x))
    return b.ln_2(y + m(y))


def scaled(b, x, a, m):
    y = x + 0.5 * a(b.ln_1(x))
    return y + 0.5 * m(b.ln_2(y))


LAYERS = [
    ({}, pre),
    ({"block": "parallel"}, lambda b, x, a, m: x + (a(n := b.ln_1(x)) + m(n))),
    ({"block": {"kind": "parallel", "norms": "two"}}, lambda b, x, a, m: x + (a(b.ln_1(x)) + m(b.ln_2(x)))),
    (sequential(placement="peri"), peri),
    (sequential(placement_attn="output", placement_mlp="post"), output_post),
    (sequential(residual={"kind": "add", "scale": 0.5}), scaled),
    ({"norm": "rmsnorm"}, pre),
]


def outcome(model, run):
    """Loss and gradients, the loss in the graph of `run`."""
    x, y = torch.randint(31, (2, 2, 24), generator=torch.Generator().manual_seed(0))
    loss = run(x, y)
    return [loss.detach(), *torch.autograd.grad(loss, list(model.parameters()))]


def outside(model, formulas, streams):
    """The model with its blocks taken apart."""

    def run(idx, targets):
        x = model.position.embed(model.transformer.wte(idx), 0)
        for i, (block, formula) in enumerate(zip(model.transformer.h, formulas, strict=True)):
            x = formula(block, x, lambda t, b=block, p=model.position.at(i): b.attn(t, p, 0), block.mlp)
            streams.append(x)
        return cross_entropy(model.lm_head(model.transformer.ln_f(x)), targets, idx)

    return run


def test_without_kernels_blocks_hand_on_the_stream():
    torch.manual_seed(0)
    layers, formulas = zip(*LAYERS, strict=True)
    shape = {"n_layer": len(layers), "n_embd": 32, "block_size": 24, "vocab_size": 31, "attention": {"n_head": 2}}
    model, seen, streams = GPT(from_dict({"model": {**shape, "layers": list(layers)}}).model), [], []
    for block in model.transformer.h:
        block.register_forward_hook(lambda module, args, out: seen.append(out))
    got = outcome(model, lambda idx, targets: model(idx, targets)[1])
    want = outcome(model, outside(model, formulas, streams))
    assert all(torch.equal(a, b) for a, b in zip(seen, streams, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))
    # Another order of the same sums is another result.
    other = [formulas[0], lambda b, x, a, m: x + a(n := b.ln_1(x)) + m(n), *formulas[2:]]
    assert not torch.equal(got[0], outcome(model, outside(model, other, []))[0])
