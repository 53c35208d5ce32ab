"""Functional interpolation for relative positions (FIRE: Li et al., arXiv 2310.04418).

A small network of one number, how far back a key lies on a logarithmic scale that ends where the context begins.
"""

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import nn

from ..config import knob
from ..precision import wide_type
from ..registry import KindConfig, register
from . import Position, causal_pairs

# psi(i) is divided by: a floor for values of c or L that training may come to.
SMALLEST = 1e-6


class Curve(nn.Module):
    """f of `heads` heads: bias of (query at i, key at j) is f(psi(i - j) / psi(max(i, L)))."""

    def __init__(self, config, heads: int):
        super().__init__()
        self.config = config
        self.c, self.length = nn.Parameter(torch.empty(1)), nn.Parameter(torch.empty(1))
        widths = [1, *[config.mlp_width] * config.hidden_layers, heads]
        self.layers: Any = nn.ModuleList(nn.Linear(a, b) for a, b in zip(widths, widths[1:], strict=False))

    def init_weights(self, std):
        """Layers as torch has them: the input is of size 1, not of the residual stream's."""
        nn.init.constant_(self.c, self.config.init_c)
        nn.init.ones_(self.length)  # a factor on the initial L, so that steps of usual size move it
        for layer in self.layers:
            layer.reset_parameters()

    def forward(self, distance_TS, query_T1):
        """(H, T, S), computed in the type of `distance_TS`."""
        config, wide = self.config, distance_TS.dtype
        c, L = self.c.to(wide).abs(), self.length.to(wide).abs() * config.init_L
        scale_T1 = torch.log(c * torch.maximum(query_T1, L) + config.log_bias).clamp_min(SMALLEST)
        x_TS1 = (torch.log(c * distance_TS + config.log_bias) / scale_T1).unsqueeze(-1)
        # The first layer reads a single number: products, but no matrix product.
        first, *rest = self.layers
        x = torch.addcmul(first.bias.to(wide), x_TS1, first.weight.to(wide).view(-1))
        for layer in rest:
            x = F.linear(F.relu(x), layer.weight.to(wide), layer.bias.to(wide))
        return (F.relu(x) if config.outermost else x).movedim(-1, 0)


@register("position", "fire", on=("use_fire_embeddings",))
class FIRE(Position):
    """score_ij + f_h(psi(i - j) / psi(max(i, L))), psi(x) = log(c x + 1), f a small MLP, c and L learned."""

    class Config(KindConfig):
        per: Literal["layer", "model"] = knob(
            "layer", "whether every layer learns its own f", flat=(), switch={"shared_fire_embeddings": "model"}
        )
        hidden_layers: int = knob(1, "hidden layers of f", flat=("fire_num_hidden_layers",), ge=0)
        mlp_width: int = knob(32, "their width", flat=("fire_mlp_width",), ge=1)
        outermost: bool = knob(False, "f ends in another ReLU", flat=("fire_outermost_sigma",))
        init_c: float = knob(0.1, "first value of c", flat=("fire_init_c",), gt=0)
        init_L: float = knob(512.0, "first value of L", flat=("fire_init_L",), gt=0)
        log_bias: float = knob(1.0, "what psi adds in its logarithm", flat=("fire_log_bias",), gt=0)

    def __init__(self, config, dims, heads):
        super().__init__(config, dims, heads)
        if config.per == "layer":
            whole = config.model_copy(update={"per": "model"})
            self.layers = nn.ModuleList(FIRE(whole, dims, [h]) for h in heads)
        else:
            counts = sorted({h.count for h in heads if h})
            self.curves = nn.ModuleDict({str(count): Curve(config, count) for count in counts})

    def at(self, layer):
        return self.layers[layer] if self.config.per == "layer" else self

    def bias(self, heads, T, S, start, like):
        key = torch.arange(S, device=like.device, dtype=wide_type(like.dtype))
        query_T1 = key[S - T :, None]
        distance_TS = (query_T1 - key).clamp_min(0)  # keys ahead are masked later, their logarithms must exist
        return self.curves[str(heads)](distance_TS, query_T1 + (start + T - S)).to(like.dtype)

    @staticmethod
    def declare_bias(config, g, heads, T, S):
        scope = [f"layers.{g.layer}"] * (config.per == "layer") + [f"curves.{heads}"]
        with g.at(".".join(scope)):
            c, length, live = g.weight("c", 1), g.weight("length", 1), causal_pairs(T, S)
            widths = [1, *[config.mlp_width] * config.hidden_layers, heads]
            ends = g.tensor("queries", T, 1, role="intermediate")
            scale = g.pointwise("scale", ends, c, length, role="intermediate", mul=1, max=2, add=1, log=1, recip=1)
            x = g.tensor("distance", T, S, role="intermediate", live=live)
            x = g.pointwise("psi", x, c, scale, role="intermediate", mul=2, add=1, log=1)
            for i, (k, n) in enumerate(zip(widths, widths[1:], strict=False)):
                weight, bias = g.weight(f"layers.{i}.weight", n, k), g.weight(f"layers.{i}.bias", n)
                last = i + 1 == len(widths) - 1
                counts = {"max": 1} if not last or config.outermost else {}
                if i:
                    x = g.matmul(
                        f"layer{i}", x, weight, (T, S, n), m=T * S, k=k, n=n, live=live * n, role="intermediate"
                    )  # fmt: skip
                    x = g.pointwise(f"add{i}", x, bias, role="intermediate", add=1, **counts)
                else:
                    spread = g.tensor("spread", T, S, n, role="intermediate", live=live * n)
                    x = g.pointwise("layer0", spread, x, weight, bias, role="intermediate", mul=1, add=1, **counts)
            return g.view(x, heads, T, S)
