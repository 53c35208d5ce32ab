"""Work of a point as `kernels.roofline` counts it: 4 B H T^2 D operations forward, half if causal, 2.5 times backward.

Recomputed products, of which our split backward pass has two more, are not counted: rates are of useful work. Of a kind
that the kernels do not know, only the products and the tensors read and written are.
"""

from kernels.roofline import EXPONENTIALS, Work, attention_work

from .plan import Point, split_contestant


def live_share(point: Point) -> float:
    """Pairs inside the window over those a causal mask leaves."""
    T, S, W = point.T, point.S, point.window
    if not W:
        return 1.0

    def pairs(window: int) -> int:
        return sum(min(window, S - T + t + 1) for t in range(T))

    return pairs(W) / pairs(S)


def of(point: Point, contestant: str, itemsize: int) -> Work:
    if contestant == "copy":
        return Work(0, 2 * point.T, 0)
    if contestant == "matmul":
        return Work(2 * point.T**3, 3 * itemsize * point.T**2, 0)
    kind, p = split_contestant(contestant)[1], point
    kind = kind if kind in EXPONENTIALS else "relu"
    causal = p.causal and p.T > 1  # a single query sees every key
    ops = ("forward", "backward") if p.op == "both" else (p.op,)
    parts = [attention_work(op, kind, p.B, p.H, p.K, p.T, p.S, p.D, p.E, causal, itemsize) for op in ops]
    flops, exponentials = (sum(getattr(w, name) for w in parts) * live_share(p) for name in ("flops", "exponentials"))
    return Work(flops, sum(w.bytes for w in parts), exponentials)
