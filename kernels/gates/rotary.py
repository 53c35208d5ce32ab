"""Points of rotary embedding: every width of a head on both architectures, in 2- and 4-byte types.

`partly` turns a quarter of a head, in new memory, so that the rest is copied. `norm_and_rotate` is of the widths that
heads have. Tables are fp32, and so are the weights of the norm.
"""

from .. import rotary_kernels, rotary_normed_kernels
from ..gate import COUNTED, Family, Figures, Point, common_rules, whole
from ..rotary import ROWS, Launch, table_row

COUNTED = COUNTED | {"SINCOS": r"MUFU\.(?:SIN|COS)"}
STATE = ("q_ptr", "k_ptr", "q_out_ptr", "k_out_ptr")
WHOLE = ("B", "H", "K", "T", "start", "share")


def points() -> list[Point]:
    found = [
        _point(arch, 2 * half, 2 * half, dtype, back=False)
        for half in ROWS
        for arch in (90, 80)
        for dtype in ("bf16", "fp32")
    ]
    found += [_point(90, D, D, "bf16", back=True) for D in (64, 128)]
    found += [_point(arch, 128, 32, "bf16", back=False) for arch in (90, 80)]
    return found + [
        _normed(arch, D, dtype) for D in (64, 128, 256) for arch, dtype in ((90, "bf16"), (80, "bf16"), (90, "fp32"))
    ]


def _point(arch: int, D: int, turned: int, dtype: str, back: bool) -> Point:
    block, row = table_row(turned // 2)
    kernel = rotary_kernels.rotate
    constants = {"D": D, "HALF": turned // 2, "BT": row.BT, "BH": block, "BR": D if turned < D else 1, "BACK": back}
    types = {name: "i32" for name in kernel.arg_names if name not in constants}
    types |= {name: "*" + (dtype if name in STATE else "fp32") for name in types if name.endswith("_ptr")}
    multiples = frozenset(name for name in types if name not in WHOLE)
    name = f"sm_{arch} rotate D{D} {dtype}{' partly' * (turned < D)}{' back' * back}"
    return Point(name, kernel, arch, types, constants, multiples, *_held(arch, row, norms=0))


def _normed(arch: int, D: int, dtype: str) -> Point:
    block, row = table_row(D // 2)
    kernel = rotary_normed_kernels.norm_and_rotate
    constants = {"HALF": D // 2, "BT": row.BT, "BH": block}
    types = {name: "i32" for name in kernel.arg_names if name not in constants} | {"eps": "fp32"}
    types |= {name: "*" + (dtype if name in STATE else "fp32") for name in types if name.endswith("_ptr")}
    multiples = frozenset(name for name in types if name not in (*WHOLE, "eps"))
    name = f"sm_{arch} norm_and_rotate D{D} {dtype}"
    return Point(name, kernel, arch, types, constants, multiples, *_held(arch, row, norms=2))


def _held(arch: int, row: Launch, norms: int):
    """What of a point is held: (launch, rules, what is counted where). `norms`: kinds of heads that get one, of which
    each leaves a statistic and whose sums of squares go through a warp."""
    launch = {"BT": row.BT, "num_warps": row.num_warps, "num_stages": row.num_stages}

    def rules(figures: Figures) -> dict[str, bool]:
        loop = figures.loop
        stores = loop["STG128"] > 0 and loop["STG"] - loop["STG128"] == norms
        return common_rules(arch, launch, figures) | {
            "all accesses are wide": loop["LDG"] == loop["LDG128"] > 0 and stores,
            "no sine or cosine": loop["SINCOS"] == 0,
            "no exchange between threads": norms > 0 or loop["SHFL"] + loop["LDS"] + loop["STS"] == 0,
        }

    return launch, rules, whole, COUNTED


FAMILY = Family("rotary", (rotary_kernels, rotary_normed_kernels), points)
