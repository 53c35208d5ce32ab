"""gptcore inspect: every run, also the broken ones."""

import csv
import io
import json

import pytest

from gptcore.checkpoint import write_json
from gptcore.cli import main
from gptcore.loader import from_dict
from gptcore.train import train


@pytest.fixture
def runs(corpus, tmp_path):
    """Two finished runs, one that was killed, and one without a readable description."""
    for name, softmax in (("a", "softmax"), ("b", "consmax")):
        train(
            from_dict({
                "model": {"n_layer": 1, "n_embd": 8, "block_size": 8, "attention": {"n_head": 2, "softmax": softmax}},
                "data": {"dataset": corpus},
                "train": {"out_dir": f"{tmp_path}/deep/{name}", "max_iters": 4, "eval_interval": 2, "device": "cpu"},
            }),
            quiet=True,
        )  # fmt: skip
    killed = tmp_path / "killed"
    killed.mkdir()
    write_json(killed / "run.json", {"status": "running", "step": 3, "identity": "ab" * 32})
    half = tmp_path / "half"
    half.mkdir()
    (half / "run.json").write_text("{")
    return tmp_path


def table(capsys, *arguments) -> list[dict]:
    assert main(["inspect", *map(str, arguments), "--csv", "-"]) == 0
    return list(csv.DictReader(io.StringIO(capsys.readouterr().out)))


def test_every_run_is_listed(runs, capsys):
    rows = table(capsys, runs)
    assert {(r["folder"].rsplit("/", 1)[1], r["status"]) for r in rows} == {
        ("a", "finished"), ("b", "finished"), ("killed", "killed"), ("half", "unreadable"),
    }  # fmt: skip
    by_name = {r["folder"].rsplit("/", 1)[1]: r for r in rows}
    assert by_name["a"]["model.attention.softmax.kind"] == "softmax"
    assert by_name["b"]["model.attention.softmax.kind"] == "consmax"
    assert "model.n_layer" not in rows[0]  # the same everywhere
    for name in "ab":
        described = json.loads((runs / "deep" / name / "run.json").read_text())
        assert float(by_name[name]["best_loss"]) == described["best_loss"]
        assert by_name[name]["identity"] == described["identity"]
    assert int(by_name["b"]["parameters"]) == int(by_name["a"]["parameters"]) + 4  # beta and gamma of two heads


def test_sorting(runs, capsys):
    losses = [float(r["best_loss"]) for r in table(capsys, runs) if r["best_loss"]]
    assert losses == sorted(losses)
    sizes = [int(r["parameters"]) for r in table(capsys, runs, "--sort", "parameters") if r["parameters"]]
    assert sizes == sorted(sizes) and sizes[0] != sizes[1]


def test_terminal_table(runs, capsys):
    assert main(["inspect", str(runs)]) == 0
    shown = capsys.readouterr().out
    assert "softmax" in shown and "deep/a" in shown and "the same command resumes it" in shown


def test_junk_in_run_files(tmp_path, capsys):
    junk = ({"best_loss": "abc"}, {"step": "x"}, {"identity": 3}, {"parameters": [1]})
    for i, content in enumerate(junk):
        (tmp_path / str(i)).mkdir()
        write_json(tmp_path / str(i) / "run.json", {"status": "finished", **content})
    assert {r["status"] for r in table(capsys, tmp_path)} == {"unreadable"}
    assert main(["inspect", str(tmp_path)]) == 0


def test_mistakes(tmp_path, capsys):
    assert main(["inspect", str(tmp_path / "nowhere")]) == 2
    assert main(["inspect", str(tmp_path)]) == 1
    assert "no runs below" in capsys.readouterr().err
