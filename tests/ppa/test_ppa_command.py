"""`gptcore ppa report` as a user calls it: exit codes, messages, files."""

import json

import pytest

import ppa.count
from gptcore.cli import build_parser, main
from gptcore.config import identity
from gptcore.loader import from_dict
from gptcore.model import declare
from gptcore.ops import Bits
from ppa.commands import parse_bits
from ppa.report import make_report

FLAGS = ["--n_layer=2", "--n_embd=32", "--block_size=16", "--n_head=4", "--vocab_size=29"]
MODEL = {
    "n_layer": 2, "n_embd": 32, "block_size": 16, "vocab_size": 29,
    "attention": {"kind": "causal", "n_head": 4, "n_kv_head": 2, "window": 5},
}  # fmt: skip


def config(**sections):
    return from_dict({"model": {**MODEL, **sections.pop("model", {})}, **sections})


def read(folder) -> dict:
    return json.loads((folder / "report.json").read_text())


def test_command(tmp_path, capsys):
    config_file = tmp_path / "mine.yaml"
    config_file.write_text("model: {n_layer: 2, n_embd: 32, block_size: 16, vocab_size: 29, attention: {n_head: 4}}\n")
    out = tmp_path / "out"
    options = ["--seq_len", "12", "--context=9", "--batch_size", "2", "--bits", "weight=4,kv=8", "-o", str(out)]
    assert main(["ppa", "report", str(config_file), *options, "--softmax_variant_attn=consmax", "--hardware_x=1"]) == 2
    assert main(["ppa", "report", str(config_file), *options, "--softmax_variant_attn=consmax"]) == 0
    assert f"written: {out}/  (report.json, report.html, report.md, ops.csv)" in capsys.readouterr().out
    found = read(out)
    assert found["name"] == "mine" and found["model"]["attention"]["softmax"]["kind"] == "consmax"
    assert found["point"]["bits"] == {"weight": 4, "activation": 16, "kv": 8}
    assert (found["point"]["batch"], found["point"]["seq_len"], found["point"]["context"]) == (2, 12, 9)


def test_default_folder_carries_name_and_identity(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["ppa", "report", *FLAGS]) == 0
    (folder,) = (tmp_path / "out" / "ppa").iterdir()
    assert folder.name == f"default-{read(folder)['config_hash'][:8]}"


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["compute", *FLAGS], "expected one of report"),
        (["report", "nowhere.yaml"], "no configuration file nowhere.yaml"),
        (["report", *FLAGS, "--seq_len=17"], "seq_len 17 exceeds model.block_size 16"),
        (["report", *FLAGS, "--context=17"], "context 17 exceeds model.block_size 16"),
        (["report", *FLAGS, "--batch_size=0"], "batch_size 0 must be at least 1"),
        (["report", *FLAGS, "--bits=0"], "--bits 0: expected a width of 1 to 64"),
        (["report", *FLAGS, "--bits=weights=4"], "weight=N, activation=N, kv=N"),
        (["report", *FLAGS, "--hardware=edge-x1"], "no hardware 'edge-x1'"),
        (["report", *FLAGS[:-1], "--dataset=no_such_set"], "model.vocab_size=50257"),
        (["report", *FLAGS, "--n_hed=2"], "n_head"),
    ],
)
def test_wrong_usage_is_exit_code_2(arguments, words, capsys, tmp_path):
    assert main(["ppa", *arguments, "-o", str(tmp_path / "out")]) == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_folder_that_cannot_be_written(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert main(["ppa", "report", *FLAGS, "-o", str(tmp_path / "file" / "out")]) == 2
    assert "choose another with -o" in capsys.readouterr().err


def test_vocabulary_comes_from_the_data_set(corpus, tmp_path, capsys):
    assert main(["ppa", "report", *FLAGS[:-1], f"--dataset={corpus}", "-o", str(tmp_path)]) == 0
    found = read(tmp_path)
    assert 10 < found["model"]["vocab_size"] < 30
    assert found["config_hash"] != identity(from_dict({"model": found["model"], "data": {"dataset": corpus}}))


def test_run_folder_is_a_configuration(tmp_path, capsys, corpus):
    own = config(model={"vocab_size": None}, data={"dataset": "gone"})
    folder = tmp_path / f"trained-{identity(own)[:8]}"
    folder.mkdir()
    (folder / "config.yaml").write_text(json.dumps(own.model_dump(mode="json")))
    (folder / "run.json").write_text(json.dumps({"status": "finished", "vocab_size": 31}))
    assert main(["ppa", "report", str(folder), "-o", str(tmp_path / "a")]) == 0
    found = read(tmp_path / "a")
    assert (found["name"], found["config_hash"]) == ("trained", identity(own))
    assert found["model"]["vocab_size"] == 31
    assert main(["ppa", "report", str(folder), f"--dataset={corpus}", "-o", str(tmp_path / "b")]) == 0
    assert read(tmp_path / "b")["model"]["vocab_size"] != 31  # another data set has another vocabulary
    (folder / "run.json").unlink()
    assert main(["ppa", "report", str(folder), "-o", str(tmp_path / "c")]) == 1
    assert "is not a run folder" in capsys.readouterr().err


def test_a_failed_check_is_exit_code_1_with_both_numbers(tmp_path, monkeypatch, capsys):
    def without_av(model, run, *rest):
        graph = declare(model, run, *rest)
        graph.ops = [op for op in graph.ops if not op.name.endswith(".av")]
        return graph

    monkeypatch.setattr(ppa.count, "declare", without_av)
    assert main(["ppa", "report", *FLAGS, "-o", str(tmp_path)]) == 1
    out, err = capsys.readouterr()
    assert "4 checks failed" in err and "prefill_matmul_flops" in err
    (check,) = [c for c in read(tmp_path)["checks"] if c["name"] == "prefill_matmul_flops"]
    assert check["measured"] - check["declared"] == 2 * 2 * 32 * 16 * 16  # FLOPs of av: layers, width, queries, keys
    assert f"{check['declared']:,}" in out and f"{check['measured']:,}" in out


def test_bits_that_are_not_named_stay_those_of_the_model():
    model = config(model={"bits": {"weight": 3, "activation": 5, "kv": 7}}).model
    assert parse_bits(None, model) is None
    assert parse_bits("8", model) == Bits(8, 8, 8)
    assert parse_bits("kv=4", model) == Bits(3, 5, 4)
    assert make_report(config(model={"bits": {"kv": 7}}))["point"]["bits"]["kv"] == 7


def test_options_are_frozen():
    """A renamed option breaks scripts: change this list only on purpose."""
    options = {option for action in build_parser("ppa")._actions for option in action.option_strings}
    assert options == {
        "-h", "--help", "--hardware", "--seq_len", "--context", "--batch_size", "--bits", "-o", "--output",
        "--baseline", "--sort", "--data", "--measured", "--liberty", "--ops", "--traces", "--jobs", "--out",
    }  # fmt: skip


def test_compare(tmp_path, capsys):
    """A configuration, another and a report, then the folder that holds the two configurations."""
    small = "model: {n_layer: 1, n_embd: 32, block_size: 16, vocab_size: 29, attention: {n_head: 4}}\n"
    folder, out = tmp_path / "configs", tmp_path / "out"
    folder.mkdir()
    (folder / "a.yaml").write_text(small)
    (folder / "b.yaml").write_text(small.replace("n_layer: 1", "n_layer: 2"))
    machine = ["--hardware", "edge-sky130"]
    assert main(["ppa", "report", str(folder / "a.yaml"), *machine, "-o", str(tmp_path / "report")]) == 0
    capsys.readouterr()
    report = str(tmp_path / "report" / "report.json")
    assert (
        main(["ppa", "compare", str(folder / "a.yaml"), str(folder / "b.yaml"), report, *machine, "-o", str(out)]) == 0
    )
    told = capsys.readouterr().out
    assert f"written: {out}/  (comparison.html, comparison.json)" in told
    content = json.loads((out / "comparison.json").read_text())
    params = [row["values"]["params"]["value"] for row in content["rows"]]
    assert len(params) == 3 and len(set(params)) == 2
    assert main(["ppa", "compare", str(folder), *machine, "--sort", "params", "-o", str(out)]) == 0
    assert main(["ppa", "compare", str(folder / "a.yaml"), "-o", str(out)]) == 2
    assert "two configurations or more" in capsys.readouterr().err
    (tmp_path / "report.json").write_text("{")
    assert main(["ppa", "compare", str(folder / "a.yaml"), str(tmp_path / "report.json"), "-o", str(out)]) == 2
    assert "cannot be read as a report" in capsys.readouterr().err
    assert main(["ppa", "compare", str(folder), *machine, "--sort", "beauty", "-o", str(out)]) == 2


def test_baseline_is_on_the_page(tmp_path):
    for name, layers in (("a", 1), ("b", 2)):
        (tmp_path / f"{name}.yaml").write_text(
            f"model: {{n_layer: {layers}, n_embd: 32, block_size: 16, vocab_size: 29, attention: {{n_head: 4}}}}\n"
        )
    options = ["--hardware", "edge-sky130", "--baseline", str(tmp_path / "a.yaml"), "-o", str(tmp_path / "out")]
    assert main(["ppa", "report", str(tmp_path / "b.yaml"), *options]) == 0
    assert "Against the baseline" in (tmp_path / "out" / "report.html").read_text()
