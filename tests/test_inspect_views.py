"""gptcore inspect activations, weights, softmax, compare: what they write, against torch, closed forms and the runs."""

import json
import math

import pytest
import torch

from gptcore.analysis import weighting_figures
from gptcore.analysis.bit_plan import plan_activations
from gptcore.analysis.compare import read_curves
from gptcore.analysis.measure import measure_activations
from gptcore.analysis.ptq import mean_loss
from gptcore.analysis.rounding import matrices_of
from gptcore.analysis.weighting import head_ranges, trajectories
from gptcore.checkpoint import load_model
from gptcore.cli import main
from gptcore.config import canonical
from gptcore.loader import load
from gptcore.model import GPT
from tests.inspected import H, T, make, opened, rows, seen_by_torch


@pytest.fixture(scope="module")
def soft(corpus, tmp_path_factory):
    return make(corpus, tmp_path_factory.mktemp("runs") / "soft", "softmax")


@pytest.fixture(scope="module")
def cons(corpus, tmp_path_factory):
    return make(corpus, tmp_path_factory.mktemp("runs") / "cons", {"kind": "consmax", "initial_gamma": 20.0})


@pytest.fixture
def without_figures(monkeypatch):
    """They take most of the time of a view."""
    monkeypatch.setattr("gptcore.commands.inspect_views._drawn", lambda draw: [])


def inspect(*arguments) -> int:
    return main(["inspect", *map(str, arguments)])


def test_activations_command(soft, tmp_path, capsys):
    assert inspect("activations", soft, "--tokens", 192, "--format", "q0.3,fp8_e4m3", "--device", "cpu") == 0
    shown, folder = capsys.readouterr().out, soft / "inspect"
    assert "192 tokens of" in shown and "attn.scores" in shown
    table = rows(folder / "activations.csv")
    measured = measure_activations(opened(soft), method="symmetric", formats=[])
    assert [(r["layer"], r["place"]) for r in table] == [
        ("" if m.place.layer is None else str(m.place.layer), m.place.label) for m in measured
    ]
    x = seen_by_torch(opened(soft))["h.1.mlp.input"]
    row = next(r for r in table if (r["layer"], r["place"]) == ("1", "mlp.input"))
    outside = (x < -1) | (x > 0.875)
    assert float(row["q0.3_saturated"]) == outside.double().mean().item() > 0
    assert float(row["q0.3_underflow"]) == (x.abs() <= 1 / 16).double().mean().item()
    content = json.loads((folder / "activations.json").read_text())
    assert content["batches"]["tokens"] == 192 and content["target_sqnr_db"] == 30
    assert sum(content["places"][1]["histogram"]["log2_lower_edge"].values()) == content["places"][1]["count"]
    for name in ("histograms", "bits"):
        assert (folder / f"activations_{name}.png").read_bytes()[:4] == b"\x89PNG"
    # the plan: the most of all layers at each place, as a configuration that trains
    loaded = load(folder / "activations_quant.yaml")
    plan = plan_activations(opened(soft).loaded.config, measured, "symmetric", 30.0)
    assert canonical(loaded.config.with_vocab(plan.model.vocab_size).model) == canonical(plan.model)
    most = max(int(r["bits_token"]) for r in table if r["place"] == "attn.q")
    assert loaded.config.model.attention.rounding.q == most
    rounded = GPT(plan.model).eval()
    rounded.load_state_dict(load_model(soft).model.state_dict())
    loss = mean_loss(rounded, opened(soft).batches, "float32")
    assert f"{loss:.4f} with these bits" in shown
    again = ["train", str(folder / "activations_quant.yaml"), f"--out_dir={tmp_path / 'run'}", "--max_iters=1"]
    assert main([*again, "--warmup_iters=0", "--device=cpu"]) == 0


def test_the_figures_of_the_weighting(cons, tmp_path):
    source = opened(cons)
    constants, _ = trajectories(cons, source.config, source.loaded.config)
    written = weighting_figures.write_figures(tmp_path, "softmax", head_ranges(source), constants)
    assert [path.name for path in written if path.read_bytes()[:4] in (b"\x89PNG", b"%PDF")] == [
        "softmax_ranges.png", "softmax_ranges.pdf", "softmax_constants.png", "softmax_constants.pdf",
    ]  # fmt: skip


def test_the_same_twice(soft, cons, tmp_path):
    first, second = (measure_activations(opened(cons), method="affine", formats=[]) for _ in range(2))
    assert first == second
    for name in "ab":
        assert inspect("compare", soft, cons, "--to", tmp_path / name) == 0
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes(), path.name


def test_weights_command(soft, tmp_path, without_figures):
    assert inspect("weights", soft, "--to", tmp_path, "--device", "cpu") == 0
    table = {(r["layer"], r["place"]): r for r in rows(tmp_path / "weights.csv")}
    parameters = dict(load_model(soft).model.named_parameters())
    assert len(table) == len(parameters)
    w = parameters["transformer.h.1.mlp.c_proj.weight"].detach().double()
    row = table["1", "mlp.c_proj"]
    assert (int(row["count"]), float(row["high"])) == (w.numel(), w.max().item())
    highest = w.abs().amax(1, keepdim=True)  # a range for each output
    noise = {
        b: (w - (w / highest * (2 ** (b - 1) - 1)).round() * highest / (2 ** (b - 1) - 1)).square().sum()
        for b in range(2, 12)
    }
    sqnr = {b: 10 * math.log10(w.square().sum() / n) for b, n in noise.items()}
    assert int(row["bits_channel"]) == next(b for b, db in sqnr.items() if db >= 30)
    assert float(row["sqnr_8bit_channel_db"]) == pytest.approx(sqnr[8], abs=1e-3)
    loaded = load(tmp_path / "weights_quant.yaml").config.with_vocab(load_model(soft).config.vocab_size)
    widths = {m.short: m.own_bits for m in matrices_of(loaded.model)}
    for part in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"):
        most = max(int(table[str(i), part]["bits_channel"]) for i in range(2))
        assert widths[f"h.0.{part}"] == widths[f"h.1.{part}"] == most
    assert widths["wte"] == int(table["", "wte"]["bits_channel"])


def test_softmax_command(cons, soft, tmp_path, capsys, without_figures):
    assert inspect("softmax", cons, "--tokens", 192, "--to", tmp_path, "--device", "cpu") == 0
    assert "beta" in capsys.readouterr().out
    ranges = {(r["layer"], r["head"], r["quantity"]): r for r in rows(tmp_path / "softmax_ranges.csv")}
    assert len(ranges) == 2 * H * 3
    saved = torch.load(cons / "best.pt", weights_only=True)["model"]
    for layer in range(2):
        for head in range(H):
            beta, gamma = (saved[f"transformer.h.{layer}.attn.softmax.{n}"][head].item() for n in ("beta", "gamma"))
            scores, weights = (ranges[str(layer), str(head), name] for name in ("scores", "weights"))
            for end in ("low", "high"):  # e^(s - beta) / gamma rises with the score
                expected = math.exp(float(scores[end]) - beta) / gamma
                assert float(weights[end]) == pytest.approx(expected, rel=1e-4)
            assert int(scores["count"]) == 12 * T * (T + 1) // 2
    constants = rows(tmp_path / "softmax_constants.csv")
    assert {r["value"] for r in constants if r["step"] == "0"} == {"2.5", "20.0"}
    files = {torch.load(path, weights_only=True)["step"]: path for path in cons.glob("*.pt")}
    assert {int(r["step"]) for r in constants} == files.keys() | {0}
    for r in constants:
        if r["step"] != "0":
            content = torch.load(files[int(r["step"])], weights_only=True)["model"]
            key = f"transformer.h.{r['layer']}.attn.softmax.{r['name']}"
            assert float(r["value"]) == content[key][int(r["head"])].item()
    assert inspect("softmax", soft, "--tokens", 64, "--to", tmp_path / "soft", "--device", "cpu") == 0
    for r in rows(tmp_path / "soft" / "softmax_ranges.csv"):
        if r["quantity"] == "row_sums":
            assert float(r["low"]) == pytest.approx(1, abs=1e-6) == float(r["high"])
    assert not (tmp_path / "soft" / "softmax_constants.csv").exists()


def test_compare_command(soft, cons, tmp_path, capsys):
    assert inspect("compare", soft, cons, "--to", tmp_path) == 0
    shown = capsys.readouterr().out
    assert "one run each, with the same seed" in shown
    content = json.loads((tmp_path / "compare-cons.json").read_text())
    runs = [json.loads((run / "run.json").read_text()) for run in (soft, cons)]
    for key in ("best_loss", "parameters", "tokens"):
        assert content["metrics"][key] == [run[key] for run in runs]
    assert content["settings"]["model.attention.softmax.kind"] == ["softmax", "consmax"]
    assert "model.n_embd" not in content["settings"] and "train.out_dir" not in content["settings"]
    curve = read_curves(soft / "metrics.csv").validation
    assert [step for step, _ in curve] == [0, 20, 40] and min(loss for _, loss in curve) == runs[0]["best_loss"]
    assert (tmp_path / "compare-cons.png").exists()
    assert inspect("compare", soft, soft, "--to", tmp_path) == 0
    assert "the configurations are the same" in capsys.readouterr().out


def test_a_text_instead_of_the_data_set(soft, tmp_path, capsys, without_figures):
    text = tmp_path / "text.txt"
    text.write_text("the lazy dog and seven kings sing over rome " * 4)
    assert inspect("softmax", soft, "--text", text, "--to", tmp_path, "--device", "cpu") == 0
    assert f"tokens of {text}" in capsys.readouterr().out
    text.write_text("on rome")  # shorter than a window
    assert inspect("softmax", soft, "--text", text, "--to", tmp_path, "--device", "cpu") == 0
    assert "6 tokens of" in capsys.readouterr().out
    for content, message in (("o", "at least 2"), ("ROME!", "'R'")):
        text.write_text(content)
        assert inspect("softmax", soft, "--text", text, "--to", tmp_path, "--device", "cpu") == 2
        assert message in capsys.readouterr().err
