"""Linear layer with activation, and a whole MLP, as operators of torch: one node of the graph each.

    linear_activation    act(x W^T + b)
    mlp                  W_down act(W_up x + b_up) + b_down, or gated, W_down (act(g) u) + b_down    (arXiv 2002.05202)

Products that something follows are the kernel of `mlp_products`, on a GPU or in Triton's interpreter; those that
nothing follows (down, and the gradients of x and of the weights) are torch's, in the precision that torch is set to,
always with `out=`, which autocast leaves alone.

Kept for the backward pass beside x and the weights, in the type of x: of a linear layer the output (relu, relu2;
nothing without activation) or else what the activation read; of an MLP the hidden vector (none, relu, relu2), or what
the activation read (gelu, gelu_tanh, silu), or gate and up; nothing with `recompute`, which makes them again from x.
relu2 is differentiated by the root of its output, so that in fp16 slopes below 5e-4 are lost where that underflows.

All tensors have one type, bf16, fp16 or fp32: under autocast the caller casts. Sums are in fp32. Inputs may have any
strides; those that a tensor descriptor cannot express are copied first. Equal inputs give equal gradients.

Not covered: fp64, second derivatives, dropout.

Legend: C width of the model, H hidden width, M tokens, K and N widths of the input and output of a linear layer.
"""

from collections.abc import Sequence

import torch
import triton
from torch import Tensor

from . import devices, mlp_products
from .mlp_reference import ACTIVATIONS
from .mlp_rows import SIGN, SLOPES, SMOOTH, form, launch

GROUP = 8  # rows of tiles that share columns of weights in the cache
TYPES = (torch.bfloat16, torch.float16, torch.float32)


def _padded(N: int, itemsize: int) -> int:
    """N, or the next width whose rows start at multiples of 16 bytes."""
    return -(-N * itemsize // 16) * 16 // itemsize


def _described(x: Tensor) -> Tensor:
    """The matrix, or a copy that a tensor descriptor can address."""
    step, size = x.stride(0), x.element_size()
    if x.stride(1) == 1 and step * size % 16 == 0 and step >= x.shape[1] and x.data_ptr() % 16 == 0:
        return x
    return x.new_empty(x.shape[0], _padded(x.shape[1], size))[:, : x.shape[1]].copy_(x)


def _product(
    direction: str, x: Tensor, w: Tensor, bias: Tensor | None, out: Tensor | None, kept: Tensor | None,
    d_kept: Tensor | None, N: int, activation: str, gated: bool, sums: bool = False,
) -> Tensor | None:  # fmt: skip
    """Launches; the sums of columns, (N,) or (2 N,) in fp32, if wanted. `kept` is (M, [2,] N padded)."""
    (M, K), device = x.shape, x.device
    if M == 0:
        return torch.zeros(N * (1 + gated), dtype=torch.float32, device=device) if sums else None
    x, w, bias = _described(x), _described(w), None if bias is None else bias.contiguous()
    devices.use_descriptors(x)
    architecture, multiprocessors = devices.capability(x), devices.multiprocessors(x)
    row = launch(architecture, direction, form(activation, gated), M, N, K, x.element_size(), multiprocessors)
    tiles_m = triton.cdiv(M, row.BM)
    parts = torch.empty(tiles_m, N * (1 + gated), dtype=torch.float32, device=device) if sums else None
    programs = min(tiles_m * triton.cdiv(N, row.BN), multiprocessors * row.programs)
    half = w.shape[0] // 2 * w.stride(0) if gated and direction == "forward" else 0
    row_step, half_step = (0, 0) if kept is None else (kept.stride(0), kept.stride(1) if gated else 0)
    mlp_products.product[(programs,)](
        x, w, bias, out, kept, d_kept, parts, M, N, K, x.stride(0), w.stride(0), half,
        0 if out is None else out.stride(0), row_step, half_step, BM=row.BM, BN=row.BN, BK=row.BK, GROUP=GROUP,
        PARTS=row.PARTS, ACT=activation, GATED=gated, BACKWARD=direction == "backward",
        BIAS=sums or bias is not None, KEEP=kept is not None and direction == "forward", OUT=out is not None,
        EXACT="ieee" if x.dtype == torch.float32 else "tf32", num_warps=row.num_warps, num_stages=row.num_stages,
    )  # fmt: skip
    return None if parts is None else parts.sum(0)


def _rows_of(x: Tensor) -> Tensor:
    return x.reshape(-1, x.shape[-1])


def _hidden(x: Tensor, M: int, H: int) -> Tensor:
    """Empty (M, H), rows at multiples of 16 bytes."""
    return x.new_empty(M, _padded(H, x.element_size()))


def _new_kept(x: Tensor, M: int, H: int, gated: bool, wanted: bool) -> Tensor:
    if not wanted:
        return x.new_empty(0)
    width = _padded(H, x.element_size())
    kept = x.new_empty((M, 2, width) if gated else (M, width))
    if width > H:
        kept[..., H:] = 0.0  # no memory that nobody wrote leaves an operator
    return kept


def _sum_of_rows(x: Tensor) -> Tensor:
    return x.sum(0, dtype=torch.float32).to(x.dtype)


# ---- a linear layer and its activation


@devices.operator("gptkernels::linear_activation")
def linear_activation_op(
    x: Tensor, weight: Tensor, bias: Tensor | None, activation: str, keep: bool
) -> tuple[Tensor, Tensor]:
    """(output, what the activation read: (M, N padded), or empty where the output does or `keep` is false)."""
    rows, N = _rows_of(x), weight.shape[0]
    M = rows.shape[0]
    kept = _new_kept(x, M, N, False, keep and activation in SMOOTH)
    out = x.new_empty(*x.shape[:-1], N)
    flat = out.view(M, N)
    made = flat if N == _padded(N, x.element_size()) else _hidden(x, M, N)
    _product("forward", rows, weight, bias, made, kept if kept.numel() else None, None, N, activation, False)
    if made is not flat:
        flat.copy_(made[:, :N])
    return out, kept


@linear_activation_op.register_fake
def _(x, weight, bias, activation, keep):
    N = weight.shape[0]
    M = x.numel() // x.shape[-1]
    return x.new_empty(*x.shape[:-1], N), _new_kept(x, M, N, False, keep and activation in SMOOTH)


@devices.operator("gptkernels::linear_activation_backward")
def linear_activation_backward_op(
    x: Tensor, weight: Tensor, kept: Tensor | None, d_out: Tensor, activation: str, needs: Sequence[bool]
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, weight, bias, those not needed empty. `kept` is the output, or what the activation read."""
    (N, K), rows = weight.shape, _rows_of(x)
    M = rows.shape[0]
    dx, dw, db = _new_gradients(needs, (x, weight, weight[:, 0]), x)
    d = d_out.reshape(M, N)
    sums = None
    if kept is None or M == 0:
        dz = d
    else:
        d = d if d.stride(-1) == 1 else d.contiguous()
        kept = kept.view(M, -1)
        dz = d.new_empty(M, N)
        tiles = triton.cdiv(M, SLOPES["BM"]), triton.cdiv(N, SLOPES["BN"])
        sums = torch.empty(tiles[0], N, dtype=torch.float32, device=x.device) if needs[2] else None
        mlp_products.slopes[tiles](
            d, kept, dz, sums, M, N, d.stride(0), kept.stride(0), dz.stride(0), ACT=activation,
            FROM_OUTPUT=activation in SIGN, BIAS=needs[2], **SLOPES,
        )  # fmt: skip
    if needs[0]:
        torch.mm(dz, weight, out=dx.view(M, K))
    if needs[1]:
        torch.mm(dz.t(), rows, out=dw)
    if needs[2]:
        db = _sum_of_rows(dz) if sums is None else sums.sum(0).to(x.dtype)
    return dx, dw, db


def _new_gradients(needs: Sequence[bool], of: Sequence[Tensor], x: Tensor) -> list[Tensor]:
    return [x.new_empty(t.shape if need else 0) for need, t in zip(needs, of, strict=True)]


@linear_activation_backward_op.register_fake
def _(x, weight, kept, d_out, activation, needs):
    return tuple(_new_gradients(needs, (x, weight, weight[:, 0]), x))


def _keep_linear(ctx, inputs, output):
    x, weight, _, ctx.activation, keep = inputs
    out, kept = output
    assert keep or ctx.activation in SIGN, "a backward pass needs what the activation read"
    ctx.save_for_backward(x, weight, {"none": None, "relu": out, "relu2": out}.get(ctx.activation, kept))
    ctx.set_materialize_grads(False)


def _differentiate_linear(ctx, d_out, _):
    x, weight, kept = ctx.saved_tensors
    needs = list(ctx.needs_input_grad[:3])
    gradients = linear_activation_backward_op(x, weight, kept, d_out, ctx.activation, needs)
    return *(g if need else None for g, need in zip(gradients, needs, strict=True)), None, None


linear_activation_op.register_autograd(_differentiate_linear, setup_context=_keep_linear)


# ---- a whole MLP


@devices.operator("gptkernels::mlp")
def mlp_op(
    x: Tensor, w_up: Tensor, b_up: Tensor | None, w_down: Tensor, b_down: Tensor | None, activation: str, gated: bool,
    keep: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """(output, what is kept: (M, H padded), gated (M, 2, H padded), or empty unless `keep`)."""
    rows, (C, H) = _rows_of(x), w_down.shape
    M, sign = rows.shape[0], form(activation, gated) == "sign"
    kept = _new_kept(x, M, H, gated, keep)
    h = kept if sign and keep else _hidden(x, M, H)
    _product("forward", rows, w_up, b_up, h, None if sign or not keep else kept, None, H, activation, gated)
    y = x.new_empty(*x.shape[:-1], C)
    if b_down is None:
        torch.mm(h[:, :H], w_down.t(), out=y.view(M, C))
    else:
        torch.addmm(b_down, h[:, :H], w_down.t(), out=y.view(M, C))
    return y, kept


@mlp_op.register_fake
def _(x, w_up, b_up, w_down, b_down, activation, gated, keep):
    C, H = w_down.shape
    return x.new_empty(*x.shape[:-1], C), _new_kept(x, x.numel() // x.shape[-1], H, gated, keep)


@devices.operator("gptkernels::mlp_backward")
def mlp_backward_op(
    x: Tensor, w_up: Tensor, b_up: Tensor | None, w_down: Tensor, kept: Tensor | None, d_y: Tensor, activation: str,
    gated: bool, needs: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of x, w_up, b_up, w_down, b_down, those not needed empty. Without `kept` it is made again."""
    rows, (C, H) = _rows_of(x), w_down.shape
    M, sign = rows.shape[0], form(activation, gated) == "sign"
    dx, dw_up, db_up, dw_down, db_down = _new_gradients(needs, (x, w_up, w_up[:, 0], w_down, w_down[:, 0]), x)
    d = d_y.reshape(M, C)
    recompute = kept is None
    if kept is None:
        kept = _new_kept(x, M, H, gated, True)
        hidden, read = (kept, None) if sign else (None, kept)
        _product("forward", rows, w_up, b_up, hidden, read, None, H, activation, gated)
    h = kept if sign else _hidden(x, M, H)
    d_kept = kept if recompute and not sign else kept.new_empty(kept.shape)  # a tile is read before it is written
    sums = _product("backward", d, w_down, None, None if sign else h, kept, d_kept, H, activation, gated, sums=needs[2])
    d_up = d_kept[..., :H].reshape(M, w_up.shape[0])
    if needs[0]:
        torch.mm(d_up, w_up, out=dx.view(rows.shape))
    if needs[1]:
        torch.mm(d_up.t(), rows, out=dw_up)
    if sums is not None:
        db_up = sums.to(x.dtype)
    if needs[3]:
        torch.mm(d.t(), h[:, :H], out=dw_down)
    if needs[4]:
        db_down = _sum_of_rows(d)
    return dx, dw_up, db_up, dw_down, db_down


@mlp_backward_op.register_fake
def _(x, w_up, b_up, w_down, kept, d_y, activation, gated, needs):
    return tuple(_new_gradients(needs, (x, w_up, w_up[:, 0], w_down, w_down[:, 0]), x))


def _keep_mlp(ctx, inputs, output):
    x, w_up, b_up, w_down, _, ctx.activation, ctx.gated, ctx.keep = inputs
    ctx.save_for_backward(x, w_up, None if ctx.keep else b_up, w_down, output[1] if ctx.keep else None)
    ctx.set_materialize_grads(False)


def _differentiate_mlp(ctx, d_y, _):
    x, w_up, b_up, w_down, kept = ctx.saved_tensors
    needs = list(ctx.needs_input_grad[:5])
    gradients = mlp_backward_op(x, w_up, b_up, w_down, kept, d_y, ctx.activation, ctx.gated, needs)
    return *(g if need else None for g, need in zip(gradients, needs, strict=True)), None, None, None


mlp_op.register_autograd(_differentiate_mlp, setup_context=_keep_mlp)


# ---- what people call


def _checked(activation: str, *tensors: Tensor | None) -> bool:
    """Whether a backward pass may follow."""
    given = [t for t in tensors if t is not None]
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation {activation!r} is none of {', '.join(ACTIVATIONS)}")
    if given[0].dtype not in TYPES or any(t.dtype != given[0].dtype for t in given):
        raise ValueError(f"types {[str(t.dtype) for t in given]}: all must be one of bfloat16, float16, float32")
    return torch.is_grad_enabled() and any(t.requires_grad for t in given)


def linear_activation(x: Tensor, weight_NK: Tensor, bias_N: Tensor | None, activation: str) -> Tensor:
    """act(x W^T + b): (..., K) -> (..., N). Activations: none, relu, relu2, gelu, gelu_tanh, silu."""
    if x.shape[-1] != weight_NK.shape[1]:
        raise ValueError(f"x has width {x.shape[-1]}, the weight is {tuple(weight_NK.shape)}")
    keep = _checked(activation, x, weight_NK, bias_N)
    return linear_activation_op(x, weight_NK, bias_N, activation, keep)[0]


def mlp(
    x: Tensor, w_up: Tensor, b_up: Tensor | None, w_down: Tensor, b_down: Tensor | None, activation: str,
    gated: bool = False, recompute: bool = False,
) -> Tensor:  # fmt: skip
    """(..., C) -> (..., C). w_up is (H, C), or gated (2 H, C), the rows of the gate first; w_down is (C, H)."""
    H = w_down.shape[1]
    if w_up.shape != (H * (1 + gated), x.shape[-1]):
        raise ValueError(f"x has width {x.shape[-1]}, w_up is {tuple(w_up.shape)}, w_down {tuple(w_down.shape)}")
    keep = _checked(activation, x, w_up, b_up, w_down, b_down) and not recompute
    return mlp_op(x, w_up, b_up, w_down, b_down, activation, gated, keep)[0]
