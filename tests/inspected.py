"""Small runs for the tests of `gptcore inspect`, and what plain hooks of torch see in them."""

import csv
import math
from pathlib import Path

import torch

from gptcore.analysis.measure import Source, open_source
from gptcore.checkpoint import LoadedModel
from gptcore.loader import from_dict
from gptcore.model import GPT
from gptcore.train import train

C, T, H = 16, 16, 2


def make(corpus: str, folder: Path, softmax: str | dict) -> Path:
    """A trained run."""
    train(
        from_dict({
            "model": {"n_layer": 2, "n_embd": C, "block_size": T, "attention": {"n_head": H, "softmax": softmax}},
            "data": {"dataset": corpus},
            "train": {
                "out_dir": str(folder), "max_iters": 40, "eval_interval": 20, "eval_iters": 2, "batch_size": 4,
                "learning_rate": 1e-2, "warmup_iters": 5, "device": "cpu",
            },
        }),
        quiet=True,
    )  # fmt: skip
    return folder


def rows(path: Path) -> list[dict]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def opened(run) -> Source:
    return open_source(run, checkpoint=None, dataset=None, text=None, tokens=3 * 4 * T, device="cpu")


def seen_by_torch(source: Source) -> dict[str, torch.Tensor]:
    """Everything that plain hooks of linear layers and a little arithmetic tell."""
    model, kept = source.loaded.model, {}

    def keep(name, x):
        kept.setdefault(name, []).append(x.detach())

    handles = []
    for i, block in enumerate(model.transformer.h):
        for name, module, side in (
            ("attn.input", block.attn.c_attn, 0), ("qkv", block.attn.c_attn, 1), ("attn.heads", block.attn.c_proj, 0),
            ("attn.output", block.attn.c_proj, 1), ("mlp.input", block.mlp.c_fc, 0),
            ("mlp.activation_input", block.mlp.c_fc, 1), ("mlp.activation_output", block.mlp.c_proj, 0),
            ("mlp.output", block.mlp.c_proj, 1), ("stream", block, 1),
        ):  # fmt: skip
            take = lambda _, x, y, n=f"h.{i}.{name}", s=side: keep(n, y if s else x[0])  # noqa: E731
            handles.append(module.register_forward_hook(take))
    handles.append(model.lm_head.register_forward_hook(lambda _, x, y: keep("logits", y)))
    with torch.no_grad():
        for x, _ in source.batches:
            model(x)
    for handle in handles:
        handle.remove()
    found = {name: torch.cat(pieces) for name, pieces in kept.items()}
    for i in range(2):
        qkv = found.pop(f"h.{i}.qkv").view(-1, T, 3, H, C // H).permute(2, 0, 3, 1, 4)
        scores = qkv[0] @ qkv[1].mT / math.sqrt(C // H)
        live = torch.ones(T, T, dtype=torch.bool).tril().expand_as(scores)
        found |= {f"h.{i}.attn.{name}": x for name, x in zip("qkv", qkv, strict=True)}
        found[f"h.{i}.attn.scores"] = scores[live]
        found[f"h.{i}.attn.weights"] = scores.masked_fill(~live, -math.inf).softmax(-1)[live]
    return found


def fresh(**model) -> Source:
    """A source that was not trained, with random tokens."""
    config = from_dict({"model": {"n_layer": 2, "n_embd": C, "block_size": T, "vocab_size": 20} | model})
    torch.manual_seed(1)
    x = torch.randint(20, (2, T))
    loaded = LoadedModel(GPT(config.model).eval(), config.model, None, 0, Path("last.pt"))
    return Source(Path("."), loaded, config, [(x, x)], {})
