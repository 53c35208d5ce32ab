"""gptcore inspect: every run, also the broken ones."""

import csv
import io
import json
import shutil
import subprocess
import sys

import pytest

from gptcore.analysis.runs import differing_settings, find_runs
from gptcore.checkpoint import config_of, write_json
from gptcore.cli import main
from gptcore.config import flatten
from gptcore.loader import from_dict
from gptcore.train import train
from gptcore.yamlfile import dump


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
        assert int(by_name[name]["tokens"]) == described["tokens"] == 4 * 12 * 8
    assert int(by_name["b"]["parameters"]) == int(by_name["a"]["parameters"]) + 4  # beta and gamma of two heads


def test_the_view_may_be_named(runs, capsys):
    assert table(capsys, "ckpts", runs) == table(capsys, runs) == table(capsys, "--sort", "loss", runs)
    (runs / "softmax").mkdir()
    shutil.copytree(runs / "deep" / "a", runs / "softmax" / "a")
    assert len(table(capsys, "ckpts", runs / "softmax")) == 1  # a folder that is called like a view


def test_watch_follows_the_runs(tmp_path, monkeypatch, capsys):
    """Says nothing where nothing has changed, reads again what has, and ends at Ctrl-C without a complaint."""
    looks = []

    def write(name, **content):
        (tmp_path / name).mkdir(exist_ok=True)
        write_json(tmp_path / name / "run.json", {"status": "finished", "tokens": 123_456, **content})

    def sleep(seconds):
        looks.append((seconds, capsys.readouterr().out))
        if len(looks) == 2:
            write("a", best_loss=1.25)
        if len(looks) == 4:
            write("b", best_loss=0.5)
        if len(looks) == 5:
            write("a", best_loss=0.125)
        if len(looks) == 6:
            raise KeyboardInterrupt

    monkeypatch.setattr("gptcore.commands.inspect.time.sleep", sleep)
    assert main(["inspect", str(tmp_path), "--watch", "0.5", "--csv", str(tmp_path / "table.csv")]) == 0
    assert [seconds for seconds, _ in looks] == [0.5] * 6
    first, second, third, fourth, fifth, sixth = (text for _, text in looks)
    assert "no runs below" in first and second == "" and "1.2500" in third and fourth == ""
    assert "123.5 k" in third and "0.5000" in fifth and "0.1250" in sixth and "1.2500" not in sixth
    with open(tmp_path / "table.csv", newline="") as file:
        assert [r["best_loss"] for r in csv.DictReader(file)] == ["0.125", "0.5"]


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


def without_torch(folder) -> bool:
    """Whether a process of its own makes the table and never imports torch."""
    code = (
        "import sys; from gptcore.cli import main; code = main(['inspect', sys.argv[1]]); "
        "sys.exit(code or 3 * ('torch' in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(folder)], capture_output=True, text=True)
    assert done.returncode in (0, 3), done.stderr
    return done.returncode == 0


def settings_of(rows) -> dict:
    return {row.folder.name: row.settings for row in rows}


def resolved(*folders) -> dict:
    """By the definition: every knob that this version has."""
    return {
        f.name: {k: v for k, v in flatten(config_of(f)).items() if k not in ("train.out_dir", "train.init_from")}
        for f in folders
    }


def test_settings_need_no_torch(runs):
    a, b = runs / "deep" / "a", runs / "deep" / "b"
    assert without_torch(runs)
    assert settings_of(find_runs(runs / "deep")) == resolved(a, b)


@pytest.fixture
def written(tmp_path):
    """What two trainers would have left, but for weights."""
    for name, softmax in (("a", "softmax"), ("b", "consmax")):
        config = from_dict({"n_layer": 1, "softmax_variant_attn": softmax})
        (tmp_path / name).mkdir()
        write_json(tmp_path / name / "run.json", {"status": "finished"})
        (tmp_path / name / "config.yaml").write_text(f"# identity x\n{dump(config.model_dump(mode='json'))}")
    return tmp_path


CHANGES = ("a knob that is new", "a file by hand", "both")


@pytest.mark.parametrize("change", CHANGES)
def test_settings_of_other_versions_are_resolved(written, change):
    a, b = written / "a", written / "b"
    lines = (b / "config.yaml").read_text().splitlines(keepends=True)
    assert any("tie_embeddings" in line for line in lines)
    if change != CHANGES[1]:  # as a version wrote it that did not have the knob
        (b / "config.yaml").write_text("".join(line for line in lines if "tie_embeddings" not in line))
    if change != CHANGES[0]:
        (a / "config.yaml").write_text("n_layer: 1\n")
    found = find_runs(written)
    assert settings_of(found) == resolved(a, b)
    assert differing_settings(found)[0] == "model.attention.softmax.kind"
    assert not any("tie_embeddings" in name for name in differing_settings(found))


def test_seeded_fault_names_that_are_not_compared(written, monkeypatch):
    monkeypatch.setattr("gptcore.analysis.runs._agree", lambda rows: True)
    with pytest.raises(AssertionError):
        test_settings_of_other_versions_are_resolved(written, CHANGES[0])
