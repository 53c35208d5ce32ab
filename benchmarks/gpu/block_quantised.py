"""Products of int8 and ternary weights, rounding, tables, as `block_forms` asks for them."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels import fixed_point_reference, quantised_reference, quantised_work
from kernels.roofline import Work

from .block_forms import Draw, Form, Named, Operator, by_compile, size_of
from .block_plan import BlockPoint
from .contestants import DTYPES, compiled

OUT_STEP = 0.03  # of results rounded to int8
FRACTIONS = {"gelu": (5, 5), "silu": (4, 4), "tanh": (4, 7), "sigmoid": (4, 7)}


def scales(p: BlockPoint, draw: Draw) -> Named:
    """Of tokens and outputs, with a bias; or factors and shifts of outputs, with an integer one."""
    M, N = p["M"], p["N"]
    if p.variant == "int32":
        return {}
    if p.variant == "fixed":
        return {
            "factor": draw.integers(1 << 15, 1 << 16, N, dtype=torch.int32),
            "shift": draw.integers(19, 27, N, dtype=torch.int32),
            "bias": draw.integers(-1000, 1000, N, dtype=torch.int32),
        }
    token, scale, bias = (draw.normal(n, dtype=torch.float32) for n in (M, N, N))
    return {"token": token.abs_().add_(0.05), "scale": scale.abs_().add_(1).mul_(1e-3), "bias": bias}


def result(p: BlockPoint) -> dict:
    return {"out": p.variant} | ({"out_scale": OUT_STEP} if p.variant == "int8" else {})


def int8_tensors(p: BlockPoint, draw: Draw) -> Named:
    return {"x": draw.integers(-128, 128, p["M"], p["K"]), "w": draw.integers(-128, 128, p["N"], p["K"]),
            **scales(p, draw)}  # fmt: skip


def int8_own(p: BlockPoint, flag: str) -> Form:
    from kernels.int8_linear import int8_linear, int8_linear_fixed

    if p.variant == "fixed":
        return lambda x, w, factor, shift, bias: int8_linear_fixed(x, w, factor, shift, bias)
    return lambda x, w, token=None, scale=None, bias=None: int8_linear(x, w, token, scale, bias, **result(p))


def of_sums(p: BlockPoint, x: Tensor, w: Tensor, token=None, scale=None, bias=None, factor=None, shift=None) -> Tensor:
    """By fp64 products, exact below 2^53; then on a CPU, because on a GPU torch divides by a number's inverse."""
    acc = (x.double() @ w.double().T).cpu().long()
    token, scale, bias, factor, shift = (t if t is None else t.cpu() for t in (token, scale, bias, factor, shift))
    if p.variant == "int32":
        return acc.int()
    if p.variant == "fixed":
        return quantised_reference.fixed(acc, factor, shift, bias)
    real = quantised_reference.real(acc, token, scale, bias)
    return quantised_reference.steps(real, OUT_STEP) if p.variant == "int8" else real.to(DTYPES[p.variant])


def int8_reference(p: BlockPoint) -> Form:
    return lambda **named: of_sums(p, **named)


def int8_work(p: BlockPoint, direction: str) -> Work:
    out = "int8" if p.variant == "fixed" else p.variant
    return quantised_work.int8_linear_work(p["M"], p["N"], p["K"], out)


def torchs_int8(p: BlockPoint, named: Named) -> Form:
    def form(x, w, token, scale, bias):
        real = torch._int_mm(x, w.t()).float() * token[:, None] * scale + bias
        return real.to(DTYPES[p.variant])

    return compiled(form)


def in_bf16(p: BlockPoint, named: Named) -> Form:
    """The product in bf16, whose operands are there already."""
    w = named["w"] if "w" in named else quantised_reference.unpack_ternary(named["packed"], p["K"])
    x, w = named["x"].bfloat16(), w.bfloat16()
    return lambda **_: F.linear(x, w)


def ternary_tensors(p: BlockPoint, draw: Draw) -> Named:
    packed = quantised_reference.pack_ternary(draw.integers(-1, 2, p["N"], p["K"]))
    if p.op == "ternary_wide":
        scale, bias = draw.normal(p["N"]), draw.normal(p["N"])
        return {"x": draw.normal(p["M"], p["K"]), "packed": packed, "scale": scale, "bias": bias}
    return {"x": draw.integers(-128, 128, p["M"], p["K"]), "packed": packed, **scales(p, draw)}


def ternary_own(p: BlockPoint, flag: str) -> Form:
    from kernels.ternary_linear import ternary_linear, ternary_linear_fixed

    if p.variant == "fixed":
        return lambda x, packed, factor, shift, bias: ternary_linear_fixed(x, packed, p["K"], factor, shift, bias)
    named = {"out": p.dtype} if p.op == "ternary_wide" else result(p)
    return lambda x, packed, token=None, scale=None, bias=None: ternary_linear(
        x, packed, p["K"], scale, bias, x_scale=token, **named
    )


def ternary_reference(p: BlockPoint) -> Form:
    def form(x, packed, **rest):
        w = quantised_reference.unpack_ternary(packed, p["K"])
        if p.op == "ternary_wide":
            return F.linear(x, w.to(x.dtype)) * rest["scale"] + rest["bias"]
        return of_sums(p, x, w, **rest)

    return form


def ternary_work(p: BlockPoint, direction: str) -> Work:
    wide = p.op == "ternary_wide"
    out = p.dtype if wide else "int8" if p.variant == "fixed" else p.variant
    return quantised_work.ternary_linear_work(p["M"], p["N"], p["K"], out, size_of(p) if wide else 1)


def elements(p: BlockPoint, draw: Draw) -> Named:
    """An activation's are twice as wide, so that some saturate."""
    named = {"x": draw.normal(p["M"], p["N"], scale=1.0 if "quantise" in p.op else 2.0)}
    if p.op == "exp_lut":
        codes = torch.arange(-128, 128, device=draw.device) / 16
        named["entries"] = codes.exp().to(draw.dtype)
    elif p.op in ("lut", "pwl"):
        named |= curve_tables(p.op, p.variant, draw.device)
    return named


def curve_tables(op: str, function: str, device: str) -> Named:
    """A table of 256 entries, or 16 lines from -4 to 4; the function rounded to the nearest step."""
    curve: Any = fixed_point_reference.CURVES[function]
    if op == "pwl":
        knots = torch.round(curve(torch.arange(-8, 9, device=device).double() / 2) * 4096).int()
        return {"start": knots[:-1].clone(), "rise": knots.diff()}
    fraction_in, fraction_out = FRACTIONS[function]
    steps = torch.round(curve(torch.arange(-128, 128, device=device).double() / 2**fraction_in) * 2**fraction_out)
    return {"entries": steps.clamp(-128, 127).to(torch.int8)}


def rounding(p: BlockPoint, module: Any) -> Form:
    dim = None if "whole" in p.options else -1
    return lambda x: module.fake_quantise(x, 8, p.variant, dim)


def rounding_own(p: BlockPoint, flag: str) -> Form:
    from kernels import fake_quantise

    return rounding(p, fake_quantise)


def codes_own(p: BlockPoint, flag: str) -> Form:
    from kernels.fake_quantise import quantise_rows

    return lambda x: quantise_rows(x)


def curve_form(p: BlockPoint, module: Any) -> Form:
    if p.op == "pwl":
        return lambda x, start, rise: module.pwl_activation(x, start, rise, p.variant)
    numbers = dict(zip(("fraction_in", "fraction_out"), FRACTIONS[p.variant], strict=True))
    return lambda x, entries: module.lut_activation(x, entries, p.variant, **numbers)


def curve_own(p: BlockPoint, flag: str) -> Form:
    from kernels import fixed_point

    return curve_form(p, fixed_point)


def exp_own(p: BlockPoint, flag: str) -> Form:
    from kernels.fixed_point import exp_lut

    return lambda x, entries: exp_lut(x, entries, fraction_in=4)


def exp_reference(p: BlockPoint) -> Form:
    return lambda x, entries: entries[fixed_point_reference.codes(x, 16.0, 8) + 128].to(x.dtype)


def curve_work(p: BlockPoint, direction: str) -> Work:
    return quantised_work.fixed_point_work(p["M"] * p["N"], size_of(p), direction, p.variant)


def rounding_work(p: BlockPoint, direction: str) -> Work:
    """The backward pass hands its gradient on."""
    if direction == "backward":
        return Work(0, 0, 0)
    return quantised_work.fake_quantise_work(p["M"] * p["N"], size_of(p), None if "whole" in p.options else -1)


def _columns(p: BlockPoint) -> int:
    return max(p["N"], dict(p.sizes).get("K", 0))


ROUNDED = by_compile(lambda p: rounding(p, fixed_point_reference))
CURVE = by_compile(lambda p: curve_form(p, fixed_point_reference))
OPERATORS: dict[str, Operator] = {
    "int8_linear": Operator(int8_tensors, int8_own, int8_reference, int8_work, ("x", "token"), _columns, exact=True,
                            sums=True, baselines={"int-mm": torchs_int8, "bf16": in_bf16}),
    "ternary_linear": Operator(ternary_tensors, ternary_own, ternary_reference, ternary_work, ("x", "token"), _columns,
                               exact=True, sums=True, baselines={"bf16": in_bf16}),
    "ternary_wide": Operator(ternary_tensors, ternary_own, ternary_reference, ternary_work, ("x",), _columns),
    "fake_quantise": Operator(elements, rounding_own, lambda p: rounding(p, fixed_point_reference), rounding_work,
                              ("x",), _columns, exact=True, baselines=ROUNDED),
    "quantise_rows": Operator(
        elements, codes_own, lambda p: fixed_point_reference.quantise_rows,
        lambda p, _: quantised_work.quantise_rows_work(p["M"] * p["N"], size_of(p)), ("x",), _columns, exact=True),
    **{op: Operator(elements, curve_own, lambda p: curve_form(p, fixed_point_reference), curve_work, ("x",), _columns,
                    exact=True, baselines=CURVE) for op in ("lut", "pwl")},
    "exp_lut": Operator(elements, exp_own, exp_reference, lambda p, _: curve_work(p, "forward"), ("x",), _columns,
                        ("entries",), exact=True),
}  # fmt: skip
