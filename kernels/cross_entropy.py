"""Cross entropy of logits, with label smoothing, focal weights and z-loss, from three passes over the logits.

The forward pass reads the logits once and leaves 4 numbers a row; the backward pass reads them again and writes their
gradient, by default over them. So nothing of their size is ever allocated, and the gradient is exact whatever comes
from behind. What that asks of others: once the backward pass has run, the memory of the logits holds their gradient.
Whoever saved them for a backward pass of its own gets autograd's error about a tensor modified in place, as does a
second backward pass; whoever just reads them must do so before. Logits that are leaves, views of leaves, or not rows of
contiguous numbers are left alone, as are all under torch.compile, whose graphs would copy them first.

Losses are those of `losses_reference`; where gamma is 0 also those of torch.nn.functional.cross_entropy: ignored rows
have no loss and no gradient, the mean over no row at all is NaN. A target outside of [0, V) makes the loss NaN, and the
gradient of its row; nothing outside of the row is read. Saved for backward: logits, targets and 16 bytes a row. Not
covered: weights of classes, targets that are probabilities, fp64, a second derivative. Legend: N rows, V vocabulary.
"""

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from . import devices, losses_rows


@dataclass(frozen=True)
class Launch:
    REPEAT: int  # loads of 16 bytes a thread and pass of the loop
    num_warps: int


# (architecture, bytes of a logit, widest row) -> launch. sm_80 rows also serve what comes between and after. None was
# timed on a GPU: they keep 32 KiB a multiprocessor on their way, and waste few threads on narrow rows.
ROWS: dict[tuple[int, int, int], Launch] = {
    (architecture, itemsize, widest): launch
    for architecture in (90, 80)
    for itemsize, widest, launch in (
        (2, 1024, Launch(2, 1)), (2, 8192, Launch(2, 4)), (2, 1 << 31, Launch(2, 8)),
        (4, 512, Launch(4, 1)), (4, 4096, Launch(4, 4)), (4, 1 << 31, Launch(4, 8)),
    )
}  # fmt: skip


def tile(architecture: int, itemsize: int, V: int) -> tuple[Launch, dict[str, int]]:
    """(row of the table, sizes of its tile)."""
    if itemsize not in (2, 4):
        raise ValueError(f"no kernel for logits of {itemsize} bytes, only for bf16, fp16 and fp32")
    found = min((key for key in ROWS if key[:2] == (architecture, itemsize) and V <= key[2]), key=lambda key: key[2])
    row = ROWS[found]
    return row, {"REPEAT": row.REPEAT, "LANES": 32 * row.num_warps, "VECTOR": 16 // itemsize}


def launch_of(x: Tensor) -> dict[str, int | bool]:
    """What the kernels take by name for logits `x` (N, V)."""
    row, sizes = tile(devices.table_of(x), x.element_size(), x.shape[1])
    aligned = x.stride(0) * x.element_size() % 16 == 0
    return {"ALIGNED": aligned, **sizes, "num_warps": row.num_warps}


def in_rows(x: Tensor) -> bool:
    """Whether every row is contiguous, apart from the others, and the first starts at a multiple of 16 bytes."""
    return (x.stride(1) == 1 or x.shape[1] == 1) and x.stride(0) >= x.shape[1] and x.data_ptr() % 16 == 0


@devices.operator("gptkernels::cross_entropy")
def cross_entropy_op(
    logits: Tensor, targets: Tensor, smoothing: float, gamma: float, z: float, ignore: int, in_place: bool
) -> tuple[Tensor, Tensor]:
    """(losses (N,), what a row leaves for its gradient (4, N))."""
    N, V = logits.shape
    loss, left = _new_outputs(logits)
    x, targets = logits if in_rows(logits) else logits.contiguous(), targets.contiguous()
    if N:
        losses_rows.forward[(N,)](
            x, targets, loss, left, x.stride(0), N, V, ignore, smoothing, gamma, z, SMOOTH=smoothing != 0,
            FOCAL=gamma != 0, **launch_of(x),
        )  # fmt: skip
    return loss, left


def _new_outputs(logits: Tensor) -> tuple[Tensor, Tensor]:
    N = logits.shape[0]
    empty = partial(torch.empty, dtype=torch.float32, device=logits.device)
    return empty(N), empty(4, N)


@cross_entropy_op.register_fake
def _(logits, targets, smoothing, gamma, z, ignore, in_place):
    return _new_outputs(logits)


def _backward(x: Tensor, dx: Tensor, targets: Tensor, left: Tensor, d_loss: Tensor, ignore: int) -> None:
    N, V = x.shape
    if N:
        losses_rows.backward[(N,)](
            x, dx, targets.contiguous(), left, d_loss, d_loss.stride(0), x.stride(0), N, V, ignore, **launch_of(x)
        )


@devices.operator("gptkernels::cross_entropy_backward")
def cross_entropy_backward_op(logits: Tensor, targets: Tensor, left: Tensor, d_loss: Tensor, ignore: int) -> Tensor:
    """Gradient of the logits (N, V), in memory of its own."""
    x = logits if in_rows(logits) and logits.is_contiguous() else logits.contiguous()
    dx = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    _backward(x, dx, targets, left, d_loss, ignore)
    return dx


@cross_entropy_backward_op.register_fake
def _(logits, targets, left, d_loss, ignore):
    return torch.empty(logits.shape, dtype=logits.dtype, device=logits.device)


@devices.operator("gptkernels::cross_entropy_backward_", mutates_args=("logits",))
def cross_entropy_backward_op_(logits: Tensor, targets: Tensor, left: Tensor, d_loss: Tensor, ignore: int) -> None:
    """Puts the gradient in place of the logits."""
    _backward(logits, logits, targets, left, d_loss, ignore)


def _keep(ctx, inputs, output):
    logits, targets, *_, ctx.ignore, ctx.in_place = inputs
    loss, left = output
    ctx.mark_non_differentiable(left)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(logits, targets, left)


def _differentiate(ctx, d_loss, d_left):
    logits, targets, left = ctx.saved_tensors
    if ctx.in_place:
        logits = logits.detach()  # shares memory and version, so that other users are told
        cross_entropy_backward_op_(logits, targets, left, d_loss, ctx.ignore)
    else:
        logits = cross_entropy_backward_op(logits, targets, left, d_loss, ctx.ignore)
    return logits, None, None, None, None, None, None


cross_entropy_op.register_autograd(_differentiate, setup_context=_keep)


def _replaceable(logits: Tensor) -> bool:
    base = logits if logits._base is None else logits._base
    return in_rows(logits) and not base.is_leaf


def mean_of_live(loss_N: Tensor, targets_N: Tensor, ignore_index: int) -> Tensor:
    """Mean over the rows that are not ignored; NaN where all are."""
    return loss_N.sum() / (targets_N != ignore_index).sum()


def cross_entropy(
    logits_NV: Tensor, targets_N: Tensor, *, smoothing: float = 0.0, gamma: float = 0.0, z: float = 0.0,
    ignore_index: int = -1, in_place: bool = True,
) -> Tensor:  # fmt: skip
    """As `losses_reference.cross_entropy`, in fp32, of bf16, fp16 or fp32 logits.

    `in_place`: their gradient may replace them in the backward pass, where that can be done.
    """
    replace = in_place and not torch.compiler.is_compiling() and _replaceable(logits_NV)
    loss_N, _ = cross_entropy_op(logits_NV, targets_N, smoothing, gamma, z, ignore_index, replace)
    return mean_of_live(loss_N, targets_N, ignore_index)
