"""Systolic arrays: latency of a matrix product and what moves between the array and its memory, in closed form.

A product (m x k)(k x n) is cut into folds of rows x columns; folds run one after the other, each with its own fill and
drain. What stays in the cells during a fold names the dataflow (Samajdar et al., SCALE-Sim, ISPASS 2020):

    output_stationary   rows hold m, columns n; A enters from the left and B from above for k cycles, results drain
    weight_stationary   rows hold k, columns n of B; A streams through, sums leave below
    input_stationary    rows hold k, columns m of A; B streams through, sums leave below

Not covered: folds that overlap, stalls on memory (ppa/tiling.py says what arrives from outside), sparse operands.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Traffic:
    """Elements between memory and array. A partial sum that a later fold adds to is written, and read again."""

    a: int
    b: int
    out_written: int
    partial_read: int


def cycles(dataflow: str, m: int, k: int, n: int, rows: int, columns: int) -> int:
    """Clock cycles until the last result has left the array; one more than SCALE-Sim's figure, the last cycle's index.

    Skew and drain take rows + columns - 2 cycles a fold beyond the streamed dimension; loading what stays takes
    another `rows`.
    """
    if dataflow == "output_stationary":
        return -(-m // rows) * -(-n // columns) * (k + rows + columns - 2)
    if dataflow == "weight_stationary":
        return -(-k // rows) * -(-n // columns) * (m + 2 * rows + columns - 2)
    if dataflow == "input_stationary":
        return -(-k // rows) * -(-m // columns) * (n + 2 * rows + columns - 2)
    raise ValueError(f"no dataflow {dataflow!r}")


def utilization(dataflow: str, m: int, k: int, n: int, rows: int, columns: int) -> float:
    """Share of the multiply-accumulate slots that do work, idle cells and fill and drain counted against it."""
    return m * k * n / (rows * columns * cycles(dataflow, m, k, n, rows, columns))


def traffic(dataflow: str, m: int, k: int, n: int, rows: int, columns: int) -> Traffic:
    """Elements that all folds read and write.

    What stays in the cells is loaded once. What streams is read once a fold, hence again for every fold along the
    dimension that it lacks. Only the folds along k add to the same results; output_stationary has none, as sums never
    leave their cells before they are complete.
    """
    if dataflow == "output_stationary":
        return Traffic(m * k * -(-n // columns), k * n * -(-m // rows), m * n, 0)
    k_folds = -(-k // rows)
    if dataflow == "weight_stationary":
        return Traffic(m * k * -(-n // columns), k * n, m * n * k_folds, m * n * (k_folds - 1))
    if dataflow == "input_stationary":
        return Traffic(m * k, k * n * -(-m // columns), m * n * k_folds, m * n * (k_folds - 1))
    raise ValueError(f"no dataflow {dataflow!r}")
