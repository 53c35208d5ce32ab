"""Which code computes a part of a model: the Triton kernels of `kernels`, or plain torch; and why.

    auto        the kernels on a GPU wherever they compute the very variant asked for, plain torch everywhere else
    triton      the kernels, also in Triton's interpreter (TRITON_INTERPRET=1); UserError where they cannot
    reference   plain torch

The parts are those of `PARTS`; each may be told apart. Triton is imported when the first kernel runs.
"""

import importlib.metadata
import importlib.util
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from kernels.attention_reference import Weighting

from .config import Kernel
from .errors import UserError

Part = Literal["attention", "mlp", "norm", "position", "rounding", "loss"]
PARTS: tuple[Part, ...] = ("attention", "mlp", "norm", "position", "rounding", "loss")
# Versions with what the kernels need; of torch, fp32 sums of 2-byte products on a GPU, which refuse an fp32 sum before.
OLDEST = {"triton": (3, 6), "torch": (2, 10)}


def _missing() -> str | None:
    if importlib.util.find_spec("triton") is None:
        return "the package triton is not installed"
    for name, oldest in OLDEST.items():
        version = importlib.metadata.version(name)
        if tuple(map(int, version.split(".")[:2])) < oldest:
            return f"{name} {version} is older than {oldest[0]}.{oldest[1]}"
    return None


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


class Refused(UserError):
    """The kernels of parts were asked for in vain."""

    def __init__(self, why: str, parts: Sequence[Part]):
        knob = f"train.kernels.{parts[0]}" if len(parts) == 1 else "train.kernel"
        super().__init__(f"train.kernel triton: {why}; {knob}=auto takes plain torch there")
        self.why = why


def choose(
    kernel: Kernel, device: torch.device, dtype: torch.dtype, obstacle: str | None, part: Part = "attention"
) -> Choice:
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
        raise Refused(why, [part])
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


class Kernelled:
    """A module that is, or could be, computed by a kernel. What it may run is told by `use_kernels`."""

    part: Part
    kernel: Kernel = "auto"
    dropout = 0.0  # in training, inside of what the kernel would compute

    def kernel_obstacle(self, dropout: float = 0.0) -> str | None:
        """Why the Triton kernels cannot compute this module with such dropout; None when they can."""
        raise NotImplementedError

    def runs_kernel(self, x: Tensor) -> bool:
        """Whether the kernel computes this call on `x`."""
        return may_run(self.kernel, x) and runs(self.kernel, x, self.kernel_obstacle(), self.part)


def may_run(kernel: Kernel, x: Tensor) -> bool:
    """What `runs` says where the answer is free: no kernel on a CPU unless asked for."""
    return kernel == "triton" or (kernel == "auto" and x.device.type == "cuda")


def runs(kernel: Kernel, x: Tensor, obstacle: str | None, part: Part) -> bool:
    """Whether a kernel computes on `x`. UserError when it is asked for in vain."""
    return may_run(kernel, x) and choose(kernel, x.device, working_type(x), obstacle, part).path == "triton"


@dataclass(frozen=True)
class PartKernels:
    """Where a part of the model runs the same code for the same reason; layer None: outside of the layers."""

    part: Part
    layers: tuple[int | None, ...]
    choice: Choice


def use_kernels(
    model: Any, wanted: Callable[[Part], Kernel], device: torch.device, dtype: torch.dtype
) -> list[PartKernels]:
    """Tells every module of a GPT what it may run, and says what training will. UserError names all that cannot.

    `dtype` is that of matrix products.
    """
    groups: dict[tuple[Part, Choice], dict[int | None, None]] = {}
    refused: dict[str, dict[Part, dict[int | None, None]]] = {}  # by reason
    for layer, module in sorted(_kernelled(model), key=lambda found: PARTS.index(found[1].part)):
        module.kernel = wanted(module.part)
        try:
            choice = _of_module(module, device, dtype)
            groups.setdefault((module.part, choice), {})[layer] = None
        except Refused as error:
            refused.setdefault(error.why, {}).setdefault(module.part, {})[layer] = None
    if refused:
        lines = []
        for why, parts in refused.items():
            where = spans(tuple(*parts.values())) if len(parts) == 1 else ", ".join(parts)
            lines.append(f"{where}: {Refused(why, list(parts))}")
        raise UserError("\n".join(lines))
    return [PartKernels(part, tuple(layers), choice) for (part, choice), layers in groups.items()]


def _kernelled(model: Any) -> Iterator[tuple[int | None, Any]]:
    """(layer, module) of all modules that have a part; layers that share a module name it each."""
    inside: set[nn.Module] = set()
    for i, block in enumerate(model.transformer.h):
        inside.update(block.modules())
        yield from ((i, module) for module in block.modules() if isinstance(module, Kernelled))
    yield from ((None, m) for m in model.modules() if isinstance(m, Kernelled) and m not in inside)


def _of_module(module: Any, device: torch.device, dtype: torch.dtype) -> Choice:
    kernel, part = module.kernel, module.part
    choice = choose(kernel, device, dtype, module.kernel_obstacle(module.dropout), part)
    if choice.path == "reference" and module.dropout:
        without = choose(kernel, device, dtype, module.kernel_obstacle(0.0), part)
        if without.path != choice.path:
            return Choice(choice.path, f"{choice.reason}; {without.path} in evaluation")
    return choice


def spans(layers: Sequence[int | None]) -> str:
    """'layers 0-3, 5, outside of layers'."""
    parts: list[list[int]] = []
    numbers = sorted(i for i in layers if i is not None)
    for i in numbers:
        if parts and parts[-1][-1] == i - 1:
            parts[-1].append(i)
        else:
            parts.append([i])
    words = [f"{p[0]}-{p[-1]}" if len(p) > 1 else str(p[0]) for p in parts]
    if words:
        words[0] = ("layer " if len(numbers) == 1 else "layers ") + words[0]
    return ", ".join(words + ["outside of layers"] * (None in layers))


def described(kernels: Sequence[PartKernels]) -> str:
    """One line: who runs what; layers are named where a part is divided."""
    paths: dict[Choice, list[str]] = {}
    for k in kernels:
        divided = sum(other.part == k.part for other in kernels) > 1
        paths.setdefault(k.choice, []).append(f"{k.part} in {spans(k.layers)}" if divided else k.part)
    return "; ".join(f"{c.path}: {', '.join(parts)} ({c.reason})" for c, parts in paths.items())


def recorded(kernels: Sequence[PartKernels]) -> list[dict[str, Any]]:
    """For run.json."""
    return [
        {"part": k.part, "layers": list(k.layers), "path": k.choice.path, "reason": k.choice.reason} for k in kernels
    ]
