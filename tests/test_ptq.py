"""gptcore quantize: rounding against numpy, sizes against a hand count, losses against those of the training."""

import csv
import json
import math

import numpy as np
import pytest
import torch

from gptcore.analysis import ptq
from gptcore.analysis.ptq import Plan, Sweep, mean_loss
from gptcore.analysis.ptq_run import open_run
from gptcore.analysis.rounding import PARTS, Matrix, Point, matrices_of, own_places, round_activations, rounded
from gptcore.checkpoint import LoadedModel, load_model
from gptcore.cli import main
from gptcore.config import GPTConfig
from gptcore.data import eval_batches
from gptcore.errors import UserError
from gptcore.loader import from_dict
from gptcore.model import GPT
from gptcore.sample import sample_text
from gptcore.train import train

C, T, LAYERS, EVALS = 16, 16, 2, 5
MODEL = {"n_layer": LAYERS, "n_embd": C, "block_size": T, "attention": {"n_head": 2}}


@pytest.fixture(scope="module")
def run(corpus, tmp_path_factory):
    """The folder of a small trained run: tied table, learned positions, biases."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    train(
        from_dict({
            "model": MODEL, "data": {"dataset": corpus},
            "train": {
                "out_dir": str(folder), "max_iters": 60, "eval_interval": 30, "eval_iters": EVALS, "batch_size": 4,
                "learning_rate": 1e-2, "warmup_iters": 5, "device": "cpu",
            },
        }),
        quiet=True,
    )  # fmt: skip
    return folder


def open_small(run, **changes):
    asked = {"checkpoint": None, "dataset": None, "eval_iters": None, "device": "cpu"} | changes
    return open_run(run, **asked)


def sweep_of(run, *, eval_iters=None, **plan) -> Sweep:
    subject = open_small(run, eval_iters=eval_iters)
    return Sweep(subject.loaded, Plan(**({"weight_bits": [4]} | plan)), subject.batches, "float32")


def quantize(run, *options) -> int:
    return main(["quantize", "--out_dir", str(run), "--device", "cpu", *map(str, options)])


def results(run) -> dict:
    return json.loads((run / "quantize.json").read_text())


# rounding


def by_hand(w: np.ndarray, bits: int, granularity: str, method: str, axis: int) -> np.ndarray:
    """Codes of every range, back in floating point; all in float32, as the program does it."""
    over = {"axis": axis, "keepdims": True} if granularity == "channel" else {}
    if method == "symmetric":
        scale = np.abs(w).max(**over) / np.float32(2 ** (bits - 1) - 1)
        return np.rint(w / scale) * scale
    low, high = np.minimum(w.min(**over), 0), np.maximum(w.max(**over), 0)
    scale = (high - low) / np.float32(2**bits - 1)
    zero = np.rint(-low / scale)
    return (np.clip(np.rint(w / scale) + zero, 0, 2**bits - 1) - zero) * scale


@pytest.mark.parametrize("method", ["symmetric", "affine"])
@pytest.mark.parametrize("granularity", ["tensor", "channel"])
@pytest.mark.parametrize("shape, dim", [((7, 12), -1), ((3, 12, 5), -2)])
def test_rounding_equals_numpy(shape, dim, granularity, method):
    w = torch.randn(*shape, generator=torch.Generator().manual_seed(1))
    matrix = Matrix("w", "mlp", shape, dim, None)
    for bits in (2, 3, 8):
        new = rounded(w, matrix, Point(bits, None, granularity, method)).numpy()
        np.testing.assert_array_equal(new, by_hand(w.numpy(), bits, granularity, method, dim))
        channels = np.moveaxis(new, dim, -1).reshape(-1, shape[dim])
        assert granularity == "tensor" or max(len(np.unique(c)) for c in channels) <= 2**bits
        fault = by_hand(w.numpy(), bits, granularity, method, -3 - dim)  # ranges over the other dimension
        assert granularity == "tensor" or not np.array_equal(new, fault)


@pytest.mark.parametrize("hidden", [8, 24])
def test_matrices_are_read_from_the_operations(hidden):
    """The tied table once; experts sum over their second dimension; a convolution and norms are no matrices."""
    config = GPTConfig.model_validate({
        "n_layer": 2, "n_embd": 8, "block_size": 4, "vocab_size": 11,
        "layers": [{"attention": {"kind": "ssm", "n_head": 2}, "mlp": {"kind": "moe", "hidden_size": hidden}},
                   {"attention": {"n_head": 2}, "mlp": {"linear": {"kind": "low_rank"}}}],
    })  # fmt: skip
    found = {m.short: m for m in matrices_of(config)}
    assert [m.part for m in found.values() if m.part in ("embedding", "other")] == ["embedding", "other"]
    assert {name for name in found if name.startswith("h.0")} == {
        "h.0.attn.c_attn", "h.0.attn.c_proj", "h.0.mlp.router", "h.0.mlp.c_fc", "h.0.mlp.c_proj",
    }  # fmt: skip
    assert found["h.0.mlp.c_fc"].dim == found["h.0.mlp.c_proj"].dim == -2
    assert {"h.1.mlp.c_fc.a", "h.1.mlp.c_fc.b"} < set(found)
    assert all(m.dim == -1 for name, m in found.items() if "h.0.mlp.c_" not in name)
    parameters = dict(GPT(config).named_parameters())
    assert all(tuple(parameters[m.name].shape) == m.shape for m in found.values())


def test_weight_bytes_are_those_counted_by_hand(run):
    sweep = sweep_of(run)
    V = sweep.config.vocab_size
    shapes = [(V, C), (T, C)] + LAYERS * [(3 * C, C), (C, C), (4 * C, C), (C, 4 * C)]
    vectors = LAYERS * (2 * 2 * C + 3 * C + C + 4 * C + C) + 2 * C  # two norms, four biases; the last norm
    values = sum(rows * columns for rows, columns in shapes)
    assert values + vectors == sweep.model.parameter_count()
    assert sweep.weight_bytes(Point()) == 2 * (values + vectors)

    def expected(bits, ranges, each):  # every matrix is packed by itself
        packed = [math.ceil((r * c * bits + (r if ranges == "channel" else 1) * each) / 8) for r, c in shapes]
        return sum(packed) + 2 * vectors

    for bits in (2, 3, 8, 16):
        for ranges in ("tensor", "channel"):
            for method, each in (("symmetric", 16), ("affine", 16 + bits)):
                assert sweep.weight_bytes(Point(bits, None, ranges, method)) == expected(bits, ranges, each)
    alone = sweep.weight_bytes(Point(4, None, "channel", "symmetric", "transformer.wte.weight"))
    assert alone == sweep.weight_bytes(Point()) - 2 * V * C + math.ceil((V * C * 4 + V * 16) / 8)


# losses


def test_unrounded_loss_is_the_recorded_one(run):
    recorded = [float(r["val_loss"]) for r in csv.DictReader((run / "metrics.csv").open()) if r["step"] == "60"]
    subject = open_small(run, checkpoint="last.pt")
    first = next(Sweep(subject.loaded, Plan([4]), subject.batches, "float32").rows())
    assert [first.loss] == recorded == [subject.recorded]
    assert first.errors == {} and first.worst is None
    other = eval_batches(subject.dataset.train, batches=EVALS, batch_size=4, block_size=T)  # the wrong split
    assert mean_loss(subject.loaded.model, list(other), "float32") != recorded[0]
    assert open_small(run, eval_iters=EVALS + 1).recorded is None  # other batches, nothing to compare with


def test_sixteen_bits_change_the_loss_by_no_more_than_the_gradient_allows(run):
    """|dL| <= sum |dL/dW| |W' - W| for so small a step, curvature being of its square; four bits are beyond that."""
    sweep = sweep_of(run, weight_bits=[16, 4])
    model = load_model(run).model
    torch.stack([model(x, y)[1] for x, y in sweep.batches]).mean().backward()
    base, wide, narrow = sweep.rows()
    sweep.apply(wide.point)
    bound = sum(
        (p.grad * (sweep.model.get_parameter(name) - p)).abs().sum().item() for name, p in model.named_parameters()
    )
    assert 0 < bound < 1e-3
    eps = torch.finfo(torch.float32).eps
    assert abs(wide.loss - base.loss) <= 1.1 * bound + 8 * eps * base.loss
    assert abs(narrow.loss - base.loss) > 1.1 * bound + 8 * eps * base.loss


def test_rows_do_not_depend_on_their_order(run):
    """Each starts from the trained weights; and the model is left alone by a row of activations."""
    forth = {r.point: r.loss for r in sweep_of(run, weight_bits=[2, 8], activation_bits=[None, 4]).rows()}
    back = {r.point: r.loss for r in sweep_of(run, weight_bits=[8, 2], activation_bits=[4, None]).rows()}
    assert forth == back and len(set(forth.values())) == len(forth) == 5


@pytest.mark.parametrize("method", ["symmetric", "affine"])
def test_activations_are_those_of_a_model_that_rounds_them(run, method):
    """Against a model configured so in the ordinary way."""
    row = list(sweep_of(run, weight_bits=[None], activation_bits=[3], methods=[method]).rows())[1]
    every = {"rounding": {"every": 3}}
    same = MODEL | {"attention": {"n_head": 2, **every}, "mlp": every, "rounding": {"method": method}}
    trained = load_model(run)
    model = GPT(GPTConfig.model_validate(same | {"vocab_size": trained.config.vocab_size})).eval()
    model.load_state_dict(trained.model.state_dict())
    batches = open_small(run).batches
    assert row.loss == mean_loss(model, batches, "float32") != mean_loss(trained.model, batches, "float32")


def test_only_the_parts_asked_for(run):
    sweep = sweep_of(run, parts=["mlp"], activation_bits=[8])
    assert {m.part for m in sweep.targets} == {"mlp"} and len(sweep.targets) == 2 * LAYERS
    assert {name.split()[0] for name in own_places(sweep.config_at(sweep.points()[1]))} == {"h.0.mlp", "h.1.mlp"}
    before = {name: tensor.clone() for name, tensor in sweep.model.state_dict().items()}
    sweep.apply(Point(4, None, "channel", "symmetric"))
    changed = {name for name, t in sweep.model.state_dict().items() if not torch.equal(t, before[name])}
    assert changed == {m.name for m in sweep.targets}


def test_every_matrix_alone(run):
    rows = list(sweep_of(run, per_layer=3).rows())[2:]
    assert len(rows) == 2 + 4 * LAYERS and len({r.point.target for r in rows}) == len(rows)
    assert all(len(r.errors) == 1 and 0.05 < r.worst[1] < 1 for r in rows)  # a step of two thirds of a spread


# models that round already


def small(**changes) -> LoadedModel:
    config = GPTConfig.model_validate(MODEL | {"vocab_size": 20} | changes)
    return LoadedModel(GPT(config).eval(), config, None, 0, None)


def test_what_a_model_rounds_itself_is_left_and_named():
    attention = {"n_head": 2, "linear": {"kind": "quantized", "bits": 6}, "rounding": {"q": 5}}
    sweep = Sweep(small(attention=attention), Plan([4], [3]), [], "float32")
    assert {m.own_bits for m in sweep.matrices if m.part == "attention"} == {6}
    assert {m.part for m in sweep.targets} == {"mlp", "embedding", "other"}
    places = own_places(sweep.config_at(sweep.points()[1]))
    assert places["h.0.attn q"] == 5 and places["h.0.attn k"] == places["h.1.mlp input"] == 3
    text = "\n".join(sweep.notes())
    assert "h.0.attn.c_attn (6 bits)" in text and "h.0.attn q (5 bits)" in text
    six = sum(math.ceil(4 * C * C * 6 / 8) for _ in range(LAYERS))  # 3 C C and C C, at their own width
    assert sum(sweep.wide_bytes[m.name] for m in sweep.matrices if m.part == "attention") == six


def test_kinds_without_places_are_named():
    attention = {"kind": "ssm", "n_head": 2}
    sweep = Sweep(small(attention=attention, position="none"), Plan([4], [8]), [], "float32")
    assert "attention ssm (layer 0, 1)" in sweep.notes()[-1]
    assert "conv_weight" in "\n".join(sweep.notes())
    with pytest.raises(UserError, match="no place to round"):
        Sweep(small(attention=attention, position="none"), Plan([4], [8], parts=["attention"]), [], "float32")


@pytest.mark.parametrize(
    "changes, plan, message",
    [
        ({"mlp": {"linear": "bitlinear"}}, {"parts": ["mlp"]}, "rounds by itself"),
        ({"attention": {"n_head": 2, "rounding": {"every": 4}}}, {"parts": ["attention"]}, "rounded already"),
        ({"mlp": {"rounding": {"input": 8}}, "rounding": {"range": "learned"}}, {}, "learned steps"),
    ],
)
def test_nothing_to_round(changes, plan, message):
    with pytest.raises(UserError, match=message):
        Sweep(small(**changes), Plan([4], [8], **plan), [], "float32")


def test_layer_schedule_and_learned_range():
    schedule = [{"repeat": 1, "attention": {"n_head": 4}}, {"repeat": 1, "attention": {"n_head": 2}}]
    config = small(layers=schedule, rounding={"range": "learned"}).config
    new = round_activations(config, 7, "affine", PARTS)
    assert [layer.attention.rounding.every for layer in new.layer_configs()] == [7, 7]
    assert (new.rounding.method, new.rounding.range) == ("affine", "token")  # there were no places with steps


# the command


def test_command(run, capsys):
    assert quantize(run, "--weight_bits", "8,2", "--activation_bits", "none,8", "--per_layer", 2) == 0
    shown = capsys.readouterr().out
    assert max(map(len, shown.split("written:")[0].splitlines())) <= 100
    assert "as recorded in training" in shown and "Each matrix alone at 2 bits" in shown
    content = results(run)
    described = json.loads((run / "run.json").read_text())
    assert content["complete"] and content["identity"] == described["identity"] and content["step"] == 60
    assert content["batches"]["tokens"] == EVALS * 4 * T and content["options"]["weight_bits"] == "8,2"
    assert content["rows"][0]["val_loss"] == content["recorded_loss"] == described["best_loss"]
    assert [(r["weight_bits"], r["activation_bits"]) for r in content["rows"][:5]] == [
        (None, None), (8, None), (2, None), (8, 8), (2, 8),
    ]  # fmt: skip
    for row, line in zip(content["rows"], csv.DictReader((run / "quantize.csv").open()), strict=True):
        assert float(line["val_loss"]) == row["val_loss"] and int(line["weight_bytes"]) == row["weight_bytes"]
        assert row["change"] == row["val_loss"] - content["rows"][0]["val_loss"]
        assert row["perplexity"] == pytest.approx(math.exp(row["val_loss"]), rel=1e-12)
    assert (run / "quantize.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert not list(run.glob(".*.tmp"))


@pytest.mark.parametrize(
    "options, rows, titles",
    [
        ((), 8, ["loss", "change", "ppl", "bytes"]),
        (("--weight_bits", "2", "--activation_bits", "8,4"), 4, ["acts", "ppl", "bytes"]),
        (("--weight_bits", "2", "--granularity", "tensor,channel"), 4, ["range", "bytes"]),
        (
            ("--weight_bits", "2", "--granularity", "tensor,channel", "--method", "symmetric,affine"),
            6,
            ["range", "method"],
        ),
    ],
)
def test_the_table_fits_a_terminal(run, capsys, options, rows, titles):
    assert quantize(run, *options, "--eval_iters", 1) == 0
    table = capsys.readouterr().out.split("\n\n")[0].splitlines()
    assert len(table) == rows and max(map(len, table)) <= 80
    assert set(titles) <= set(table[0].split())


def test_an_interrupt_keeps_what_is_done(run, capsys, monkeypatch):
    calls = []

    def third_is_interrupted(*given):
        calls.append(given)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return mean_loss(*given)

    monkeypatch.setattr(ptq, "mean_loss", third_is_interrupted)
    assert quantize(run, "--weight_bits", "8,4") == 130
    shown = capsys.readouterr()
    assert "2 of 3 evaluations" in shown.err and len(shown.out.split("\n\n")[0].splitlines()) == 3
    assert not results(run)["complete"] and len(results(run)["rows"]) == 2


@pytest.mark.parametrize("activations", ["none", "8"])
def test_saved_run(run, tmp_path, capsys, activations):
    target = tmp_path / "rounded"
    options = ("--weight_bits", 3, "--activation_bits", activations, "--save", target)
    assert quantize(run, *options) == 0
    loss = results(run)["rows"][1]["val_loss"]
    original, saved = load_model(run), load_model(target)
    for m in matrices_of(original.config):
        w = original.model.get_parameter(m.name).detach().numpy()
        new = saved.model.get_parameter(m.name).detach().numpy()
        np.testing.assert_array_equal(new, by_hand(w, 3, "channel", "symmetric", -1))
    assert len(sample_text(target, start="the", max_new_tokens=5)[0]) >= 5
    described = json.loads((target / "run.json").read_text())
    assert described["best_loss"] == loss and described["source"]["checkpoint"] == "best.pt"
    assert described["identity"] != described["source"]["identity"] == original_identity(run)
    capsys.readouterr()
    assert main(["inspect", str(tmp_path)]) == 0
    assert "rounded from" in capsys.readouterr().out
    # Rounded again it is the same, and its own loss is on record.
    assert quantize(target, "--weight_bits", 3) == 0
    rows = results(target)["rows"]
    assert rows[0]["val_loss"] == rows[1]["val_loss"] == results(target)["recorded_loss"] == loss
    # Neither the same settings nor an explicit resume may train in there.
    assert main(["train", str(run), f"--out_dir={target}", "--quiet"]) == 2
    assert main(["train", str(target), "--init_from=resume", "--quiet"]) == 1
    assert "it can be sampled, not resumed" in capsys.readouterr().err
    assert quantize(run, *options) == 2
    assert "is there already" in capsys.readouterr().err


def original_identity(run) -> str:
    return json.loads((run / "run.json").read_text())["identity"]


@pytest.mark.parametrize(
    "options, message",
    [
        (["--weight_bits", "1"], "'1' is no number of 2 to 16"),
        (["--weight_bits", "17"], "'17' is no number of 2 to 16"),
        (["--weight_bits", "8,,4"], "'' is no number"),
        (["--activation_bits", "eight"], "'eight' is no number of 2 to 16, or none"),
        (["--per_layer", "none"], "'none' is no number of 2 to 16"),
        (["--granularity", "row"], "'row' is none of tensor, channel"),
        (["--what", "heads"], "'heads' is none of all, attention"),
        (["--eval_iters", "0"], "at least 1"),
        (["--checkpoint", "x.pt"], "checkpoints there: best.pt"),
        (["--dataset", "nowhere"], "no data set 'nowhere'"),
        (["--weight_bits", "8,4", "--save", "x"], "exactly one combination"),
    ],
)
def test_mistakes(run, capsys, options, message):
    assert quantize(run, *options) == 2
    assert message in capsys.readouterr().err


def test_unknown_run_and_moved_data(run, corpus, tmp_path, capsys):
    assert quantize(tmp_path / "nowhere") == 2
    moved = tmp_path / "moved"
    moved.mkdir()
    for name in ("best.pt", "config.yaml", "run.json", "metrics.csv"):
        (moved / name).write_bytes((run / name).read_bytes())
    config = moved / "config.yaml"
    config.write_text(config.read_text().replace(corpus, "/nowhere/words"))
    assert quantize(moved) == 1
    assert "If it has moved, name its folder by --dataset" in capsys.readouterr().err
    assert quantize(moved, "--dataset", corpus, "--weight_bits", 8) == 0
    assert results(moved)["rows"][0]["val_loss"] == results(moved)["recorded_loss"]
    meta = load_model(run).tokenizer_meta
    assert meta is not None and "files" in meta
    text = tmp_path / "other.txt"
    text.write_text("the lazy dog looks on " * 500)
    assert main(["data", "build", str(text), "--out", str(tmp_path / "other"), "--tokenizer", "char"]) == 0
    assert quantize(moved, "--dataset", tmp_path / "other") == 1
    assert "does not hold the tokens" in capsys.readouterr().err
