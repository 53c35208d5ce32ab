"""Traces of trained models: what is captured is what the model computed, and what is replayed is what was captured."""

import json

import numpy as np
import pytest
import tiny_library
import torch

from gptcore.config import GPTConfig
from gptcore.errors import RunError, UserError
from gptcore.model import GPT
from ppa import rtl
from ppa.rtl import trace
from ppa.rtl.integers import signed
from ppa.rtl.mac_int import MacInt
from ppa.synth import calibrate, energy, flow, netlist, traces

TRACED = {
    "consmax_full", "consmax_rom", "consmax_writable", "gelu_lut256", "silu_lut256", "layernorm_int8", "mac_int8",
    "requant_int32_int8", "rmsnorm_int8", "softermax", "softmax_buf256", "softmax_nobuf",
}  # fmt: skip
STREAMS = 64
STILL = {name: np.zeros(256, np.int64) for name in ("clear", "a", "b")}
RIGHT = MacInt.step


def committed():
    return trace.load()


def replayed(operator):
    """(inputs, outputs) of every cycle, (cycles, streams) by port."""
    operator.reset(STREAMS)
    pairs = [(x, operator.step(x)) for x in operator.replay(committed(), STREAMS)]
    return tuple({name: np.stack([pair[i][name] for pair in pairs]) for name in pairs[0][i]} for i in range(2))


def test_the_committed_trace_is_small_and_says_where_it_is_from():
    found = committed()
    assert trace.FILE.stat().st_size < 64 * 1024
    assert found.source["run"] == "quickstart" and found.source["best_loss"] < 1.8
    assert len(found.source["identity"]) == 64 and found.source["dataset"] and found.source["step"] == 2000
    assert len(found.scores) == 128 and all(16 <= len(row) <= found.source["block_size"] for row in found.scores)
    assert found.norm_inputs.shape[1] == found.left.shape[1] == found.right.shape[1] == found.source["n_embd"]
    assert all(np.isfinite(values).all() for values in (*found.scores, found.activations, found.norm_inputs))


def small_model():
    torch.manual_seed(0)
    model = GPT(GPTConfig.model_validate(
        {"n_layer": 3, "n_embd": 16, "block_size": 20, "vocab_size": 11, "attention": {"n_head": 2}}
    )).eval()  # fmt: skip
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(8)
    return model


def check_capture():
    """Scores from what c_attn returns, activations from what c_fc returns, and products, by arithmetic of the test."""
    model, tokens = small_model(), torch.arange(40).view(2, 20) % 11
    outputs = {}
    for name, module in model.named_modules():
        if name.endswith(("attn.c_attn", "mlp.c_fc")):
            module.register_forward_hook(lambda m, x, y, name=name: outputs.__setitem__(name, y.detach().numpy()))
    before = model(tokens)[0]
    parts = traces.parts_of(model, tokens)
    assert torch.equal(model(tokens)[0], before)  # nothing is left hanging
    for layer, rows in enumerate(parts.scores):
        q, k = (
            part.reshape(2, 20, 2, 8) for part in np.split(outputs[f"transformer.h.{layer}.attn.c_attn"], 3, -1)[:2]
        )
        assert [len(row) for row in rows] == [*range(1, 21)] * 4
        row = rows[20 * 3 + 13]  # second window, second head, query 13
        np.testing.assert_allclose(row, q[1, 13, 1] @ k[1, :14, 1].T / np.sqrt(8), rtol=1e-4, atol=1e-5)
        inputs = outputs[f"transformer.h.{layer}.mlp.c_fc"]
        np.testing.assert_allclose(parts.activations[layer], inputs, rtol=1e-4, atol=1e-4)
    middle = model.transformer.h[1].mlp.c_fc
    product = parts.left @ parts.right.T + middle.bias.detach().numpy()
    np.testing.assert_allclose(product, outputs["transformer.h.1.mlp.c_fc"].reshape(40, -1), rtol=1e-4, atol=1e-4)
    assert len(parts.norm_inputs) == 7 and all(x.shape == (2, 20, 16) for x in parts.norm_inputs)
    return parts


def test_capture_is_what_the_model_computed(tmp_path):
    parts = check_capture()
    file = tmp_path / "trace.json"
    file.write_bytes(traces.written(parts, {"run": "small"}))
    found = trace.load(file)
    every = {row.astype("<f2").tobytes() for rows in parts.scores for row in rows}
    assert len(found.scores) == 60 and all(row.astype("<f2").tobytes() in every for row in found.scores)
    assert found.norm_inputs.shape == (24, 16) and found.right.shape == (24, 16) and found.source == {"run": "small"}


def test_capture_notices_unscaled_scores(monkeypatch):
    monkeypatch.setattr("gptcore.softmax.Scoring.scores", lambda self, products, live: products)
    with pytest.raises(AssertionError):
        check_capture()


def test_a_damaged_trace_is_refused(tmp_path):
    content = json.loads(trace.FILE.read_text())
    content["tensors"]["scores"]["fp16"] = content["tensors"]["scores"]["fp16"][:-8]
    for text in ("{", "[]", json.dumps(content), json.dumps({**content, "format": 0})):
        file = tmp_path / f"{len(text)}.json"
        file.write_text(text)
        with pytest.raises(UserError, match=r"ppa\.synth\.traces"):
            trace.load(file)


def test_replayed_operators_are_those_with_a_trace():
    having = {name for name in rtl.names() if rtl.make(name).replay(committed(), STREAMS) is not None}
    assert having > TRACED and not {"relu_int8", "fp32_add", "divider_uint16"} & having


def test_replayed_sums_are_those_of_the_layer():
    x, out = replayed(rtl.make("mac_int8"))
    left, right = (np.round(m / np.abs(m).max() * 127).astype(int) for m in (committed().left, committed().right))
    sums, ends = (left @ right.T).ravel(), 0
    for stream in range(STREAMS):
        starts = np.flatnonzero(x["clear"][:, stream])
        assert (np.diff(starts) == left.shape[1]).all() and len(starts) >= 3
        for at in starts[1:]:  # acc at the cycle after next holds all products up to the one before `clear`
            total = signed(out["acc"][at + 1, stream], 32) if at + 1 < len(out["acc"]) else None
            if total is not None:
                assert total in sums
                ends += 1
    assert ends > 2 * STREAMS


@pytest.mark.parametrize("name", ["rmsnorm_int8", "layernorm_int8"])
def test_replayed_norms_are_those_of_the_rows(name):
    """Within two steps of 2^-5: rounding of the weight (to 1/22 and 1/24 of itself), of the result, inverse root."""
    x, out = replayed(rtl.make(name))
    rows = committed().norm_inputs
    codes = np.round(rows / np.abs(rows).max() * 127)
    assert (out["y_valid"].sum(axis=0) >= rows.shape[1] - 2).all()
    for stream in range(0, STREAMS, 7):
        row = codes[stream % len(rows)]
        got = signed(out["y"][out["y_valid"][:, stream] == 1, stream], 8)
        size = np.sqrt(np.mean(row**2) + (1 / len(row)))
        expected = row / size * committed().norm_weight * 32
        assert np.abs(got - expected[: len(got)]).max() <= 2 + np.abs(expected).max() / 22


def test_replayed_results_use_the_range_of_the_quantiser():
    _, out = replayed(rtl.make("requant_int32_int8"))
    y = signed(out["y"], 8)
    assert 120 <= np.abs(y).max() <= 127 and len(np.unique(y)) > 60


def test_replayed_scores_have_the_weights_of_softmax():
    """Of every whole row that passes within the replay: the weights of softmax, and those of softermax."""
    rows = {len(row): [] for row in committed().scores}
    for row in committed().scores:
        power = np.exp(row - row.max())
        rows[len(row)].append(power / power.sum())
    for name, phase, read in (
        ("softmax_nobuf", 2, lambda w: w.astype(np.uint16).view(np.float16).astype(float)),
        ("softmax_buf256", 2, lambda w: w.astype(np.uint16).view(np.float16).astype(float)),
        ("softermax", 1, lambda w: w / 2.0**15),
    ):
        x, out = replayed(rtl.make(name))
        sending = (x["valid"] == 1) & (x["phase"] == phase)
        compared = 0
        for stream in range(0, STREAMS, 5):
            edges = np.flatnonzero(np.diff(np.concatenate([[0], sending[:, stream].astype(int), [0]])))
            for first, end in edges.reshape(-1, 2):
                if end + 3 > len(sending):
                    continue
                weights = read(out["weight"][first + 3 : end + 3, stream])
                errors = [np.abs(weights - expected).max() for expected in rows[end - first]]
                assert min(errors) < 0.03, (name, stream, first)
                compared += 1
        assert compared > 20


@tiny_library.needs_pyosys
def test_energy_of_a_trace(tmp_path, monkeypatch):
    """Nothing toggles in a still trace; the real one is in the row, and a model that differs on it is an error."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path, library = tiny_library.write(tmp_path)
    operator = MacInt(WIDTH=4, ACC_WIDTH=32)
    compiled = netlist.compile_netlist(flow.synthesise(operator, library, path).netlist, library)
    costs = energy.prices(compiled, library, 16e-15)
    short, long = (netlist.run(compiled, operator, replay=[STILL] * n) for n in (9, 90))
    assert short.toggles == long.toggles and long.vectors == 90 * 256  # what the end of the reset changes, and no more
    assert energy.energy_j(costs, [0] * compiled.nets, 1) == costs.clock_j
    row = calibrate.price("mac_int4", path)
    for point in flow.POINTS:
        assert costs.clock_j * 1e12 < row[point]["energy_pj_per_cycle_trace"] != row[point]["energy_pj_per_cycle"]
    assert "energy_pj_per_cycle_trace" not in calibrate.price("relu_int8", path)["relaxed"]

    def wrong(self, x):
        return {"acc": RIGHT(self, x)["acc"] ^ 1}

    monkeypatch.setattr(MacInt, "replay", lambda self, trace, streams: failing())

    def failing():
        monkeypatch.setattr(MacInt, "step", wrong)  # the random stimulus is over
        yield STILL

    with pytest.raises(RunError, match="differs from the model"):
        calibrate.price("mac_int4", path)


def test_the_folder_of_a_run_stands_for_its_trace(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(traces, "capture", lambda run: trace.FILE.read_bytes() if run == tmp_path else b"")
    assert trace.load(calibrate._trace_file(tmp_path)).sha256 == committed().sha256
    assert calibrate._trace_file(trace.FILE) == trace.FILE
