"""The trainer against the yardstick: same weights and batches, twenty steps, the same losses.

The yardstick (benchmarks/yardstick.py) is a plain GPT in the manner of nanoGPT that shares no code with ours.
"""

import importlib.util
from pathlib import Path

import pytest
import torch

from gptcore.config import identity
from gptcore.data import find_dataset, open_dataset, train_batch
from gptcore.distributed import World
from gptcore.loader import from_dict
from gptcore.runfolder import Start
from gptcore.train import Trainer

STEPS = 20
NAMES = {
    "wte": "transformer.wte", "wpe": "position", "ln_f": "transformer.ln_f", "head": "lm_head",
    "qkv": "attn.c_attn", "proj": "attn.c_proj", "up": "mlp.c_fc", "down": "mlp.c_proj", "blocks": "transformer.h",
}  # fmt: skip


def yardstick():
    path = Path(__file__).parent.parent / "benchmarks" / "yardstick.py"
    spec = importlib.util.spec_from_file_location("yardstick", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def our_name(theirs: str) -> str:
    return ".".join(NAMES.get(part, part) for part in theirs.split("."))


@pytest.mark.parametrize("fault", [None, "weight decay on everything", "no clipping", "beta2"])
def test_same_losses_as_a_plain_gpt(fault, corpus, tmp_path, monkeypatch):
    dataset = open_dataset(find_dataset(corpus))
    config = from_dict({
        "model": {"n_layer": 2, "n_embd": 32, "block_size": 16, "attention": {"n_head": 4}},
        "data": {"dataset": corpus}, "train": {"device": "cpu", "batch_size": 8, "learning_rate": 1e-3},
    }).with_vocab(dataset.vocab_size)  # fmt: skip
    run = Trainer(Start(config), dataset, tmp_path, identity(config), "x", World(0, 1, torch.device("cpu")), True)
    module = yardstick()
    plain = module.PlainGPT(dataset.vocab_size, 16, layers=2, heads=4, width=32)
    ours = run.model.state_dict()
    with torch.no_grad():
        for p in ours.values():
            p.mul_(3.0)  # away from the near-linear start, and into gradients that are clipped
    plain.load_state_dict({name: ours[our_name(name)].clone() for name in plain.state_dict()})
    step = module.PlainStep(plain, fused=False)
    if fault == "weight decay on everything":
        step.optimizer.param_groups[1]["weight_decay"] = 0.1
    if fault == "beta2":
        for group in step.optimizer.param_groups:
            group["betas"] = (0.9, 0.95)
    worst = 0.0
    for n in range(STEPS):
        x, y = train_batch(dataset.train, seed=5, step=n, sequences=8, block_size=16)
        with torch.no_grad():
            theirs = plain(x, y).item()
        step(x, y)
        with monkeypatch.context() as m:
            if fault == "no clipping":
                m.setattr(torch.nn.utils, "clip_grad_norm_", lambda parameters, limit: torch.zeros(()))
            loss, _ = run._update(x, y, 1e-3)
        worst = max(worst, abs(loss.item() - theirs))
    # AdamW divides by the root of the second moment, which turns a rounding of a near-zero gradient into a step of
    # up to the learning rate. Measured 5e-7 in 20 steps; the smallest of the wrong rules moves the loss by 3e-4.
    assert (worst < 1e-5) == (fault is None), worst
