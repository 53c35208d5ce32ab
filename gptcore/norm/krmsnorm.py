"""Root-mean-square normalisation with statistics of k chosen entries, on request of their integer codes."""

from typing import Literal

import torch
from torch import nn

from ..config import knob
from ..precision import wide
from ..registry import KindConfig, register
from . import Norm

LARGEST_CODE = {"int8": 2**7 - 1, "int16": 2**15 - 1}
SELECTION_SEED = 0  # one choice for all layers and runs, so that it need not be stored


@register("norm", "krmsnorm")
class KRMSNorm(Norm):
    """x / sqrt(mean(x_i^2 for i among the k chosen) + eps) * weight.

    Codes are round(x_i / step), step the largest chosen magnitude over the largest code; rounding passes gradients
    straight through.
    """

    class Config(KindConfig):
        k: int = knob(10, "entries that are measured, at most", flat=("krmsnorm_num",), ge=1)
        selection: Literal["first", "last", "random"] = knob("last", "which entries", flat=("krmsnorm_selection_type",))
        quantize: Literal["none", "int8", "int16"] = knob(
            "none", "integer codes to measure", flat=("krmsnorm_quantize_type",)
        )
        gain: bool = knob(True, "learned weight", flat=("krmsnorm_enable_gain",))
        eps: float = knob(1e-6, "added to the mean square", flat=("krmsnorm_eps",), gt=0)

    def __init__(self, config, width, dims):
        super().__init__(config, width, dims)
        self.k = min(config.k, width)
        self.weight = nn.Parameter(torch.ones(width)) if config.gain else None
        if config.selection == "random":
            generator = torch.Generator().manual_seed(SELECTION_SEED)
            chosen = torch.randperm(width, generator=generator, device="cpu")[: self.k]
            self.register_buffer("chosen", torch.tensor(sorted(chosen.tolist())), persistent=False)

    def _select(self, x):
        if self.config.selection == "random":
            return x.index_select(-1, self.chosen)
        return x[..., : self.k] if self.config.selection == "first" else x[..., self.width - self.k :]

    def _rounded(self, x):
        largest_code = LARGEST_CODE[self.config.quantize]
        step = x.abs().amax(-1, keepdim=True).clamp_min(1e-30) / largest_code  # a row of zeros divides by something
        return torch.round(x / step) * step

    def forward(self, x):
        part = wide(self._select(x))
        if self.config.quantize != "none":
            part = part + (self._rounded(part) - part).detach()
        scale = torch.rsqrt(part.square().mean(-1, keepdim=True) + self.config.eps)
        y = x * scale
        return (y if self.weight is None else y * self.weight).to(x.dtype)

    @staticmethod
    def declare(config, g, x, dims):
        part = g.view(x, *x.shape[:-1], min(config.k, x.shape[-1]))  # a fixed choice is wiring
        if config.quantize != "none":
            step = g.pointwise("step", g.reduce("largest", part, max=1), role="intermediate", mul=1, recip=1)
            part = g.pointwise("codes", part, step, role="intermediate", mul=1, round=1)
        square = g.reduce("mean_square", part, mul=1, add=1)
        rescale = {} if config.quantize == "none" else {"mul": 2}  # the mean square of codes, times step^2
        counts = {"mul": 1, "add": 1, "rsqrt": 1}
        scale = g.pointwise(
            "rsqrt", square, role="intermediate", **{p: n + rescale.get(p, 0) for p, n in counts.items()}
        )
        weight = [g.weight("weight", x.shape[-1])] if config.gain else []
        return g.pointwise("out", x, scale, *weight, mul=1 + len(weight))
