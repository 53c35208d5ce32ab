"""A model with random weights that writes something, and a run folder of it: what tests of sampling need."""

import torch

from gptcore.checkpoint import save, write_json
from gptcore.config import GPTConfig
from gptcore.model import GPT
from gptcore.tokenizer import CharTokenizer, Tokenizer

BLOCK = 12
CHARACTERS = "\n abcdefghijklmnopqrstuvwxyz"


def make_model(vocab_size: int = len(CHARACTERS), **changes) -> GPT:
    """A random model in float64, so that ties cannot hide or fake a difference, with weights large enough to babble."""
    values = {
        "n_layer": 2, "n_embd": 32, "block_size": BLOCK, "vocab_size": vocab_size, "tie_embeddings": False,
        "attention": {"n_head": 4},
    } | changes  # fmt: skip
    torch.manual_seed(3)
    model = GPT(GPTConfig.model_validate(values)).double().eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 2:
                parameter.normal_(std=1.0 if "wte" in name or "position" in name else 0.3)
    return model


def char_tokenizer() -> Tokenizer:
    return CharTokenizer.from_text([CHARACTERS])


def write_run(folder, *, status: str = "finished", step: int = 5) -> None:
    model = make_model().float()
    payload = {
        "model_config": model.config.model_dump(mode="json"), "model": model.state_dict(), "step": step,
        "tokenizer": char_tokenizer().meta(),
    }  # fmt: skip
    folder.mkdir(parents=True)
    save(folder, payload, best=True)
    write_json(folder / "run.json", {"status": status, "vocab_size": len(CHARACTERS)})
