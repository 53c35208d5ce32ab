"""Single operators on an A100, measured by LLMCompass: fitted on every second row, scored on the others, both ways."""

import csv
import json
from pathlib import Path

from ..gpu import Gpu
from ..gpu_fit import Measurement, fit, mean_error, modelled, roofline, with_constants
from ..machine import load_machine
from . import Row, Score, Section

ORDER = 30
TITLE = "GPU latency: operators on an A100"
SOURCE = (
    "PrincetonUniversity/LLMCompass @ 2e015fd, ae/figure5 (BSD-3): A100 SXM4 80 GB, float16, CUDA 11.7, PyTorch 2.0, "
    "LayerNorm and GELU by torch.compile (Zhang et al., ISCA 2024)"
)
BASELINES = "a100_baselines.json"
TABLES = {"matmul": "gemm", "gelu": "pointwise", "layernorm": "norm", "softmax": "softmax"}  # their name, ours
FILES = (*(f"a100_{name}.csv" for name in TABLES), BASELINES)
BARS = {"matmul": 0.09, "gelu": 0.08, "layernorm": 0.10, "softmax": 0.15}

TEXT = (
    "The constants of one operator are fitted on every second row of its table, in the order of the table (sizes grow "
    "by two), and scored on the rows between: interpolation. Then the other way round. A shape that both halves hold "
    "(softmax and layernorm of 4096 x 4096 were measured twice) is not scored. Peaks are those of the data sheet. "
    "The fit is held near priors that are round numbers, so ten rows do not have to pin eight constants. The baseline "
    "is the best of the simple models that came with the tables: roofline plus a published overhead, for matmul with "
    "90 % of the peak; those are errors over all rows. "
    "The measured times hold the call from Python: 12 us for softmax, 26 us for a product, 47 to 50 us for the "
    "compiled gelu and layernorm. Kernels that queue do not pay that; the next section measured 2 to 5 us. And long "
    "products reach 93 % of the peak here, 70 % there, where the clock falls. So no one set of constants serves both: "
    "that of the next section misses these products by 31 %, and by 21 % with the launch of this one. The description "
    "a100-80 takes the products from the next section, the other operators from here, and their launch from there. "
    "The device is the 80 GB one: the largest gelu moves 1561 GB/s, above the 1555 GB/s of the 40 GB card."
)


def measured(folder: Path, name: str) -> list[Measurement]:
    """The rows of a table of LLMCompass, in its order."""
    rows = []
    with open(folder / f"a100_{name}.csv", newline="") as file:
        for row in csv.DictReader(file):
            if name == "matmul":
                sizes = {side.lower(): int(row[side]) for side in "MKN"}
                rows.append(Measurement("gemm", float(row["latency_ms"]) * 1e-3, **sizes))
            else:
                shape = (1, int(row["n"])) if name == "gelu" else (int(row["M"]), int(row["N"]))
                seconds = shape[0] * shape[1] / (float(row["gelem_per_s"]) * 1e9)
                rows.append(Measurement(TABLES[name], seconds, rows=shape[0], length=shape[1]))
    return rows


def shape(row: Measurement) -> tuple[int, ...]:
    return row.m, row.k, row.n, row.rows, row.length


def fitted_and_scored(rows: list[Measurement], first: int) -> tuple[list[Measurement], list[Measurement]]:
    """Every second row from `first` on, and the others but for shapes that were fitted."""
    fitted = rows[first::2]
    seen = {shape(row) for row in fitted}
    return fitted, [row for row in rows[1 - first :: 2] if shape(row) not in seen]


def validate(folder: Path) -> Section:
    gpu = load_machine("a100-80")
    assert isinstance(gpu, Gpu)
    baselines = json.loads((folder / BASELINES).read_text())
    scores, rows = [], []
    for name in TABLES:
        table = measured(folder, name)
        simple = min(value for key, value in baselines[name].items() if key.startswith("mape"))
        for first, half in ((0, "even rows held out"), (1, "odd rows held out")):
            fitted, scored = fitted_and_scored(table, first)
            own = with_constants(gpu, fit(fitted, gpu))
            bound = mean_error(gpu, scored, roofline)
            note = f"fitted on {len(fitted)} rows; plain roofline {bound:.1%} on the same rows"
            error = mean_error(own, scored)
            scores.append(Score(f"{name}, {half}", error, BARS[name], len(scored), simple, note))
            rows += [_row(name, own, row) for row in scored]
    return Section(TITLE, SOURCE, TEXT, tuple(scores), tuple(rows))


def _row(name: str, gpu: Gpu, row: Measurement) -> Row:
    if row.operator == "gemm":
        label = f"{name} {row.m} x {row.k} x {row.n}"
    else:
        label = f"{name} {row.length}" if row.operator == "pointwise" else f"{name} {row.rows} x {row.length}"
    return Row(label, "us", row.seconds * 1e6, modelled(gpu, row) * 1e6)
