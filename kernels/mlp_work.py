"""What an MLP costs a GPU, from shapes alone: work of the kernels here, of torch's operators one by one, bytes saved.

Floating-point operations are those of matrix products, 2 a multiplication. Bytes are those of every tensor that a
kernel reads or writes once, as if caches held what is used again. Exponentials are of the kernels here, one an element
of a smooth activation in each direction, in which other quotients, roots and error functions are not counted.

Not covered: what torch.compile joins of the operators; the partial sums of a bias's gradient, 4 bytes for BM elements;
copies of what descriptors cannot address.

Legend: M tokens, C width of the model, H hidden width, U rows of the projection up, H or gated 2 H.
"""

from .mlp_rows import SMOOTH, form
from .roofline import Work

# Tensors of (M, H) that torch's operators of an activation move: forward, backward. The backward of a square is a power
# and two products, then comes that of relu.
PASSES = {"none": (0, 0), "relu": (2, 3), "relu2": (4, 10), "gelu": (2, 3), "gelu_tanh": (2, 3), "silu": (2, 3)}


def mlp_work(
    op: str, M: int, C: int, H: int, activation: str, itemsize: int, *, gated: bool = False, bias: bool = True,
    recompute: bool = False, fused: bool = True,
) -> Work:  # fmt: skip
    """`op` is forward (of training) or backward; `fused` the kernels here, otherwise torch's operators."""
    U, kind = H * (1 + gated), form(activation, gated)
    x = y = M * C
    h, z, up, down = M * H, M * U, U * C, H * C
    forward, backward = PASSES[activation]
    kept = 0 if kind == "sign" else z  # besides h
    linear_up, linear_down = x + up + U * bias, h + down + C * bias + y
    exponentials = M * H * (activation in SMOOTH)
    if op == "forward":
        if fused:
            moved = linear_up + h + (0 if recompute else kept) + linear_down
        else:
            moved = linear_up + z + forward * h + 3 * h * gated + linear_down
        return Work(2 * M * C * (U + H), itemsize * moved, exponentials)
    if op != "backward":
        raise ValueError(f"op {op!r} is none of forward, backward")
    gradients = (z + up + x) + (z + x + up) + (y + h + down) + bias * (C + y + U)  # of x, weights, biases
    if fused:
        # dY and the weight in, what was kept in, dz out, h made again
        moved = y + down + (0 if activation == "none" and not gated else z) + z + (h if kind != "sign" else 0)
        moved += (linear_up + z) * recompute
    else:
        # dh; of a gate its two products, and the joining of both halves; dz read again for the sum of a bias
        moved = y + down + h + (6 * h + 2 * z) * gated + backward * h + bias * z
    products = 2 * M * C * (2 * (U + H) + U * (recompute and fused))
    return Work(products, itemsize * (moved + gradients), exponentials)


def saved_bytes(
    M: int, C: int, H: int, activation: str, itemsize: int, *, gated: bool = False, recompute: bool = False,
    fused: bool = True,
) -> int:  # fmt: skip
    """What autograd holds until the backward pass, weights aside."""
    if fused:
        tensors = 0 if recompute else 1 + gated
    elif gated:
        # gate and up, the activation of the gate, their product; an output that its own derivative needs counts once
        tensors = {"none": 3, "relu2": 5}.get(activation, 4)
    else:
        tensors = {"none": 1, "relu": 1}.get(activation, 2)
    return itemsize * (M * C + tensors * M * H)


def linear_activation_work(op: str, M: int, K: int, N: int, activation: str, itemsize: int, *, bias: bool = True,
                           fused: bool = True) -> Work:  # fmt: skip
    """As `mlp_work` for act(x W^T + b) alone, what is kept for the backward pass written."""
    x, w, out = M * K, N * K, M * N
    forward, backward = PASSES[activation]
    exponentials = M * N * (activation in SMOOTH)
    if op == "forward":
        second = out * (activation in SMOOTH) if fused else forward * out
        return Work(2 * M * K * N, itemsize * (x + w + N * bias + out + second), exponentials)
    if op != "backward":
        raise ValueError(f"op {op!r} is none of forward, backward")
    slopes = (3 * out if activation != "none" else 0) if fused else backward * out
    # without an activation the kernels here sum dz for a bias as torch does, with one as they make it
    summed = out * bias * (not fused or activation == "none")
    gradients = (out + w + x) + (out + x + w) + N * bias
    return Work(4 * M * K * N, itemsize * (slopes + summed + gradients), exponentials)
