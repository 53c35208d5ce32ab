"""Models of the softmax operators against what is trained: consmax bit for bit, the others within derived bounds."""

import numpy as np
import pytest
import torch

from gptcore.attention import Dims
from gptcore.softmax.consmax_quan import FORMATS as TRAINED
from gptcore.softmax.consmax_quan import ConSmaxQuan, round_tensor, table
from gptcore.softmax.softermax import Softermax as TrainedSoftermax
from ppa.rtl import fp, make, softmax
from ppa.rtl.consmax import ConSmax, ConSmaxWritable
from ppa.rtl.exp_lut import ExpLut
from ppa.rtl.exp_split import ExpSplit
from ppa.rtl.rows import LONGEST, SHORTEST, Rows, random_rows
from ppa.rtl.softermax import Softermax
from ppa.rtl.softmax import LOG2_E, Softmax

EXPONENTIALS = [
    (8, 3, "e", "bf16"), (8, 3, "2", "bf16"), (8, 5, "e", "bf16"), (7, 3, "e", "fp16"), (12, 4, "2", "fp16"),
]  # fmt: skip
CONSTANTS = [(2.5, 100.0), (0.0, 1.0), (-1.37, 0.021), (7.77, 3.3), (85.0, 100.0), (-90, 0.1)]


def knobs(bits, log2_reach, base, format):
    return {"bits": bits, "log2_reach": log2_reach, "base": base, "format": format}


@pytest.mark.parametrize("point", EXPONENTIALS, ids=str)
@pytest.mark.parametrize("cls, kind", [(ExpLut, "full"), (ExpSplit, "split")])
def test_exponential_of_every_code_is_that_of_training(cls, kind, point):
    operator = cls(**knobs(*point))
    size = 1 << point[0]
    expected = table(ConSmaxQuan.Config(**knobs(*point), table=kind))  # from the lowest code on
    got = operator.step({"code": np.roll(np.arange(size), size // 2)})["y"]
    assert fp.to_float(got, operator.fmt).tolist() == expected


def trained(config, beta, gamma):
    """Constant and weights of every code, from the lowest on, as the module computes them."""
    module = ConSmaxQuan(config, Dims(8, 1, 16, True, 0.0), 1)
    with torch.no_grad():
        module.beta.fill_(beta)
        module.gamma.fill_(gamma)
    size = 1 << config.bits
    scores = (torch.arange(size) - size // 2).view(1, 1, 1, -1) / module.scale
    constant = torch.exp(module.beta.float() * -module.ln_base) / module.gamma.float()
    weights = module.weights(scores, torch.ones(1, size, dtype=torch.bool))
    return round_tensor(constant, TRAINED[config.format]).item(), weights.flatten().tolist()


def feed(operator, cycles):
    """Outputs of a stream of inputs, one dictionary of ints a cycle."""
    operator.reset(1)
    steps = [operator.step({name: np.array([value]) for name, value in x.items()}) for x in cycles]
    return [{name: int(value[0]) for name, value in step.items()} for step in steps]


def run_consmax(operator, constant):
    """Weights of every code, from the lowest on."""
    size = 1 << operator.bits
    idle = {"valid": 0, "code": 0, "constant": int(fp.from_float(constant, operator.fmt))}
    codes = [{**idle, "valid": 1, "code": c % size} for c in range(-size // 2, size // 2)]
    if isinstance(operator, ConSmaxWritable):
        idle |= {"write": 0, "address": 0, "data": 0}
        entries = np.concatenate(operator.halves[::-1]).tolist()
        writes = [{**idle, "write": 1, "address": i, "data": entry} for i, entry in enumerate(entries)]
        codes = writes + [{**idle, **x} for x in codes]
    outputs = feed(operator, codes + [idle] * 3)
    return fp.to_float(np.array([x["weight"] for x in outputs if x["out_valid"]]), operator.fmt).tolist()


@pytest.mark.parametrize("beta, gamma", CONSTANTS)
@pytest.mark.parametrize("name", ["consmax_rom", "consmax_full", "consmax_writable"])
def test_consmax_is_bit_for_bit_what_was_trained(name, beta, gamma):
    """Also where weights are flushed to zero and where they saturate."""
    operator = make(name)
    config = ConSmaxQuan.Config(table="full" if name == "consmax_full" else "split")
    constant, expected = trained(config, beta, gamma)
    assert run_consmax(operator, constant) == expected


@pytest.mark.parametrize("point", EXPONENTIALS, ids=str)
def test_consmax_of_other_formats(point):
    constant, expected = trained(ConSmaxQuan.Config(**knobs(*point)), 1.5, 7.0)
    assert run_consmax(ConSmax(**knobs(*point)), constant) == expected


def test_truncation_instead_of_rounding_is_noticed(monkeypatch):
    def truncated(a, b, fmt, out=None):
        (sa, ma, ea), (sb, mb, eb) = fp.split(a, fmt), fp.split(b, fmt)
        cut = np.maximum(fp.bit_length(ma * mb) - fmt.man - 1, 0)
        return fp.pack(sa ^ sb, ma * mb >> cut, ea + eb + cut, fmt)

    monkeypatch.setattr(fp, "fp_mul", truncated)
    with pytest.raises(AssertionError):
        test_consmax_is_bit_for_bit_what_was_trained("consmax_rom", 2.5, 100.0)


def run_rows(operator, passes, gap, rows):
    """Weights of rows (streams, n) that come `passes` times, with so many idle cycles between the passes."""
    streams, n = rows.shape
    operator.reset(streams)
    outputs = []

    def step(valid, phase, start, score):
        x = {"valid": valid, "phase": phase, "start": start}
        outputs.append(operator.step({name: np.full(streams, v) for name, v in x.items()} | {"score": score}))

    for phase in range(passes):
        for i in range(n):
            step(1, phase, int(i == 0 and (phase == 0 or passes > 2)), rows[:, i])
        for _ in range(gap):
            step(0, phase, 0, rows[:, 0])
    for _ in range(3):
        step(0, 0, 0, rows[:, 0])
    return np.stack([x["weight"] for x in outputs if x["out_valid"][0]], axis=1)


def check_softermax(operator, n, spread, rng):
    """Against the trained kind at the quantised scores. Units of 2^-15; m is ceil(max), N the length of the row.

    A power is 2^(15 + x - m), rounded in the table (0.5) and cut (1): -1.5 to +0.5. The sum of N of them loses less
    than 1 more with every shift, of which there are less than N: -2.5 N to +0.5 N. The reciprocal table knows the sum
    to 1/128, rounded to 0.5 / 257; the product is cut.
    """
    codes = np.clip(np.round(spread * rng.standard_normal((200, n)) * 64), -2048, 2047).astype(np.int64)
    got = run_rows(operator, 2, 1, codes & 4095)
    x = codes / 64
    module = TrainedSoftermax(TrainedSoftermax.Config(), Dims(8, 1, 16, True, 0.0), 1)
    exact = module.weights(torch.from_numpy(x)[:, None, None, :], torch.ones(1, n, dtype=torch.bool))[:, 0, 0].numpy()
    power = 2.0 ** (15 + x - np.ceil(x.max(axis=1, keepdims=True)))
    total = power.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(power / total, exact, rtol=1e-12)
    table_error = (1 + 1 / 128) * (1 + 0.5 / 257) - 1
    assert (got >= (power - 1.5) / (total + 0.5 * n) * (1 - table_error) * 2**15 - 1).all()
    assert (got <= (power + 0.5) / (total - 2.5 * n) * (1 + table_error) * 2**15).all()


@pytest.mark.parametrize("n", [1, SHORTEST, LONGEST, 256])
@pytest.mark.parametrize("spread", [0.0, 1.0, 4.0, 40.0])
def test_softermax(n, spread):
    check_softermax(Softermax(), n, spread, np.random.default_rng(n))


def test_softermax_notices_a_reciprocal_of_the_neighbour():
    operator = Softermax()
    operator.reciprocals = np.roll(operator.reciprocals, 1)
    with pytest.raises(AssertionError):
        check_softermax(operator, SHORTEST, 1.0, np.random.default_rng(0))


def check_softmax(operator, n, spread, rng):
    """Against e^(x - max) / sum of the fp16 scores in float64. N is the length of the row, u = 2^-11 of fp16.

    ln e, d = max - x: subtraction d u, cut to 2^-8, log2 e wrong by 2.2e-4 d, rounded to ln 2 2^-8, mantissa u; below
    2^-14 it is 0. The sum of N >= 1 rounded values: N - 1 roundings u of what is 1 at least. The quotient: u, and below
    2^-14 it is 0.
    """
    scores = fp.from_float(spread * rng.standard_normal((200, n)), fp.FP16)
    got = fp.to_float(run_rows(operator, 3, 0, scores), fp.FP16)
    x, u, tiny = fp.to_float(scores, fp.FP16), 2.0**-11, 2.0**-14
    d = x.max(axis=1, keepdims=True) - x
    power = np.exp(-d)
    error = np.minimum(d, 10) * (u + 2.2e-4) + 2.0**-8 + np.log(2) * 2.0**-8 + u
    high, low = power * np.exp(error), np.maximum(power * np.exp(-error) - tiny, 0)
    gathered = (1 + u) ** (n - 1)
    assert (got <= high / (low.sum(axis=1, keepdims=True).clip(1 - 2 * u) / gathered) * (1 + u)).all()
    assert (got >= low / (high.sum(axis=1, keepdims=True) * gathered) * (1 - u) - tiny).all()


@pytest.mark.parametrize("buffer", [0, 256])
@pytest.mark.parametrize("n", [1, SHORTEST, LONGEST, 256])
@pytest.mark.parametrize("spread", [0.0, 1.0, 4.0, 100.0])
def test_softmax(buffer, n, spread):
    check_softmax(Softmax(BUFFER=buffer), n, spread, np.random.default_rng(n))


def test_softmax_notices_a_base_that_is_five_per_cent_off(monkeypatch):
    monkeypatch.setattr(softmax, "LOG2_E", 1400)
    with pytest.raises(AssertionError):
        check_softmax(Softmax(), SHORTEST, 1.0, np.random.default_rng(0))


def test_log2_e():
    assert abs(LOG2_E / 1024 / np.log2(np.e) - 1) < 2.2e-4


def test_a_buffer_gives_the_same_weights_without_reading_the_scores_again():
    rng, outside, inside = np.random.default_rng(4), Softmax(), Softmax(BUFFER=256)
    outside.reset(100)
    inside.reset(100)
    rows = Rows(100, 3, 0, random_rows(lambda rng, shape: fp.from_float(rng.standard_normal(shape), fp.FP16)))
    for _ in range(300):
        x = rows.next(rng)
        noise = np.where(x["phase"] == 0, x["score"], rng.integers(0, 1 << 16, 100))
        want, got = outside.step(x), inside.step({**x, "score": noise})
        assert (want["out_valid"] == got["out_valid"]).all()
        assert (want["weight"] == got["weight"]).all()
