"""What of a model can be rounded after its training, and the rounding itself.

Which weights are matrices is read from the operation list: what is multiplied, or looked up by row. Activations are
rounded at the places that attention and mlp kinds have for it.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from ..config import GPTConfig
from ..model import GPT, declare
from ..ops import Bits, Gather, Matmul, Pass
from ..precision import wide
from ..quantize import Method, RoundActivation, quantize
from ..registry import KindConfig, Strict

Part = Literal["attention", "mlp", "embedding", "other"]
Granularity = Literal["tensor", "channel"]
PARTS: tuple[Part, ...] = ("attention", "mlp", "embedding", "other")
EVERYTHING = "all"


@dataclass(frozen=True)
class Matrix:
    """A weight that is multiplied or looked up. `own_bits`: the width to which the model rounds it by itself."""

    name: str
    part: Part
    shape: tuple[int, ...]
    dim: int  # the dimension that a product sums over; what is left of the others are channels
    own_bits: int | None

    @property
    def short(self) -> str:
        """As in tables: h.0.attn.c_proj."""
        return self.name.removeprefix("transformer.").removesuffix(".weight")


@dataclass(frozen=True)
class Point:
    """One way of rounding; null bits: not rounded. `target` is everything, or the name of the only rounded matrix."""

    weight_bits: int | None = None
    activation_bits: int | None = None
    granularity: Granularity | None = None
    method: Method | None = None
    target: str = EVERYTHING


def matrices_of(config: GPTConfig) -> list[Matrix]:
    """Every matrix of a model once, in the order of its declaration."""
    T = config.block_size
    g = declare(config, Pass("prefill", 1, T, T), Bits(weight=0))  # 0 where a kind fixes no width of its own
    weights, dims = g.weights(), {}
    picked: dict[str, str] = {}  # picks from a stack of matrices -> the stack
    for op in g.ops:
        if not isinstance(op, (Matmul, Gather)):
            continue
        for name in (picked.get(read.name, read.name) for read in op.reads):
            if name not in weights or len(weights[name].shape) < 2:
                continue
            if isinstance(op, Matmul):
                dims[name] = _summed(weights[name].shape, op)
            else:
                dims.setdefault(name, -1)
                if len(weights[name].shape) > 2:
                    picked[op.writes[0].name] = name
    return [Matrix(n, _part(n), weights[n].shape, dim, weights[n].bits or None) for n, dim in dims.items()]


def _summed(shape: tuple[int, ...], op: Matmul) -> int:
    """The dimension that a product sums over. Square ones: stacks are stored (..., in, out), matrices (out, in)."""
    if shape[-1] == shape[-2]:
        return -2 if len(shape) > 2 else -1
    return -2 if shape[-2] == op.k else -1


def _part(name: str) -> Part:
    within = re.match(r"transformer\.h\.\d+\.(attn|mlp)\.", name)
    if within:
        return "attention" if within[1] == "attn" else "mlp"
    return "embedding" if name.startswith(("transformer.wte.", "lm_head.")) else "other"


def rounded(weight: Tensor, matrix: Matrix, point: Point) -> Tensor:
    """`weight` as `point` leaves it, in at least fp32 while rounding."""
    assert point.weight_bits is not None and point.method is not None
    dim = matrix.dim if point.granularity == "channel" else None
    codes, scale, zero = quantize(wide(weight), point.weight_bits, point.method, dim)
    return ((codes - zero) * scale).to(weight.dtype)


def matrix_bytes(matrix: Matrix, point: Point, wide_bits: int) -> int:
    """Codes, packed; for each range a scale of `wide_bits`, and if affine a zero point as wide as a code."""
    assert point.weight_bits is not None
    numel = math.prod(matrix.shape)
    ranges = numel // matrix.shape[matrix.dim] if point.granularity == "channel" else 1
    each = wide_bits + (point.weight_bits if point.method == "affine" else 0)
    return -(-(numel * point.weight_bits + ranges * each) // 8)


def round_activations(model: GPTConfig, bits: int, method: Method, parts: Sequence[Part]) -> GPTConfig:
    """The model with `bits` at every place of an attention or mlp kind where nothing is rounded yet."""

    def filled(where: Any) -> dict[str, Any]:
        return {name: _fill(getattr(where, name), bits) for name in ("attention", "mlp") if name in parts}

    changes: dict[str, Any] = filled(model)
    if model.layers:
        changes["layers"] = [layer.model_copy(update=filled(layer)) for layer in model.layers]
    if not own_places(model):  # otherwise its places were trained with the method of the model
        changes["rounding"] = model.rounding.model_copy(update={"method": method, "range": "token"})
    return model.model_copy(update=changes)


def _fill(config: Strict, bits: int) -> Any:
    update: dict[str, Any] = {}
    for name in type(config).model_fields:
        value = getattr(config, name)
        if isinstance(value, KindConfig):
            update[name] = _fill(value, bits)
        elif isinstance(value, Strict) and getattr(value, "every", bits) is None:
            update[name] = value.model_copy(update={"every": bits})
    return config.model_copy(update=update)


def own_places(model: GPTConfig) -> dict[str, int]:
    """Place -> bits of every activation that the model rounds by itself."""
    with torch.device("meta"):
        modules = dict(GPT(model).named_modules())
    return {
        name.removeprefix("transformer.").replace(".points.rounders.", " "): module.bits
        for name, module in modules.items()
        if isinstance(module, RoundActivation)
    }


def without_places(model: GPTConfig, parts: Sequence[Part]) -> list[str]:
    """Kinds of attention and mlp that have no place for rounding, with their layers."""
    found: dict[str, list[int]] = {}
    for i, layer in enumerate(model.layer_configs()):
        for name in ("attention", "mlp"):
            config: Any = getattr(layer, name)
            if name in parts and not _has_places(config):
                found.setdefault(f"{name} {config.kind}", []).append(i)
    return [f"{kind} (layer {', '.join(map(str, layers))})" for kind, layers in found.items()]


def _has_places(config: Strict) -> bool:
    values = [getattr(config, name) for name in type(config).model_fields]
    return any(
        _has_places(value) if isinstance(value, KindConfig) else isinstance(value, Strict) and hasattr(value, "every")
        for value in values
    )
