"""constants.csv: learned constants of attention by step, whatever happens to the process, and who reads them."""

import csv
import math
import os
import signal
import subprocess
import sys
import time

import pytest

from gptcore import checkpoint, constants
from gptcore.analysis.weighting import drift, trajectories
from gptcore.cli import main
from gptcore.constants import FILE, read_constants
from gptcore.loader import from_dict
from gptcore.train import train
from gptcore.yamlfile import dump

CONSMAX = {"kind": "consmax", "initial_beta": 1.0, "initial_gamma": 10.0}


@pytest.fixture
def settings(corpus, tmp_path):
    return {
        "model": {"n_layer": 2, "n_embd": 8, "block_size": 8, "attention": {"n_head": 2, "softmax": CONSMAX}},
        "data": {"dataset": corpus},
        "train": {
            "out_dir": str(tmp_path / "run"), "batch_size": 2, "max_iters": 30, "eval_interval": 10, "eval_iters": 2,
            "warmup_iters": 4, "learning_rate": 0.05, "device": "cpu",
        },
    }  # fmt: skip


def run(settings, **changes):
    return train(from_dict({**settings, "train": {**settings["train"], **changes}}), quiet=True).folder


def content(folder) -> bytes:
    return (folder / FILE).read_bytes()


def test_a_row_a_head_at_every_evaluation(settings):
    folder = run(settings)
    with open(folder / FILE, newline="") as file:
        table = list(csv.DictReader(file))
    keys = [(int(r["step"]), int(r["layer"]), int(r["head"]), r["name"]) for r in table]
    expected = {(s, i, h, n) for s in (0, 10, 20, 30) for i in (0, 1) for h in (0, 1) for n in ("beta", "gamma")}
    assert len(keys) == len(set(keys)) and set(keys) == expected
    values = dict(zip(keys, (float(r["value"]) for r in table), strict=True))
    assert {values[0, i, h, "beta"] for i in (0, 1) for h in (0, 1)} == {1.0}
    for name, step in (("last.pt", 30), ("previous.pt", 20)):  # the very numbers that the checkpoints hold
        payload = checkpoint.read(folder / name)
        assert payload["step"] == step
        for layer in (0, 1):
            for constant in ("beta", "gamma"):
                stored = payload["model"][f"transformer.h.{layer}.attn.softmax.{constant}"].double().tolist()
                assert [values[step, layer, head, constant] for head in (0, 1)] == stored
    assert len({values[s, 0, 0, "beta"] for s in (0, 10, 20, 30)}) == 4  # it does learn


def test_no_file_without_constants(settings):
    (folder := run({**settings, "model": {**settings["model"], "attention": {"n_head": 2}}}))
    assert (folder / "metrics.csv").exists() and not (folder / FILE).exists()


def test_another_run_leaves_nothing_behind(settings, tmp_path):
    """Its checkpoints were taken away, its tables were not."""
    folder = run(settings)
    whole = content(folder)
    for path in folder.glob("*.pt"):
        path.unlink()
    assert content(run(settings)) == whole
    for path in folder.glob("*.pt"):
        path.unlink()
    plain = run({**settings, "model": {**settings["model"], "attention": {"n_head": 2}}})
    assert plain == folder and not (folder / FILE).exists()


def resumed(settings, tmp_path) -> tuple[bytes, bytes]:
    """The file of a run that went through, and that of one that died after evaluating and before its checkpoint."""
    whole = content(run(settings, out_dir=str(tmp_path / "whole")))
    folder = run(settings, out_dir=str(tmp_path / "killed"), pause_at=25)
    with open(folder / FILE, "ab") as file:  # as far as step 30 got: one row, and half of the next
        file.write(b"30,0,0,beta,7.0\n30,0,1,beta,7.")
    run(settings, out_dir=str(tmp_path / "killed"))
    return whole, content(folder)


def test_a_resumed_run_has_the_same_file(settings, tmp_path):
    whole, again = resumed(settings, tmp_path)
    assert whole == again


def test_seeded_fault_rows_that_are_not_dropped(settings, tmp_path, monkeypatch):
    monkeypatch.setattr(constants.StepTable, "_drop_after", lambda self, step: None)
    whole, again = resumed(settings, tmp_path)
    assert whole != again


def test_kill_9_of_a_real_process(settings, tmp_path):
    long = {"max_iters": 240, "eval_interval": 20, "lr_decay_iters": 240}
    whole = content(run(settings, **long, out_dir=str(tmp_path / "whole")))
    folder = tmp_path / "killed"
    config = {**settings, "train": {**settings["train"], **long, "out_dir": str(folder)}}
    (tmp_path / "run.yaml").write_text(dump(config))
    process = subprocess.Popen(
        [sys.executable, "-m", "gptcore", "train", str(tmp_path / "run.yaml")], stderr=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    end = time.monotonic() + 60
    while not [c for c in read_constants(folder) if c.step >= 60]:
        assert process.poll() is None and time.monotonic() < end
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert checkpoint.read_newest(folder).payload["step"] < 240
    assert whole.startswith(content(folder).rpartition(b"\n")[0])
    run(settings, **long, out_dir=str(folder))
    assert content(folder) == whole


def test_half_lines_and_damage_are_passed_over(tmp_path):
    assert read_constants(tmp_path) == []
    rows = (b"step,layer,head,name,value", b"0,0,0,beta,1.5", b"0,0,1", b"10,0,0,beta,x", b"10,0,0,beta,2.5", b"1")
    (tmp_path / FILE).write_bytes(b"\n".join(rows))
    assert [(c.step, c.value) for c in read_constants(tmp_path)] == [(0, 1.5), (10, 2.5)]
    (tmp_path / FILE).write_bytes(b"\xff\xfe\x00")
    assert read_constants(tmp_path) == []


def of(folder, settings):
    config = from_dict(settings)
    model = checkpoint.load_model(folder, "last.pt").config
    return trajectories(folder, config, model)


def test_what_inspect_shows_is_what_was_logged(settings, tmp_path, capsys):
    folder = run(settings)
    for path in (folder / "previous.pt", folder / "best.pt"):
        path.unlink()
    found, notes = of(folder, settings)
    assert sorted({c.step for c in found}) == [0, 10, 20, 30] and not notes  # more than the one checkpoint that is left
    assert main(["inspect", "softmax", str(folder), "--to", str(tmp_path / "to"), "--device=cpu", "--tokens=8"]) == 0
    assert "steps 0, 10, 20, 30" in capsys.readouterr().out
    assert (tmp_path / "to" / "softmax_constants.csv").read_bytes() == content(folder)


def test_runs_of_earlier_versions_show_their_checkpoints(settings):
    """Also where a later version went on: what it logged, and before that the checkpoints."""
    folder = run(settings)
    logged, _ = of(folder, settings)
    lines = content(folder).splitlines(keepends=True)
    late = [line for line in lines[1:] if int(line.split(b",")[0]) == 30]
    (folder / "best.pt").unlink()
    (folder / FILE).write_bytes(lines[0] + b"".join(late))
    both, _ = of(folder, settings)
    assert both == [c for c in logged if c.step in (0, 20, 30)]
    (folder / FILE).unlink()
    (folder / "copy.pt").write_bytes(b"no checkpoint")
    found, notes = of(folder, settings)
    assert found == both and len(notes) == 1 and "copy.pt" in notes[0]
    assert all(math.isfinite(row[2]) for row in drift(found))
