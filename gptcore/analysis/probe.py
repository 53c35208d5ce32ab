"""Every place of a model where hardware would round, seen while the model runs.

The places are those of `gptcore.quantize.Points` (queries, scores, what the activation writes, ...), as they arrive
there, before the model itself rounds. Kinds of attention and mlp without such places show their input and output. To
them come the residual stream after each block, the embedding that enters the first one, and the logits.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from ..attention.scored import ScoredAttention
from ..data import Batch
from ..kernel_choice import Kernelled
from ..masking import CausalMask
from ..model import GPT
from ..quantize import Points, RoundActivation

PARTS = ("attn", "mlp")
SCORES, WEIGHTS = "scores", "weights"  # places with a row of keys for every query


@dataclass(frozen=True)
class Place:
    """Where values were seen; `layer` is None outside of the layers."""

    layer: int | None
    label: str

    def __str__(self) -> str:
        return self.label if self.layer is None else f"h.{self.layer}.{self.label}"


# Of a place: its values, and which of them count; None: all. What does not count is zero.
Take = Callable[[Place, Tensor, Tensor | None], None]


class Probe:
    """While entered, gives everything that passes a place of `model` to `take`, as often as it passes there.

    Many places exist only where a part is computed step by step, not by one fused kernel: it is, meanwhile.
    """

    def __init__(self, model: GPT, take: Take):
        self.model, self.take = model, take
        self._kernels = [(module, module.kernel) for module in model.modules() if isinstance(module, Kernelled)]
        self._layer = 0
        self._handles: list[Any] = []
        self._opened: list[tuple[Points, str]] = []

    def __enter__(self) -> "Probe":
        for module, _ in self._kernels:
            module.kernel = "reference"
        blocks: Any = self.model.transformer.h
        for i, block in enumerate(blocks):
            self._handles.append(block.register_forward_pre_hook(self._entering(i)))
            self._handles.append(block.register_forward_hook(lambda _, args, out: self._see("stream", out)))
        for part in PARTS:  # layers that share parameters hold the same module
            for module in dict.fromkeys(getattr(block, part) for block in blocks):
                self._hook_part(part, module)
        self._handles.append(
            self.model.lm_head.register_forward_hook(lambda _, args, out: self.take(Place(None, "logits"), out, None))
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for module, kernel in self._kernels:
            module.kernel = kernel
        for handle in self._handles:
            handle.remove()
        for points, name in self._opened:
            del points.rounders[name]

    def _entering(self, layer: int) -> Callable[..., None]:
        def note(module: nn.Module, args: tuple[Any, ...]) -> None:
            self._layer = layer
            if layer == 0:
                self.take(Place(None, "embedding"), args[0], None)

        return note

    def _hook_part(self, part: str, module: nn.Module) -> None:
        inside = [child for child in module.modules() if isinstance(child, Points)]
        if not inside:
            handles = (
                module.register_forward_pre_hook(lambda _, args: self._see(f"{part}.input", args[0])),
                module.register_forward_hook(lambda _, args, out: self._see(f"{part}.output", out)),
            )
            self._handles += handles
        for points in inside:

            def note(_: nn.Module, args: tuple[Any, ...]) -> None:
                name, x = args
                self._see(f"{part}.{name}", x, self._live(module, name, x))

            self._handles.append(points.register_forward_pre_hook(note))
        if isinstance(module, ScoredAttention):
            for name in (SCORES, WEIGHTS):
                if name not in module.points:  # a place that rounds nothing makes attention go through it
                    module.points.rounders[name] = nn.Identity()
                    self._opened.append((module.points, name))

    @staticmethod
    def _live(module: nn.Module, name: str, x: Tensor) -> Tensor | None:
        if not isinstance(module, ScoredAttention) or name not in (SCORES, WEIGHTS):
            return None
        T, S = x.shape[-2:]
        return CausalMask(T, S, module.config.window).live_TS(x.device).expand_as(x)

    def _see(self, label: str, x: Tensor, live: Tensor | None = None) -> None:
        self.take(Place(self._layer, label), x, live)


def own_bits(model: GPT) -> dict[Place, int]:
    """Bits of every place that the model rounds by itself, also in layers that share their parameters."""
    blocks: Any = model.transformer.h
    return {
        Place(i, f"{part}.{name}"): rounder.bits
        for i, block in enumerate(blocks)
        for part in PARTS
        for points in getattr(block, part).modules()
        if isinstance(points, Points)
        for name, rounder in points.rounders.items()
        if isinstance(rounder, RoundActivation)
    }


@torch.no_grad()
def watch(model: GPT, batches: Sequence[Batch], dtype: str, take: Take) -> None:
    """Runs the model over the inputs of `batches`, in the arithmetic of its training."""
    device, kind = model.lm_head.weight.device, getattr(torch, dtype)
    with Probe(model, take):
        for x, _ in batches:
            with torch.autocast(device.type, dtype=kind, enabled=kind != torch.float32):
                model(x.to(device))
