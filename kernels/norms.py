"""Root-mean-square and layer normalisation, with or without a residual sum, as operators of torch.

    rms_norm(x, weight, eps)            layer_norm(x, weight, bias, eps)
    add_rms_norm(x, y, weight, eps)     add_layer_norm(x, y, weight, bias, eps)        -> (x + y, norm of x + y)

Both outputs are differentiable, and trace into one graph. Any leading dimensions and strides: what three strides
cannot address is copied first, and the result has the order of dimensions in memory that `x` has, so that heads inside
tokens stay there. bf16, fp16 and fp32, sums in fp32: x, y and parameters have any of these types, x + y that of torch,
and the norm the same, or `dtype`: under autocast a stream of fp32 takes branches of 16 bits and is normalised to 16
bits by one kernel. For the backward pass x, or the sum x + y, is kept, and fp32 of a row: 1/rms, and the mean of layer
norm. Gradients of parameters are sums in fixed order. Not covered: fp64, a second derivative, 2^31 rows and more.
"""

from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
import triton
from torch import Tensor

from . import devices
from . import norms_kernels as kernels

LONGEST = 16384  # entries of a row that is held in registers
MOST_ROWS = 2**31 - 2**16  # row numbers are of 32 bits


@dataclass(frozen=True)
class Launch:
    BM: int
    BN: int
    num_warps: int
    programs: int = 0  # a multiprocessor, of kernels that sum over rows; 0: one for each tile
    num_stages: int = 1

    def options(self) -> dict[str, int]:
        return {"BM": self.BM, "BN": self.BN, "num_warps": self.num_warps, "num_stages": self.num_stages}


# (op, width, or 0 for longer rows) -> launch, of sm_90 and sm_80 alike. None was timed: forward tiles have 16 to 32
# numbers a thread and the backward ones 16, which leaves registers for two programs a multiprocessor. Where there
# is but one, tiles are copied ahead of time: an estimate gives 70 to 75 % of the bandwidth without that.
ROWS: dict[tuple[str, int], Launch] = {
    ("forward", 16): Launch(128, 16, 4),
    ("forward", 32): Launch(64, 32, 4),
    ("forward", 64): Launch(32, 64, 4),
    ("forward", 128): Launch(16, 128, 4),
    ("forward", 256): Launch(8, 256, 4),
    ("forward", 512): Launch(8, 512, 4),
    ("forward", 1024): Launch(4, 1024, 4),
    ("forward", 2048): Launch(2, 2048, 4),
    ("forward", 4096): Launch(1, 4096, 4),
    ("forward", 8192): Launch(1, 8192, 8),
    ("forward", 16384): Launch(1, 16384, 16),
    ("forward", 0): Launch(1, 4096, 8),
    ("backward", 16): Launch(256, 16, 8, 2),
    ("backward", 32): Launch(128, 32, 8, 2),
    ("backward", 64): Launch(64, 64, 8, 2),
    ("backward", 128): Launch(32, 128, 8, 2),
    ("backward", 256): Launch(16, 256, 8, 2),
    ("backward", 512): Launch(8, 512, 8, 2),
    ("backward", 1024): Launch(4, 1024, 8, 2),
    ("backward", 2048): Launch(2, 2048, 8, 2),
    ("backward", 4096): Launch(1, 4096, 8, 2),
    ("backward", 8192): Launch(1, 8192, 16, 1, 2),
    ("backward", 16384): Launch(1, 4096, 16, 1),
    ("backward", 0): Launch(1, 4096, 8),
    ("parameters", 0): Launch(4, 1024, 8, 2),
    ("total", 0): Launch(64, 32, 4),
}
# (architecture, op, width, bytes of a number of x and of the norm) -> launch, which comes first: with the tiles of
# `ROWS` these would spill or leave room for one program. Those of the widest rows use all registers that there are.
OWN_ROWS: dict[tuple[int, str, int, int, int], Launch] = (
    {
        (arch, "backward", row.BN, 4, out_size): row
        for row in (Launch(8, 256, 8, 3), Launch(4, 512, 8, 3), Launch(2, 1024, 8, 3), Launch(1, 2048, 8, 3))
        for arch in (90, 80)
        for out_size in (4, 2)
    }
    | {
        (90, "backward", 16384, 4, 4): Launch(1, 2048, 8, 1),
        (80, "backward", 16384, 4, 4): Launch(1, 2048, 8, 1),
        (90, "backward", 16384, 4, 2): Launch(1, 2048, 16, 1),
        (80, "backward", 16384, 4, 2): Launch(1, 1024, 8, 1),
    }
    | {  # shared memory for two stages is not on every GPU
        (80, "backward", 8192, size, out_size): Launch(1, 8192, 16, 1) for size in (2, 4) for out_size in (2, 4)
    }
)


def table_row(arch: int, op: str, N: int, size: int, out_size: int) -> Launch:
    """`arch` is 90 or 80; `size` and `out_size`: bytes of a number of x, or of the sum, and of the norm."""
    width = max(triton.next_power_of_2(N), 16) if N <= LONGEST and op in ("forward", "backward") else 0
    return OWN_ROWS.get((arch, op, width, size, out_size)) or ROWS[op, width]


def _addressed(x: Tensor, *others: Tensor | None) -> tuple[list[tuple[int, ...]], tuple[int, int, int]]:
    """(three strides of every tensor, three sizes) of the leading dimensions, x's outermost first; dimensions that form
    one in all tensors are one."""
    tensors = [x, *others]
    groups: list[tuple[int, list[int]]] = []
    for d in (d for d in _order(x)[:-1] if x.shape[d] != 1):
        strides = [0 if t is None else t.stride(d) for t in tensors]
        if groups and all(last == s * x.shape[d] for last, s in zip(groups[-1][1], strides, strict=True)):
            groups[-1] = (groups[-1][0] * x.shape[d], strides)
        else:
            groups.append((x.shape[d], strides))
    # A single dimension is the first, so that the sizes of the others are 1 and divisions by them vanish.
    groups += [(1, [0] * len(tensors))] * (3 - len(groups))
    (n0, _), (n1, _), (n2, _) = groups
    return [tuple(strides[i] for _, strides in groups) for i in range(len(tensors))], (n0, n1, n2)


def _order(x: Tensor) -> list[int]:
    """Dimensions by their place in memory, the last of all last."""
    return [*sorted(range(x.dim() - 1), key=x.stride, reverse=True), x.dim() - 1]


def _like(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Empty and dense, its dimensions in the order of x."""
    order = _order(x)
    return x.new_empty([x.shape[d] for d in order], dtype=dtype).permute([order.index(d) for d in range(x.dim())])


def _unit(x: Tensor) -> Tensor:
    """x with the entries of a row next to each other."""
    return x if x.stride(-1) == 1 or x.shape[-1] == 1 else x.contiguous()


def _statistic(x: Tensor) -> Tensor:
    return torch.empty(x.shape[:-1], dtype=torch.float32, device=x.device)


def _new_outputs(x: Tensor, y: Tensor | None, centred: bool, dtype: torch.dtype) -> tuple[Tensor, ...]:
    mean = _statistic(x) if centred else x.new_empty(0, dtype=torch.float32)
    sums = x.new_empty(0) if y is None else _like(x, torch.promote_types(x.dtype, y.dtype))
    return _like(x, dtype), sums, mean, _statistic(x)


@devices.operator("gptkernels::norm_forward")
def norm_forward_op(
    x: Tensor, y: Tensor | None, weight: Tensor | None, bias: Tensor | None, eps: float, centred: bool,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """(normalised, x + y, mean, 1 / rms); what does not apply is empty."""
    out, sums, mean, rstd = _new_outputs(x, y, centred, dtype)
    M, N = rstd.numel(), x.shape[-1]
    if not x.numel():
        return out, sums, mean, rstd
    x, y = _unit(x), None if y is None else _unit(y)
    strides, (_, n1, n2) = _addressed(x, y, out, rstd)
    row = table_row(devices.table_of(x), "forward", N, x.element_size(), out.element_size())
    kernel: Any = kernels.forward if N <= LONGEST else kernels.long_forward
    kernel[(triton.cdiv(M, row.BM),)](
        x, y, weight, bias, out, None if y is None else sums, mean if centred else None, rstd, *chain(*strides), n1, n2,
        M, eps, N=N, CENTRED=centred, **row.options(),
    )  # fmt: skip
    return out, sums, mean, rstd


@norm_forward_op.register_fake
def _(x, y, weight, bias, eps, centred, dtype):
    return _new_outputs(x, y, centred, dtype)


@devices.operator("gptkernels::norm_backward")
def norm_backward_op(
    d_out: Tensor, d_sum: Tensor | None, x: Tensor, weight: Tensor | None, bias: Tensor | None, mean: Tensor,
    rstd: Tensor, centred: bool, weight_grad: bool, bias_grad: bool, dtype: torch.dtype,
    other_dtype: torch.dtype | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of (x, the same in another type, weight, bias); those that are not needed are empty.

    `x` is the sum where there was one, of two parts in `dtype` and, if that differs, `other_dtype`.
    """
    dx, dz, dw, db = made = _new_gradients(x, weight, bias, weight_grad, bias_grad, dtype, other_dtype)
    if not x.numel():
        return dx, dz, dw.zero_(), db.zero_()
    M, N, sizes = rstd.numel(), x.shape[-1], (x.element_size(), d_out.element_size())
    x, d_out, d_sum = _unit(x), _unit(d_out), None if d_sum is None else _unit(d_sum)
    (xs, ds, ss, os, rs), (_, n1, n2) = _addressed(x, d_out, d_sum, dx, rstd)
    kept_mean, dz_or_none = mean if centred else None, None if other_dtype is None else dz
    sums = {"CENTRED": centred, "W_GRAD": weight_grad, "B_GRAD": bias_grad}
    arch = devices.table_of(x)
    row = table_row(arch, "backward", N, *sizes)
    arguments = (*ds, *ss, *xs, *os, *rs, n1, n2, M)
    if N > LONGEST:
        options = row.options() | {"N": N, "CENTRED": centred}
        del options["BM"]
        kernels.long_backward[(M,)](d_out, d_sum, x, weight, kept_mean, rstd, dx, dz_or_none, *arguments, **options)
        row = table_row(arch, "parameters", N, *sizes)
    programs = min(triton.cdiv(M, row.BM), row.programs * devices.multiprocessors(x))
    part = torch.empty(weight_grad + bias_grad, programs, N, dtype=torch.float32, device=x.device)
    if N <= LONGEST:
        kernels.backward[(programs,)](
            d_out, d_sum, x, weight, kept_mean, rstd, dx, dz_or_none, part, *arguments, N=N,
            CHUNKS=triton.cdiv(N, row.BN), STAGES=row.num_stages, **sums, **row.options(),
        )  # fmt: skip
    elif weight_grad or bias_grad:
        kernels.long_parameters[(triton.cdiv(N, row.BN), programs)](
            d_out, x, kept_mean, rstd, part, *ds, *xs, *rs, n1, n2, M, N=N, **sums, **row.options()
        )
    totals = [t for t, needed in zip(made[2:], (weight_grad, bias_grad), strict=True) if needed]
    if totals:
        row = table_row(arch, "total", N, *sizes)
        options = row.options()
        options["BP"] = options.pop("BM")
        kernels.total[(triton.cdiv(N, row.BN), len(totals))](part, *(totals + [None])[:2], programs, N, **options)
    return dx, dz, dw, db


def _new_gradients(x, weight, bias, weight_grad, bias_grad, dtype, other_dtype):
    dz = x.new_empty(0) if other_dtype is None else _like(x, other_dtype)
    needed = ((weight, weight_grad), (bias, bias_grad))
    return _like(x, dtype), dz, *(p.new_empty(p.shape) if grad else x.new_empty(0) for p, grad in needed)


@norm_backward_op.register_fake
def _(d_out, d_sum, x, weight, bias, mean, rstd, centred, weight_grad, bias_grad, dtype, other_dtype):
    return _new_gradients(x, weight, bias, weight_grad, bias_grad, dtype, other_dtype)


def _keep(ctx, inputs, output):
    x, y, weight, bias, _, ctx.centred, _ = inputs
    _, sums, mean, rstd = output
    ctx.added, ctx.dtype, ctx.other = y is not None, x.dtype, None if y is None or y.dtype == x.dtype else y.dtype
    ctx.save_for_backward(sums if ctx.added else x, weight, bias, mean, rstd)
    ctx.set_materialize_grads(False)  # no gradient of the sum is no gradient of zeros to read


def _differentiate(ctx, d_out, d_sum, d_mean, d_rstd):
    x, weight, bias, mean, rstd = ctx.saved_tensors
    weight_grad, bias_grad = ctx.needs_input_grad[2:4]
    if d_out is None:
        return d_sum.to(ctx.dtype), d_sum.to(ctx.other or ctx.dtype), *[None] * 5
    d_sum = d_sum if ctx.added else None
    dx, dz, dw, db = norm_backward_op(
        d_out, d_sum, x, weight, bias, mean, rstd, ctx.centred, weight_grad, bias_grad, ctx.dtype, ctx.other
    )
    dy = None if not ctx.added else dx if ctx.other is None else dz
    return dx, dy, dw if weight_grad else None, db if bias_grad else None, None, None, None


norm_forward_op.register_autograd(_differentiate, setup_context=_keep)


def _norm(x, y, weight, bias, eps, centred, dtype) -> tuple[Tensor, Tensor]:
    for name, p in (("weight", weight), ("bias", bias)):
        if p is not None and p.shape != x.shape[-1:]:
            raise ValueError(f"{name} of shape {tuple(p.shape)} for rows of {x.shape[-1]}")
    if y is not None and y.shape != x.shape:
        raise ValueError(f"a sum of {tuple(x.shape)} and {tuple(y.shape)}: shapes must be alike")
    if x.numel() >= x.shape[-1] * MOST_ROWS > 0:
        raise ValueError(f"{x.numel() // x.shape[-1]} rows: one launch takes fewer than {MOST_ROWS}")
    weight, bias = (p if p is None else p.contiguous() for p in (weight, bias))
    dtype = dtype or (x.dtype if y is None else torch.promote_types(x.dtype, y.dtype))
    shape = x.shape
    if x.dim() > 4:  # kernels have three strides
        x, y = (t if t is None else t.flatten(0, -4) for t in (x, y))
    out, sums, _, _ = norm_forward_op(x, y, weight, bias, eps, centred, dtype)
    return out.view(shape), sums if y is None else sums.view(shape)


def rms_norm(x: Tensor, weight: Tensor | None, eps: float, dtype: torch.dtype | None = None) -> Tensor:
    """x / sqrt(mean(x^2) + eps) * weight, of the last dimension."""
    return _norm(x, None, weight, None, eps, False, dtype)[0]


def layer_norm(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, dtype: torch.dtype | None = None
) -> Tensor:
    """(x - mean) / sqrt(variance + eps) * weight + bias, of the last dimension."""
    return _norm(x, None, weight, bias, eps, True, dtype)[0]


def add_rms_norm(
    x: Tensor, y: Tensor, weight: Tensor | None, eps: float, dtype: torch.dtype | None = None
) -> tuple[Tensor, Tensor]:
    """(x + y, rms_norm(x + y)): the residual stream, and what the next branch reads. The norm is of the rounded sum."""
    out, sums = _norm(x, y, weight, None, eps, False, dtype)
    return sums, out


def add_layer_norm(
    x: Tensor, y: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, dtype: torch.dtype | None = None
) -> tuple[Tensor, Tensor]:
    """(x + y, layer_norm(x + y)), as `add_rms_norm`."""
    out, sums = _norm(x, y, weight, bias, eps, True, dtype)
    return sums, out
