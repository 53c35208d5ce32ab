"""The token table from and to a .npy file, and rounding that grows while training."""

import numpy as np
import pytest
from test_train import rows, run, same_state, settings  # noqa: F401 (a fixture)

from gptcore import checkpoint
from gptcore import train as module
from gptcore.data import open_dataset
from gptcore.errors import UserError
from gptcore.optim import TABLE


@pytest.fixture
def table(settings, tmp_path):  # noqa: F811
    """A table that fits the model of `settings`, and its file."""
    vocab = open_dataset(settings["data"]["dataset"]).vocab_size
    values = np.random.default_rng(0).normal(size=(vocab, 16), scale=0.02)
    np.save(tmp_path / "table.npy", values)
    return values.astype(np.float32), str(tmp_path / "table.npy")


def of(folder, name: str = "last.pt") -> np.ndarray:
    return checkpoint.read(folder / name)["model"][TABLE].numpy()


def test_a_frozen_table_stays_as_imported(settings, table, tmp_path):  # noqa: F811
    values, path = table
    fixed = {"import_wte_npy": path, "import_wte_freeze": True, "lr_decay_iters": 20}
    whole = run(settings, **fixed, max_iters=20, out_dir=str(tmp_path / "whole")).folder
    assert np.array_equal(of(whole), values)
    saved = checkpoint.read(whole / "last.pt")
    assert TABLE not in saved["optimizer"]["state"] and "position.weight" in saved["optimizer"]["state"]
    parts = run(settings, **fixed, max_iters=10, out_dir=str(tmp_path / "parts")).folder
    np.save(path, values * 2)  # of no interest to a run that goes on
    run(settings, **fixed, max_iters=20, out_dir=str(parts), init_from="resume")
    assert rows(whole) == rows(parts) and same_state(whole, parts)
    with pytest.raises(UserError, match="import_wte_freeze cannot change within a run"):
        run(settings, max_iters=30, out_dir=str(parts), init_from="resume")


def test_an_imported_table_learns_on_and_is_exported(settings, table, tmp_path):  # noqa: F811
    values, path = table
    exported = tmp_path / "new" / "table.npy"
    start = run(settings, import_wte_npy=path, export_wte_npy=str(exported), max_iters=0, out_dir=str(tmp_path / "0"))
    assert np.array_equal(np.load(exported), values)
    end = run(settings, import_wte_npy=path, export_wte_npy=str(exported), out_dir=str(tmp_path / "30"))
    assert np.array_equal(np.load(exported), of(end.folder)) and not np.array_equal(of(end.folder), values)
    assert of(start.folder).shape == values.shape and np.load(exported).dtype == np.float32
    assert [p.name for p in exported.parent.iterdir()] == ["table.npy"]


@pytest.mark.parametrize(
    "content, expected",
    [
        (np.zeros((3, 16)), r"has shape \(3, 16\), the token table \(\d+, 16\)"),
        (np.zeros((3, 16), dtype=int), "floating-point"),
        (np.array([{"a": 1}], dtype=object), "cannot be read as a .npy file .*pickle"),
        (b"not an array", "cannot be read as a .npy file"),
        (b"", "cannot be read as a .npy file"),
        (None, "cannot be read as a .npy file .*No such file"),
        ("nan", "not finite"),
    ],
)
def test_tables_that_do_not_fit(content, expected, settings, table, tmp_path):  # noqa: F811
    path = tmp_path / "bad.npy"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        np.save(path, table[0] * np.nan if isinstance(content, str) else content, allow_pickle=True)
    with pytest.raises(UserError, match=f"train.import_wte_npy: .*{expected}"):
        run(settings, import_wte_npy=str(path))


def test_an_export_that_cannot_be_written_is_found_at_once(settings, tmp_path):  # noqa: F811
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file" / "table.npy", tmp_path):
        with pytest.raises(UserError, match="train.export_wte_npy"):
            run(settings, export_wte_npy=str(path))


GROWING = {"quant_scheduler": "linear", "start_quant_level": 0.5, "full_quant_iteration": 20}


def rounding(settings) -> dict:  # noqa: F811
    return {**settings, "model": {**settings["model"], "embedding": {"bits": 3}}}


def test_rounding_grows_and_is_full_in_every_evaluation(settings, monkeypatch):  # noqa: F811
    levels: list[tuple[bool, float]] = []
    forward = module.GPT.forward

    def spy(self, *args, **kwargs):
        level = self.transformer.wte.round.strength.item()
        if not levels or levels[-1] != (self.training, level):
            levels.append((self.training, level))
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(module.GPT, "forward", spy)
    run(rounding(settings), **GROWING)
    growing = [level for training, level in levels if training]
    assert growing == pytest.approx([0.5 + 0.5 * step / 20 for step in range(21)])
    assert {level for training, level in levels if not training} == {1.0}


def test_growing_rounding_continues_exactly(settings, tmp_path):  # noqa: F811
    fixed = {**GROWING, "lr_decay_iters": 20}
    whole = run(rounding(settings), **fixed, max_iters=20, out_dir=str(tmp_path / "whole")).folder
    parts = run(rounding(settings), **fixed, max_iters=10, out_dir=str(tmp_path / "parts")).folder
    run(rounding(settings), **fixed, max_iters=20, out_dir=str(parts), init_from="resume")
    assert rows(whole) == rows(parts) and same_state(whole, parts)
    static = run(rounding(settings), max_iters=20, lr_decay_iters=20, out_dir=str(tmp_path / "static")).folder
    assert rows(static)[0]["val_loss"] == rows(whole)[0]["val_loss"] and not same_state(static, whole)


def test_nothing_to_round(settings):  # noqa: F811
    with pytest.raises(UserError, match="quant_scheduler linear: nothing in this model rounds"):
        run(settings, **GROWING)
