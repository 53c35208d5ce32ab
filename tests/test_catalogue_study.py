"""The study of all kinds: what it runs and resumes, and that its committed results are complete and in the docs."""

import copy
import importlib.util
import json
from pathlib import Path

import pytest

from gptcore.analysis.swap import every_kind, of_equal_size, parameters, with_kind

ROOT = Path(__file__).parent.parent
_spec = importlib.util.spec_from_file_location("study", ROOT / "explorations" / "catalogue" / "study.py")
study = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(study)
SMALL = {"n_layer": 1, "n_embd": 32, "block_size": 8, "vocab_size": 11, "attention": {"kind": "causal", "n_head": 2}}


@pytest.fixture(scope="module")
def committed():
    return json.loads(study.RESULTS.read_text()), json.loads(study.RATIOS.read_text())


def test_every_kind_learns_or_the_table_says_why(committed):
    assert list(study.missing(*committed)) == []


def test_the_page_shows_the_results(committed):
    assert study.TABLE.read_text() == study.markdown(*committed)


def test_the_results_are_of_these_configurations(committed):
    from gptcore.config import identity
    from gptcore.loader import from_dict

    now = {name: identity(from_dict(plan)) for name, plan in study.plans().items()}
    assert {name: row["identity"] for name, row in committed[0]["runs"].items()} == now


@pytest.mark.parametrize(
    "fault, complaint",
    [
        (lambda runs, ratios: runs["runs"].pop("norm/rmsnorm"), "norm/rmsnorm has not been trained"),
        (lambda runs, ratios: ratios.pop("norm/rmsnorm"), "norm/rmsnorm has not been timed"),
        (lambda runs, ratios: runs["runs"]["norm/rmsnorm"].update(loss=4.0), "norm/rmsnorm does not learn"),
        (lambda runs, ratios: runs["runs"]["norm/rmsnorm"].update(status="failed"), "norm/rmsnorm does not learn"),
        (lambda runs, ratios: ratios["norm/rmsnorm"].update(ratio={"equal width": 1.6}), "norm/rmsnorm is slow"),
    ],
)
def test_what_the_table_would_hide_is_named(committed, fault, complaint):
    changed = copy.deepcopy(committed)
    fault(*changed)
    (found,) = study.missing(*changed)
    assert found.startswith(complaint)


def test_runs_resumes_and_keeps_failures(corpus, tmp_path, monkeypatch):
    base = tmp_path / "base.yaml"
    base.write_text(
        "model: {n_layer: 1, n_embd: 16, block_size: 8, attention: {kind: causal, n_head: 2}}\n"
        f"data: {{dataset: {corpus}}}\n"
        "train: {batch_size: 2, max_iters: 3, warmup_iters: 1, eval_interval: 3, eval_iters: 1, device: cpu}\n"
    )
    results, arguments = tmp_path / "results.json", {"results": tmp_path / "results.json", "base": base}
    assert study.run(tmp_path / "out", 1, "block/parallel", **arguments) == 0
    (first,) = (tmp_path / "out").glob("*/last.pt")
    written = first.stat().st_mtime_ns
    # A width that no head divides fails, with its reason; what is there already stays.
    monkeypatch.setattr(study, "with_kind", lambda model, slot, kind: {**with_kind(model, slot, kind), "n_embd": 15})
    assert study.run(tmp_path / "out", 1, "block/sequential", **arguments) == 1
    runs = json.loads(results.read_text())["runs"]
    assert runs["block/parallel"]["status"] == "finished" and runs["block/parallel"]["loss"] > 0
    assert runs["block/sequential"]["status"] == "failed" and "n_head" in runs["block/sequential"]["error"]
    monkeypatch.undo()
    assert study.run(tmp_path / "out", 1, "block/", **arguments) == 0
    assert first.stat().st_mtime_ns == written
    runs = json.loads(results.read_text())["runs"]
    assert {row["status"] for row in runs.values()} == {"finished"} and len(runs) == len(
        [kind for slot, kind in every_kind() if slot == "block"]
    )


def test_unigram_entropy_by_hand(corpus):
    """-sum p log p over the tokens of the validation text."""
    import math

    import numpy as np

    from gptcore.data import open_dataset

    entropy, vocab = study.unigram_entropy(str(corpus))
    counts = np.unique(np.asarray(open_dataset(corpus).val), return_counts=True)[1]
    assert entropy == pytest.approx(-sum(c / counts.sum() * math.log(c / counts.sum()) for c in counts))
    assert 0 < entropy <= math.log(vocab)


def test_a_kind_takes_the_place_of_its_slot_only():
    changed = with_kind(SMALL, "softmax", "consmax")
    assert changed["attention"] == {"kind": "causal", "n_head": 2, "softmax": {"kind": "consmax"}}
    assert {k: v for k, v in changed.items() if k != "attention"} == {
        k: v for k, v in SMALL.items() if k != "attention"
    }
    assert with_kind(SMALL, "attention", "infinite")["attention"] == {"kind": "infinite", "n_head": 2}
    assert with_kind(SMALL, "attention", "identity")["attention"] == {"kind": "identity"}
    linear = with_kind(SMALL, "linear", "low_rank")
    assert linear["attention"]["linear"] == linear["mlp"]["linear"] == {"kind": "low_rank"}


@pytest.mark.parametrize("slot, kind", [("linear", "kan"), ("mlp", "identity"), ("attention", "infinite")])
def test_of_equal_size_is_the_nearest_width(slot, kind):
    target, model = parameters(SMALL), with_kind(SMALL, slot, kind)
    chosen = of_equal_size(model, target, 4)
    distance = {n: abs(parameters({**model, "n_embd": n}) - target) for n in range(4, 4 * 40, 4)}
    assert distance[chosen["n_embd"]] == min(distance.values())
