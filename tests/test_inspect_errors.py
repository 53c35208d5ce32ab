"""gptcore inspect where something is missing, damaged, foreign or closed: one clear line, the right exit code."""

import os
import shutil
import subprocess
import sys

import pytest
import torch

from gptcore.cli import main
from gptcore.loader import from_dict
from gptcore.train import train

VIEWS = ("activations", "weights", "softmax")


@pytest.fixture(scope="module")
def trained(corpus, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "run"
    train(
        from_dict({
            "model": {"n_layer": 1, "n_embd": 8, "block_size": 8, "attention": {"n_head": 2}},
            "data": {"dataset": corpus},
            "train": {
                "out_dir": str(folder), "max_iters": 2, "eval_interval": 1, "eval_iters": 1, "warmup_iters": 0,
                "device": "cpu",
            },
        }),
        quiet=True,
    )  # fmt: skip
    return folder


@pytest.fixture
def run(trained, tmp_path):
    """A copy to damage."""
    return shutil.copytree(trained, tmp_path / "run")


@pytest.fixture
def without_figures(monkeypatch):
    """They take most of the time of a view."""
    monkeypatch.setattr("gptcore.commands.inspect_views._drawn", lambda draw: [])


def fails(capsys, code: int, *arguments) -> str:
    """The one line of an error."""
    assert main(["inspect", *map(str, arguments)]) == code
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("gptcore inspect: ")]
    assert len(lines) == 1
    return lines[0]


@pytest.mark.parametrize("view", VIEWS)
def test_half_written_runs(view, run, tmp_path, capsys):
    assert "no folder" in fails(capsys, 2, view, tmp_path / "nowhere")
    for name in ("best.pt", "previous.pt"):
        (run / name).unlink(missing_ok=True)
    content = (run / "last.pt").read_bytes()
    (run / "last.pt").write_bytes(content[: len(content) // 2])
    assert "truncated or damaged" in fails(capsys, 1, view, run)
    (run / "last.pt").unlink()
    assert "no checkpoint" in fails(capsys, 1, view, run)
    assert not (run / "inspect").exists()


@pytest.mark.parametrize("view", VIEWS)
def test_checkpoints_of_another_version(view, run, capsys):
    payload = torch.load(run / "best.pt", weights_only=True)
    torch.save(payload | {"format": 99}, run / "best.pt")
    assert "has format 99, this version reads" in fails(capsys, 1, view, run)
    payload["model_config"]["attention"]["softmax"] = {"kind": "gone"}
    torch.save(payload, run / "best.pt")
    assert "does not fit this version" in fails(capsys, 1, view, run)


@pytest.mark.parametrize("view", VIEWS)
def test_what_else_can_be_missing(view, run, capsys):
    assert "no file gone.pt" in fails(capsys, 2, view, run, "--checkpoint", "gone.pt")
    assert "--tokens must be at least 1" in fails(capsys, 2, view, run, "--tokens", 0)
    assert "cannot read" in fails(capsys, 2, view, run, "--text", run / "gone.txt")
    (run / "config.yaml").unlink()
    assert "has no config.yaml" in fails(capsys, 1, view, run)


def test_a_data_set_that_is_gone(run, capsys, without_figures):
    text = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(text.replace("dataset: ", "dataset: /gone"))
    assert "cannot be opened" in fails(capsys, 1, "activations", run)
    assert main(["inspect", "weights", str(run), "--device", "cpu"]) == 0  # these need no tokens
    assert "no loss of the plan" in capsys.readouterr().out and (run / "inspect" / "weights_quant.yaml").exists()


def test_weights_that_are_not_finite(run, capsys):
    payload = torch.load(run / "best.pt", weights_only=True)
    payload["model"]["transformer.h.0.mlp.c_fc.weight"][0, 0] = float("nan")
    torch.save(payload, run / "best.pt")
    assert "c_fc.weight holds values that are not finite" in fails(capsys, 1, "weights", run)
    assert "not finite" in fails(capsys, 1, "activations", run)


def test_wrong_options(run, capsys):
    assert "'int8' is no format" in fails(capsys, 2, "activations", run, "--format", "q3.4,int8")
    assert "--sqnr must be a positive number" in fails(capsys, 2, "weights", run, "--sqnr", "-3")
    assert "--watch" in fails(capsys, 2, "ckpts", run, "--watch", "0")
    with pytest.raises(SystemExit, match="2"):
        main(["inspect", "activations"])


def test_attention_without_scores_has_no_softmax(run, corpus, tmp_path, capsys):
    folder = tmp_path / "linear"
    train(
        from_dict({
            "model": {"n_layer": 1, "n_embd": 8, "block_size": 8, "attention": {"kind": "linear", "n_head": 2}},
            "data": {"dataset": corpus},
            "train": {"out_dir": str(folder), "max_iters": 0, "eval_iters": 1, "device": "cpu"},
        }),
        quiet=True,
    )  # fmt: skip
    assert "no layer of this model weighs scores" in fails(capsys, 1, "softmax", folder)


@pytest.mark.parametrize("view", [*VIEWS, "compare"])
def test_a_folder_that_cannot_be_written(view, run, tmp_path, capsys):
    (tmp_path / "file").write_text("in the way")
    more = [run] if view == "compare" else []
    assert "cannot write into" in fails(capsys, 1, view, run, *more, "--to", tmp_path / "file" / "results")
    assert "name another folder by --to" in fails(capsys, 1, view, run, *more, "--to", tmp_path / "file")


def test_compare_needs_two_runs(run, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    assert "is not a run folder" in fails(capsys, 1, "compare", run, tmp_path / "empty")
    other = shutil.copytree(run, tmp_path / "other")
    (other / "run.json").write_text('{"status"')
    assert "run.json cannot be read" in fails(capsys, 1, "compare", run, other)
    (run / "config.yaml").unlink()
    assert "has no config.yaml" in fails(capsys, 1, "compare", run, run)


def test_a_curve_that_ends_in_half_a_line(run, capsys, without_figures):
    with open(run / "metrics.csv", "a") as file:
        file.write("3,12,1.")
    assert main(["inspect", "compare", str(run), str(run)]) == 0
    (run / "metrics.csv").unlink()
    assert main(["inspect", "compare", str(run), str(run)]) == 0
    assert "has no losses in metrics.csv" in capsys.readouterr().out


def test_a_closed_pipe_loses_nothing(run):
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "gptcore", "inspect", "compare", run, run]
    done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True)
    os.close(write)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert {path.suffix for path in (run / "inspect").iterdir()} == {".csv", ".json", ".png", ".pdf"}
