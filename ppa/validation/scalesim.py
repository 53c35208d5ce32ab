"""Systolic arrays: SCALE-Sim's cycles and utilisation, row by row."""

import csv
from pathlib import Path

from ppa.systolic import cycles
from ppa.validation import Row, Score, Section

ORDER = 10
TITLE = "Systolic arrays against SCALE-Sim"
SOURCE = (
    "SCALE-Sim look-up tables of PrincetonUniversity/LLMCompass @ 2e015fd (systolic_array_model), a sample of 2,000 "
    "distinct rows; scalesim 3.0.0 run by us for three products"
)
TABLE = "scalesim_cycles.csv"
FILES = (TABLE,)
DATAFLOWS = {"os": "output_stationary", "ws": "weight_stationary", "is": "input_stationary"}
SCALESIM_3 = {(64, 64, 64): 503, (128, 64, 128): 2015, (128, 768, 768): 79_679}  # (m, k, n) on 32 x 32, os
TEXT = (
    "Every row must come out exactly; the score is the number of rows that do not. SCALE-Sim prints the index of the "
    "last cycle, so our latency minus one is compared. Nothing is fitted. Utilisation is MACs over cells times that "
    "index, in percent, compared to half a unit of the last digit that the table gives. All arrays of the table are "
    "square, so it cannot tell rows from columns; a test walks over the folds of oblong arrays instead."
)


def validate(folder: Path) -> Section:
    with open(folder / TABLE) as file:
        table = list(csv.DictReader(file))
    counts = {"os": 0, "ws": 0, "is": 0}
    wrong_cycles = wrong_utilization = 0
    for row in table:
        m, k, n, rows, columns = (int(row[key]) for key in ("M", "K", "N", "array_rows", "array_cols"))
        counts[row["dataflow"]] += 1
        last = cycles(DATAFLOWS[row["dataflow"]], m, k, n, rows, columns) - 1
        wrong_cycles += last != int(row["cycles"])
        share = 100 * m * k * n / (rows * columns * last)
        wrong_utilization += abs(share - float(row["utilization_percent"])) > 0.0005 + 1e-9
    wrong_3 = 0
    shown = []
    for (m, k, n), published in SCALESIM_3.items():
        last = cycles("output_stationary", m, k, n, 32, 32) - 1
        wrong_3 += last != published
        shown.append(Row(f"{m} x {k} x {n} on 32 x 32, output stationary", "last cycle", published, last, bar=0.0))
    note = ", ".join(f"{number} {name}" for name, number in counts.items())
    scores = (
        Score("rows with other cycles", wrong_cycles, 0, len(table), note=note, unit="count"),
        Score("rows with other utilisation", wrong_utilization, 0, len(table), note=note, unit="count"),
        Score("products with other cycles, scalesim 3.0.0", wrong_3, 0, len(shown), unit="count"),
    )
    return Section(TITLE, SOURCE, TEXT, scores, tuple(shown))
