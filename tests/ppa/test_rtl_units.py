"""Models of the fixed-point operators against the real functions, within bounds that are derived where they are used.

LSB is the step of an output. Every calibration holds the mapped circuit of every operator against its model; here a few
are, on a library of four gates.
"""

from fractions import Fraction
from types import SimpleNamespace

import numpy as np
import pytest
import tiny_library
import torch

from gptcore.activation.piecewise import Piecewise
from gptcore.norm.krmsnorm import KRMSNorm
from gptcore.norm.layernorm import LayerNorm
from gptcore.norm.rmsnorm import RMSNorm
from gptcore.position.rotary import Rotary
from gptcore.softmax.polymax import Polymax
from gptcore.softmax.relumax import ReLUMax
from gptcore.softmax.sigmoidmax import SigmoidMax
from ppa import rtl
from ppa.rtl import layernorm, rmsnorm
from ppa.rtl.integers import signed, unsigned
from ppa.rtl.lut_activation import FUNCTIONS
from ppa.synth import flow, netlist

INT8 = signed(np.arange(256), 8)
INT16 = signed(np.arange(1 << 16), 16)


def combinational(name, **values):
    """Outputs for values that may be negative."""
    op = rtl.make(name)
    return op.step({port: unsigned(np.asarray(values[port]), width) for port, width in op.inputs().items()})


@pytest.mark.parametrize("name", FUNCTIONS)
def test_lut_activation_is_the_function_rounded(name):
    op = rtl.make(f"{name}_lut256")
    y = signed(combinational(f"{name}_lut256", x=INT8)["y"], 8)
    scale = 2 ** op.parameters["fraction_out"]
    exact = np.array([FUNCTIONS[name](x / 2 ** op.parameters["fraction_in"]) for x in INT8]) * scale
    assert np.abs(y - np.minimum(exact, 127)).max() <= 0.5


@pytest.mark.parametrize("name, error", [("gelu", 0.0233), ("silu", 0.0694), ("tanh", 0.0235)])
def test_pwl_activation_is_piecewise_of_gptcore(name, error):
    y, x = signed(combinational(f"{name}_pwl16", x=INT16)["y"], 16) / 4096, INT16 / 4096
    trained = Piecewise(Piecewise.Config(function=name))(torch.from_numpy(x)).numpy()
    # Half an LSB of the points, half of the rounding; the right tail begins an LSB early, on a slope above 0.9.
    assert np.abs(y - trained).max() * 4096 <= 1.1
    exact = np.array([FUNCTIONS[name](v) for v in x])
    assert np.abs(y - exact).max() == pytest.approx(error, abs=1e-4)


def test_squared_relu_is_exact():
    assert combinational("squared_relu_int8", x=INT8)["y"].tolist() == [max(int(x), 0) ** 2 for x in INT8]


def test_quantiser_rounds_to_nearest_even():
    rng = np.random.default_rng(0)
    op = rtl.make("requant_int32_int8")
    random = op.stimulus(rng, 5000, 0)
    ties = {"acc": rng.integers(-200, 200, 1000), "factor": np.full(1000, 1 << 15), "shift": np.full(1000, 16)}
    extreme = {
        "acc": np.repeat([-(1 << 31), -1, 0, 1, (1 << 31) - 1], 64), "factor": np.full(320, 65535),
        "shift": np.tile(np.arange(64), 5),
    }  # fmt: skip
    for x in (random, ties, extreme):
        x = {name: unsigned(np.asarray(value), op.inputs()[name]) for name, value in x.items()}
        op.reset(len(x["acc"]))
        op.step(x)
        y = signed(op.step(x)["y"], 8)
        for acc, factor, shift, got in zip(signed(x["acc"], 32), x["factor"], x["shift"], y, strict=True):
            exact = round(Fraction(int(acc) * int(factor), 1 << int(shift)))  # ties to even
            assert got == min(max(exact, -128), 127)


def test_reciprocal_error_over_all_inputs():
    x = np.arange(1 << 16)
    out = combinational("reciprocal_uint16", x=x)
    exact = 2.0 ** (16 + out["e"]) / np.maximum(x, 1)
    assert np.abs(out["y"] - exact).max() < 1.64
    assert (np.abs(out["y"] / exact - 1)).max() < 2**-15.2
    assert (out["y"] >> 15 == 1).all()


@pytest.mark.parametrize("name", ["divider_uint16", "divider_uint16_x4"])
def test_divider(name):
    op, rng, streams = rtl.make(name), np.random.default_rng(0), 3000
    n, d = rng.integers(0, 1 << 16, (2, streams)) >> rng.integers(0, 16, (2, streams))
    op.reset(streams)
    latency = 16 // op.parameters["STEPS"]
    op.step({"start": np.ones(streams, int), "n": n, "d": d})
    for cycle in range(1, latency + 3):
        out = op.step({"start": np.zeros(streams, int), "n": d, "d": n})
        assert (out["valid"] == (cycle == latency + 1)).all()
        if cycle == latency + 1:
            expected = np.where(n < d, (n << 16) // np.maximum(d, 1), 65535)
            assert (out["q"] == expected).all()


def normalised(op, x_NR, columns_NR, measured):
    """Outputs (N, R) of rows side by side as streams; `columns_NR` are weight and bias; `measured` entries count."""
    length, rows = x_NR.shape
    op.reset(rows)

    def step(entry=None, start=0, last=0):
        row = {port: np.zeros(rows, int) for port in op.inputs()}
        row["start"], row["last"] = np.full(rows, start), np.full(rows, last)
        if entry is not None:
            row["valid"], row["x"] = np.ones(rows, int), unsigned(x_NR[entry], 8)
            row |= {name: unsigned(column[entry], 8) for name, column in columns_NR.items()}
        return op.step(row)

    step(start=1)
    for i in range(measured):
        step(i, last=int(i == measured - 1))
    waited = next(i for i in range(100) if step()["ready"].all())
    outputs = [step(i) for i in range(length)] + [step(), step()]
    assert all(out["y_valid"].all() for out in outputs[2:]) and not outputs[1]["y_valid"].any()
    return signed(np.stack([out["y"] for out in outputs[2:]]), 8), waited


def rows_of(rng, length, count=64):
    """Rows (N, R) of magnitudes from 1 to 127, some with a mean far from 0, and the extremes."""
    x = rng.normal(0, 2.0 ** rng.uniform(0, 6, count), (length, count)) + rng.choice([0, 0, 20, -100], count)
    x = np.clip(np.round(x), -128, 127).astype(int)
    x[:, 0], x[:, 1], x[:, 2] = -128, 127, 0
    x[0, 3:5], x[1:, 3:5] = 1, 0
    return x


# Relative error of the inverse root, largest at m = 1: cut of m 2^-12 and 2^-14 for its compensation by a constant,
# Newton step 1.5 (2^-7 + 2^-9)^2, roundings of m r 2^-13, of (3 - m r r) / 2 2^-12 and of r 2^-12.
ROOT_ERROR = 2**-12 + 2**-14 + 1.5 * (2**-7 + 2**-9) ** 2 + 2**-13 + 2 * 2**-12


def test_inverse_root_over_all_arguments():
    m = np.arange(1 << 10, 1 << 12)
    r, t = (256 + np.array(rmsnorm.SEEDS)[m >> 5]) << 3, np.zeros_like(m)
    for phase in (rmsnorm.ROOT, rmsnorm.RESIDUAL, rmsnorm.REFINE):
        r, t = rmsnorm.newton(np.full_like(m, phase), m, r, t)
    # m stands for all numbers from m to m + 1.
    errors = [np.abs(r / 4096 * np.sqrt(end / 1024) - 1).max() for end in (m, m + 1)]
    assert max(errors) < 2**-10.5 < ROOT_ERROR


def rms_excess(name, length, measured):
    """How far outputs are beyond their bound, at most (LSB); y has fraction 5, and gptcore's modules are the truth."""
    rng, op = np.random.default_rng(0), rtl.make(name)
    x = rows_of(rng, length)
    weight = np.repeat(rng.integers(-128, 128, (length, 1)), x.shape[1], axis=1)
    y, waited = normalised(op, x, {"weight": weight}, measured)
    assert waited < op.parameters["SUM"] // 2 + 4
    dims = SimpleNamespace()
    eps = op.parameters["EPS"] / measured
    if measured == length:
        norm = RMSNorm(RMSNorm.Config(eps=eps), length, dims).double()
    else:
        norm = KRMSNorm(KRMSNorm.Config(k=measured, selection="first", eps=eps), length, dims).double()
    # The root of the number of measured entries is part of the scale of the weight.
    norm.weight.data = torch.from_numpy(weight[:, 0] * 2.0 ** (8 - op.parameters["SHIFT"] - 5) / measured**0.5)
    exact = norm(torch.from_numpy(x.T.astype(float))).detach().numpy().T * 32
    exponent = np.log2((x[:measured] ** 2).sum(0) + op.parameters["EPS"]) // 2
    bound = 0.5 + np.abs(exact) * ROOT_ERROR + 0.5 * np.abs(weight) * 2.0 ** -(exponent + op.parameters["SHIFT"])
    return (np.abs(y - np.clip(exact, -128, 127)) - bound).max()


RMS = [("rmsnorm_int8", 1023, 1023), ("rmsnorm_int8", 64, 64), ("rmsnorm_int8", 768, 100), ("krmsnorm_int8", 64, 10)]


@pytest.mark.parametrize("name, length, measured", RMS)
def test_rmsnorm_is_that_of_gptcore(name, length, measured):
    assert rms_excess(name, length, measured) <= 0


def layer_excess(length):
    op, rng = layernorm.LayerNorm(LENGTH=length, EPS=1, SHIFT=1), np.random.default_rng(0)
    x = rows_of(rng, length)
    weight, bias = (np.repeat(rng.integers(-128, 128, (length, 1)), x.shape[1], axis=1) for _ in range(2))
    y, waited = normalised(op, x, {"weight": weight, "bias": bias}, length)
    assert waited < op.log + 15
    norm = LayerNorm(LayerNorm.Config(eps=1 / length), length, SimpleNamespace(bias=True)).double()
    norm.weight.data, norm.bias.data = torch.from_numpy(weight[:, 0] / 64), torch.from_numpy(bias[:, 0] / 32)
    exact = norm(torch.from_numpy(x.T.astype(float))).detach().numpy().T * 32
    deviation = (x.var(0) + 1 / length) ** 0.5
    exponent = np.log2(length * deviation) // 1
    # Deviations from the mean are rounded to 2^(LOG - 4) / LENGTH, their products with r as in rmsnorm.
    centring = np.abs(weight) / 2 * (2 ** (op.log - 5) / length) / deviation
    scaling = 0.5 * np.abs(weight) * 2.0 ** (op.log - 9 - exponent)
    bound = 0.5 + (np.abs(exact - bias) + centring) * ROOT_ERROR + centring + scaling
    return (np.abs(y - np.clip(exact, -128, 127)) - bound).max()


@pytest.mark.parametrize("length", [1024, 768, 64, 33])
def test_layernorm_is_that_of_gptcore(length):
    assert layer_excess(length) <= 0


def test_norm_bounds_reject_a_wrong_table(monkeypatch):
    monkeypatch.setattr(rmsnorm, "SEEDS", [min(seed + 8, 255) for seed in rmsnorm.SEEDS])
    assert rms_excess("rmsnorm_int8", 64, 64) > 0 and layer_excess(1024) > 0


def trained_weights(kind, scores, keys, **knobs):
    """gptcore's weights for one query that sees `keys` keys, at the given scores."""
    module = kind(kind.Config(**knobs), SimpleNamespace(), 1).double()
    row = torch.zeros(len(scores), 1, 1, keys, dtype=torch.float64)
    row[..., 0] = torch.from_numpy(scores).view(-1, 1, 1)
    return module.weights(row, torch.ones(1, keys, dtype=torch.bool))[:, 0, 0, 0].numpy() * 65536


@pytest.mark.parametrize("keys, divisor", [(1, 1.0), (7, 1.0), (256, 1.0), (1000, 2.5)])
def test_attention_weights_are_those_of_gptcore(keys, divisor):
    s, factor = INT8 / 16, min(round(65536 / (divisor * keys)), 65535)
    # The factor is off by half a step, by one where it is 1.
    slack = 0.5 if factor < 65535 else 1.0
    names = {"score": INT8, "factor": np.full(256, factor), "bias": np.full(256, round(-16 * np.log(keys)))}

    exact = trained_weights(ReLUMax, s, keys, divisor=divisor)
    relu = combinational("relumax_int8", **names)["weight"]
    assert (np.abs(relu - np.minimum(exact, 65535)) <= 0.5 + slack * np.maximum(s + 1, 0)).all()

    exact = trained_weights(Polymax, s, keys, divisor=divisor)
    poly = combinational("polymax_int8", **names)["weight"]
    # The line is rounded to 2^-8 and its slope, 0.01, to 2^-12.
    curve = np.where(s > 0, s**2 + 1, 1 + s / 100)
    curve_error = np.where(s < 0, 2**-9 + 8 * abs(41 / 4096 - 0.01), 0)
    assert (np.abs(poly - np.minimum(exact, 65535)) <= 0.5 + slack * curve + factor * curve_error).all()

    # The bias is off by 1/32, which changes the sigmoid by e^(1/32) at most; an argument below -8 is taken for -8.
    floor = 65536 / (1 + np.exp(8))
    exact = np.maximum(trained_weights(SigmoidMax, s, keys), floor)
    sigmoid = combinational("sigmoidmax_int8", **names)["weight"]
    assert (np.abs(sigmoid - exact) <= 0.5 + exact * np.expm1(1 / 32)).all()
    exact = trained_weights(SigmoidMax, s, keys, divisor=divisor, div_by_seq_len=True)
    exact = np.maximum(exact, floor * factor / 65536)
    scaled = combinational("sigmoidmax_int8_scaled", **names)["weight"]
    assert (np.abs(scaled - exact) <= 0.5 + slack + factor / 131072 + exact * np.expm1(1 / 32)).all()


def test_rotary_is_that_of_gptcore():
    rng, length = np.random.default_rng(0), 256
    a, b = rng.integers(-90, 91, (2, length))  # so that no turn saturates
    position = Rotary(Rotary.Config(), SimpleNamespace(block_size=length), [SimpleNamespace(width=2)]).double()
    pairs = torch.from_numpy(np.stack([a, b], 1).astype(float)).view(1, 1, length, 2)
    exact = position.rotate(pairs, pairs, 0)[0].view(length, 2).numpy()
    cosine, sine = (np.clip(np.round(f(np.arange(length)) * 128), -128, 127).astype(int) for f in (np.cos, np.sin))
    out = combinational("rotary_int8", a=a, b=b, cosine=cosine, sine=sine)
    turned = signed(np.stack([out["turned_a"], out["turned_b"]], 1), 8)
    # Cosine and sine are off by half a step of 2^-7, by one near 1; never both.
    assert np.abs(turned - exact).max() <= 0.5 + 90 * 1.5 / 128 + 1e-4
    full = combinational("rotary_int8", a=[127, -128], b=[127, 127], cosine=[127, 127], sine=[-128, 127])
    assert signed(full["turned_a"], 8).tolist() == [127, -128]


def test_systolic_tile_multiplies_matrices():
    op, rng = rtl.make("systolic_tile_int8_4x4"), np.random.default_rng(0)
    rows, columns, inner, streams = 4, 4, 37, 50
    op.reset(streams)
    for _ in range(2):  # the second product shows that clear separates them
        a = rng.integers(-128, 128, (rows, inner, streams))
        b = rng.integers(-128, 128, (inner, columns, streams))
        for cycle in range(inner + rows + columns):
            # Row i and column j come i and j cycles late.
            x = {name: np.zeros(streams, int) for name in op.inputs()}
            x["clear"] += cycle == 0
            for i in range(4):
                if 0 <= cycle - i < inner:
                    x["a"] |= unsigned(a[i, cycle - i], 8) << 8 * i
                    x["b"] |= unsigned(b[cycle - i, i], 8) << 8 * i
            op.step(x)
        product = np.einsum("iks,kjs->ijs", a, b)
        for i, j in np.ndindex(rows, columns):
            x = {name: np.zeros(streams, int) for name in op.inputs()} | {
                "row": np.full(streams, i),
                "column": np.full(streams, j),
            }
            assert (signed(op.step(x)["sum"], 32) == product[i, j]).all()


MAPPED = ["gelu_lut256", "tanh_pwl16", "squared_relu_int8", "divider_uint16_x4", "relumax_int8", "sigmoidmax_int8"]


@tiny_library.needs_pyosys
@pytest.mark.parametrize("name", MAPPED)
def test_mapped_circuit_equals_its_model(name, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path, library = tiny_library.write(tmp_path)
    done = flow.synthesise(rtl.make(name), library, path)
    result = netlist.run(netlist.compile_netlist(done.netlist, library), rtl.make(name))
    assert result.mismatches == 0 and result.vectors >= 10_000, result.first
    assert result.exhaustive == (name in MAPPED[:3])
