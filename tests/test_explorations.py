"""Every exploration loads; the quickstart runs from the command line to samples and a report."""

import csv
import json
import re
from pathlib import Path

import pytest

from gptcore.cli import main
from gptcore.config import identity
from gptcore.loader import load
from search.moves import candidates
from search.space import load as load_space
from search.sweep_runs import load as load_sweep

ROOT = Path(__file__).parent.parent
KINDS = (".yaml", ".json")
FOUND = sorted(p for p in (ROOT / "explorations").rglob("*") if p.suffix in KINDS and p.parent.name != "tasks")
SEARCHES = [p for p in FOUND if p.parent.name == "search"]
SWEEPS = [p for p in FOUND if p.parent.name == "sweeps"]
FILES = [p for p in FOUND if p not in SEARCHES + SWEEPS]


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.name)
def test_it_loads(path):
    assert load(path).config.model.n_layer > 0


@pytest.mark.parametrize("path", SWEEPS, ids=lambda p: p.name)
def test_a_sweep_loads_with_runs_that_differ(path):
    runs = load_sweep(path).runs
    assert len({run.name for run in runs}) == len({run.identity.key for run in runs}) == len(runs) >= 4


@pytest.mark.parametrize("path", SEARCHES, ids=lambda p: p.name)
def test_a_search_loads_with_moves_that_all_exist(path):
    space = load_space(path, ["model.vocab_size=65"])
    assert len(candidates(space, space.baseline).candidates) >= 2


def test_the_schema_for_editors_accepts_them():
    jsonschema = pytest.importorskip("jsonschema")
    import yaml

    from gptcore.commands.config import file_schema

    schema = file_schema()
    jsonschema.validators.validator_for(schema).check_schema(schema)
    validator = jsonschema.validators.validator_for(schema)(schema)
    for path in FILES:
        content = json.loads(json.dumps(yaml.safe_load(re.sub(r"\b1e-", "1.0e-", path.read_text()))))
        assert validator.is_valid(content), path
        assert not validator.is_valid({**content, "modle": {}}), path


def test_the_example_of_the_readme_loads(tmp_path):
    (example,) = re.findall(r"```yaml\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    (tmp_path / "readme.yaml").write_text(example.replace("base: base/", f"base: {ROOT}/explorations/base/"))
    model = load(tmp_path / "readme.yaml").config.model
    assert [layer.attention.softmax.kind for layer in model.layer_configs()] == ["softmax"] * 2 + ["consmax"] * 2
    assert model.block_size == 64 and model.layer_configs()[0].norm.kind == "rmsnorm"


def test_the_comparison_is_fair():
    """Both tiny Shakespeare configurations train alike; the better one is not larger, nor more than 3 % smaller."""
    from gptcore.model import GPT

    plain, best = (load(ROOT / "explorations" / f"tinyshakespeare_{n}.yaml").config for n in ("gpt2", "best"))
    assert plain.train == best.train and plain.data == best.data
    sizes = [GPT(c.with_vocab(65).model).parameter_count() for c in (plain, best)]
    assert 0.97 * sizes[0] < sizes[1] <= sizes[0]


def test_quickstart_end_to_end(corpus, tmp_path, monkeypatch, capsys):
    """The quickstart on a small corpus for 20 steps: everything it promises is there, and it can be run again."""
    monkeypatch.chdir(tmp_path)
    quickstart = str(ROOT / "explorations" / "quickstart.yaml")
    small = ["train.max_iters=20", "--eval_interval=10", "--eval_iters=2", f"data.dataset={corpus}", "--device=cpu"]
    command = ["train", quickstart, *small, "--sample_start=the", "--sample_tokens=20"]
    assert main(command) == 0
    shown = capsys.readouterr().out
    (folder,) = (tmp_path / "out").iterdir()
    config = load(quickstart, command[2:]).config
    assert folder.name == f"quickstart-{identity(config)[:8]}"
    for name in (
        "config.yaml",
        "run.json",
        "metrics.csv",
        "best.pt",
        "last.pt",
        "samples.txt",
        "ppa/report.html",
        "ppa/ops.csv",
    ):
        assert (folder / name).exists(), name
    assert str(folder.relative_to(tmp_path)) in shown and "gptcore sample" in shown and "best validation loss" in shown
    report = json.loads((folder / "ppa" / "report.json").read_text())
    assert report["config_hash"] == identity(config)
    assert report["totals"]["params"] == json.loads((folder / "run.json").read_text())["parameters"]
    assert report["checks"] and all(check["status"] == "pass" for check in report["checks"])
    with open(folder / "metrics.csv", newline="") as file:
        assert len(list(csv.DictReader(file))) == 3
    before = (folder / "last.pt").stat().st_mtime_ns
    assert main(command) == 0
    assert "nothing to do" in capsys.readouterr().out
    assert (folder / "last.pt").stat().st_mtime_ns == before
    assert main(["sample", "--out_dir", str(folder), "--start", "the", "--max_new_tokens", "10"]) == 0
    assert main(["inspect", str(tmp_path / "out")]) == 0
    assert main(["ppa", "report", str(folder)]) == 0
