"""Rotary position embedding of queries and keys as operators of torch, in one launch (RoFormer, arXiv 2104.09864).

    rotary(q, k, cos, sin, start, turned)                    -> (q, k), differentiable
    rotary_(q, k, cos, sin, start, turned)                   in place, without gradients
    rotary_projection_(qkv, heads, key_heads, ...)           in place and differentiable, on what a projection made of
                                                             queries, keys and values before it is split

Tables are those of `gptcore.position.rotary`, in fp32: a row a position, the halves of a head paired, the sine with the
sign of the pairing folded in. Token t stands at `start + t`; the first `turned` entries of a head turn. Any strides;
results of `rotary` and its gradients have the heads inside the tokens, as projections make and take them. Nothing but
the tables is kept for the backward pass. Numbers are bf16, fp16 or fp32, arithmetic is in fp32.

Torch forbids writing to the parts of a split in place while gradients are recorded, hence the third form. Values that
are kept for the backward pass keep the projection that they are a part of: with `rotary` unturned queries and keys live
on beside the turned ones. Not covered: fp64, a second derivative, gradients of the tables.

Legend: B batch, H query heads, K key heads, T tokens, D head width, S positions.
"""

from dataclasses import dataclass

import torch
import triton
from torch import Tensor

from . import devices, rotary_kernels
from .roofline import Work

FEWEST_PROGRAMS = 8  # a multiprocessor, as far as heads can be shared out


@dataclass(frozen=True)
class Launch:
    BT: int
    num_warps: int
    num_stages: int = 1


# half of the turned entries, rounded up to a power of 2 -> launch, of sm_90 and sm_80 alike. None was timed: a thread
# has 8 numbers of either half, and 32 of the tables.
ROWS: dict[int, Launch] = {
    8: Launch(128, 4),
    16: Launch(64, 4),
    32: Launch(32, 4),
    64: Launch(16, 4),
    128: Launch(8, 4),
    256: Launch(4, 4),
}


def table_row(half: int) -> tuple[int, Launch]:
    """(block of the half, launch)."""
    block = max(triton.next_power_of_2(half), 8)
    return block, ROWS.get(block) or Launch(1, 4)


def shared_out(tiles: int, heads: int, x: Tensor) -> int:
    """Heads of a program on the device of `x`, where there are `tiles` of tokens."""
    parts = max(1, triton.cdiv(FEWEST_PROGRAMS * devices.multiprocessors(x), tiles))
    return triton.cdiv(heads, min(parts, heads))


def _launch(q, k, q_out, k_out, cos, sin, start: int, turned: int, back: bool) -> None:
    (B, H, T, D), K = q.shape, k.shape[1]
    if not (q.numel() or k.numel()):
        return
    block, row = table_row(turned // 2)
    tiles = triton.cdiv(B * T, row.BT)
    share = shared_out(tiles, H + K, q)
    # in place there is nothing to do for what does not turn
    rest = 1 if turned == D or q_out is q else triton.next_power_of_2(D - turned)
    rotary_kernels.rotate[(tiles, triton.cdiv(H + K, share))](
        q, k, q_out, k_out, cos, sin, *q.stride()[:3], *k.stride()[:3], *q_out.stride()[:3], *k_out.stride()[:3],
        cos.stride(0), sin.stride(0), B, H, K, T, start, share, D=D, HALF=turned // 2, BT=row.BT, BH=block, BR=rest,
        BACK=back, num_warps=row.num_warps, num_stages=row.num_stages,
    )  # fmt: skip


def new_heads(q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
    """Empty, of these shapes, heads inside tokens."""
    B, H, T, D = q.shape
    return q.new_empty(B, T, H, D).transpose(1, 2), k.new_empty(B, T, k.shape[1], D).transpose(1, 2)


def adjacent(x: Tensor) -> Tensor:
    """x with the entries of a head next to each other."""
    return x if x.stride(-1) == 1 else x.contiguous()


@devices.operator("gptkernels::rotary")
def rotary_op(
    q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, start: int, turned: int, back: bool
) -> tuple[Tensor, Tensor]:
    """q and k turned, or turned `back`."""
    q_out, k_out = new_heads(q, k)
    _launch(adjacent(q), adjacent(k), q_out, k_out, cos, sin, start, turned, back)
    return q_out, k_out


@rotary_op.register_fake
def _(q, k, cos, sin, start, turned, back):
    return new_heads(q, k)


def _keep(ctx, inputs, output):
    *_, cos, sin, ctx.start, ctx.turned, ctx.back = inputs
    ctx.save_for_backward(cos, sin)


def _differentiate(ctx, d_q, d_k):
    cos, sin = ctx.saved_tensors
    return *rotary_op(d_q, d_k, cos, sin, ctx.start, ctx.turned, not ctx.back), None, None, None, None, None


rotary_op.register_autograd(_differentiate, setup_context=_keep)


@devices.operator("gptkernels::rotary_", mutates_args=("q", "k"))
def rotary_in_place_op(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, start: int, turned: int, back: bool) -> None:
    """`rotary` in place."""
    _launch(q, k, q, k, cos, sin, start, turned, back)


def checked_tables(q_shape, k_shape, cos_SD: Tensor, sin_SD: Tensor, start: int, turned: int) -> tuple[Tensor, Tensor]:
    """Tables as the kernel reads them."""
    (B, _, T, D), S = q_shape, cos_SD.shape[0]
    if tuple(k_shape) != (B, k_shape[1], T, D):
        raise ValueError(f"queries {tuple(q_shape)} and keys {tuple(k_shape)} differ in more than heads")
    if turned % 2 or not 0 < turned <= D:
        raise ValueError(f"{turned} entries of heads of {D} cannot turn: it takes an even number, at most the width")
    if cos_SD.shape != (S, turned) or sin_SD.shape != (S, turned):
        raise ValueError(f"tables {tuple(cos_SD.shape)} and {tuple(sin_SD.shape)} for {turned} entries that turn")
    if start < 0 or start + T > S:
        raise ValueError(f"positions {start} to {start + T - 1} of tables of {S}")
    return cos_SD.float().contiguous(), sin_SD.float().contiguous()


def rotary(
    q_BHTD: Tensor, k_BKTD: Tensor, cos_SD: Tensor, sin_SD: Tensor, start: int, turned: int
) -> tuple[Tensor, Tensor]:
    """Queries and keys of tokens at `start` and after, turned, in new memory."""
    cos, sin = checked_tables(q_BHTD.shape, k_BKTD.shape, cos_SD, sin_SD, start, turned)
    return rotary_op(q_BHTD, k_BKTD, cos, sin, start, turned, False)


def rotary_(q_BHTD: Tensor, k_BKTD: Tensor, cos_SD: Tensor, sin_SD: Tensor, start: int, turned: int) -> None:
    """Turns queries and keys where they are; refuses those whose gradients are recorded."""
    cos, sin = checked_tables(q_BHTD.shape, k_BKTD.shape, cos_SD, sin_SD, start, turned)
    if torch.is_grad_enabled() and (q_BHTD.requires_grad or k_BKTD.requires_grad):
        raise ValueError("rotary_ has no gradient: use rotary, or rotary_projection_ before the projection is split")
    for name, x in (("queries", q_BHTD), ("keys", k_BKTD)):
        if x.stride(-1) != 1 or any(s == 0 and n > 1 for s, n in zip(x.stride(), x.shape, strict=True)):
            raise ValueError(f"{name} of strides {x.stride()}: in place, entries must be adjacent, no two the same")
    rotary_in_place_op(q_BHTD, k_BKTD, cos, sin, start, turned, False)


def _heads(qkv_BTC: Tensor, heads: int, key_heads: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """(q (B, H, T, D), k (B, K, T, D), the rest (B, T, R)), views."""
    q, k, rest = qkv_BTC.tensor_split((heads * width, (heads + key_heads) * width), dim=-1)
    return q.unflatten(-1, (heads, width)).transpose(1, 2), k.unflatten(-1, (key_heads, width)).transpose(1, 2), rest


@devices.operator("gptkernels::rotary_projection")
def rotary_projection_op(
    qkv: Tensor, cos: Tensor, sin: Tensor, heads: int, key_heads: int, width: int, start: int, turned: int, back: bool
) -> Tensor:
    """qkv with queries and keys turned, in new memory."""
    qkv = adjacent(qkv)
    out = qkv.new_empty(qkv.shape)
    (q, k, rest), (q_out, k_out, rest_out) = (_heads(x, heads, key_heads, width) for x in (qkv, out))
    _launch(q, k, q_out, k_out, cos, sin, start, turned, back)
    rest_out.copy_(rest)
    return out


@rotary_projection_op.register_fake
def _(qkv, cos, sin, heads, key_heads, width, start, turned, back):
    return qkv.new_empty(qkv.shape)


def _keep_projection(ctx, inputs, output):
    _, cos, sin, *sizes, back = inputs
    ctx.save_for_backward(cos, sin)
    ctx.settings = (*sizes, not back)


def _differentiate_projection(ctx, d_qkv):
    return rotary_projection_op(d_qkv, *ctx.saved_tensors, *ctx.settings), *[None] * 8


rotary_projection_op.register_autograd(_differentiate_projection, setup_context=_keep_projection)


class _InPlace(torch.autograd.Function):
    @staticmethod
    def forward(ctx, qkv, cos, sin, heads, key_heads, width, start, turned):
        _keep_projection(ctx, (qkv, cos, sin, heads, key_heads, width, start, turned, False), qkv)
        q, k, _ = _heads(qkv, heads, key_heads, width)
        rotary_in_place_op(q, k, cos, sin, start, turned, False)
        ctx.mark_dirty(qkv)
        return qkv

    @staticmethod
    def backward(ctx, d_qkv):  # not in place: a gradient may have other owners
        return _differentiate_projection(ctx, d_qkv)[:8]


def rotary_projection_(
    qkv_BTC: Tensor, heads: int, key_heads: int, width: int, cos_SD: Tensor, sin_SD: Tensor, start: int, turned: int
) -> Tensor:
    """Turns the queries and keys that begin the last dimension of `qkv_BTC`; what follows them stays. Use the result.

    In place, but not in a traced graph: torch.compile (2.13) lost what such a function wrote to views in its backward
    pass, without an error. There it is a copy, after which what the projection made can be freed all the same.
    """
    B, T, C = qkv_BTC.shape
    if C < (heads + key_heads) * width or qkv_BTC.stride(-1) != 1:
        raise ValueError(f"{heads} + {key_heads} adjacent heads of {width} do not begin {tuple(qkv_BTC.shape)}")
    cos, sin = checked_tables((B, heads, T, width), (B, key_heads, T, width), cos_SD, sin_SD, start, turned)
    if torch.compiler.is_compiling():
        return rotary_projection_op(qkv_BTC, cos, sin, heads, key_heads, width, start, turned, False)
    return _InPlace.apply(qkv_BTC, cos, sin, heads, key_heads, width, start, turned)


def rotary_reference(x_BHTD: Tensor, cos_SD: Tensor, sin_SD: Tensor, start: int, turned: int) -> Tensor:
    """The definition, of queries or of keys, in the type of `x_BHTD`."""
    T = x_BHTD.shape[-2]
    cos, sin = (t[start : start + T].to(x_BHTD.dtype) for t in (cos_SD, sin_SD))
    part, rest = x_BHTD[..., :turned], x_BHTD[..., turned:]
    return torch.cat([part * cos + part.roll(turned // 2, dims=-1) * sin, rest], dim=-1)


def rotary_work(B: int, H: int, K: int, T: int, D: int, turned: int, itemsize: int, in_place: bool = True) -> Work:
    """Of queries and keys, either direction: in place, what turns is read and written; else all is. Tables once."""
    tokens, entries = B * T * (H + K), turned if in_place else D
    return Work(3 * tokens * turned, 2 * itemsize * tokens * entries + 2 * 4 * T * turned, 0)


def chain_bytes(B: int, H: int, K: int, T: int, D: int, turned: int, itemsize: int) -> int:
    """What the operators of `rotary_reference` move, one after the other, forward: two products, a roll and a sum, each
    written before the next reads it; and a concatenation unless all turns."""
    passes = (1 + 1) + (1 + 1) + (1 + 1) + (2 + 1)
    return itemsize * B * T * (H + K) * (passes * turned + (2 * D if turned < D else 0))
