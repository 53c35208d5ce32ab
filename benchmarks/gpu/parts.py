"""All parts by name in the order in which they run, and what is asked of a point of either kind. Pure."""

from collections.abc import Mapping, Sequence

from . import block_plan, plan
from .block_plan import BlockPoint
from .plan import Part, Point

AnyPoint = Point | BlockPoint
PARTS: dict[str, Part] = plan.PARTS | block_plan.PARTS
# Names that stand for several parts; shares of copy bandwidth need `ceilings`.
GROUPS = {"attention": tuple(n for n, part in plan.PARTS.items() if part.by_itself),
          "block": ("ceilings", *block_plan.PARTS)}  # fmt: skip
CHECKS = tuple(n for n, part in PARTS.items() if part.check and part.by_itself)
TIMED = tuple(n for n, part in PARTS.items() if not part.check and part.by_itself and n != "ceilings")
JUDGES = tuple(n for n in CHECKS if "memory" not in n)  # a red row of these keeps a kernel from being timed


def point_of(raw: Mapping) -> AnyPoint:
    """From JSON."""
    named = {n: _tuples(x) for n, x in raw.items()}
    return BlockPoint(**named) if "sizes" in raw else Point(**named)


def _tuples(x):
    return tuple(map(_tuples, x)) if isinstance(x, list) else x


def kernel_of(row: Mapping[str, str]) -> str:
    """What a red row stands for, as the point of a timing names its kernel."""
    if row["sizes"]:
        return f"{row['kind']} {row['variant']} {row['dtype']}"
    return plan.kernel_name(row["kind"], max(int(row["D"]), int(row["E"])), row["variant"], row["dtype"])


def units(points: Sequence[AnyPoint], parallel: int) -> list[list[AnyPoint]]:
    """Points dealt to processes; those that share kernels stay together."""
    if parallel == 1:
        return [list(points)] if points else []
    groups: dict[tuple, list[AnyPoint]] = {}
    for point in points:
        groups.setdefault(point.group, []).append(point)
    return sorted(groups.values(), key=len, reverse=True)
