"""Rounding and integer activations in plain torch: the truth for `kernels.fake_quantise` and `kernels.fixed_point`.

Values are those of the kernels bit for bit; gradients are autograd's, of the function without rounding.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

CURVES = {"gelu": F.gelu, "silu": F.silu, "tanh": torch.tanh, "sigmoid": torch.sigmoid}
RISING = ("gelu", "silu")


def wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def fake_quantise(
    x: Tensor, bits: int, method: str = "symmetric", dim: int | None = None, strength: Tensor | float = 1.0
) -> Tensor:
    values = wide(x.detach())
    tiny = torch.finfo(values.dtype).tiny
    low, high = values.aminmax() if dim is None else values.aminmax(dim=dim, keepdim=True)
    if method == "symmetric":
        scale = (torch.maximum(-low, high) / (2 ** (bits - 1) - 1)).clamp_min(tiny)
        out = torch.round(values / scale) * scale
    else:
        low, high = low.clamp(max=0), high.clamp(min=0)
        scale = ((high - low) / (2**bits - 1)).clamp_min(tiny)
        zero = torch.round(-low / scale)
        out = ((torch.round(values / scale) + zero).clamp(0, 2**bits - 1) - zero) * scale
    weight = strength.to(x.dtype) if isinstance(strength, Tensor) else strength
    return torch.lerp(x.detach(), out.to(x.dtype), weight) + (x - x.detach())


def quantise_rows(x: Tensor, bits: int = 8) -> tuple[Tensor, Tensor]:
    values = x.float()
    scale = (values.abs().amax(-1, keepdim=True) / (2 ** (bits - 1) - 1)).clamp_min(torch.finfo(torch.float32).tiny)
    return torch.round(values / scale).nan_to_num(0.0).to(torch.int8), scale


def _through(x: Tensor, steps: Tensor, curve, unit_in: float, unit_out: float, half: int) -> Tensor:
    """`steps` as value, the gradient of the curve; NaN stays."""
    exact = curve(wide(x).clamp(-half * unit_in, (half - 1) * unit_in)).clamp(-half * unit_out, (half - 1) * unit_out)
    value = (steps * unit_out).masked_fill(x.isnan(), torch.nan)
    return (value + (exact - exact.detach())).to(x.dtype)


def codes(x: Tensor, per_unit: float, bits: int) -> Tensor:
    half = 1 << (bits - 1)
    return torch.round(wide(x.detach()).nan_to_num(0.0) * per_unit).clamp(-half, half - 1).long()


def lut_activation(x: Tensor, entries: Tensor, function: str, *, fraction_in: int, fraction_out: int) -> Tensor:
    half = entries.numel() // 2
    steps = entries[codes(x, 2.0**fraction_in, entries.numel().bit_length() - 1) + half].to(wide(x).dtype)
    return _through(x, steps, CURVES[function], 2.0**-fraction_in, 2.0**-fraction_out, half)


def pwl_activation(x: Tensor, start: Tensor, rise: Tensor, function: str) -> Tensor:
    code = codes(x, 4096.0, 16)
    inside = code.clamp(-(4 << 12), (4 << 12) - 1) + (4 << 12)
    segment, place = inside // 2048, inside % 2048
    line = start.long()[segment] + (rise.long()[segment] * place + 1024) // 2048
    if function in RISING:
        line = line + (code - (4 << 12) + 1).clamp_min(0)
    return _through(x, line.to(wide(x).dtype), CURVES[function], 1 / 4096, 1 / 4096, 1 << 15)
