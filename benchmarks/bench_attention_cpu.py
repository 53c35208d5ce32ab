"""CPU time of a training step by softmax kind, as ratios to softmax by torch's own fused attention.

Models taken in turns on one thread, fp32: forward, backward, fused AdamW. `quickstart` is the model of
explorations/quickstart.yaml; `gpt2` has GPT-2's head width, 2 layers of width 384 and a context of 512. The target for
ConSmax and its family is 1.05. "softmax again" shows what the machine makes of two equal models.
"""

import statistics
import time

import pytest
import torch

from gptcore.hostmemory import keep_freed_memory
from gptcore.loader import from_dict
from gptcore.model import GPT

# batch, heads, rounds, model
SHAPES = {
    "quickstart": (12, 4, 60, {
        "n_layer": 4, "n_embd": 128, "block_size": 64, "mlp": "swiglu", "norm": "rmsnorm", "position": "rotary",
    }),
    "gpt2": (2, 6, 12, {"n_layer": 2, "n_embd": 384, "block_size": 512}),
}  # fmt: skip
KINDS = {
    "softmax": {}, "softmax again": {}, "softmax, lobo": {"lobo": "learned"}, "softermax": {"kind": "softermax"},
    **{kind: {"kind": kind} for kind in (
        "consmax", "consmax_v2", "saturatingconsmax", "sigmoidmax", "relumax", "relu2max", "polymax", "softplus",
    )},
}  # fmt: skip
VOCAB, WARMUP = 65, 4


def step_of(name: str, heads: int, model: dict):
    torch.manual_seed(0)
    attention = {"n_head": heads, "softmax": {"kind": "softmax", **KINDS[name]}}
    gpt = GPT(from_dict({"model": {**model, "vocab_size": VOCAB, "attention": attention}}).model)
    optimizer = torch.optim.AdamW(gpt.parameters(), lr=1e-3, fused=True)

    def step(x, y):
        gpt(x, y)[1].backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


@pytest.mark.parametrize("shape", SHAPES)
def test_step_by_softmax_kind(benchmark, shape):
    torch.set_num_threads(1)
    keep_freed_memory()
    batch, heads, rounds, model = SHAPES[shape]
    steps = {name: step_of(name, heads, model) for name in KINDS}
    generator = torch.Generator().manual_seed(0)
    seconds: dict[str, list[float]] = {name: [] for name in steps}

    def one_round():
        x, y = torch.randint(VOCAB, (2, batch, model["block_size"]), generator=generator)
        for name, step in steps.items():
            began = time.process_time()
            step(x, y)
            seconds[name].append(time.process_time() - began)

    benchmark.pedantic(one_round, rounds=rounds, warmup_rounds=WARMUP)
    print(f"\n{shape:22}{'median ms':>10}{'median ratio':>14}{'ratio of minima':>17}")
    base = seconds["softmax"][WARMUP:]
    for name, values in seconds.items():
        values = values[WARMUP:]
        ratio = statistics.median(a / b for a, b in zip(values, base, strict=True))
        least = min(values) / min(base)
        benchmark.extra_info[name] = {"ratio": round(ratio, 3), "of_minima": round(least, 3)}
        print(f"{name:22}{statistics.median(values) * 1e3:10.1f}{ratio:14.3f}{least:17.3f}")
