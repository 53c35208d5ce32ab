"""Fitting a GPU: what was put in comes out, files are checked; fits to published measurements meet their bars."""

from pathlib import Path

import numpy as np
import pytest

from gptcore.errors import UserError
from ppa import gpu_fit
from ppa.gpu_fit import Measurement, fit, fit_command, mean_error, modelled, read_measurements, roofline, with_constants
from ppa.machine import FOLDER, load_machine
from ppa.validation import a100_operators, vidur_gemms

DATA = Path(__file__).parents[3] / "shared" / "validation"
TRUTH = {
    "gemm": {
        "launch_s": 7e-6,
        "memory_efficiency": 0.75,
        "tile_overhead": 12.0,
        "wave_start_s": 2e-6,
        "wave_overlap": 0.3,
        "split_s": 3e-6,
        "slowdown": 0.3,
        "slowdown_after_s": 5e-4,
    },
    "pointwise": {"launch_s": 3e-6, "memory_efficiency": 0.7},
    "norm": {
        "launch_s": 6e-6,
        "memory_efficiency": 0.9,
        "row_s_per_element": 5e-10,
        "held_elements": 6000.0,
        "reread": 0.8,
    },
}


def shapes(count, seed):
    """Random kernels, not yet timed."""
    draw = np.random.default_rng(seed)

    def some(highest):
        return int(np.exp(draw.uniform(0, np.log(highest))))

    for index in range(count):
        if index % 3 == 0:
            yield Measurement("gemm", 1.0, m=some(8192), k=64 * some(256), n=64 * some(256))
        else:
            operator = ("pointwise", "norm")[index % 2]
            yield Measurement(operator, 1.0, rows=16 * some(4096), length=32 * some(1024))


def timed(gpu, rows):
    return [Measurement(**{**vars(row), "seconds": modelled(gpu, row)}) for row in rows]


@pytest.fixture(scope="module")
def truth():
    return with_constants(load_machine("a100-80"), TRUTH)


@pytest.fixture(scope="module")
def gpu():
    return load_machine("a100-80")


def test_fit_finds_the_constants_that_made_the_rows(gpu, truth):
    found = fit(timed(truth, shapes(900, seed=1)), gpu)
    fresh = timed(truth, shapes(300, seed=2))
    assert mean_error(with_constants(gpu, found), fresh) < 0.02
    assert mean_error(gpu, fresh) > 0.1  # the constants that it did not start from are that far off
    for operator, values in TRUTH.items():
        for name, tolerance in (("launch_s", 0.15), ("memory_efficiency", 0.06)):
            assert found[operator][name] == pytest.approx(values[name], rel=tolerance), (operator, name)
    assert found["gemm"]["tile_overhead"] == pytest.approx(12, rel=0.15)
    assert found == fit(timed(truth, shapes(900, seed=1)), gpu)  # deterministic


def test_the_vectorised_form_is_the_scalar_one(gpu, monkeypatch):
    rows = list(shapes(600, seed=3))

    def largest_difference():
        worst = 0.0
        for operator, model in (("gemm", gpu_fit._gemm_model), ("norm", gpu_fit._streaming_model)):
            mine = [row for row in rows if row.operator == operator]
            constants = np.array(list(TRUTH[operator].values()))
            ours = [modelled(with_constants(gpu, TRUTH), row) for row in mine]
            worst = max(worst, np.max(np.abs(model(mine, gpu)(constants) / ours - 1)))
        return worst

    assert largest_difference() < 1e-12
    monkeypatch.setattr(gpu_fit, "EDGES", (128, 32))  # the twin: one of the two has other tiles
    assert largest_difference() > 1e-3


HEADER = "operator,m,k,n,rows,length,bits,seconds\n"


@pytest.mark.parametrize(
    "text,message",
    [
        ("operator,m,k,n\ngemm,1,2,3\n", "no column 'seconds'"),
        (HEADER, "no measurement below the header"),
        (HEADER + "conv,1,2,3,,,,1e-3\n", r":2: unknown operator 'conv' \(known: gemm"),
        (HEADER + "gemm,1,2,,,,,1e-3\n", ":2: n must be a positive integer, not ''"),
        (HEADER + "gemm,1,2,3.5,,,,1e-3\n", "n must be a positive integer, not '3.5'"),
        (HEADER + "gemm,1,2,3,,,,1e-3\nsoftmax,,,,4,0,,1e-3\n", ":3: length must be a positive integer, not '0'"),
        (HEADER + "norm,,,,4,8,16,fast\n", "seconds must be a positive number, not 'fast'"),
        (HEADER + "norm,,,,4,8,16,nan\n", "seconds must be a positive number"),
        (HEADER + "norm,,,,4,8,64,1e-3\n", "bits must be 1 to 32, not 64"),
        ("operator,seconds\ngemm,1e-3\n", "m must be a positive integer, not None"),
    ],
)
def test_bad_files_are_refused_with_line_and_reason(tmp_path, text, message):
    path = tmp_path / "kernels.csv"
    path.write_text(text)
    with pytest.raises(UserError, match=message):
        read_measurements(path)


def test_commands_refuse_what_they_cannot_fit(tmp_path):
    with pytest.raises(UserError, match="no file"):
        read_measurements(tmp_path / "absent.csv")
    path = tmp_path / "kernels.csv"
    path.write_text(HEADER + "gemm,64,64,64,,,,1e-5\n")
    with pytest.raises(UserError, match="one row of gemm is too few"):
        fit_command("a100-80", path)
    with pytest.raises(UserError, match="is not a GPU"):
        fit_command("edge-sky130", path)


def test_the_report_of_a_fit_holds_sections_to_paste(tmp_path, gpu, truth):
    rows = timed(truth, shapes(300, seed=4))
    lines = [
        f"{r.operator},{r.m},{r.k},{r.n},,,16,{r.seconds!r}"
        if r.operator == "gemm"
        else f"{r.operator},,,,{r.rows},{r.length},,{r.seconds!r}"
        for r in rows
    ]
    path = tmp_path / "kernels.csv"
    path.write_text(HEADER + "\n".join(lines) + "\n")
    assert read_measurements(path) == rows
    report = fit_command("a100-80", path)
    assert "gemm: 100 rows, mean error on held-out rows" in report
    head, pasted = (FOLDER / "a100-80.yaml").read_text().split("gemm:\n")
    kept = "softmax:\n" + pasted.split("softmax:\n")[1]
    own = tmp_path / "own.yaml"
    own.write_text(head + report.split("\n\n", 1)[1] + kept)
    fitted = load_machine(str(own))
    assert mean_error(fitted, rows) < 0.02 and fitted.gemm.grade == "measured"


@pytest.fixture(scope="module")
def gemms():
    absent = [name for name in (*a100_operators.FILES, *vidur_gemms.FILES) if not (DATA / name).is_file()]
    if absent:
        pytest.skip(f"published measurements are not here: {', '.join(absent)}")
    return vidur_gemms.measured(DATA)


def test_held_out_measurements_meet_their_bars_and_beat_the_baselines(gemms):
    """TP1 alone does not pin what short products cost: 6.1 % against a bar of 6 %, the one known miss."""
    operators, products = a100_operators.validate(DATA), vidur_gemms.validate(DATA)
    assert [s.name for s in (*operators.scores, *products.scores) if s.verdict == "fail"] == [
        "TP2, TP4, TP8 held out, fitted on TP1"
    ]
    for score in (*operators.scores, *products.scores):
        assert score.value < score.baseline, score.name
    assert len(operators.scores) == 8 and products.scores[0].rows == 3344
    errors = {row.name: row.error for row in products.rows}
    assert abs(errors["one token: layers"]) < 0.05
    assert abs(errors["prefill of 1024 tokens: layers"]) < 0.1


def test_no_row_is_fitted_and_scored(gemms):
    def overlap(split):
        fitted, scored = split
        return {a100_operators.shape(row) for row in fitted} & {a100_operators.shape(row) for row in scored}

    for name in a100_operators.TABLES:
        table = a100_operators.measured(DATA, name)
        for first in (0, 1):
            assert not overlap(a100_operators.fitted_and_scored(table, first)), name
    table = a100_operators.measured(DATA, "softmax")
    assert overlap((table[0::2], table[1::2]))  # 4096 x 4096 twice: what the function above has to catch
    tokens = vidur_gemms.fitted_tokens(gemms)
    assert not tokens & {1, 1024} and len(tokens) == 52


def test_described_constants_are_those_of_all_rows(gpu, gemms):
    products = [row for _, _, row in gemms]
    found = {**fit(products, gpu), **fit(a100_operators.measured(DATA, "softmax"), gpu)}
    found |= fit(a100_operators.measured(DATA, "layernorm"), gpu) | fit(a100_operators.measured(DATA, "gelu"), gpu)
    for operator, values in found.items():
        for name, value in values.items():
            if name != "launch_s" or operator == "gemm":  # the others hold the call from Python
                assert getattr(getattr(gpu, operator), name).value == pytest.approx(value, rel=0.02), (operator, name)
    assert mean_error(gpu, products) < 0.056 < mean_error(gpu, products, roofline)
