"""Tensors of a point, and its contestants as functions: our kernels and the named baselines.

The back end of torch's scaled dot product attention is always chosen by name: left alone it differs by version.
`compile:KIND` is the plain torch definition under torch.compile, default mode, static shapes.
"""

import math
from collections.abc import Callable
from contextlib import contextmanager, nullcontext

import torch
import torch._functorch.config
import torch.nn.functional as F
from torch import Tensor

from kernels import attention_reference, launch_table
from kernels.attention_reference import Weighting

from .plan import Point, split_contestant

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
WEIGHTINGS = {
    "softmax": Weighting(),
    "consmax": Weighting("consmax"),
    "sigmoid": Weighting("sigmoid", log_keys=True),
    "relu": Weighting("relu", by_keys=True),
    "relu2": Weighting("relu2", shift=0.5, by_keys=True),
    "polymax": Weighting("polymax", x_intercept=-1.0, divisor=64.0),
    "softplus": Weighting("softplus", by_keys=True),
    "softmax base2": Weighting(base=2.0),
    "consmax base2": Weighting("consmax", base=2.0),
    "consmax clamp": Weighting("consmax", clamp=0.3),
    "polymax power3": Weighting("polymax", power=3, x_intercept=-1.0, divisor=64.0),
}
CONSTANTS = ("beta_H", "gamma_H")  # of consmax


class Absent(Exception):
    """A contestant that this machine or version does not have, and why."""


def weighting(kind: str, variant: str) -> Weighting:
    return WEIGHTINGS.get(f"{kind} {variant}") or WEIGHTINGS[kind]


def new_tensors(point: Point, kind: str, seed: int, device: str) -> dict[str, Tensor]:
    """Random q, k, v, the constants of the kind, a bias; `d_out`, a cotangent, where there is a backward pass."""
    generator = torch.Generator(device).manual_seed(seed)
    dtype = DTYPES[point.dtype]

    def heads(B: int, H: int, T: int, D: int) -> Tensor:
        size = (B, T, H, D) if point.heads_inside else (B, H, T, D)
        x = torch.randn(size, generator=generator, device=device, dtype=dtype)
        return x.transpose(1, 2) if point.heads_inside else x

    def each_head() -> Tensor:
        return torch.rand(point.H, generator=generator, device=device)

    p = point
    named = {"q": heads(p.B, p.H, p.T, p.D), "k": heads(p.B, p.K, p.S, p.D), "v": heads(p.B, p.K, p.S, p.E)}
    if kind == "consmax":
        # Rows sum to about as much as those of softmax in the middle of the sequence.
        named |= {"beta_H": each_head() * 0.5 + 0.5, "gamma_H": (each_head() + 0.5) * (p.S / 2)}
    if p.variant == "lobo":
        named["lobo_H"] = each_head() * 4
    if p.variant == "alibi":
        named["slopes_H"] = each_head() * 0.5
    if p.bias:
        named["bias_HTS"] = torch.randn(p.H, p.T, p.S, generator=generator, device=device)
    if p.op in ("backward", "both"):
        named["d_out"] = heads(p.B, p.H, p.T, p.E)
    return named


def of_kind(named: dict[str, Tensor], kind: str) -> dict[str, Tensor]:
    """The tensors of consmax without what another kind has no use for."""
    return {n: x for n, x in named.items() if kind == "consmax" or n not in CONSTANTS}


def options(point: Point, **rest: Tensor) -> dict:
    named = {"causal": point.causal, "window": point.window or None, "softcap": point.softcap or None}
    return named | {name: x for name, x in rest.items() if name.endswith(("_H", "_HTS"))}


def scale(point: Point) -> float:
    return point.D**-0.5


def decode_splits(point: Point, multiprocessors: int) -> int:
    """As the kernels choose by themselves."""
    from kernels.attention import default_splits

    return default_splits(point.B * point.K, point.S, multiprocessors)


def own(point: Point, kind: str, splits: int = 1) -> Callable[..., Tensor]:
    """Our kernel as a function of named tensors."""
    from kernels import attention

    w = weighting(kind, point.variant)

    def call(q, k, v, **rest):
        if point.op == "decode":
            return attention.attention_decode(q, k, v, w, scale(point), **options(point, **rest), splits=splits)
        return attention.attention(q, k, v, w, scale(point), **options(point, **rest))

    return call


def forced(point: Point, launch: str):
    """The launch row to try in place of the committed one."""
    if not launch:
        return nullcontext()
    return launch_table.forced(**{point.row: launch_table.Launch(*map(int, launch.split("x")))})


def reference(point: Point, kind: str) -> Callable[..., Tensor]:
    w = weighting(kind, point.variant)
    return lambda q, k, v, **rest: attention_reference.attention(q, k, v, w, scale(point), **options(point, **rest))


def _sdpa(point: Point, backend: str) -> Callable[..., Tensor]:
    from torch.nn.attention import SDPBackend, sdpa_kernel

    chosen = {"flash": "FLASH_ATTENTION", "cudnn": "CUDNN_ATTENTION", "math": "MATH"}[backend]
    if not hasattr(SDPBackend, chosen):
        raise Absent(f"this torch has no SDPBackend.{chosen}")
    if point.window or point.softcap or point.bias:
        raise Absent("not an attention that this back end knows")
    triangle = point.causal and point.T > 1
    if triangle and point.T != point.S:
        raise Absent("its causal mask is aligned to the first key")

    def call(q, k, v, **_):
        with sdpa_kernel([getattr(SDPBackend, chosen)]):
            return F.scaled_dot_product_attention(
                q, k, v, is_causal=triangle, scale=scale(point), enable_gqa=point.H != point.K
            )

    return call


def _flex(point: Point) -> Callable[..., Tensor]:
    try:
        from torch.nn.attention.flex_attention import create_block_mask, flex_attention
    except ImportError as error:
        raise Absent(f"no FlexAttention: {error}") from None
    attend = compiled(flex_attention, point.op == "backward")
    mask = create_block_mask(lambda b, h, t, s: t >= s, None, None, point.T, point.S) if point.causal else None
    return lambda q, k, v, **_: attend(q, k, v, block_mask=mask, scale=scale(point), enable_gqa=point.H != point.K)


def compiled(function: Callable, repeated: bool = False) -> Callable:
    """Of static shapes; `repeated`: one graph is run backward several times, so what it keeps is not overwritten."""
    torch._dynamo.reset()
    torch._functorch.config.donated_buffer = not repeated
    return torch.compile(function, dynamic=False)


def function(point: Point, contestant: str, multiprocessors: int) -> Callable[..., Tensor]:
    """The contestant as a function of named tensors; `Absent` says why there is none."""
    provider, kind, _, _ = split_contestant(contestant)
    if provider == "triton":
        return own(point, kind, point.splits or decode_splits(point, multiprocessors))
    if provider == "compile":
        naive = compiled(reference(point, kind), point.op == "backward")
        return lambda q, **rest: naive(q, **{n: x.to(q.dtype) for n, x in rest.items()})
    return _flex(point) if provider == "flex" else _sdpa(point, provider.removeprefix("sdpa-"))


def leaves(named: dict[str, Tensor], flag: str = "") -> dict[str, Tensor]:
    """The tensors, with gradients of all that has one but, with the flag `frozen`, the constants of consmax."""
    held = ("d_out", "slopes_H", *(CONSTANTS if flag == "frozen" else ()))
    return {n: x.detach().requires_grad_(n not in held) for n, x in named.items()}


def callable_of(call: Callable[..., Tensor], point: Point, named: dict[str, Tensor], contestant: str) -> Callable:
    """What is timed: a function of nothing."""
    _, _, launch, flag = split_contestant(contestant)
    if point.op in ("forward", "decode"):

        def run():
            with torch.no_grad(), forced(point, launch):
                return call(**named)

        return run
    grown = leaves(named, flag)
    d_out = grown.pop("d_out")
    wanted = [x for x in grown.values() if x.requires_grad]
    out = call(**grown) if point.op == "backward" else None

    def run_backward():
        with forced(point, launch):
            if out is None:
                return torch.autograd.grad(call(**grown), wanted, d_out)
            return torch.autograd.grad(out, wanted, d_out, retain_graph=True)

    return run_backward


def outcome(
    call: Callable[..., Tensor],
    point: Point,
    named: dict[str, Tensor],
    dtype: torch.dtype | None = None,
    launch: str = "",
) -> dict[str, Tensor]:
    """Output and gradients by name, in `dtype` where that is given."""
    cast = {n: x if dtype is None else x.to(dtype) for n, x in named.items()}
    with forced(point, launch):
        if point.op in ("forward", "decode"):
            with torch.no_grad():
                return {"out": call(**cast)}
        grown = leaves(cast)
        d_out = grown.pop("d_out")
        out = call(**grown)
        wanted = {n: x for n, x in grown.items() if x.requires_grad}
        gradients = torch.autograd.grad(out, list(wanted.values()), d_out)
    return {"out": out.detach(), **dict(zip(wanted, gradients, strict=True))}


@contextmanager
def dirty_memory():
    """Outputs hold NaN, or 77, until a kernel writes them."""
    empty, new_empty = torch.empty, Tensor.new_empty

    def filled(function):
        def call(*args, **kwargs):
            out = function(*args, **kwargs)
            return out.fill_(math.nan if out.is_floating_point() else 77)

        return call

    torch.empty, Tensor.new_empty = filled(empty), filled(new_empty)  # type: ignore[method-assign]
    try:
        yield
    finally:
        torch.empty, Tensor.new_empty = empty, new_empty  # type: ignore[method-assign]
