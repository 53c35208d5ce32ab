"""Cross entropy of a linear layer's outputs without those outputs: the (N, V) logits exist a chunk of rows at a time.

    logits = x W^T + b     for every chunk, by torch.mm, in the type of x
    logits <- gradient     `losses_rows.both`, one launch, in place
    dX = gradient W,  dW += gradient^T x

Gradients are formed in the forward pass, so that nothing is computed twice: 6 N C V floating-point operations in all.
They are saved; the backward pass multiplies them in place by what comes from behind, which moves nothing if that is 1.
Called without gradients, or for some of them, only those asked for are computed.

Rounding: logits and their gradients are rounded to the type of x where torch's layer, fp32 cross entropy and backward
round them; dW is summed over all chunks in fp32 and rounded once. In fp16 gradients carry a power of 2 until the
backward pass, or most would vanish. Where what comes from behind is no power of 2, dX is rounded once more.

Memory, beyond dX and dW: one chunk of logits and 4 bytes a row; a copy of the weight where its type is not that of x;
where the weight is narrower than fp32, the sum of dW, 4 V C bytes, until the backward pass makes dW of it. Unless
`chunk` says otherwise a chunk leaves room for these two within MOST_BYTES, if half of that is enough for them (at
V = 50304 up to a width of 1242 in 2-byte types), and else takes all of it.

Legend: N rows, C width of the stream, V vocabulary.
"""

from collections.abc import Sequence
from functools import partial

import torch
import triton
from torch import Tensor

from . import devices, losses_rows
from .cross_entropy import launch_of, mean_of_live

MOST_BYTES = 250_000_000
ROW_STEP = 128  # of a chunk: a tile of a matrix product
COLUMN_STEP = 16  # of the start of a row, in elements: what kernels and products load best
BLOCK, SCALE_WARPS = 4096, 8


def padded(V: int) -> int:
    """Distance of the rows of a chunk."""
    return -(-V // COLUMN_STEP) * COLUMN_STEP


def beside_bytes(C: int, V: int, itemsize: int, weight_itemsize: int) -> int:
    """Memory beside the chunk: a copy of the weight, what the sum of dW has over dW."""
    copied = itemsize if weight_itemsize != itemsize else 0
    return V * C * (copied + max(4 - weight_itemsize, 0))


def chunk_rows(N: int, C: int, V: int, itemsize: int, weight_itemsize: int) -> int:
    """Rows of a chunk: as many as memory allows, in whole tiles if it allows one, all chunks about equal."""
    beside = beside_bytes(C, V, itemsize, weight_itemsize)
    # A table that alone takes about all of it is not made up for: small chunks add to dW too often.
    room = MOST_BYTES - beside if beside <= MOST_BYTES // 2 else MOST_BYTES
    most = max(room // (padded(V) * itemsize), 1)
    most = most // ROW_STEP * ROW_STEP or most
    even = -(-N // max(-(-N // most), 1))
    return max(min(-(-even // ROW_STEP) * ROW_STEP, most), 1)


def _add_product(total: Tensor, a: Tensor, b: Tensor) -> None:
    """total += a @ b, in fp32."""
    if a.dtype == total.dtype:
        total.addmm_(a, b)
    elif a.is_cuda:
        torch.addmm(total, a, b, out_dtype=total.dtype, out=total)
    else:  # no such product on a CPU
        total.addmm_(a.to(total.dtype), b.to(total.dtype))


def _per_row(count: Tensor, kind: torch.dtype) -> tuple[Tensor, Tensor]:
    """(gradient of the loss of a row, made larger by a power of 2 in fp16; what undoes that)."""
    if kind != torch.float16:
        return 1.0 / count, torch.ones_like(count)
    mantissa, exponent = torch.frexp(count)
    return 1.0 / mantissa, torch.ldexp(torch.ones_like(count), -exponent)


@devices.operator("gptkernels::linear_cross_entropy")
def linear_cross_entropy_op(
    x: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, smoothing: float, gamma: float, z: float,
    ignore: int, chunk: int, wanted: Sequence[bool], in_place: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """(mean loss, dX, dW and db in fp32, unit): gradients in `unit`, empty if not `wanted`. `chunk` 0: chosen here."""
    (N, C), V, kind = x.shape, weight.shape[0], x.dtype
    (loss, dx, dw, db, unit), (_, dw_wanted, db_wanted) = _new_outputs(x, weight, wanted), wanted
    dw.zero_()
    db.zero_()
    targets = targets.contiguous()
    d, factor = _per_row((targets != ignore).sum().float(), kind)
    unit.copy_(factor)
    rows = chunk or chunk_rows(N, C, V, x.element_size(), weight.element_size())
    loss_N = torch.empty(N, dtype=torch.float32, device=x.device)
    buffer = torch.empty(min(rows, N), padded(V), dtype=kind, device=x.device)[:, :V]
    left = torch.empty(4, 0 if any(wanted) else min(rows, N), dtype=torch.float32, device=x.device)
    terms = {"SMOOTH": smoothing != 0, "FOCAL": gamma != 0}
    with torch.autocast(x.device.type, enabled=False):
        w = weight.to(kind)
        b = None if bias is None else bias.to(kind)
        for first in range(0, N, rows):
            part, target, lost = (t[first : first + rows] for t in (x, targets, loss_N))
            n = part.shape[0]
            logits = buffer[:n]
            if b is None:
                torch.mm(part, w.mT, out=logits)
            else:
                torch.addmm(b, part, w.mT, out=logits)
            stride, numbers = logits.stride(0), (V, ignore, smoothing, gamma, z)
            named = terms | launch_of(logits)
            if any(wanted):
                losses_rows.both[(n,)](logits, target, lost, d, stride, *numbers, **named)
            else:
                losses_rows.forward[(n,)](logits, target, lost, left, stride, n, *numbers, **named)
            if wanted[0]:
                torch.mm(logits, w, out=dx[first : first + rows])
            if dw_wanted:
                _add_product(dw, logits.mT, part)
            if db_wanted:
                db += logits.sum(0, dtype=db.dtype)
    loss.copy_(mean_of_live(loss_N, targets, ignore))
    return loss, dx, dw, db, unit


def _new_outputs(x: Tensor, weight: Tensor, wanted: Sequence[bool]) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    (N, C), V = x.shape, weight.shape[0]
    empty = partial(torch.empty, dtype=torch.float32, device=x.device)
    return (
        empty(()),
        empty((N, C) if wanted[0] else (0,), dtype=x.dtype),
        empty((V, C) if wanted[1] else (0,)),
        empty((V,) if wanted[2] else (0,)),
        empty(()),
    )


@linear_cross_entropy_op.register_fake
def _(x, weight, bias, targets, smoothing, gamma, z, ignore, chunk, wanted, in_place):
    return _new_outputs(x, weight, wanted)


@devices.operator("gptkernels::scale_", mutates_args=("x",))
def scale_op_(x: Tensor, factor: Tensor) -> None:
    """x times a number on its device, in place."""
    if x.numel():
        losses_rows.scale[(triton.cdiv(x.numel(), BLOCK),)](x, factor, x.numel(), BLOCK=BLOCK, num_warps=SCALE_WARPS)


def _keep(ctx, inputs, output):
    _, weight, bias, *_, wanted, ctx.in_place = inputs
    ctx.kinds = [output[1].dtype, weight.dtype, None if bias is None else bias.dtype]
    ctx.wanted = wanted
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)  # or backward would begin with zeros as large as dW
    ctx.save_for_backward(*output[1:])


def _differentiate(ctx, d_loss, *_):
    *made, unit = ctx.saved_tensors
    factor = d_loss * unit
    found = [
        _scaled(x, factor, kind, ctx.in_place) if wanted else None
        for x, kind, wanted in zip(made, ctx.kinds, ctx.wanted, strict=True)
    ]
    return *found, *[None] * 8


def _scaled(x: Tensor, factor: Tensor, kind: torch.dtype, in_place: bool) -> Tensor:
    if not in_place:
        return (x * factor).to(kind)
    if x.dtype == kind:
        scale_op_(x, factor)
        return x
    return torch.mul(x, factor, out=torch.empty(x.shape, dtype=kind, device=x.device))


linear_cross_entropy_op.register_autograd(_differentiate, setup_context=_keep)


def linear_cross_entropy(
    x_NC: Tensor, weight_VC: Tensor, targets_N: Tensor, *, bias_V: Tensor | None = None, smoothing: float = 0.0,
    gamma: float = 0.0, z: float = 0.0, ignore_index: int = -1, chunk: int | None = None,
) -> Tensor:  # fmt: skip
    """As `losses_reference.linear_cross_entropy`; x is bf16, fp16 or fp32, or becomes what autocast says.

    The weight may have another type, and gets its gradient in that. Meaning of targets as in `cross_entropy`. A second
    backward pass over the same loss is refused (autograd's error about a tensor modified in place).
    """
    device = x_NC.device.type
    if torch.is_autocast_enabled(device):
        x_NC = x_NC.to(torch.get_autocast_dtype(device))
    leaves = (x_NC, weight_VC, bias_V)
    wanted = [torch.is_grad_enabled() and leaf is not None and leaf.requires_grad for leaf in leaves]
    in_place = not torch.compiler.is_compiling()
    return linear_cross_entropy_op(
        x_NC, weight_VC, bias_V, targets_N, smoothing, gamma, z, ignore_index, chunk or 0, wanted, in_place
    )[0]
