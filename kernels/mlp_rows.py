"""Tiles, warps, stages of the MLP kernels: committed, so that no first call measures.

Every row is compiled ahead of time by `kernels.aot`. None was timed on a GPU; the reasons are of arithmetic only:

- What ends a tile takes 5 to 43 instructions an element, during which its program multiplies nothing. With a sum over
  K = 768 that is a tenth (no activation) to nine tenths (backward of a gelu gate) of the time of the product itself. So
  up to `SHORT` two programs share a multiprocessor, one multiplying while the other ends a tile. Beyond, one program
  has tiles twice as large, which load less.
- Where tiles of these sizes would be fewer than multiprocessors, small ones spread over all of them (`few`).
- Rows for sm_80 also serve what comes between and after; their shared memory fits 99 KiB.
- Products of 4-byte types use no tensor cores.

`sign` are the activations whose derivative follows from their output, `smooth` the others, `gated` all of two products.
"""

from dataclasses import dataclass

SHORT = 1024
SIGN = ("none", "relu", "relu2")
SMOOTH = ("gelu", "gelu_tanh", "silu")


@dataclass(frozen=True)
class Launch:
    BM: int
    BN: int
    BK: int
    num_warps: int
    num_stages: int
    PARTS: int  # of a tile, ended one after the other
    programs: int  # of a multiprocessor


# (architecture, direction, form, what for) -> launch of 2-byte types
ROWS: dict[tuple[int, str, str, str], Launch] = {
    (90, "forward", "sign", "short"): Launch(128, 128, 64, 4, 3, 2, 2),
    (90, "forward", "sign", "long"): Launch(128, 256, 64, 8, 3, 1, 1),
    (90, "forward", "sign", "few"): Launch(64, 64, 64, 4, 4, 1, 2),
    (90, "forward", "smooth", "short"): Launch(128, 128, 64, 4, 3, 2, 2),
    (90, "forward", "smooth", "long"): Launch(128, 256, 64, 8, 3, 2, 1),
    (90, "forward", "smooth", "few"): Launch(64, 64, 64, 4, 4, 1, 2),
    (90, "forward", "gated", "short"): Launch(128, 64, 64, 4, 3, 2, 2),
    (90, "forward", "gated", "long"): Launch(128, 128, 64, 8, 3, 2, 1),
    (90, "forward", "gated", "few"): Launch(64, 64, 64, 4, 4, 1, 2),
    (90, "backward", "sign", "short"): Launch(128, 128, 64, 4, 2, 2, 2),
    (90, "backward", "sign", "long"): Launch(128, 256, 64, 8, 3, 2, 1),
    (90, "backward", "sign", "few"): Launch(64, 64, 64, 4, 4, 1, 2),
    (90, "backward", "smooth", "short"): Launch(128, 64, 64, 4, 3, 2, 2),
    (90, "backward", "smooth", "long"): Launch(128, 128, 64, 8, 3, 2, 1),
    (90, "backward", "smooth", "few"): Launch(64, 64, 64, 4, 4, 1, 2),
    (90, "backward", "gated", "short"): Launch(128, 64, 64, 4, 3, 2, 2),
    (90, "backward", "gated", "long"): Launch(128, 128, 64, 8, 3, 2, 1),
    (90, "backward", "gated", "few"): Launch(64, 64, 64, 4, 4, 1, 2),
    (80, "forward", "sign", "any"): Launch(128, 128, 32, 8, 3, 1, 1),
    (80, "forward", "smooth", "any"): Launch(128, 128, 32, 8, 3, 1, 1),
    (80, "forward", "gated", "any"): Launch(128, 64, 32, 8, 3, 1, 2),
    (80, "backward", "sign", "any"): Launch(128, 128, 32, 8, 3, 1, 1),
    (80, "backward", "smooth", "any"): Launch(128, 64, 32, 8, 3, 1, 1),
    (80, "backward", "gated", "any"): Launch(128, 64, 32, 8, 3, 1, 1),
}
WIDE = Launch(64, 64, 16, 8, 3, 1, 1)  # of 4-byte types, any op, any architecture
SLOPES = {"BM": 64, "BN": 128, "num_warps": 8, "num_stages": 1}


def form(activation: str, gated: bool) -> str:
    return "gated" if gated else "sign" if activation in SIGN else "smooth"


def launch(
    capability: int, direction: str, form: str, M: int, N: int, K: int, itemsize: int, multiprocessors: int
) -> Launch:
    """The row for an architecture, e.g. 90, and a product (M, K) x (K, N), N being the width of one half if gated."""
    if itemsize > 2:
        return WIDE
    if capability != 90:
        return ROWS[80, direction, form, "any"]
    row = ROWS[90, direction, form, "short" if K <= SHORT else "long"]
    fill = -(-M // row.BM) * -(-N // row.BN) >= multiprocessors
    return row if fill else ROWS[90, direction, form, "few"]
