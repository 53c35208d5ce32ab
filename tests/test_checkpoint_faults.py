"""Checkpoints that cannot be written or belong to another version: one line each, and nothing lost."""

import pytest
import torch

from gptcore import checkpoint
from gptcore.checkpoint import VersionError, load_model, read_newest, save
from gptcore.errors import CheckpointError
from gptcore.loader import from_dict
from gptcore.model import GPT


@pytest.fixture
def run(tmp_path):
    model = GPT(from_dict({"model": {"n_layer": 1, "n_embd": 8, "attention": {"n_head": 1}, "vocab_size": 5}}).model)
    payload = {"model_config": model.config.model_dump(mode="json"), "model": model.state_dict(), "tokenizer": None}
    for step in (1, 2):
        save(tmp_path, payload | {"step": step}, best=True)
    return tmp_path


def changed(path, **content):
    torch.save(torch.load(path, weights_only=True) | content, path)


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), RuntimeError("[enforce fail at inline ...")])
def test_a_full_disk_keeps_what_there_was(run, monkeypatch, error):
    def full(*arguments):
        raise error

    before = {path.name: path.read_bytes() for path in run.iterdir()}
    monkeypatch.setattr(checkpoint.torch, "save", full)
    with pytest.raises(CheckpointError, match=r"cannot write .*staged.pt: (No space|is the disk full\?).*same command"):
        save(run, {"step": 3}, best=True)
    assert {path.name: path.read_bytes() for path in run.iterdir()} == before


def test_another_version_is_refused_and_not_replaced_by_an_older_checkpoint(run):
    changed(run / "last.pt", format=99)
    with pytest.raises(VersionError, match="last.pt has format 99, this version reads 1; use the version"):
        read_newest(run)
    (run / "last.pt").write_bytes(b"PK damaged")
    assert read_newest(run).path.name == "previous.pt"  # what is damaged is


def test_a_damaged_best_checkpoint_names_another(run):
    (run / "best.pt").write_bytes(b"")
    with pytest.raises(CheckpointError, match="best.pt is truncated or damaged.*--checkpoint last.pt names another"):
        load_model(run)


def test_a_kind_of_another_version_is_named(run):
    config = torch.load(run / "best.pt", weights_only=True)["model_config"]
    changed(run / "best.pt", model_config=config | {"norm": {"kind": "rmsnorms"}})
    with pytest.raises(CheckpointError) as found:
        load_model(run)
    assert "(model.norm: no norm kind 'rmsnorms'; did you mean 'rmsnorm'?" in str(found.value)
    assert "validation error" not in str(found.value)
