"""GPT: token embedding, position, blocks, norm and head. Knows the slots and their order, no kind by name.

Legend: B batch, T tokens, C width, V vocabulary.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .config import GPTConfig
from .errors import UserError
from .ops import Bits, Graph, Pass
from .registry import build, impl

INIT_STD = 0.02  # GPT-2


class Transformer(nn.Module):
    """The parts under GPT-2's prefix `transformer.`: token table, blocks, final norm."""

    def __init__(self, wte: nn.Embedding, h: list[nn.Module], ln_f: nn.Module):
        super().__init__()
        self.wte, self.h, self.ln_f = wte, nn.ModuleList(h), ln_f


class GPT(nn.Module):
    """A causal language model of a configuration whose `vocab_size` is known.

    Parameters are named as in GPT-2 (`transformer.h.0.attn.c_attn.weight`). Initialised as GPT-2: normal(0, 0.02),
    projections into the residual stream smaller by sqrt(2 n_layer), biases zero, norms one.
    """

    def __init__(self, config: GPTConfig):
        super().__init__()
        if config.vocab_size is None:
            raise UserError("model.vocab_size is unknown: prepare the data set, or set model.vocab_size")
        self.config = config
        dims, layers = config.dims(), config.layer_configs()
        widths = {impl(layer.attention).head_width(layer.attention, dims) for layer in layers}
        self.position: Any = build(config.position, dims, frozenset(w for w in widths if w))
        self.transformer = Transformer(
            nn.Embedding(config.vocab_size, config.n_embd),
            [build(layer.block, layer, dims) for layer in layers],
            build(config.output_norm(), config.n_embd, dims),
        )
        self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        if config.tie_embeddings:
            self.lm_head.weight = self.transformer.wte.weight
        self.init_weights()

    @torch.no_grad()
    def init_weights(self) -> None:
        residual_std = INIT_STD / math.sqrt(2 * self.config.n_layer)
        nn.init.normal_(self.lm_head.weight, std=INIT_STD)
        nn.init.normal_(self.transformer.wte.weight, std=INIT_STD)
        for module in self.modules():
            residual = getattr(module, "residual", ())
            for name, child in module.named_children():
                initialise: Any = getattr(child, "init_weights", None)
                if initialise is not None:
                    initialise(residual_std if name in residual else INIT_STD)

    def forward(
        self, idx_BT: Tensor, targets_BT: Tensor | None = None, *, cache: "Cache | None" = None
    ) -> tuple[Tensor, Tensor | None]:
        """Logits (B, T, V), and the mean cross entropy in nats when targets are given (-1 is ignored).

        With a cache the tokens continue those seen before, and the cache takes them up.
        """
        start = cache.length if cache is not None else 0
        end = start + idx_BT.shape[1]
        if end > self.config.block_size:
            raise ValueError(f"{end} tokens do not fit block_size {self.config.block_size}")
        x = self.position.embed(self.transformer.wte(idx_BT), start)
        if self.training and self.config.dropout:
            x = F.dropout(x, self.config.dropout)
        for i, block in enumerate(self.transformer.h):
            x = block(x, self.position, start, cache.layers[i] if cache is not None else None)
        logits = self.lm_head(self.transformer.ln_f(x))
        if cache is not None:
            cache.length = end
        if targets_BT is None:
            return logits, None
        return logits, F.cross_entropy(logits.flatten(0, 1).float(), targets_BT.flatten(), ignore_index=-1)

    def new_cache(self, batch: int, length: int | None = None) -> "Cache | None":
        """Empty decode state for up to `length` tokens (default block_size); None if a layer has no such state."""
        weight = self.lm_head.weight
        length = self.config.block_size if length is None else length
        blocks: Any = self.transformer.h
        layers = [block.attn.new_cache(batch, length, weight.dtype, weight.device) for block in blocks]
        return None if any(layer is None for layer in layers) else Cache(layers)

    def parameter_count(self) -> int:
        """Distinct parameters; a tied head counts once."""
        return sum(p.numel() for p in self.parameters())


class Cache:
    """Decode state of every layer; `length` tokens have been seen."""

    def __init__(self, layers: list[Any]):
        self.layers = layers
        self.length = 0

    def tensors(self) -> list[Tensor]:
        """Everything that is kept, layer by layer."""
        return [tensor for layer in self.layers for tensor in layer.tensors()]

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.tensors())


def declare(config: GPTConfig, run: Pass, bits: Bits | None = None) -> Graph:
    """The operation list of one execution of a model, from its configuration alone.

    `train` holds forward, loss, backward and an AdamW step; `prefill` computes the logits of all positions.
    """
    assert config.vocab_size is not None
    g = Graph(run, bits or Bits(config.bits.weight, config.bits.activation, config.bits.kv))
    dims, B, T, C, V = config.dims(), run.B, run.T, config.n_embd, config.vocab_size
    position, norm = config.position, config.output_norm()
    with g.at("transformer.wte", slot="embedding", kind="tied" if config.tie_embeddings else "untied"):
        table = g.weight("weight", V, C)
        x = g.gather("rows", table, g.tensor("tokens", B, T, role="index"), B, T, C)
    with g.at("position", slot="position", kind=position.kind):  # type: ignore[attr-defined]
        x = impl(position).declare_embed(position, g, x, dims)
    if config.dropout and run.stage == "train":
        x = g.pointwise("embedding_dropout", x, compare=1, mul=1)
    for i, layer in enumerate(config.layer_configs()):
        with g.at(f"transformer.h.{i}", slot="block", kind=layer.block.kind, layer=i):  # type: ignore[attr-defined]
            x = impl(layer.block).declare(layer.block, g, x, layer, dims, position)
    with g.at("transformer.ln_f", slot="norm", kind=norm.kind):  # type: ignore[attr-defined]
        x = impl(norm).declare(norm, g, x, dims)
    with g.at("lm_head", slot="head", kind="tied" if config.tie_embeddings else "untied"):
        head = table if config.tie_embeddings else g.weight("weight", V, C)
        logits = g.matmul("matmul", x, head, (B, T, V), m=B * T, k=C, n=V)
    if run.stage == "train":
        with g.at("loss", slot="loss", kind="cross_entropy"):
            shifted = g.pointwise("shift", logits, g.reduce("max", logits, max=1), role="intermediate", add=1)
            total = g.reduce("sum_exp", shifted, exp=1, add=1)
            g.pointwise("log", total, role="intermediate", log=1, add=1)
        g.add_backward()
        # theta -= lr (decay theta + m / (sqrt(v) + eps)): Loshchilov & Hutter, arXiv 1711.05101, algorithm 2.
        g.add_optimizer("adamw", states=2, mul=8, add=5, sqrt=1, div=1)
    return g
