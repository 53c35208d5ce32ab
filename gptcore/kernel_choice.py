"""Which code computes attention: the Triton kernels of `kernels.attention`, or plain torch; and why.

    auto        the kernels on a GPU wherever they compute the very weights asked for, plain torch everywhere else
    triton      the kernels, also in Triton's interpreter (TRITON_INTERPRET=1); UserError where they cannot
    reference   plain torch

Triton is imported when the first kernel runs.
"""

import importlib.metadata
import importlib.util
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from kernels.attention_reference import Weighting

from .errors import UserError

Kernel = Literal["auto", "triton", "reference"]
OLDEST = (3, 6)  # Triton with what the kernels need


def _missing() -> str | None:
    if importlib.util.find_spec("triton") is None:
        return "the package triton is not installed"
    version = importlib.metadata.version("triton")
    old = tuple(map(int, version.split(".")[:2])) < OLDEST
    return f"triton {version} is older than {OLDEST[0]}.{OLDEST[1]}" if old else None


MISSING = _missing()
INTERPRETED = os.environ.get("TRITON_INTERPRET", "").lower() in ("1", "true", "yes", "on")  # as Triton reads it
TYPES = (torch.bfloat16, torch.float16, torch.float32)
NAMES = {dtype: str(dtype).removeprefix("torch.") for dtype in (*TYPES, torch.float64)}
WIDEST = 256  # head width of the launch table
FEW = 8  # queries that the decode kernel packs into one tile with those of the other heads


@dataclass(frozen=True)
class Choice:
    path: Literal["triton", "reference"]
    reason: str


def _platform(device: torch.device, dtype: torch.dtype) -> tuple[str | None, str]:
    """(why no kernel runs here, where kernels run). All of it is constant to torch.compile."""
    if dtype not in TYPES:
        return f"no kernel computes in {NAMES.get(dtype, 'this type')}", ""
    if MISSING:
        return MISSING, ""
    if INTERPRETED:
        if device.type != "cpu" or dtype == torch.bfloat16:
            return f"Triton's interpreter computes {NAMES[dtype]} on {device.type} wrongly", ""
        return None, "Triton's interpreter"
    if device.type != "cuda":
        return f"device {device.type} is no GPU", ""
    if torch.version.hip:
        return "the kernels are for NVIDIA's GPUs", ""
    properties = torch.cuda.get_device_properties(device)
    capability = f"compute capability {properties.major}.{properties.minor}"
    return (f"{capability} is below 8.0", "") if properties.major < 8 else (None, capability)


def choose(kernel: Kernel, device: torch.device, dtype: torch.dtype, obstacle: str | None) -> Choice:
    """What runs; `obstacle`: why the variant has no kernel anywhere. UserError when a kernel is asked for in vain."""
    if kernel == "reference":
        return Choice("reference", "as configured")
    if kernel == "auto" and device.type != "cuda":
        return Choice("reference", f"device {device.type} is no GPU")
    here, where = _platform(device, dtype)
    why = obstacle or here
    if why is None:
        return Choice("triton", where)
    if kernel == "triton":
        raise UserError(f"train.kernel triton: {why}; auto takes plain torch there")
    return Choice("reference", why)


def working_type(x: Tensor) -> torch.dtype:
    """The type that products of `x` are computed in: that of autocast, where it is on."""
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype


def attend(weighting: Weighting, constants: dict[str, Any], q_BHTD, k_BKSD, v_BKSE, scoring: Any) -> Tensor:
    """Weighted values (B, H, T, E) by the kernels; the decode kernel where few queries follow others."""
    from kernels.attention import attention, attention_decode

    mask, dtype = scoring.mask, working_type(q_BHTD)
    q, k, v = (x.to(dtype) for x in (q_BHTD, k_BKSD, v_BKSE))
    step = mask.T <= FEW and mask.S > mask.T and not torch.is_grad_enabled()
    return (attention_decode if step else attention)(
        q, k, v, weighting, scoring.scale, window=mask.window, softcap=scoring.softcap, bias_HTS=scoring.bias_HTS,
        slopes_H=scoring.slopes_H, **constants,
    )  # fmt: skip


@dataclass(frozen=True)
class LayerKernels:
    """Layers that run the same code for the same reason."""

    layers: tuple[int, ...]
    choice: Choice


def use_kernel(model: Any, kernel: Kernel, device: torch.device, dtype: torch.dtype) -> list[LayerKernels]:
    """Tells every layer of a GPT what it may run, and says what training will. UserError names all it cannot.

    `dtype` is that of the products in attention.
    """
    groups: dict[Choice, list[int]] = {}
    refused: dict[str, list[int]] = {}
    for i, block in enumerate(model.transformer.h):
        block.attn.kernel = kernel
        try:
            choice = _of_layer(block.attn, kernel, device, dtype)
            groups.setdefault(choice, []).append(i)
        except UserError as error:
            refused.setdefault(str(error), []).append(i)
    if refused:
        raise UserError("\n".join(f"{spans(layers)}: {message}" for message, layers in refused.items()))
    return [LayerKernels(tuple(layers), choice) for choice, layers in groups.items()]


def _of_layer(attention: Any, kernel: Kernel, device: torch.device, dtype: torch.dtype) -> Choice:
    choice = choose(kernel, device, dtype, attention.kernel_obstacle(attention.dropout))
    if choice.path == "reference" and attention.dropout:
        without = choose(kernel, device, dtype, attention.kernel_obstacle(0.0))
        if without.path != choice.path:
            return Choice(choice.path, f"{choice.reason}; {without.path} in evaluation")
    return choice


def spans(layers: Sequence[int]) -> str:
    """'layers 0-3, 5'."""
    parts: list[list[int]] = []
    for i in layers:
        if parts and parts[-1][-1] == i - 1:
            parts[-1].append(i)
        else:
            parts.append([i])
    text = ", ".join(f"{p[0]}-{p[-1]}" if len(p) > 1 else str(p[0]) for p in parts)
    return ("layer " if len(layers) == 1 else "layers ") + text


def described(kernels: Sequence[LayerKernels]) -> str:
    """One line."""
    parts = [f"{k.choice.path} in {spans(k.layers)} ({k.choice.reason})" for k in kernels]
    return "attention: " + "; ".join(parts)


def recorded(kernels: Sequence[LayerKernels]) -> list[dict[str, Any]]:
    """For run.json."""
    return [{"layers": list(k.layers), "path": k.choice.path, "reason": k.choice.reason} for k in kernels]
