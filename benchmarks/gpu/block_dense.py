"""Linear layers, MLPs, norms and rotary embedding as `block_forms` asks for them."""

import torch
from torch import Tensor

from kernels import mlp_reference, mlp_work, norms_reference, norms_work
from kernels.roofline import Work

from .block_forms import Draw, Form, Named, Operator, by_compile, given, size_of
from .block_plan import NORMS, BlockPoint
from .contestants import DTYPES

EPS, START = 1e-5, 3


def linear_tensors(p: BlockPoint, draw: Draw) -> Named:
    bias = None if "no bias" in p.options else draw.normal(p["N"])
    return given({"x": draw.normal(p["M"], p["K"]), "w": draw.normal(p["N"], p["K"], scale=p["K"] ** -0.5),
                  "bias": bias})  # fmt: skip


def linear_own(p: BlockPoint, flag: str) -> Form:
    from kernels.mlp import linear_activation

    return lambda x, w, bias=None: linear_activation(x, w, bias, p.variant)


def linear_reference(p: BlockPoint) -> Form:
    return lambda x, w, bias=None: mlp_reference.linear_activation(x, w, bias, p.variant)


def linear_work(p: BlockPoint, direction: str) -> Work:
    bias = "no bias" not in p.options
    work = mlp_work.linear_activation_work(direction, p["M"], p["K"], p["N"], p.variant, size_of(p), bias=bias)
    if p.mode != "forward":
        return work
    unkept = mlp_work.linear_activation_work(direction, p["M"], p["K"], p["N"], "none", size_of(p), bias=bias)
    return Work(work.flops, unkept.bytes, work.exponentials)  # without a backward pass nothing is kept


def activation_of(p: BlockPoint) -> tuple[str, bool]:
    name, _, gated = p.variant.partition(" ")
    return name, bool(gated)


def mlp_tensors(p: BlockPoint, draw: Draw) -> Named:
    (_, gated), C, H = activation_of(p), p["C"], p["H"]
    U, biased = H * (1 + gated), "no bias" not in p.options
    return given({
        "x": draw.normal(p["M"], C),
        "w_up": draw.normal(U, C, scale=C**-0.5), "b_up": draw.normal(U) if biased else None,
        "w_down": draw.normal(C, H, scale=H**-0.5), "b_down": draw.normal(C) if biased else None,
    })  # fmt: skip


def mlp_own(p: BlockPoint, flag: str) -> Form:
    from kernels.mlp import mlp

    act, gated = activation_of(p)
    return lambda x, w_up, w_down, b_up=None, b_down=None: mlp(
        x, w_up, b_up, w_down, b_down, act, gated, recompute=flag == "recompute"
    )


def mlp_reference_form(p: BlockPoint) -> Form:
    act, gated = activation_of(p)
    return lambda x, w_up, w_down, b_up=None, b_down=None: mlp_reference.mlp(x, w_up, b_up, w_down, b_down, act, gated)


def mlp_work_of(p: BlockPoint, direction: str) -> Work:
    act, gated = activation_of(p)
    bias = "no bias" not in p.options
    return mlp_work.mlp_work(direction, p["M"], p["C"], p["H"], act, size_of(p), gated=gated, bias=bias)


# ---- norms


def norm_types(p: BlockPoint) -> tuple[torch.dtype, torch.dtype]:
    """(of x and of parameters, of what is added and of the result)."""
    out = DTYPES[p.dtype]
    return (torch.float32 if "mixed" in p.options else out), out


def norm_tensors(p: BlockPoint, draw: Draw) -> Named:
    stream, out = norm_types(p)
    M, N = p["M"], p["N"]
    x = draw.normal(M, 2, N, dtype=stream)[:, 1] if "strided" in p.options else draw.normal(M, N, dtype=stream)
    weighted = "no weight" not in p.options
    return given({
        "x": x, "y": draw.normal(M, N, dtype=out) if p.op.startswith("add") else None,
        "weight": draw.normal(N, dtype=stream).add_(1) if weighted else None,
        "bias": draw.normal(N, dtype=stream) if weighted and "layer" in p.op else None,
    })  # fmt: skip


def norm_own(p: BlockPoint, flag: str) -> Form:
    from kernels import norms

    return norm_form(p, norms, {"dtype": norm_types(p)[1]})


def norm_form(p: BlockPoint, module, named: dict) -> Form:
    function, added, layer = getattr(module, p.op), p.op.startswith("add"), "layer" in p.op

    def form(x, y=None, weight=None, bias=None):
        return function(x, *((y,) if added else ()), weight, *((bias,) if layer else ()), EPS, **named)

    return form


def norm_reference(p: BlockPoint) -> Form:
    form, out = norm_form(p, norms_reference, {}), norm_types(p)[1]

    def typed(x: Tensor) -> Tensor:
        return x if x.dtype == torch.float64 else x.to(out)

    if p.op.startswith("add"):

        def summed(**named):
            total, normed = form(**named)
            return total, typed(normed)

        return summed
    return lambda **named: typed(form(**named))  # type: ignore[arg-type]


def norm_work_of(p: BlockPoint, direction: str) -> Work:
    stream, out = norm_types(p)
    parameters = 0 if "no weight" in p.options else 1 + ("layer" in p.op)
    norm = norms_work.Norm(p["M"], p["N"], "layer" in p.op, parameters, stream.itemsize, out.itemsize,
                           out.itemsize if p.op.startswith("add") else 0)  # fmt: skip
    return norms_work.norm_work(direction, norm)


# ---- rotary


def rotary_tensors(p: BlockPoint, draw: Draw) -> Named:
    B, T, D, R = p["B"], p["T"], p["D"], p["R"] if p.op == "rotary" else p["D"]
    q, k = (draw.normal(B, T, heads, D).transpose(1, 2) for heads in (p["H"], p["K"]))
    frequency = 10000.0 ** (-torch.arange(0, R, 2, device=draw.device) / R)
    angle = torch.outer(torch.arange(START + T, device=draw.device).float(), frequency)
    named = {"q": q, "k": k, "cos": angle.cos().repeat(1, 2), "sin": torch.cat([-angle.sin(), angle.sin()], 1)}
    if p.op == "rms_norm_rotary":
        named |= {n: draw.normal(D, dtype=torch.float32).add_(1) for n in ("q_weight", "k_weight")}
    return named


def rotary_own(p: BlockPoint, flag: str) -> Form:
    from kernels import rotary

    if flag == "in-place":

        def in_place(q, k, cos, sin):
            rotary.rotary_(q, k, cos, sin, START, p["R"])
            return q, k

        return in_place
    if flag == "projection":

        def projection(q, k, cos, sin):
            (_, H, _, D), K = q.shape, k.shape[1]
            qkv = torch.cat([q.transpose(1, 2).flatten(2), k.transpose(1, 2).flatten(2)], -1)
            qkv = rotary.rotary_projection_(qkv, H, K, D, cos, sin, START, p["R"])
            turned = qkv.unflatten(-1, (H + K, D)).transpose(1, 2)
            return turned[:, :H], turned[:, H:]

        return projection
    return lambda q, k, cos, sin: rotary.rotary(q, k, cos, sin, START, p["R"])


def rotary_reference(p: BlockPoint) -> Form:
    from kernels.rotary import rotary_reference as turned

    return lambda q, k, cos, sin: (turned(q, cos, sin, START, p["R"]), turned(k, cos, sin, START, p["R"]))


def rotary_work_of(p: BlockPoint, direction: str) -> Work:
    from kernels.rotary import rotary_work

    return rotary_work(p["B"], p["H"], p["K"], p["T"], p["D"], p["R"], size_of(p))


def normed_rotary_own(p: BlockPoint, flag: str) -> Form:
    from kernels.rotary_normed import rms_norm_rotary

    return lambda q, k, cos, sin, q_weight, k_weight: rms_norm_rotary(q, k, q_weight, k_weight, cos, sin, START, EPS)


def normed_rotary_reference(p: BlockPoint) -> Form:
    from kernels.rotary import rotary_reference as turned

    def form(q, k, cos, sin, q_weight, k_weight):
        q, k = norms_reference.rms_norm(q, q_weight, EPS), norms_reference.rms_norm(k, k_weight, EPS)
        return tuple(turned(x, cos, sin, START, p["D"]) for x in (q, k))

    return form


def normed_rotary_work(p: BlockPoint, direction: str) -> Work:
    from kernels.rotary_normed import rms_norm_rotary_work

    return rms_norm_rotary_work(direction, p["B"], p["H"], p["K"], p["T"], p["D"], size_of(p))


def _norm(op: str) -> Operator:
    return Operator(norm_tensors, norm_own, norm_reference, norm_work_of, ("x", "y"), lambda p: p["N"],
                    baselines=by_compile(norm_reference))  # fmt: skip


def _sequence(p: BlockPoint) -> int:
    return (p["H"] + p["K"]) * p["T"] * p["D"]


OPERATORS: dict[str, Operator] = {
    "linear": Operator(
        linear_tensors, linear_own, linear_reference, linear_work, ("x",), lambda p: max(p["K"], p["N"]),
        baselines={**by_compile(linear_reference), "mm": lambda p, named: lambda x, w: torch.mm(x, w.t())}),
    "mlp": Operator(mlp_tensors, mlp_own, mlp_reference_form, mlp_work_of, ("x",), lambda p: 2 * p["H"],
                    baselines=by_compile(mlp_reference_form)),
    **{op: _norm(op) for op in NORMS},
    "rotary": Operator(rotary_tensors, rotary_own, rotary_reference, rotary_work_of, ("q", "k"), _sequence,
                       ("cos", "sin"), writes=True, baselines=by_compile(rotary_reference)),
    "rms_norm_rotary": Operator(rotary_tensors, normed_rotary_own, normed_rotary_reference, normed_rotary_work,
                                ("q", "k"), _sequence, ("cos", "sin"), baselines=by_compile(normed_rotary_reference)),
}  # fmt: skip
