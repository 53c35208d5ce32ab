"""A trainer on a small random corpus, shared by the benchmarks."""

import pytest
import torch

from gptcore.config import identity
from gptcore.data import open_dataset
from gptcore.distributed import World
from gptcore.loader import from_dict
from gptcore.prepare import prepare
from gptcore.runfolder import Start
from gptcore.train import Trainer

VOCAB = 65
MODEL = {"n_layer": 4, "n_embd": 128, "block_size": 64, "vocab_size": VOCAB, "attention": {"n_head": 4}}


@pytest.fixture
def make_trainer(tmp_path):
    """changes of MODEL -> Trainer at batch 12, fp32, one thread."""
    torch.set_num_threads(1)
    text = tmp_path / "text.txt"
    text.write_text("".join(chr(32 + i % VOCAB) for i in range(20_000)))
    prepare([text], tmp_path / "data", "char")
    dataset = open_dataset(tmp_path / "data")

    def make(name: str, changes: dict) -> Trainer:
        config = from_dict({"model": {**MODEL, **changes}, "train": {"device": "cpu", "batch_size": 12}})
        folder = tmp_path / f"run_{name}".replace(" ", "_")
        folder.mkdir()
        torch.manual_seed(0)
        return Trainer(Start(config), dataset, folder, identity(config), name, World(0, 1, torch.device("cpu")), True)

    return make
